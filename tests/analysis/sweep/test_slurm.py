"""Trainings as jobs of SLURM: its programs are stood in for by scripts that keep jobs as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import analysis.sweep.run
from analysis.sweep.executors import SlurmExecutor
from analysis.sweep.study_file import read_study_file
from analysis.sweep.trainings import Training
from backbones.errors import MachineError
from engine.report.run_dir import read_json
from tests.analysis.sweep.conftest import LR, write_study

SBATCH = """#!/usr/bin/env bash
# Runs the job at once, in the background; its state is a file.
for word in "$@"; do
    case $word in --job-name=*) name=${word#*=} ;; --wrap=*) wrap=${word#*=} ;; --output=*) output=${word#*=} ;; esac
done
echo "$@" >>JOBS/submitted
echo "RUNNING|0:0" >JOBS/$name
(bash -c "$wrap" >>"$output" 2>&1; code=$?
 [ $code = 0 ] && state=COMPLETED || state=FAILED
 echo "$state|$code:0" >JOBS/$name.new; mv JOBS/$name.new JOBS/$name) </dev/null >/dev/null 2>&1 &
echo 42
"""
SACCT = """#!/usr/bin/env bash
for word in "$@"; do case $word in --name=*) names=${word#*=} ;; esac; done
for name in ${names//,/ }; do [ -f JOBS/$name ] && echo "$name|$(cat JOBS/$name)"; done
exit 0
"""
SCANCEL = """#!/usr/bin/env bash
echo "CANCELLED by 1000|0:15" >JOBS/${1#--name=}
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs, folder = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("sacct", SACCT), ("scancel", SCANCEL)):
        (programs / name).write_text(text.replace("JOBS", str(folder)))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(SlurmExecutor, "poll_seconds", 0.05)
    return folder


def test_a_study_as_jobs(sweep: Any, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ARGS", "--time=1:00:00 --signal=TERM@120")
    study = read_study_file(write_study(tmp_path, space={LR: {"grid": [1e-2, 7]}}, seeds=1, gpus_per_trial=16))
    analysis.sweep.run.run_sweep(study, sweep.work_dir, jobs=1, slurm="gpu")
    assert [(one.state, one.reason) for one in sweep.result.trials] == [
        ("finished", ""),
        ("failed", "the loss is nan in step 1"),
    ]
    submitted = (jobs / "submitted").read_text().splitlines()
    assert len(submitted) == 2
    words = "--partition=gpu --nodes=2 --ntasks-per-node=1 --gres=gpu:8 --cpus-per-task=64"
    assert words in submitted[0]
    assert submitted[0].startswith("--parsable --requeue --job-name=seed_0-0-")
    assert submitted[0].endswith("--time=1:00:00 --signal=TERM@120")


def training_with_job(folder: Path, job: str, began: float = 0.0) -> Training:
    training = Training(0, 0, 0, folder, "a.py", {})
    training.record = {"state": "running", "starts": [{"began": began, "processes": 1, "job": job}]}
    return training


@pytest.mark.parametrize(
    "line, code",
    [
        ("PENDING|0:0", "runs"),
        ("REQUEUED|0:0", "runs"),
        ("COMPLETED|0:0", 0),
        ("FAILED|75:0", 75),
        ("FAILED|3:0", 3),
        ("TIMEOUT|0:0", 75),
        ("NODE_FAIL|1:0", 75),
        ("CANCELLED by 1000|0:15", -15),
        ("OUT_OF_MEMORY|0:125", -125),
        ("FAILED|0:9", -9),
    ],
)
def test_what_the_accounting_says(jobs: Path, tmp_path: Path, line: str, code: Any) -> None:
    (jobs / "one").write_text(line)
    (ended,) = SlurmExecutor("gpu", 1).ended([training_with_job(tmp_path, "one")])
    assert ("runs" if ended is None else ended.code) == code


def test_a_job_that_was_never_submitted_counts_as_interrupted(jobs: Path, tmp_path: Path) -> None:
    import time

    executor = SlurmExecutor("gpu", 1)
    (ended,) = executor.ended([training_with_job(tmp_path, "lost")])
    assert ended is not None
    assert ended.code is None
    assert executor.ended([training_with_job(tmp_path, "new", time.time())]) == [None]  # not yet in the accounting


def test_a_cancelled_job_is_remembered(jobs: Path, tmp_path: Path) -> None:
    training = training_with_job(tmp_path, "one")
    SlurmExecutor("gpu", 1).stop([training])
    assert (jobs / "one").read_text().startswith("CANCELLED")
    assert read_json(tmp_path / "run.json")["cancelled"] == "one"


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="--slurm gpu: sbatch, sacct, scancel not found"):
        SlurmExecutor("gpu", 1)
