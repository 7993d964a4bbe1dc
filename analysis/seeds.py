"""One training with several seeds: results of each run, their mean and standard deviation."""

from __future__ import annotations

import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones.errors import ConfigError, MachineError
from engine.config.fingerprint import config_values, make_fingerprint
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.launch.child import ChildProcess, interrupt_on_signals
from engine.launch.keeper import GRACE_SECONDS
from engine.report.environment import ROOT
from engine.report.run_dir import best_point, read_curves, read_json, write_json

STATE_FILE = "seed.json"
RESULT_FILE = "repeat.json"
SEED_KEY = "randomness.seed"


def repeat(
    config: str, seeds: Sequence[int], work_dir: Path, options: Sequence[str], gpus: int, per_gpu_batch: str | None
) -> dict[str, Any]:
    """Train once for each seed, one after another, and summarize the validation metrics.

    A finished seed is not trained again, an interrupted one is resumed. The other seeds run even if one fails.

    Args:
        config: Config file.
        seeds: Different seeds.
        work_dir: Parent of one folder for each seed, and of ``repeat.json``.
        options: Overrides as ``key=value``, for all runs.
        gpus: Number of processes of each training; without GPUs they run on the CPU.
        per_gpu_batch: Option of ``tools/train.py``.

    Returns:
        The content of ``repeat.json``, see :func:`summarize_seeds`.

    Raises:
        ConfigError: If an argument is wrong, or a folder is of another experiment.
        MachineError: If a training fails.
        KeyboardInterrupt: On Ctrl-C, SIGTERM and SIGHUP; the training has saved and ended.
    """
    if gpus < 1 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--gpus {gpus}, --seeds {' '.join(map(str, seeds))}: at least 1, and each seed once")
    parsed = parse_options(list(options))
    for key, instead in ((SEED_KEY, "--seeds"), ("work_dir", "--work-dir")):
        if key in parsed:
            raise ConfigError(f"--cfg-options {key} is set for each run: use {instead}")
    mark = _fingerprint(config, parsed)
    folders = {seed: work_dir / f"seed_{seed}" for seed in seeds}
    done = {seed: _is_done(folder, mark) for seed, folder in folders.items()}
    failed: list[str] = []
    for seed, folder in folders.items():
        print(f"seed {seed}: {'done before' if done[seed] else 'training'}, in {folder}", flush=True)
        if done[seed]:
            continue
        write_json(folder / STATE_FILE, {"fingerprint": mark, "finished": False})
        code = _train(_command(config, seed, folder, options, gpus, per_gpu_batch))
        done[seed] = code == 0
        write_json(folder / STATE_FILE, {"fingerprint": mark, "finished": done[seed]})
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        failed += [f"seed {seed} ({how})"] if code else []
    finished = {seed: folder for seed, folder in folders.items() if done[seed]}
    result = summarize_seeds(config, options, finished)
    if finished:
        write_json(work_dir / RESULT_FILE, result)
    if failed:
        kept = f"; {len(finished)} of {len(seeds)} are finished and kept" if finished else ""
        raise MachineError(f"{', '.join(failed)} failed, see the output above{kept}: start again to go on")
    return result


def summarize_seeds(config: str, options: Sequence[str], folders: dict[int, Path]) -> dict[str, Any]:
    """Summarize the validation metrics of trainings that differ in the seed.

    Args:
        config: Config file.
        options: Overrides as ``key=value``.
        folders: Work directories by seed.

    Returns:
        ``config``, ``options``, ``runs`` (seed, folder, ``last`` and ``best`` value of each metric) and ``metrics``:
        for each metric that all runs have, ``last`` and ``best`` with ``mean``, ``std`` (of the sample; ``None`` for a
        single run) and ``values`` in the order of the runs. The best is the highest, of a loss the lowest.
    """
    runs: list[dict[str, Any]] = []
    for seed, folder in folders.items():
        curves = read_curves(folder)
        values = {name.removeprefix("val/"): points for name, points in curves.items() if name.startswith("val/")}
        last = {name: points[-1][1] for name, points in values.items()}
        best = {name: best_point(name, points)[1] for name, points in values.items()}
        runs.append({"seed": seed, "folder": str(folder), "last": last, "best": best})
    names = [name for name in (runs[0]["last"] if runs else {}) if all(name in run["last"] for run in runs)]
    metrics = {name: {kind: _spread([run[kind][name] for run in runs]) for kind in ("last", "best")} for name in names}
    return {"config": config, "options": list(options), "runs": runs, "metrics": metrics}


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The summary as lines for a terminal."""
    seeds = ", ".join(str(run["seed"]) for run in result["runs"])
    count = len(result["runs"])
    lines = [f"{count} run{'s' if count > 1 else ''} of {result['config']}, seed{'s' if count > 1 else ''} {seeds}"]
    width = max([len(name) for name in result["metrics"]] + [len("metric")])
    lines.append(f"{'metric':<{width}}  {'last: mean ± std':>22}  {'best: mean ± std':>22}")
    for name, kinds in result["metrics"].items():
        lines.append(f"{name:<{width}}  {_number(kinds['last']):>22}  {_number(kinds['best']):>22}")
    return lines


def local_launcher(config: str, gpus: int) -> list[str]:
    """The start of the command that trains a config with a number of processes on this machine."""
    if gpus > 1:
        return ["bash", str(ROOT / "tools/dist_train.sh"), config, str(gpus)]
    return [sys.executable, str(ROOT / "tools/train.py"), config]


def _number(spread: dict[str, Any]) -> str:
    if spread["std"] is None:
        return f"{spread['mean']:.4g}"
    return f"{spread['mean']:.4f} ± {spread['std']:.4f}"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def _fingerprint(config: str, options: dict[str, Any]) -> str:
    """Digest of all that the result depends on except for the seed; the batch per GPU does not change the result.

    Raises:
        ConfigError: If the config or an option is wrong.
    """
    load_config(config, options, Launch())
    settings = {key: value for key, value in options.items() if key != "batch.per_gpu"}
    return make_fingerprint(config_values(config), settings)


def _is_done(folder: Path, mark: str) -> bool:
    """Whether a seed is finished.

    Raises:
        ConfigError: If the folder is of another experiment.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    state = read_json(folder / STATE_FILE)
    if state.get("fingerprint") != mark:
        raise ConfigError(f"{folder} holds something else, or a run with other settings: give another --work-dir")
    return bool(state["finished"])


def _command(
    config: str, seed: int, folder: Path, options: Sequence[str], gpus: int, per_gpu_batch: str | None
) -> list[str]:
    more = ["--per-gpu-batch", per_gpu_batch] if per_gpu_batch else []
    resume = ["--resume"] if any(folder.glob("*.pth")) else []
    command = [*local_launcher(config, gpus), "--work-dir", str(folder)]
    return [*command, *more, *resume, "--cfg-options", *options, f"{SEED_KEY}={seed}"]


def _train(command: Sequence[str]) -> int:
    """Run a training on this terminal; if this program is told to stop, so is the training."""
    with interrupt_on_signals(), ChildProcess(command, grace=GRACE_SECONDS) as training:
        return training.wait()
