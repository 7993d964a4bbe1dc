"""One training with several seeds: what each run left, their mean and their spread."""

from __future__ import annotations

import hashlib
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from backbones.errors import UserError
from engine.config.load import load_config, parse_options
from engine.config.world import Launch
from engine.report.run_dir import best_point, read_curves, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STATE = "seed.json"
RESULT = "repeat.json"
SEED = "randomness.seed"
PATIENCE = 150  # seconds for a training to end when it is told to: the launcher lets it save for 120


def repeat(
    config: str, seeds: Sequence[int], work_dir: Path, options: Sequence[str], gpus: int, per_gpu_batch: str | None
) -> dict[str, Any]:
    """Train once for each seed, one after another, and gather the validation metrics.

    A seed that is finished is not trained again, one that was interrupted goes on. A seed that fails does not keep the
    others from running.

    Args:
        config: Config file.
        seeds: All different.
        work_dir: Gets one folder for each seed, and ``repeat.json``.
        options: Overrides as ``key=value``, for all runs.
        gpus: Processes of each training; without GPUs they run on the CPU.
        per_gpu_batch: Passed on to ``tools/train.py``.

    Returns:
        The content of ``repeat.json``, see :func:`summary`.

    Raises:
        UserError: If an argument is wrong, a folder is of another experiment, or a training fails.
        KeyboardInterrupt: On Ctrl-C and SIGTERM; the training has been told to end.
    """
    if gpus < 1 or len(set(seeds)) < len(seeds):
        raise UserError(f"--gpus {gpus}, --seeds {' '.join(map(str, seeds))}: at least 1, and each seed once")
    parsed = parse_options(list(options))
    for key, instead in ((SEED, "--seeds"), ("work_dir", "--work-dir")):
        if key in parsed:
            raise UserError(f"--cfg-options {key} is set for each run: use {instead}")
    mark = _fingerprint(config, parsed)
    folders = {seed: work_dir / f"seed_{seed}" for seed in seeds}
    done = {seed: _is_done(folder, mark) for seed, folder in folders.items()}
    failed: list[str] = []
    for seed, folder in folders.items():
        print(f"seed {seed}: {'done before' if done[seed] else 'training'}, in {folder}", flush=True)
        if done[seed]:
            continue
        write_json(folder / STATE, {"fingerprint": mark, "finished": False})
        code = _run(_command(config, seed, folder, options, gpus, per_gpu_batch))
        done[seed] = code == 0
        write_json(folder / STATE, {"fingerprint": mark, "finished": done[seed]})
        failed += [f"seed {seed} (exit code {code})"] if code else []
    finished = {seed: folder for seed, folder in folders.items() if done[seed]}
    result = summary(config, options, finished)
    if finished:
        write_json(work_dir / RESULT, result)
    if failed:
        kept = f"; {len(finished)} of {len(seeds)} are finished and kept" if finished else ""
        raise UserError(f"{', '.join(failed)} failed, see the output above{kept}: start again to go on")
    return result


def summary(config: str, options: Sequence[str], folders: dict[int, Path]) -> dict[str, Any]:
    """Gather what trainings left.

    Args:
        config: Config file.
        options: Overrides.
        folders: Work directory for each seed.

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


def report(result: dict[str, Any]) -> list[str]:
    """The summary as lines for a terminal."""
    seeds = ", ".join(str(run["seed"]) for run in result["runs"])
    count = len(result["runs"])
    lines = [f"{count} run{'s' if count > 1 else ''} of {result['config']}, seed{'s' if count > 1 else ''} {seeds}"]
    width = max([len(name) for name in result["metrics"]] + [len("metric")])
    lines.append(f"{'metric':<{width}}  {'last: mean ± std':>22}  {'best: mean ± std':>22}")
    for name, kinds in result["metrics"].items():
        lines.append(f"{name:<{width}}  {_number(kinds['last']):>22}  {_number(kinds['best']):>22}")
    return lines


def _number(spread: dict[str, Any]) -> str:
    if spread["std"] is None:
        return f"{spread['mean']:.4g}"
    return f"{spread['mean']:.4f} ± {spread['std']:.4f}"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def _fingerprint(config: str, options: dict[str, Any]) -> str:
    """Digest of all that the result depends on but the seed: how a step is spread changes nothing.

    Raises:
        UserError: If the config or an option is wrong.
    """
    load_config(config, options, Launch())
    plain = Config.fromfile(config, import_custom_modules=False).to_dict()
    settings = {key: value for key, value in options.items() if key != "batch.per_gpu"}
    text = json.dumps([plain, settings], default=repr, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_done(folder: Path, mark: str) -> bool:
    """Whether a seed is finished.

    Raises:
        UserError: If the folder is of another experiment.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    state = read_json(folder / STATE)
    if state.get("fingerprint") != mark:
        raise UserError(f"{folder} holds something else, or a run with other settings: give another --work-dir")
    return bool(state["finished"])


def _command(
    config: str, seed: int, folder: Path, options: Sequence[str], gpus: int, per_gpu_batch: str | None
) -> list[str]:
    launcher = [sys.executable, str(ROOT / "tools/train.py"), config]
    if gpus > 1:
        launcher = ["bash", str(ROOT / "tools/dist_train.sh"), config, str(gpus)]
    more = ["--per-gpu-batch", per_gpu_batch] if per_gpu_batch else []
    resume = ["--resume"] if (folder / "last_checkpoint").is_file() else []
    return [*launcher, "--work-dir", str(folder), *more, *resume, "--cfg-options", *options, f"{SEED}={seed}"]


def _run(command: Sequence[str]) -> int:
    """Run a training on this terminal; whatever ends this program ends the training too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
