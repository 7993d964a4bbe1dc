"""Trial: the classifier, the detector and the segmentor of the demo, each trained for a few steps and tested.

The programs are ``tools/train.py`` and ``tools/test.py`` as users run them, on digits in a temporary folder. They run
in processes that one process forks after it has imported their packages: importing takes longer than training here.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from analysis.doctor.examination import CheckResult, Checks, DoctorOptions, bad, ok
from demo.dataset import make_digits
from engine.launch.child import ChildProcess
from engine.report.environment import ROOT, read_text
from engine.report.run_dir import REPORT, read_curves, read_json, read_starts

TRIAL_TIMEOUT_SECONDS = 300.0  # a trial takes about 20 on two idle cores
# Imported before the programs are forked; the tasks' own packages are quick.
PRELOADED = (
    "mmdet.models",
    "mmdet.datasets",
    "mmseg.models",
    "mmseg.datasets",
    "timm",
    "faster_coco_eval",
    "engine.run",
)
ENDED_FILE = "ended.jsonl"
METRIC_TOLERANCE = 1e-3  # relative, between two evaluations of one checkpoint


@dataclass(frozen=True)
class TrialTask:
    """A short training and test of one task.

    Attributes:
        name: Name of the task and of its folder in ``configs``.
        config: File name of the demo's config.
        data: Folder of the digits in the format of the task.
        options: Settings that shorten the training.
        checkpoint: File name of the checkpoint.
    """

    name: str
    config: str
    data: str
    options: tuple[str, ...]
    checkpoint: str


ONE_EPOCH = ("train_cfg.max_epochs=1", "train_cfg.val_interval=1")
SEGMENTATION_SCHEDULE = ("train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2")
# The classifier first: the others start from its backbone.
TRIAL_TASKS = (
    TrialTask("classification", "digits.py", "imagenet", (*ONE_EPOCH, "param_scheduler.1.begin=0"), "epoch_1.pth"),
    TrialTask("detection", "mask_rcnn_digits.py", "coco", ONE_EPOCH, "epoch_1.pth"),
    TrialTask("segmentation", "upernet_digits.py", "ade", SEGMENTATION_SCHEDULE, "iter_2.pth"),
)


@dataclass(frozen=True)
class ProgramEnd:
    """End of a program: exit code, negative for a signal, and duration in seconds."""

    code: int
    seconds: float


def trial_checks(options: DoctorOptions) -> Checks:
    """The trial, unless the options skip it."""
    return {} if options.quick else {"trial": lambda: trial(Path(tempfile.mkdtemp(prefix="doctor_")))}


def trial(
    folder: Path, tasks: Sequence[TrialTask] = TRIAL_TASKS, timeout: float = TRIAL_TIMEOUT_SECONDS
) -> Iterator[CheckResult]:
    """Train and test all tasks.

    Args:
        folder: Empty folder, removed afterwards if no result is bad.
        tasks: Tasks whose results are returned.
        timeout: Seconds for all programs together.
    """
    began = time.monotonic()
    # Ten pictures hold each digit once.
    make_digits(folder / "digits", train_images=10, val_images=10, train_scenes=6, val_scenes=2)
    done = run_trial_process(folder, timeout)
    results = [task_result(task, folder, done) for task in tasks]
    yield from results
    if all(result.level == "ok" for result in results):
        shutil.rmtree(folder, ignore_errors=True)
        yield ok("trial", f"{len(tasks)} tasks trained and tested in {time.monotonic() - began:.0f} s")


def trial_programs(folder: Path) -> dict[str, list[str]]:
    """Command lines of the programs by name, in the order in which they run."""
    found = {}
    first = TRIAL_TASKS[0]
    for task in TRIAL_TASKS:
        config, out = str(ROOT / "configs" / task.name / task.config), folder / task.name
        settings = ["--work-dir", str(out), "--cfg-options", f"data_root={folder / 'digits' / task.data}"]
        begin = [] if task is first else [f"model.backbone.weights={folder / first.name / first.checkpoint}"]
        short = ["batch.size=2", "default_hooks.logger.interval=1", *task.options, *begin]
        found[f"{task.name} train"] = [str(ROOT / "tools/train.py"), config, *settings, *short]
        found[f"{task.name} test"] = [str(ROOT / "tools/test.py"), config, str(out / task.checkpoint), *settings]
    return found


def run_trial_process(folder: Path, timeout: float) -> dict[str, ProgramEnd]:
    """Run all programs in a process of their own.

    Args:
        folder: Folder of the digits, and of the outputs as ``<name>.log``.
        timeout: Seconds until the programs that still run are ended.

    Returns:
        The programs that have ended, by name.
    """
    command = [sys.executable, "-m", __name__, str(folder)]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    # A program that has not ended by then is a result.
    with ChildProcess(command, folder / "trial.log", env=kept, cwd=ROOT) as child, suppress(subprocess.TimeoutExpired):
        child.wait(timeout)
    entries = [json.loads(line) for line in read_text(folder / ENDED_FILE).splitlines()]
    return {entry["name"]: ProgramEnd(entry["code"], entry["seconds"]) for entry in entries}


def task_result(task: TrialTask, folder: Path, done: Mapping[str, ProgramEnd]) -> CheckResult:
    """Result of a task, from the folder of the trial and the programs that have ended, by name."""
    for program in ("train", "test"):
        name = f"{task.name} {program}"
        log = folder / f"{name}.log"
        fix = f"all of its output is in {log}"
        if name not in done:
            return bad(task.name, f"{program} did not end: {_last_log_line(log, folder / 'trial.log')}", fix)
        if done[name].code:
            return bad(task.name, f"{program} failed, code {done[name].code}: {_last_log_line(log)}", fix)
    curves = read_curves(folder / task.name)
    tested = read_json(folder / task.name / "test.json").get("metrics", {})
    losses = [value for _, value in curves.get("train/loss", [])]
    steps = len(losses)
    fix = f"look into {folder}: this should not be, please report it"
    if not losses or not all(map(math.isfinite, losses)):
        return bad(task.name, f"{steps} finite losses were logged", fix)
    seen = {name: curves[f"val/{name}"][-1][1] for name in tested if f"val/{name}" in curves}
    apart = [name for name, value in seen.items() if abs(value - tested[name]) > METRIC_TOLERANCE * max(1, abs(value))]
    if apart or not seen:
        words = [f"{name} {seen[name]:g} in training, {tested[name]:g} in the test" for name in apart] or ["no metrics"]
        return bad(task.name, f"the test does not find what the training found: {words[0]}", fix)
    history = read_starts(folder / task.name)
    if not (folder / task.name / REPORT).is_file() or not history or history[-1].get("outcome") != "finished":
        return bad(task.name, "the training left no report, or one that does not say that it finished", fix)
    seconds = sum(done[f"{task.name} {program}"].seconds for program in ("train", "test"))
    return ok(task.name, f"{steps} steps trained and tested in {seconds:.1f} s; the test finds what the training found")


def _last_log_line(*logs: Path) -> str:
    lines = [line for log in logs for line in read_text(log).strip().splitlines()[-1:]]
    return lines[0] if lines else "it printed nothing"


def run_programs(folder: Path) -> None:
    """Run the programs one after another, each in a forked process, and write how each ended to a file.

    The others run even if one fails, but those that need its checkpoint fail too.
    """
    from engine import mmcv_ops

    mmcv_ops.install()
    for name in PRELOADED:
        importlib.import_module(name)
    for name, arguments in trial_programs(folder).items():
        began = time.monotonic()
        child = os.fork()
        if not child:
            become_program(arguments, folder / f"{name}.log")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with (folder / ENDED_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "code": code, "seconds": time.monotonic() - began}) + "\n")


def become_program(arguments: Sequence[str], log: Path) -> NoReturn:
    """Run a program in this process, with its output in a file, and exit with its exit code."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(number, 1)
    os.dup2(number, 2)
    sys.argv = list(arguments)
    code: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_programs(Path(sys.argv[1]))
