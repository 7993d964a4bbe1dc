"""One training with several seeds: a study of a single point, summarized over all scores of the validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.sweep.noise import estimate_mean
from analysis.sweep.results import read_study
from analysis.sweep.run import run_sweep
from analysis.sweep.study_file import declared_study
from backbones.errors import MachineError
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.report.run_dir import best_point, read_curves, write_json
from engine.task import task_of

RESULT_FILE = "repeat.json"


def repeat(
    config: str,
    seeds: Sequence[int],
    work_dir: Path,
    options: Sequence[str],
    gpus: int,
    per_gpu_batch: str | None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Train once for each seed, and summarize the scores of the validation.

    A finished seed is not trained again, an interrupted one is resumed, and one that failed is tried again. The other
    seeds run even if one fails.

    Args:
        config: Config file.
        seeds: Different seeds.
        work_dir: Folder of the study, and of ``repeat.json``.
        options: Overrides as ``key=value``, for all trainings.
        gpus: Number of processes of each training; without GPUs they run on the CPU.
        per_gpu_batch: Option of ``tools/train.py``.
        jobs: Trainings at a time; ``None`` for as many as fit the GPUs, without any one.

    Returns:
        The content of ``repeat.json``, see :func:`summarize_seeds`.

    Raises:
        ConfigError: If an argument is wrong, or the folder is of another experiment.
        MachineError: If a training fails.
        KeyboardInterrupt: On Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP; the trainings have saved and ended.
    """
    parsed = parse_options(list(options))
    metric = task_of(load_config(config, dict(parsed), Launch()).cfg).main_metric
    stated = {"config": config, "options": parsed, "objective": metric, "seeds": list(seeds), "gpus_per_trial": gpus}
    study = declared_study(stated | {"per_gpu_batch": per_gpu_batch}, Path(config), f"Seeds of {Path(config).stem}")
    run_sweep(study, work_dir, resume=True, jobs=jobs, retry=True)
    runs = [one for one in read_study(work_dir).trials if one.seed in seeds]
    finished = {one.seed: one.work_dir for one in runs if one.state == "finished"}
    result = summarize_seeds(config, options, finished)
    if finished:
        write_json(work_dir / RESULT_FILE, result)
    if failed := [f"seed {one.seed} ({one.reason})" for one in runs if one.state == "failed"]:
        kept = f"; {len(finished)} of {len(runs)} are finished and kept" if finished else ""
        raise MachineError(f"{', '.join(failed)} failed, see console.log in the folders{kept}: start again to go on")
    return result


def summarize_seeds(config: str, options: Sequence[str], folders: Mapping[int, Path]) -> dict[str, Any]:
    """Summarize the validation metrics of trainings that differ in the seed.

    Args:
        config: Config file.
        options: Overrides as ``key=value``.
        folders: Work directories by seed.

    Returns:
        ``config``, ``options``, ``runs`` (seed, folder, ``last`` and ``best`` value of each metric) and ``metrics``:
        for each metric that all runs have, ``last`` and ``best`` with ``mean``, ``std`` (of the sample), ``interval``
        (of the mean, 95 % by Student's t; both ``None`` for a single run) and ``values`` in the order of the runs. The
        best is the highest, of a loss the lowest.
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


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The summary as lines for a terminal."""
    seeds = ", ".join(str(run["seed"]) for run in result["runs"])
    count = len(result["runs"])
    lines = [f"{count} run{'s' if count > 1 else ''} of {result['config']}, seed{'s' if count > 1 else ''} {seeds}"]
    width = max([len(name) for name in result["metrics"]] + [len("metric")])
    lines.append(f"{'metric':<{width}}  {'last: mean ± std':>22}  {'95 % of the mean':>22}  {'best: mean ± std':>22}")
    for name, kinds in result["metrics"].items():
        last, best = kinds["last"], kinds["best"]
        between = f"{last['interval'][0]:.4f} to {last['interval'][1]:.4f}" if last["interval"] else "–"
        lines.append(f"{name:<{width}}  {_number(last):>22}  {between:>22}  {_number(best):>22}")
    return lines


def _number(spread: Mapping[str, Any]) -> str:
    if spread["std"] is None:
        return f"{spread['mean']:.4g}"
    return f"{spread['mean']:.4f} ± {spread['std']:.4f}"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    found = estimate_mean(values)
    interval = None if found.t_interval is None else list(found.t_interval)
    return {"mean": found.mean, "std": found.std, "interval": interval, "values": list(values)}
