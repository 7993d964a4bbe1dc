"""Checks of the installation: Python, packages, operators, compiler, code."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from analysis.doctor.examination import CheckResult, Checks, DoctorOptions, bad, notice, ok
from backbones.kernels.cpu import native
from backbones.packages import install_command, is_absent
from convnext_dense import PACKAGES
from engine import mmcv_ops
from engine.report.environment import ROOT, code_state, commit_line

OLDEST_PYTHON, NEWEST_TESTED_PYTHON = (3, 10), (3, 13)
INSTALL_PINS = "pip install --no-deps -r requirements.txt"
MAX_LISTED_PACKAGES = 6  # in a line


def software_checks(options: DoctorOptions) -> Checks:
    """Checks of Python, packages, operators, compilers and the code."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "python": lambda: check_python(sys.version_info[:3]),
        "packages": lambda: check_packages(*requirements(), installed_versions()),
        "OpenCV": lambda: check_opencv(distributions_with("cv2"), is_absent("cv2")),
        "names": lambda: check_namesakes({name: distributions_with(name) for name in PACKAGES}),
        "operators": lambda: (result for device in devices for result in check_operators(device)),
        "torch.compile": lambda: check_compile(compiler(os.environ), importlib.util.find_spec("triton")),
        "CPU inference": lambda: check_inference(native.reason_missing()),
        "code": lambda: check_code(code_state()),
    }


def check_python(version: tuple[int, ...]) -> Iterator[CheckResult]:
    """The interpreter."""
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        yield bad("python", text, "Python 3.10 or newer is needed: PYTHON=python3.12 . tools/env.sh")
    elif version[:2] > NEWEST_TESTED_PYTHON:
        yield notice("python", text, "not tried yet: 3.10 to 3.13 are")
    else:
        yield ok("python", text)


def requirements() -> tuple[dict[str, str], dict[str, Any]]:
    """Exact versions of ``requirements.txt`` and version ranges of ``pyproject.toml``, both by package."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def read(lines: Iterable[str]) -> dict[str, Requirement]:
        stated = (line.partition("  #")[0] for line in lines if not line.startswith("#"))  # without a mark
        parsed = [Requirement(line) for line in stated if line.strip()]
        here = [one for one in parsed if one.marker is None or one.marker.evaluate()]
        return {canonicalize_name(one.name): one for one in here}

    pins = read((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    # tomllib came with Python 3.11.
    needed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    ranges = read(re.findall(r'^\s*"([^"]+)"', needed[1] if needed else "", re.MULTILINE))
    exact = {name: str(pin.specifier).removeprefix("==") for name, pin in pins.items()}
    return exact, {name: one.specifier for name, one in ranges.items()}


def installed_versions() -> dict[str, str]:
    """Version of each installed package."""
    from packaging.utils import canonicalize_name

    return {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions() if one.name}


def check_packages(
    pins: Mapping[str, str], ranges: Mapping[str, Any], installed: Mapping[str, str]
) -> Iterator[CheckResult]:
    """Installed versions compared with the tested ones, and with the ranges that the direct dependencies accept."""
    differ = []
    # Builds for one GPU generation or the CPU carry a suffix: 2.11.0+cu128.
    others = {name: pin for name, pin in pins.items() if installed.get(name, "").partition("+")[0] != pin}
    for name, pin in others.items():
        found, wanted = installed.get(name), ranges.get(name)
        if wanted is None:
            differ.append(f"{name} {found or 'missing'}")
        elif found is None:
            yield bad(name, "is not installed", f"pip install --no-deps {name}=={pin}")
        elif not wanted.contains(found, prereleases=True):
            yield bad(name, f"{found} is {_age(found, pin)} than may do ({wanted})", f"pip install {name}=={pin}")
        else:
            yield notice(name, f"{found} is {_age(found, pin)} than what is tested, {pin}", INSTALL_PINS)
    if differ:
        names = ", ".join(differ[:MAX_LISTED_PACKAGES])
        more = f" and {len(differ) - MAX_LISTED_PACKAGES} more" if len(differ) > MAX_LISTED_PACKAGES else ""
        found = f"{len(differ)} of those that others bring differ from requirements.txt: {names}{more}"
        yield notice("packages", found, INSTALL_PINS)
    yield ok("packages", f"{len(pins) - len(others)} of {len(pins)} as in requirements.txt")


def distributions_with(package: str) -> list[str]:
    """Names of the installed distributions that have a package of this name, without this project's own."""
    found = importlib.metadata.packages_distributions().get(package, ())
    return sorted({name for name in found if name != "convnext-dense"})


