"""The frame of the command-line tools, and options that launchers pass to them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backbones.errors import MachineError
from engine.cli import add_launch_options, run_tool
from engine.launch.exit_codes import EXIT_FAILED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [["--local-rank=3"], ["--local_rank", "3"]])
def test_the_rank_of_older_launchers_reaches_the_environment(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_launch_options(parser)
    monkeypatch.setenv("LOCAL_RANK", "0")  # so that what the parser sets is undone
    monkeypatch.delenv("LOCAL_RANK")
    parser.parse_args(arguments)
    assert os.environ["LOCAL_RANK"] == "3"
    monkeypatch.setenv("LOCAL_RANK", "1")  # of the launcher itself
    parser.parse_args(arguments)
    assert os.environ["LOCAL_RANK"] == "1"


def test_names_in_any_script_are_printed_to_any_terminal() -> None:
    program = "from engine.cli import run_tool; run_tool(lambda: print('猫 Käse'))"
    for encoding, expected in (("ascii", b"\\u732b K\\xe4se\n"), ("utf-8", "猫 Käse\n".encode())):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, expected, b"")


def absent_logger() -> None:
    try:
        import absent_package_of_a_logger.client  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise ImportError("advice of the logger's own") from None


def broken_import() -> None:
    raise ImportError("cannot import name 'x' from 'engine'")


def test_an_absent_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_tool(absent_logger)
    assert stopped.value.code == MachineError.exit_code
    line = "error: package 'absent_package_of_a_logger' is missing: pip install absent_package_of_a_logger, or remove"
    assert capsys.readouterr().err.startswith(line)
    with pytest.raises(ImportError, match="cannot import name"):
        run_tool(broken_import)


def test_a_worker_that_died_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """torch says so wherever the process is then."""

    def step() -> None:
        raise RuntimeError("DataLoader worker (pid 25) is killed by signal: Killed. ")

    with pytest.raises(SystemExit) as stopped:
        run_tool(step)
    assert stopped.value.code == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a worker of a data loader (process 25) was ended by a signal (Killed), most often")


@pytest.mark.parametrize("options", [[], ["--no-data-check"]])
def test_an_unexpected_error_without_the_data_check_points_to_it(options: list[str]) -> None:
    program = "from engine.cli import run_tool; run_tool(lambda: [][0])"
    ended = subprocess.run([sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True)
    *_, error, last = ["", *ended.stderr.splitlines()]
    assert ended.returncode == 1
    if options:
        assert error == "IndexError: list index out of range"
        assert last.startswith("the data was not checked (--no-data-check): python tools/check_data.py")
    else:
        assert last == "IndexError: list index out of range"


def test_a_library_finds_no_program_of_ours_under_its_own_name() -> None:
    program = (
        "import sys; sys.path[:] = ['tools', {tools!r}, *sys.path]; from engine.cli import run_tool\n"
        "from importlib.util import find_spec; run_tool(lambda: print(find_spec('tables'), find_spec('engine').name))"
    ).format(tools=str(ROOT / "tools"))
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "None engine\n", ended.stderr
