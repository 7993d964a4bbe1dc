"""Speed in turns: ``python tools/benchmark.py {network,model,loading,...} ...``.

All sides take turns in one process. Exit code 1 if two sides compute different things; nothing is measured then.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_config_options, run_tool
from engine.launch.exit_codes import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.benchmark.networks import ThroughputResult
    from analysis.benchmark.request import BenchmarkRequest
    from analysis.benchmark.timing import WorkComparison

    Output = tuple[dict[str, Any] | list[dict[str, Any]], Figure | None]  # for --json and --plot

DETECTOR = Path(__file__).resolve().parents[1] / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"
LARGE_DATA = ("shards", "annotations")
DETECTION_WORK = ("evaluation", "masks", "step", "inference")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure speed beside other libraries, in turns.")
    commands = parser.add_subparsers(
        required=True,
        metavar="{network,model,loading,opening,detection,checkpointing,fcmae,corruptions,scaling,roofline,frozen}",
    )

    def add(name: str, run: object, summary: str, rounds: int) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(run=run)
        command.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default: {rounds})")
        command.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON too")
        return command

    network = add("network", run_network, "throughput of a network beside timm's and torchvision's", 10)
    network.add_argument("name", metavar="NAME", help="a registered backbone")
    network.add_argument(
        "--peer", choices=("timm", "timm-compiled", "torchvision", "all", "none"), default="timm", help="other side"
    )
    network.add_argument("--layout", choices=("contiguous", "channels_last"), help="of all sides (default: their own)")
    network.add_argument("--compile", action="store_true", help="compile ours too")
    model = add("model", run_model, "throughput of a config's whole model beside plain PyTorch blocks", 10)
    model.add_argument("name", metavar="CONFIG", help="a config file")
    for command, default in ((network, "224"), (model, "the size of its task's papers")):
        command.add_argument("--train", action="store_true", help="forward and backward instead of forward")
        command.add_argument("--batch", nargs="+", type=int, metavar="N", help="images of a step, one or several")
        command.add_argument(
            "--size", nargs="+", type=int, metavar="N", help=f"side in pixels, one or several (default: {default})"
        )
        add_device_options(command)
        command.add_argument("--plot", metavar="FILE", type=Path, help="plot throughput against batch and size")
    add_loading_options(add("loading", run_loading, "loading a classifier's training images, beside other loaders", 20))
    add_opening_options(add("opening", run_opening, "opening large data sets: time, memory of all processes", 3))
    add_detection_options(add("detection", run_detection, "evaluation, masks, steps and inference beside mmdet's", 5))
    add_checkpointing_options(
        add("checkpointing", run_checkpointing, "time and memory of recomputing a share of the blocks", 5)
    )
    fcmae = add("fcmae", run_fcmae, "a step of masked pre-training, visible units alone against whole maps", 5)
    fcmae.add_argument("name", metavar="NAME", help="a registered ConvNeXt, such as convnextv2_tiny")
    add_step_options(fcmae)
    corruptions = add("corruptions", run_corruptions, "corruptions of images beside imagecorruptions-imaug", 5)
    corruptions.add_argument("folder", metavar="FOLDER", type=Path, help="folder of photographs; 8 of them are used")
    corruptions.add_argument("--names", nargs="+", metavar="NAME", help="corruptions (default: the slowest ones)")
    corruptions.add_argument("--size", type=int, default=224, metavar="N", help="side in pixels")
    scaling = add("scaling", run_scaling, "a data-parallel training step on several numbers of processes", 10)
    scaling.add_argument("name", metavar="NAME", help="a registered backbone")
    scaling.add_argument(
        "--processes", nargs="+", type=int, metavar="N", help="numbers of processes (default: 1 2 4 8)"
    )
    add_step_options(scaling)
    roofline = add("roofline", run_roofline, "a step beside a large matrix product and copy; its slowest kernels", 10)
    roofline.add_argument("name", metavar="NAME", help="a registered backbone")
    roofline.add_argument("--train", action="store_true", help="forward and backward instead of forward")
    add_step_options(roofline)
    frozen = add("frozen", run_frozen, "a step with a frozen backbone against a tuned one; stored features", 10)
    frozen.add_argument("name", metavar="CONFIG", help="a config file")
    add_step_options(frozen)
    return parser.parse_args()


def add_device_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say where and how a network runs."""
    command.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="the last two by autocast")
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    command.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")


def add_loading_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``loading``."""
    command.add_argument("config")
    choices = ("timm", "torchvision", "storage", "all", "none")
    command.add_argument(
        "--peer", choices=choices, default="timm", help="other side; storage: shards, read by others too"
    )
    command.add_argument("--cold", action="store_true", help="with --peer storage: drop files from memory")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="worker processes (default: none)")
    add_config_options(command)


def add_opening_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``opening``."""
    command.add_argument("data", choices=LARGE_DATA, help="made-up parquet shards, or a made-up file of COCO's format")
    command.add_argument("--images", type=int, metavar="N", help="(default: those of ImageNet-22K, of COCO's training)")
    command.add_argument("--processes", type=int, default=2, metavar="N", help="that train (default: 2)")
    command.add_argument("--workers", type=int, default=4, metavar="N", help="of each process (default: 4)")


