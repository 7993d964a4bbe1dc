"""What is measured and tried on a GPU that is there for some minutes only: parts by value, each with a time limit.

Every part is a command of its own, so that one that crashes or hangs costs no other. What is known is written after
each part; a second call does the parts that are missing.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from backbones.errors import ConfigError, nearest
from engine.launch.child import ChildProcess
from engine.report.environment import ROOT
from engine.report.run_dir import PLAN, read_json, read_starts, write_json

DAY_RESULTS, DAY_LOG = "gpu_day.json", "gpu_day.log"
BUDGET_SECONDS = 480.0
END_SECONDS = 5.0  # for a part that is told to end
MIN_SECONDS = 10.0  # a part is not begun with less
NEEDED = ("torch", "triton", "timm", "torchvision", "fvcore", "mmengine", "mmcv")
NETWORKS = ("convnext_tiny", "convnext_base", "convnextv2_tiny", "convnextv2_base")
BARS = {False: 1.5, True: 1.4}  # over timm at its best, by whether it trains
AUTO = "batch of each GPU by itself"
MEMORY_PARTS = ("parameters", "gradients", "moments", "averages", "buckets", "activations")  # of a plan
BENCHMARK = (sys.executable, str(ROOT / "tools/benchmark.py"))
AMP = "optim_wrapper.type=AmpOptimWrapper"
BF16 = (AMP, "optim_wrapper.dtype=bfloat16")
SHORT = {  # about 25 to 30 steps
    "classification/digits.py": ("train_cfg.max_epochs=1", "param_scheduler.1.begin=0"),
    "detection/mask_rcnn_digits.py": (
        *("train_cfg.max_epochs=1", "train_cfg.val_interval=1"),
        *("train_dataloader.dataset.every=4", "param_scheduler.0.end=5"),
    ),
    "segmentation/upernet_digits.py": (
        *("train_cfg.max_iters=30", "train_cfg.val_interval=30", "param_scheduler.0.end=5"),
    ),
}
TRAININGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bf16": ("classification/digits.py", BF16),
    "fp16 with scaler": ("classification/digits.py", (AMP, "optim_wrapper.dtype=float16")),
    "detector": ("detection/mask_rcnn_digits.py", BF16),
    "segmentor": ("segmentation/upernet_digits.py", BF16),
    "compiled": ("classification/digits.py", (*BF16, "env_cfg.compile=True")),
    "sharded": ("classification/digits.py", (*BF16, "env_cfg.sharded=True")),
    AUTO: ("classification/digits.py", BF16),
}

Judge = Callable[[Any], dict[str, "Bar"]]


@dataclass(frozen=True)
class Bar:
    """A figure beside the one that was aimed at.

    Attributes:
        value: The figure.
        bar: Limit that was aimed at.
        met: Whether the figure keeps it.
    """

    value: float
    bar: float
    met: bool


@dataclass(frozen=True)
class Part:
    """A part of the day.

    Attributes:
        name: Name.
        command: Program and arguments, started in the root of the project; ``{out}`` stands for the part's own folder.
        seconds: Time limit.
        needs: Modules that it imports.
        judge: Function that compares its result with the bars.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = NEEDED
    judge: Judge = lambda result: {}


def planned_parts() -> list[Part]:
    """All parts, the most valuable ones first; what the time does not reach is for a second call."""
    makes_digits = Part("digits", (sys.executable, str(ROOT / "tools/make_digits.py")), 60, (*NEEDED, "sklearn"))
    trainings = [_training_part(name) for name in TRAININGS]
    return [
        _gpu_tests("kernels", 90, "tests/backbones/kernels"),
        *(_network_part(name, 128, train) for name in ("convnext_tiny", "convnextv2_tiny") for train in (False, True)),
        _gpu_tests("deformable attention", 60, "tests/engine/mmcv_ops/test_ms_deform_attn.py"),
        makes_digits,
        *trainings[:4],
        *(_roofline_part(train) for train in (True, False)),
        *(_mask_rcnn_part(train) for train in (False, True)),
        _measured("masked pre-training", "fcmae", "convnextv2_tiny", "--batch", "64", "--dtype", "bf16"),
        *trainings[4:],
        *(_network_part(name, 128, train) for name in ("convnext_base", "convnextv2_base") for train in (False, True)),
        *(_network_part(name, 256, train) for name in NETWORKS for train in (False, True)),
        _gpu_tests("other GPU tests", 60, "tests/engine/optim", "tests/engine/distributed", "tests/engine/mmcv_ops"),
    ]


