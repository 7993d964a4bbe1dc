"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "engine", "classification", "detection", "segmentation", "demo", "analysis")
NOT_OURS = {".git", ".venv", "data", "work_dirs", "build", "dist"}
LEFT_OUT_OF_PINS = {"opencv-python", "imagecorruptions-imaug"}

# Put together from pieces, so that this file does not hold what it forbids.
REGISTRIES = ("pypi" + r"\.org", "python" + "hosted", r"download\.pytorch\.org" + "/whl", "npm" + r"js\.")
INDEX_OPTIONS = ("--index" + "-url", "--extra-" + "index-url", "--find" + "-links")
PLACES = r"(?<![\w.~*)}\]-])/(?:" + "|".join(("home", "Users", "root", "work", "mnt")) + r")/\w"
FORBIDDEN = re.compile("|".join((*REGISTRIES, *INDEX_OPTIONS, PLACES)))
UNFINISHED = re.compile(r"\b(?:TO" + "DO|FIX" + r"ME)\b")


@cache
def our_files() -> tuple[Path, ...]:
    """Every file that is tracked or about to be; without git, every file outside the ignored folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if path.relative_to(ROOT).parts[0] not in NOT_OURS]
    return tuple(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


def our_lines() -> Iterator[tuple[str, str]]:
    """``(place, line)`` of every text file of ours."""
    for path in our_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def pins() -> dict[str, Requirement]:
    """The lines of requirements.txt that hold for this Python and system, by normalised name."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    parsed = [Requirement(line.partition("  #")[0]) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in parsed if pin.marker is None or pin.marker.evaluate()}


def test_there_are_files() -> None:
    assert {path.name for path in our_files()} >= {"pyproject.toml", "test_house.py", "env.sh"}


def test_no_file_is_called_utils_or_common() -> None:
    found = [path for path in our_files() if path.stem in ("utils", "common")]
    assert not found


def test_no_registry_address_and_no_place_of_one_machine() -> None:
    assert FORBIDDEN.search("see " + "/".join(("", "home", "someone", "data")))
    assert not FORBIDDEN.search("../shared/" + "work/a and work_dirs/" + "root/b")
    found = [f"{place}: {line.strip()}" for place, line in our_lines() if FORBIDDEN.search(line)]
    assert not found


def test_nothing_is_marked_as_unfinished() -> None:
    found = [f"{place}: {line.strip()}" for place, line in our_lines() if UNFINISHED.search(line)]
    assert not found


def test_no_file_is_over_one_mebibyte() -> None:
    found = [(path, path.stat().st_size) for path in our_files() if path.stat().st_size > 2**20]
    assert not found


@pytest.mark.parametrize("folder", [*PACKAGES, "tools"])
def test_no_function_is_over_60_lines(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not found


def test_every_requirement_is_an_exact_pin() -> None:
    assert all(re.fullmatch(r"==[\w.!+]+", str(pin.specifier)) for pin in pins().values())


def test_the_pins_lie_in_the_ranges_of_pyproject() -> None:
    pinned = pins()
    for requirement in project_requirements():
        version = str(pinned[canonicalize_name(requirement.name)].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: pin is {version}"


def test_whatever_a_pinned_package_needs_is_pinned_too() -> None:
    pinned = pins()
    missing = set()
    for name in pinned:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            if wanted and canonicalize_name(need.name) not in {*pinned, *LEFT_OUT_OF_PINS}:
                missing.add(f"{need.name} (for {name})")
    assert not missing


def project_requirements() -> list[Requirement]:
    """Dependencies of pyproject.toml that hold here, and those of ``dev`` and of the extras that it names."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dev = [Requirement(line) for line in project["optional-dependencies"]["dev"]]
    named = [name for one in dev if one.name == project["name"] for name in sorted(one.extras)]
    extras = [line for name in named for line in project["optional-dependencies"][name]]
    parsed = dev + [Requirement(line) for line in project["dependencies"] + extras]
    return [one for one in parsed if one.name != project["name"] and (one.marker is None or one.marker.evaluate())]
