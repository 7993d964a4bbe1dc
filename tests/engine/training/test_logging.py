"""Handlers of a run's log: what the console shows, and a log file on a full disk."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from engine.training.logging import MAX_CONSOLE_LINES, TolerantFileHandler, set_up_handlers


def built(console: io.StringIO, file: Path | str) -> logging.Logger:
    """A logger as mmengine makes it."""
    logger = logging.Logger("run")
    for handler in (logging.StreamHandler(console), logging.FileHandler(file, "a")):
        handler.setFormatter(logging.Formatter("- %(message)s"))
        logger.addHandler(handler)
    set_up_handlers(logger)
    return logger


def test_dumps_are_for_the_file_and_warnings_for_both(tmp_path: Path) -> None:
    console = io.StringIO()
    logger = built(console, tmp_path / "run.log")
    dump = "\n".join("line" for _ in range(MAX_CONSOLE_LINES + 1))
    for message in ("a line", "Exp name: run", dump):
        logger.info(message)
    logger.warning(dump)
    assert [handler.encoding for handler in logger.handlers if isinstance(handler, TolerantFileHandler)] == ["utf-8"]
    shown, kept = console.getvalue(), (tmp_path / "run.log").read_text()
    assert [line for line in shown.splitlines() if line.startswith("- ")] == ["- a line", "- line"]
    assert [line for line in kept.splitlines() if line.startswith("- ")] == [
        "- a line",
        "- Exp name: run",
        "- line",
        "- line",
    ]


def test_a_full_disk_prints_no_stack_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = io.StringIO()
    logger = built(console, "/dev/full")
    assert any(isinstance(handler, TolerantFileHandler) for handler in logger.handlers)
    logger.info("a line")
    assert console.getvalue() == "- a line\n"
    assert capsys.readouterr().err == ""
