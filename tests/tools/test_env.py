"""``tools/env.sh`` with stand-ins for ``venv`` and ``pip``: when it installs, and what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import PATIENCE

ENV_SH = Path(__file__).resolve().parents[2] / "tools/env.sh"

# `-m venv` makes a folder with this script as its python, `-m pip` writes a line; else it is the real Python.
FAKE_PYTHON = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then
    echo "venv $3" >>"$FAKE_LOG"
    rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; echo "VIRTUAL_ENV='$4'" >"$4/bin/activate"
elif [ "$1 $2" = "-m pip" ]; then
    echo "pip starts" >>"$FAKE_LOG"
    case "${FAKE_PIP:-}" in
        fails) echo "ERROR: No matching distribution found for torch"; exit 1 ;;
        killed) kill -9 $PPID; exit 1 ;;
        slow) sleep 1 ;;
    esac
elif [ -n "${FAKE_OLD:-}" ] && [ "$1" = "-c" ]; then
    exit 1
elif [[ -n "${FAKE_NO_VENV:-}" && "$*" == *ensurepip* ]]; then
    exit 1
else
    exec "$REAL_PYTHON" "$@"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    (root / "tools").mkdir(parents=True)
    shutil.copy(ENV_SH, root / "tools")
    (root / "requirements.txt").write_text("torch==1\n")
    python = root / "python3"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return root


def settings(checkout: Path, extra: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VIRTUAL_ENV")}
    kept["PATH"] = f"{checkout}{os.pathsep}{kept['PATH']}"
    return kept | {"REAL_PYTHON": sys.executable, "FAKE_LOG": str(checkout / "log")} | extra


def source(checkout: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Source env.sh as demo.sh does, from elsewhere, and print the environment that is active afterwards."""
    command = ["bash", "-euo", "pipefail", "-c", '. "$0/tools/env.sh"; echo "$VIRTUAL_ENV"', str(checkout)]
    env = settings(checkout, extra)
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", timeout=PATIENCE)


def log(checkout: Path) -> list[str]:
    """What was started since the last call."""
    path = checkout / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_it_installs_once_and_then_only_activates(checkout: Path) -> None:
    first = source(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(checkout / ".venv")
    assert "making .venv" in first.stderr
    assert log(checkout) == ["venv --clear", "pip starts"]
    second = source(checkout)
    assert second.stdout == first.stdout
    assert second.stderr == ""
    assert log(checkout) == []


def test_new_pins_are_installed_into_the_same_environment(checkout: Path) -> None:
    source(checkout)
    log(checkout)
    (checkout / "requirements.txt").write_text("torch==2\n")
    assert source(checkout).returncode == 0
    assert log(checkout) == ["pip starts"]
    assert source(checkout).stderr == ""


PINS = "torch==1\nruff==1  # dev\nonnx==1 ; python_full_version < '3.11'  # dev\ntriton==1  # GPU\n"


def installed(checkout: Path) -> list[str]:
    return [line.split("==")[0] for line in (checkout / ".venv/pins.txt").read_text().splitlines()]


def test_the_demo_leaves_out_what_the_extras_bring_and_a_later_call_brings_it(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text(PINS)
    gpu = any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg")) or shutil.which("nvidia-smi") is not None
    assert source(checkout, ENV_FOR="demo").returncode == 0
    assert installed(checkout) == (["torch", "triton"] if gpu else ["torch"])
    assert source(checkout, ENV_FOR="demo").stderr == ""
    log(checkout)

    (checkout / "nvidia-smi").touch(mode=0o755)  # a GPU has come
    assert source(checkout, ENV_FOR="demo").returncode == 0
    assert installed(checkout) == ["torch", "triton"]
    assert log(checkout) == ([] if gpu else ["pip starts"])
    assert source(checkout).returncode == 0
    assert installed(checkout) == ["torch", "ruff", "onnx", "triton"]
    assert log(checkout) == ["pip starts"]
    for extra in ({}, {"ENV_FOR": "demo"}):
        assert source(checkout, **extra).stderr == ""


def test_a_moved_checkout_gets_a_new_environment(checkout: Path) -> None:
    source(checkout)
    log(checkout)
    moved = checkout.rename(checkout.with_name("elsewhere"))
    assert source(moved).stdout.strip() == str(moved / ".venv")
    assert log(moved) == ["venv --clear", "pip starts"]


@pytest.mark.parametrize("how", ["fails", "killed"])
def test_an_install_that_broke_off_is_done_again(checkout: Path, how: str) -> None:
    broken = source(checkout, FAKE_PIP=how)
    assert broken.returncode != 0
    if how == "fails":
        assert "error: pip could not install requirements.txt: ERROR: No matching" in broken.stderr
    log(checkout)
    assert source(checkout).returncode == 0
    assert log(checkout) == ["venv --clear", "pip starts"]


def test_an_update_that_broke_off_is_not_taken_for_the_pins_before_it(checkout: Path) -> None:
    source(checkout)
    (checkout / "requirements.txt").write_text("torch==2\n")
    assert source(checkout, FAKE_PIP="fails").returncode != 0
    log(checkout)
    (checkout / "requirements.txt").write_text("torch==1\n")
    assert source(checkout).returncode == 0
    assert log(checkout) == ["venv --clear", "pip starts"]


def test_of_two_runs_at_once_one_installs(checkout: Path) -> None:
    if shutil.which("flock") is None:
        return
    command = ["bash", "-c", '. "$0/tools/env.sh"', str(checkout)]
    env = settings(checkout, {"FAKE_PIP": "slow"})
    runs = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [run.wait(timeout=PATIENCE) for run in runs] == [0, 0, 0]
    assert log(checkout) == ["venv --clear", "pip starts"]


def test_the_environment_behind_a_link_is_not_emptied(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (checkout / ".venv").symlink_to(other)
    run = source(checkout)
    assert run.returncode != 0
    assert ".venv is a link: remove it" in run.stderr
    assert (other / "bin").is_dir()
    assert log(checkout) == []


@pytest.mark.parametrize(
    ("extra", "needle"),
    [
        ({"PYTHON": "no-such-python"}, "no-such-python not found"),
        ({"FAKE_OLD": "1"}, "Python >= 3.10 is needed"),
        ({"FAKE_NO_VENV": "1"}, "python3-venv"),
    ],
)
def test_an_unfit_python_is_one_clear_line(checkout: Path, extra: dict[str, str], needle: str) -> None:
    result = source(checkout, **extra)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert needle in result.stderr