def check_opencv(found: list[str], absent: bool) -> Iterator[CheckResult]:
    """Which builds of OpenCV are listed as installed, each with its files in the same place, and whether they are."""
    gui = [name for name in found if not name.endswith("-headless")]
    fix = f"pip uninstall -y {' '.join(found)}; {install_command('cv2')}"
    if absent:
        yield bad("OpenCV", "its files are not there", install_command("cv2"))
    elif len(found) > 1:
        yield bad("OpenCV", f"{len(found)} builds lie over each other in one folder: {', '.join(found)}", fix)
    elif gui:
        yield notice("OpenCV", f"{gui[0]} is the build with windows, which needs libGL", fix)
    else:
        yield ok("OpenCV", " ".join(found) or "not by pip")


def check_namesakes(found: Mapping[str, list[str]]) -> Iterator[CheckResult]:
    """Distributions that have packages of the same names as this project's, by package."""
    for package, names in found.items():
        if names:
            fix = f"pip uninstall {' '.join(names)}, or an environment of this project's own"
            yield bad("names", f"{', '.join(names)} has a package {package!r}, as this project has", fix)
    if not any(found.values()):
        yield ok("names", "no other package that is installed has a name of this project's")


def _age(found: str, pin: str) -> str:
    from packaging.version import Version

    return "newer" if Version(found) > Version(pin) else "older"


def check_operators(device: str, ops: Any = None) -> Iterator[CheckResult]:
    """Whether ``mmcv.ops``, or another module, gives the known answers on the device, ``cpu`` or ``cuda``."""
    kind = mmcv_ops.install()
    if ops is None:
        ops = importlib.import_module("mmcv.ops")
    name = f"operators, {'GPU' if device == 'cuda' else 'CPU'}"
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], device=device)
    kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1].tolist()
    # A plane: the mean of a bin is its value in the middle.
    plane = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    roi = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    pooled = ops.roi_align(plane, roi, (2, 2), 1.0, 2, "avg", True).flatten().tolist()
    wrong = [] if kept == [0, 2] else [f"nms keeps boxes {kept} instead of [0, 2]"]
    if not all(abs(value - right) < 1e-4 for value, right in zip(pooled, (2.5, 4.5, 10.5, 12.5))):
        wrong.append(f"roi_align gives {[round(value, 3) for value in pooled]} instead of [2.5, 4.5, 10.5, 12.5]")
    source = "mmcv's, compiled" if kind == "compiled" else "torchvision's"
    if wrong:
        fix = "build mmcv again for this torch, or take the one without operators: " + INSTALL_PINS
        yield bad(name, f"{source}: {'; '.join(wrong)}", fix)
    else:
        yield ok(name, f"{source}: nms and roi_align give the known answers")


def compiler(environ: Mapping[str, str]) -> str | None:
    """Path of a C++ compiler, found as torch finds it."""
    return shutil.which(environ.get("CXX", "g++")) or shutil.which("clang++")


def check_compile(found: str | None, triton: Any) -> Iterator[CheckResult]:
    """Compiler and Triton for torch.compile (``env_cfg.compile``), which alone needs them."""
    if found is None:
        yield notice("torch.compile", "no C++ compiler", "only env_cfg.compile needs one: install g++")
    elif triton is None:
        yield notice("torch.compile", "compiler present, no Triton", "only GPUs need it: pip install triton")
    else:
        yield ok("torch.compile", f"{Path(found).name} and Triton present")


def check_inference(missing: str | None) -> Iterator[CheckResult]:
    """Optional compiler for faster inference on CPU."""
    if missing is None:
        yield ok("CPU inference", "ConvNeXt's layers compile to one pass each")
    else:
        yield notice("CPU inference", missing, "slower by PyTorch's operators, and as right: gcc and AVX2 fix it")


def check_code(state: Mapping[str, Any]) -> Iterator[CheckResult]:
    """Whether a run can be traced back to a commit."""
    if state.get("commit") and not state.get("dirty"):
        yield ok("code", commit_line(state))
    else:
        fix = "runs keep the difference in code.diff" if state.get("commit") else "runs cannot record their commit"
        yield notice("code", commit_line(state), fix)
