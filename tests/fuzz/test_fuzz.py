"""A short round of both fuzzers; ``python -m tests.fuzz`` runs long ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz.files import Damager
from tests.fuzz.kills import Killer

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


def test_what_is_executed_or_hangs_is_noticed(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.files.MAX_SECONDS", 0.5)
    fuzzer = Damager(tmp_path / "work", digits, seed=1)
    fuzzer._try("executing", (tmp_path / "work" / "executed").touch, 0)
    fuzzer._try("hanging", lambda: [None for _ in iter(int, 1)], 0)
    fuzzer._try("raising", lambda: 1 / 0, 0)
    fuzzer._try("crashing", lambda: __import__("os").abort(), 0)
    assert [line.split(":")[0] for line in fuzzer.failures] == ["executing", "hanging", "raising", "crashing"]