def run_gpu_day(
    out: Path, names: Sequence[str] = (), budget: float = BUDGET_SECONDS, parts: Sequence[Part] | None = None
) -> dict[str, Any]:
    """Run the parts that have no result yet, as far as the time allows.

    Args:
        out: Folder of the results, of the log and of the trainings.
        names: Parts that are run, even if they have a result; all that have none, if empty.
        budget: Seconds of all parts together.
        parts: Parts to choose from; all by default.

    Returns:
        The content of the file of results: the environment, and of each part the command, the seconds, how it ended,
        the result and the bars.

    Raises:
        ConfigError: If there is no such part.
    """
    planned = {part.name: part for part in (planned_parts() if parts is None else parts)}
    if unknown := [name for name in names if name not in planned]:
        raise ConfigError(f"no part {unknown[0]!r}{nearest(unknown[0], planned)}: {', '.join(planned)}")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = read_json(out / DAY_RESULTS) or {"parts": {}}
    found["environment"] = gpu_machine()
    until = time.monotonic() + budget
    for part in planned.values():
        if names and part.name not in names:
            continue
        known = found["parts"].get(part.name, {})
        if not names and known.get("code") == 0:
            print(f"{part.name}: done before", flush=True)
            continue
        found["parts"][part.name] = _run(part, out, until - time.monotonic())
        write_json(out / DAY_RESULTS, found)
        print(part_line(part.name, found["parts"][part.name]), flush=True)
    return found