def add_detection_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``detection``."""
    command.add_argument("work", nargs="*", metavar="WORK", help=f"any of {', '.join(DETECTION_WORK)} (default: all)")
    command.add_argument("--images", type=int, default=1000, help="images of the evaluation (default: 1000)")
    command.add_argument(
        "--config", default=str(DETECTOR), help="model of step and inference, on a ConvNeXt that timm has"
    )
    command.add_argument("--batch", type=int, default=1, help="images of step and inference")
    command.add_argument(
        "--shape",
        nargs=2,
        type=int,
        default=(800, 1333),
        metavar=("H", "W"),
        help="of masks, step and inference, in pixels",
    )
    add_device_options(command)


def add_checkpointing_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``checkpointing``."""
    command.add_argument("name", metavar="NAME", help="a registered backbone")
    command.add_argument("--shares", nargs="+", type=float, default=(0, 0.25, 0.5, 1), help="of recomputed blocks")
    command.add_argument(
        "--modes",
        nargs="+",
        choices=("eager", "plain", "compiled"),
        default=("eager", "compiled"),
        help="the blocks' own choice for the device, plain PyTorch blocks, torch.compile",
    )
    add_step_options(command)
    command.add_argument("--plot", metavar="FILE", type=Path, help="plot time and memory against the share")


def add_step_options(command: argparse.ArgumentParser) -> None:
    """Add the options that describe one training step."""
    command.add_argument("--batch", type=int, default=8, metavar="N", help="images of a step")
    command.add_argument("--size", type=int, default=224, metavar="N", help="side in pixels")
    add_device_options(command)


def main() -> None:
    """Measure, print, and write what the options ask for."""
    args = parse()
    content, figure = args.run(args)

    from engine.report.run_dir import write_result

    if args.json:
        write_result(args.json, content)
    if figure is not None:
        figure.savefig(args.plot)


def positive(option: str, value: int | None) -> None:
    """Refuse a value below 1 of an option; ``None`` passes."""
    from backbones.errors import ConfigError

    if value is not None and value < 1:
        raise ConfigError(f"{option} {value}: a positive number is needed")


def chosen_device(args: argparse.Namespace) -> str:
    """Set the number of threads; return the device, ``cpu`` or ``cuda``."""
    import torch

    positive("--threads", args.threads)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def run_network(args: argparse.Namespace) -> "Output":
    """Measure a network beside its peers."""
    from analysis.benchmark.networks import chosen_peers, measure_network

    settings = {"peers": chosen_peers(args.peer), "layout": args.layout, "compiled": args.compile}
    return run_throughput(args, measure_network, args.batch or [8], args.size or [224], **settings)


def run_model(args: argparse.Namespace) -> "Output":
    """Measure the model of a config; a size of 0 stands for that of its task's papers."""
    from analysis.benchmark.models import measure_model

    return run_throughput(args, measure_model, args.batch or [1], args.size or [0])


def run_throughput(
    args: argparse.Namespace,
    measure: "Callable[[BenchmarkRequest], ThroughputResult]",
    batches: list[int],
    sizes: list[int],
    **settings: Any,
) -> "Output":
    """Measure every batch at every size, print each result at once."""
    from analysis.benchmark.networks import plot_throughput
    from analysis.benchmark.request import BenchmarkRequest

    device = chosen_device(args)
    fixed = {"train": args.train, "dtype": args.dtype, "device": device, "rounds": args.rounds, **settings}
    results = []
    for batch, size in product(batches, sizes):
        results.append(measure(BenchmarkRequest(args.name, batch=batch, shape=(size, size), **fixed)))
        print(results[-1].as_text() + "\n", flush=True)
    return [result.as_dict() for result in results], plot_throughput(results) if args.plot else None


def run_loading(args: argparse.Namespace) -> "Output":
    """Measure the loading of a classifier's training images."""
    from backbones.errors import ConfigError
    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.data.preflight import check_data_paths

    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: 0 or more are needed")
    positive("--rounds", args.rounds)
    cfg = load_config(args.config, parse_options(args.cfg_options), training=False).cfg
    check_data_paths(cfg, ("train",))

    from analysis.benchmark.loading import LOADING_PEERS, STORAGE, measure_loading
    from analysis.benchmark.storage import absent_peers

    peers = {"all": LOADING_PEERS, "none": ()}.get(args.peer, (args.peer,))
    if (args.cold and args.peer != STORAGE) or (args.workers and args.peer == STORAGE):
        raise ConfigError("--cold is for --peer storage, which reads in one process: leave --workers out")
    result = measure_loading(cfg, peers, args.workers, args.rounds, args.cold)
    print(result.as_text(), flush=True)
    for name, reason in absent_peers().items() if args.peer == STORAGE else ():
        print(f"not measured: {name} {reason}")
    return result.as_dict(), None


