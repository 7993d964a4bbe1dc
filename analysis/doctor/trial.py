"""A trial: the classifier, the detector and the segmentor of the demo, each trained for a few steps and tested.

The programs are ``tools/train.py`` and ``tools/test.py`` as people run them, on digits in a temporary folder. They run
in processes that one process forks off after it has imported what all of them need: importing takes longer than
training here.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import runpy
import shutil
import signal
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

from analysis.doctor.examination import Check, Request, Result, bad, ok
from demo.dataset import make_digits
from engine.report.environment import ROOT, read_text
from engine.report.run_dir import REPORT, read_curves, read_json, read_starts

PATIENCE = 300  # seconds; a trial takes about 20, on two cores that have nothing else to do
# What the programs import and is slow; the tasks' own packages are quick.
SLOW = ("mmdet.models", "mmdet.datasets", "mmseg.models", "mmseg.datasets", "timm", "faster_coco_eval", "engine.run")
ENDED = "ended.jsonl"
CLOSE = 1e-3  # between two evaluations of one checkpoint


@dataclass(frozen=True)
class Task:
    """One of the three.

    Attributes:
        name: For people.
        config: Of the demo.
        data: Folder among the digits.
        options: That make it short.
        checkpoint: What it leaves.
    """

    name: str
    config: str
    data: str
    options: tuple[str, ...]
    checkpoint: str


EPOCH = ("train_cfg.max_epochs=1", "train_cfg.val_interval=1")
STEPS = ("train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2")
# The classifier first: the others begin with its backbone.
TASKS = (
    Task("classification", "digits.py", "imagenet", (*EPOCH, "param_scheduler.1.begin=0"), "epoch_1.pth"),
    Task("detection", "mask_rcnn_digits.py", "coco", EPOCH, "epoch_1.pth"),
    Task("segmentation", "upernet_digits.py", "ade", STEPS, "iter_2.pth"),
)


@dataclass(frozen=True)
class Done:
    """A program that has ended: exit code, negative for a signal; seconds."""

    code: int
    seconds: float


def checks(request: Request) -> list[Check]:
    """The checks of this group."""
    return [] if request.quick else [Check("trial", lambda: trial(Path(tempfile.mkdtemp(prefix="doctor_"))))]


def trial(folder: Path, tasks: Sequence[Task] = TASKS, patience: float = PATIENCE) -> Iterator[Result]:
    """Train and test.

    Args:
        folder: Empty; removed afterwards if all is well.
        tasks: Which.
        patience: Seconds for all of it.
    """
    began = time.monotonic()
    # Ten pictures hold each digit once.
    make_digits(folder / "digits", train_images=10, val_images=10, train_scenes=6, val_scenes=2)
    done = run_jobs(folder, patience)
    results = [result_of(task, folder, done) for task in tasks]
    yield from results
    if all(result.level == "ok" for result in results):
        shutil.rmtree(folder, ignore_errors=True)
        yield ok("trial", f"{len(tasks)} tasks trained and tested in {time.monotonic() - began:.0f} s")


def jobs(folder: Path) -> dict[str, list[str]]:
    """The programs to run, in order: name, and arguments with the program itself first."""
    found = {}
    for task in TASKS:
        config, out = str(ROOT / "configs" / task.name / task.config), folder / task.name
        settings = ["--work-dir", str(out), "--cfg-options", f"data_root={folder / 'digits' / task.data}"]
        begin = [] if task is TASKS[0] else [f"model.backbone.weights={folder / TASKS[0].name / TASKS[0].checkpoint}"]
        short = ["batch.size=2", "default_hooks.logger.interval=1", *task.options, *begin]
        found[f"{task.name} train"] = [str(ROOT / "tools/train.py"), config, *settings, *short]
        found[f"{task.name} test"] = [str(ROOT / "tools/test.py"), config, str(out / task.checkpoint), *settings]
    return found


def run_jobs(folder: Path, patience: float) -> dict[str, Done]:
    """Run all programs.

    Args:
        folder: With the digits; their outputs go to ``<name>.log`` in it.
        patience: Seconds until all that still runs is ended.

    Returns:
        Those that have ended, by name.
    """
    command = [sys.executable, "-m", __name__, str(folder)]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    with (folder / "trial.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=kept, stdout=log, stderr=log, start_new_session=True)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        pass  # what has not ended by now is a finding
    finally:
        _end_group(process.pid)
        process.wait()
    entries = [json.loads(line) for line in read_text(folder / ENDED).splitlines()]
    return {entry["name"]: Done(entry["code"], entry["seconds"]) for entry in entries}


def _end_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def result_of(task: Task, folder: Path, done: Mapping[str, Done]) -> Result:
    """How a task went.

    Args:
        task: The task.
        folder: Of the trial.
        done: What has ended.
    """
    for program in ("train", "test"):
        name = f"{task.name} {program}"
        log = folder / f"{name}.log"
        mend = f"all that it said is in {log}"
        if name not in done:
            return bad(task.name, f"{program} did not end: {_last_line(log, folder / 'trial.log')}", mend)
        if done[name].code:
            return bad(task.name, f"{program} failed, code {done[name].code}: {_last_line(log)}", mend)
    curves = read_curves(folder / task.name)
    tested = read_json(folder / task.name / "test.json").get("metrics", {})
    losses = [value for _, value in curves.get("train/loss", [])]
    steps = len(losses)
    mend = f"look into {folder}: this should not be, please report it"
    if not losses or not all(map(math.isfinite, losses)):
        return bad(task.name, f"{steps} finite losses were logged", mend)
    seen = {name: curves[f"val/{name}"][-1][1] for name in tested if f"val/{name}" in curves}
    apart = [name for name, value in seen.items() if abs(value - tested[name]) > CLOSE * max(1, abs(value))]
    if apart or not seen:
        words = (
            f"{apart[0]} {seen[apart[0]]:g} in training, {tested[apart[0]]:g} in the test" if apart else "no metrics"
        )
        return bad(task.name, f"the test does not find what the training found: {words}", mend)
    history = read_starts(folder / task.name)
    if not (folder / task.name / REPORT).is_file() or not history or history[-1].get("outcome") != "finished":
        return bad(task.name, "the training left no report, or one that does not say that it finished", mend)
    seconds = sum(done[f"{task.name} {program}"].seconds for program in ("train", "test"))
    return ok(task.name, f"{steps} steps trained and tested in {seconds:.1f} s; the test finds what the training found")


def _last_line(*logs: Path) -> str:
    lines = [line for log in logs for line in read_text(log).strip().splitlines()[-1:]]
    return lines[0] if lines else "it said nothing"


def run_all(folder: Path) -> None:
    """Run the programs one after another, each in a process of its own, and note how each ended.

    What fails does not keep the others from running, but what needs its checkpoint fails too.
    """
    from engine import mmcv_ops

    mmcv_ops.install()
    for name in SLOW:
        importlib.import_module(name)
    for name, arguments in jobs(folder).items():
        began = time.monotonic()
        child = os.fork()
        if not child:
            run_program(arguments, folder / f"{name}.log")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with (folder / ENDED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "code": code, "seconds": time.monotonic() - began}) + "\n")


def run_program(arguments: Sequence[str], log: Path) -> NoReturn:
    """Be a program, with its output in a file, to the end of this process."""
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
    run_all(Path(sys.argv[1]))
