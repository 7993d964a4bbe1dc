"""A short round of each fuzzer; ``python -m tests.fuzz`` runs long ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.files import Damager
from tests.fuzz.kills import Killer
from tests.fuzz.sweeps import SweepKiller

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are found by a call of Linux")


def test_damaged_files_end_in_one_line(digits: Path, tmp_path: Path) -> None:
    fuzzer = Damager(tmp_path / "work", digits, seed=1)
    fuzzer.run(40)
    assert fuzzer.failures == []


def test_killed_trainings_end_the_same(digits: Path, tmp_path: Path) -> None:
    fuzzer = Killer(tmp_path / "work", digits, seed=1)
    fuzzer.run(1, ("classifier",))
    assert fuzzer.failures == []
    assert fuzzer.counts["chains that ended bit by bit the same"] == fuzzer.counts["chains"]


def test_disturbed_sweeps_end_the_same(digits: Path, tmp_path: Path) -> None:
    fuzzer = SweepKiller(tmp_path / "work", digits, seed=1)
    fuzzer.run(1)
    assert fuzzer.failures == []
    assert fuzzer.counts["sweeps"]


def test_what_is_executed_or_hangs_is_noticed(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.files.MAX_SECONDS", 1)
    fuzzer = Damager(tmp_path / "work", digits, seed=1)
    for name, read in {
        "executing": (tmp_path / "work" / "executed").touch,
        "computing": lambda: all(iter(lambda: True, False)),
        "waiting": lambda: time.sleep(100),
        "raising": lambda: 1 / 0,
        "crashing": os.abort,
    }.items():
        with monkeypatch.context() as patch:
            if name == "waiting":
                patch.setattr("tests.fuzz.files.MAX_WAIT_SECONDS", 0.5)
            fuzzer._try(name, read, 0)
    said = dict(line.split(":", 1) for line in fuzzer.failures)
    assert list(said) == ["executing", "computing", "waiting", "raising", "crashing"]
    assert said["computing"].startswith(" exit code -9")
    assert said["waiting"].startswith(" hangs")