def run_opening(args: argparse.Namespace) -> "Output":
    """Measure the opening of a large data set."""
    from analysis.benchmark.large_data import LARGE_IMAGES, measure_large_data

    for option in ("rounds", "images", "processes", "workers"):
        positive(f"--{option}", getattr(args, option))
    images = LARGE_IMAGES[args.data] if args.images is None else args.images
    result = measure_large_data(args.data, images, args.processes, args.workers, args.rounds)
    print(result.as_text())
    return result.as_dict(), None


def run_detection(args: argparse.Namespace) -> "Output":
    """Measure parts of a detector's work, or whole steps of any model."""
    from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
    from backbones.errors import ConfigError

    if unknown := set(args.work) - {*DETECTION_WORK}:
        raise ConfigError(f"{', '.join(sorted(unknown))}: choose from {', '.join(DETECTION_WORK)}")
    positive("--images", args.images)
    device, shape = chosen_device(args), tuple(args.shape)
    request = BenchmarkRequest(args.config, True, args.batch, shape, args.dtype, device, rounds=args.rounds)
    check_benchmark_request(request)

    from analysis.benchmark import detection

    measures: dict[str, Callable[[], tuple[WorkComparison, ...]]] = {
        "evaluation": lambda: (detection.compare_evaluation(args.images, args.rounds),),
        "masks": lambda: detection.compare_masks(request.shape, args.rounds),
        "step": lambda: (detection.compare_step(request),),
        "inference": lambda: (detection.compare_step(replace(request, train=False)),),
    }
    environment = benchmark_environment(request)
    print("\n".join(f"{key}: {value}" for key, value in environment.items()))
    comparisons = []
    for work in args.work or DETECTION_WORK:
        for comparison in measures[work]():
            comparisons.append(comparison.as_dict())
            print(f"\n{comparison}", flush=True)
    return {"place": environment, "comparisons": comparisons}, None


def run_checkpointing(args: argparse.Namespace) -> "Output":
    """Measure gradient checkpointing and compilation."""
    from analysis.benchmark.checkpointing import measure_checkpointing

    result = measure_checkpointing(step_request(args), args.shares, args.modes)
    print(result.as_text())
    return result.as_dict(), result.plot() if args.plot else None


def run_fcmae(args: argparse.Namespace) -> "Output":
    """Measure masked pre-training in its two layouts."""
    from analysis.benchmark.masked import measure_masked

    result = measure_masked(step_request(args))
    print(result.as_text())
    return result.as_dict(), None


def run_corruptions(args: argparse.Namespace) -> "Output":
    """Measure corruptions of images."""
    from analysis.benchmark.corruptions import SLOWEST_CORRUPTIONS, measure_corruptions

    positive("--rounds", args.rounds)
    positive("--size", args.size)
    result = measure_corruptions(args.folder, args.names or SLOWEST_CORRUPTIONS, args.size, args.rounds)
    print(result.as_text())
    return result.as_dict(), None


def run_scaling(args: argparse.Namespace) -> "Output":
    """Measure the scaling over processes; without ``--threads``, each has one thread."""
    from analysis.benchmark.scaling import PROCESS_COUNTS, measure_scaling

    args.threads = 1 if args.threads is None else args.threads
    result = measure_scaling(step_request(args), args.processes or PROCESS_COUNTS)
    print(result.as_text())
    return result.as_dict(), None


def run_roofline(args: argparse.Namespace) -> "Output":
    """Measure a network's step beside the limits of its device."""
    from analysis.benchmark.roofline import measure_roofline

    result = measure_roofline(replace(step_request(args), train=args.train))
    print(result.as_text())
    return result.as_dict(), None


def run_frozen(args: argparse.Namespace) -> "Output":
    """Measure what a frozen backbone saves, and what its features on disk would."""
    from analysis.benchmark.frozen import measure_frozen
    from analysis.benchmark.request import benchmark_environment

    request = step_request(args)
    comparisons = measure_frozen(request)
    environment = benchmark_environment(request)
    print("\n".join(f"{key}: {value}" for key, value in environment.items()))
    print("\n".join(f"\n{comparison}" for comparison in comparisons))
    return {"place": environment, "comparisons": [one.as_dict() for one in comparisons]}, None


def step_request(args: argparse.Namespace) -> "BenchmarkRequest":
    """The training step that the options of :func:`add_step_options` describe."""
    from analysis.benchmark.request import BenchmarkRequest

    device, shape = chosen_device(args), (args.size, args.size)
    return BenchmarkRequest(args.name, True, args.batch, shape, args.dtype, device, rounds=args.rounds)


def print_new_command(command: str) -> NoReturn:
    """Print the new command line of a program that became a sub-command, and exit with code 2."""
    options = sys.argv[1:]
    if command == "network" and any(option.endswith(".py") for option in options):
        command = "model"
    line = shlex.join(["python", "tools/benchmark.py", command, *options])
    print(f"error: {sys.argv[0]} is now: {line}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    run_tool(main)