def gpu_machine() -> dict[str, str]:
    """GPU, driver, versions and time, as far as they are known."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    told = {"gpu": _said(query), "commit": _said(["git", "-C", str(ROOT), "rev-parse", "HEAD"])}
    program = (
        "import torch; print(torch.__version__, 'CUDA', torch.version.cuda, 'cuDNN', torch.backends.cudnn.version())"
    )
    told |= {"python": sys.version.split()[0], "torch, CUDA, cuDNN": _said([sys.executable, "-c", program])}
    return told | {"began": datetime.now().astimezone().isoformat(timespec="seconds")}


def part_list() -> list[str]:
    """Name, time limit and command of each part, in lines."""
    return [f"{one.name} ({one.seconds:g} s at most)\n  {shlex.join(one.command)}" for one in planned_parts()]


def part_line(name: str, record: Mapping[str, Any]) -> str:
    """A part in a line for people, and one for each bar."""
    lines = [f"{name}: {record['end']}" + (f", {record['seconds']:.0f} s" if "seconds" in record else "")]
    for what, bar in record.get("bars", {}).items():
        lines.append(f"  {what}: {bar['value']:.3g}, aimed at {bar['bar']:.3g}: {'met' if bar['met'] else 'MISSED'}")
    return "\n".join(lines)


def _run(part: Part, out: Path, left: float) -> dict[str, Any]:
    """Run a part in a process of its own, within its time limit and what is left of the budget."""
    if absent := [name for name in part.needs if find_spec(name) is None]:
        return {"end": f"skipped, {', '.join(absent)} absent"}
    seconds = min(part.seconds, left)
    if seconds < MIN_SECONDS:
        return {"end": "skipped, no time left"}
    place = out / "".join(letter if letter.isalnum() else "_" for letter in part.name)
    place.mkdir(exist_ok=True)
    command = [word.replace("{out}", str(place)) for word in part.command]
    began = time.monotonic()
    code = None
    # The launcher takes the python that is first on the path.
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    with ChildProcess(command, out / DAY_LOG, END_SECONDS, env, ROOT) as child, suppress(TimeoutExpired):
        code = child.wait(seconds)
    record: dict[str, Any] = {"command": shlex.join(command), "seconds": time.monotonic() - began, "code": code}
    if code is None:
        return record | {"end": f"ended after its {seconds:.0f} s"}
    if (file := place / "result.json").is_file():
        record["result"] = json.loads(file.read_text(encoding="utf-8"))
    elif (place / PLAN).is_file():
        record["result"] = _training_result(place)
    if code:
        return record | {"end": f"failed with exit code {code}"}
    bars = {name: vars(bar) for name, bar in part.judge(record.get("result")).items()}
    return record | {"end": "done", **({"bars": bars} if bars else {})}


def _gpu_tests(name: str, seconds: float, *folders: str) -> Part:
    command = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider")
    return Part(name, (*command, *(str(ROOT / one) for one in folders)), seconds, (*NEEDED, "pytest"))


def _roofline_part(train: bool) -> Part:
    options = ("--batch", "128", "--dtype", "bf16", "--rounds", "5", *(["--train"] if train else []))
    return _measured(f"roofline, {_work(train)}", "roofline", "convnext_tiny", *options)


def _mask_rcnn_part(train: bool) -> Part:
    config = str(ROOT / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py")
    options = ("--dtype", "bf16", "--rounds", "5", *(["--train"] if train else []))
    return _measured(f"Mask R-CNN, {_work(train)}", "model", config, *options)


def _work(train: bool) -> str:
    return "training" if train else "inference"


def _measured(name: str, *arguments: str, seconds: float = 45, judge: Judge = lambda result: {}) -> Part:
    return Part(name, (*BENCHMARK, *arguments, "--device", "cuda", "--json", "{out}/result.json"), seconds, judge=judge)


def _network_part(name: str, batch: int, train: bool) -> Part:
    options = ["--batch", str(batch), "--dtype", "bf16", "--rounds", "5", "--peer", "timm-compiled"]
    options += ["--train"] if train else []
    label = f"{name}, {_work(train)}, batch {batch}"
    judge = partial(judge_network, train=train)
    return _measured(label, "network", name, *options, seconds=75, judge=judge)


def judge_network(result: Any, train: bool) -> dict[str, Bar]:
    """The speed and the peak memory of a network beside its fastest peer.

    Args:
        result: JSON of ``tools/benchmark.py network``.
        train: True for training steps, False for inference.
    """
    ours, *peers = result[0]["sides"]
    timed = [one for one in peers if one.get("seconds")]
    if not timed:
        return {}
    speed = min(one["ours_is_times_faster"] for one in timed)
    bars = {"times as fast as the fastest peer": Bar(speed, BARS[train], speed >= BARS[train])}
    memory = [one["peak_memory_bytes"] for one in timed if one.get("peak_memory_bytes")]
    if memory and ours.get("peak_memory_bytes"):
        share = ours["peak_memory_bytes"] / min(memory)
        bars["peak memory over the smallest of the peers"] = Bar(share, 1.0, share <= 1.0)
    return bars


def _training_part(name: str) -> Part:
    config, options = TRAININGS[name]
    # Through the launcher also with one process, so that NCCL is tried; sharding needs its process group.
    command = ["bash", str(ROOT / "tools/dist_train.sh"), str(ROOT / "configs" / config), "1", "--work-dir", "{out}"]
    command += ["--per-gpu-batch", "auto"] if name == AUTO else []
    command += ["--cfg-options", *SHORT[config], *options]
    return Part(f"training, {name}", tuple(command), 60, judge=judge_training)


def _training_result(place: Path) -> dict[str, Any]:
    """Estimated and measured memory of a training, and how it ended."""
    last = (read_starts(place) or [{}])[-1]
    estimate = read_json(place / PLAN).get("memory", {})
    parts = [estimate.get(name) for name in MEMORY_PARTS]
    whole = None if None in parts else sum(parts)
    return {"outcome": last.get("outcome"), "measured": last.get("gpu_memory_bytes"), "estimated": whole}


def judge_training(result: Any) -> dict[str, Bar]:
    """The estimated memory of a training over the measured one; 20 % off is allowed."""
    if not result or not result["measured"] or not result["estimated"]:
        return {}
    share = result["estimated"] / result["measured"]
    return {"estimated memory over the measured one": Bar(share, 1.0, 0.8 <= share <= 1.2)}


def _said(command: Sequence[str]) -> str:
    """The first line of a program's output; why there is none otherwise."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    return (done.stdout.strip() or f"unknown (exit code {done.returncode})").splitlines()[0]
