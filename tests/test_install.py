"""What an installation brings, and another module under the name of one of this project's packages.

Fast and without a network: setuptools is asked for the metadata, and Python is started beside the other module.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from convnext_dense import PACKAGES
from tests.programs import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
TOOL = [str(ROOT / "tools/train.py"), str(ROOT / "configs/classification/digits.py"), "--dry-run"]
PROJECT = (
    *("setup.py", "build_backend.py", "MANIFEST.in", "pyproject.toml", "README.md"),
    *("convnext_dense.py", "convnext_dense_signals.py"),
)
HOOKS = (  # pip calls them in the second way, with the folder of the metadata that another hook has written
    "backend.build_{0}('.')",
    "backend.build_{0}('.', None, 'made/' + backend.prepare_metadata_for_build_{0}('made'))",
)
PLACES = [(version, system) for version in ("3.10", "3.11", "3.14") for system in ("linux", "darwin")]
WITHIN = "from backbones.registry import list_backbones; assert 'convnext_tiny' in list_backbones()"


def python(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in a folder; this project is found last, as an editable install puts it behind ``path``."""
    places = [str(place) for place in (path, ROOT) if place is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stderr.strip().splitlines()[-1]


def stand_in() -> dict[str, str]:
    """Name and version of the empty package that is installed in the place of the GUI build of OpenCV."""
    text = (ROOT / "tools/opencv_stand_in/pyproject.toml").read_text()
    return dict(re.findall(r'^(name|version) = "(.+)"$', text, re.MULTILINE))


def built(folder: Path, hooks: str) -> tuple[zipfile.Path, dict[str, str | None]]:
    """The wheel that hooks of the build backend make in a folder, and the address of each distribution it needs."""
    for name in PROJECT:
        shutil.copy(ROOT / name, folder / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "made").mkdir()
    result = python(folder, "-c", f"import build_backend as backend; {hooks}")
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    archive = zipfile.Path(wheel)
    (information,) = (one for one in archive.iterdir() if one.name.endswith(".dist-info"))
    lines = re.findall(r"^Requires-Dist: (.*)$", (information / "METADATA").read_text(), re.MULTILINE)
    needed = {Requirement(line).name: Requirement(line).url for line in lines}
    assert {"torch", "onedl-mmcv", "opencv-python-headless"} <= needed.keys()
    return archive, {name: url for name, url in needed.items() if url}


def packages_of(requirements: list[str]) -> set[str]:
    """Names of the packages that requirements bring, on Linux and macOS and on any Python, as far as installed here."""
    places = [{"python_version": v, "python_full_version": f"{v}.9", "sys_platform": p} for v, p in PLACES]
    found, waiting = set(), [Requirement(line) for line in requirements]
    while waiting:
        one = waiting.pop()
        if (canonicalize_name(one.name), *sorted(one.extras)) in found:
            continue
        found.add((canonicalize_name(one.name), *sorted(one.extras)))
        try:
            further = [Requirement(line) for line in importlib.metadata.requires(one.name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        for other in further:
            cases = [{**place, "extra": extra} for place in places for extra in (one.extras or {""})]
            if other.marker is None or any(other.marker.evaluate(case) for case in cases):
                waiting.append(other)
    return {name for name, *_ in found}


def test_the_demo_leaves_out_only_packages_that_nothing_but_the_extras_asks_for() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[\n(.+?)^\]", project, re.MULTILINE | re.DOTALL)
    assert listed is not None
    needed = packages_of(re.findall(r'^    "(.+?)",', listed[1], re.MULTILINE))
    assert {"torch", "yapf"} <= needed
    pins = re.findall(r"^([\w.-]+)==.*?(?:# (dev|GPU))?$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    unmarked = {canonicalize_name(name) for name, mark in pins if mark != "dev"}
    assert {canonicalize_name(name) for name, mark in pins if mark == "dev"} & needed == set()
    assert unmarked <= needed
    assert {name for name, mark in pins if mark == "GPU"} == {
        *("cuda-bindings", "cuda-pathfinder", "triton"),
        *("nvidia-cuda-cupti", "nvidia-cuda-nvrtc", "nvidia-cusolver"),
    }


@pytest.mark.parametrize("hooks", HOOKS)
def test_an_editable_install_needs_the_stand_in_and_is_a_place_on_the_path(tmp_path: Path, hooks: str) -> None:
    archive, addresses = built(tmp_path, hooks.format("editable"))
    assert addresses == {"opencv-python": (tmp_path / "tools/opencv_stand_in").as_uri()}
    # A finder, which is asked after the path, would lose to a folder called "detection" where Python starts.
    assert [one.read_text().strip() for one in archive.iterdir() if one.name.endswith(".pth")] == [str(tmp_path)]
    assert not any(name.endswith(".py") for name in archive.root.namelist())


@pytest.mark.parametrize("hooks", HOOKS)
def test_a_wheel_is_for_any_place(tmp_path: Path, hooks: str) -> None:
    for name in ("checkout", "site"):
        (tmp_path / name).mkdir()
    archive, addresses = built(tmp_path / "checkout", hooks.format("wheel"))
    assert addresses == {}
    archive.root.extractall(tmp_path / "site")
    shutil.rmtree(tmp_path / "checkout")
    found = {path.relative_to(tmp_path / "site"): path for path in (tmp_path / "site").rglob("*.*") if path.is_file()}
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in found.values())
    ours = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.[cp]*") if path.is_file()}
    assert {path for path in ours if path.suffix != ".pyc"} <= found.keys()
    result = python(tmp_path, "-c", "import engine; print(engine.__file__)", path=tmp_path / "site")
    assert result.stdout.strip() == str(tmp_path / "site/engine/__init__.py"), result.stderr


def test_a_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    for name in PROJECT:
        shutil.copy(ROOT / name, tmp_path / name)
    result = python(tmp_path, "-c", "import build_backend as backend; backend.build_sdist('.')")
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {Path(name).name for name in files.getnames()}
    assert set(PROJECT) <= names


def test_the_stand_in_satisfies_whoever_asks_for_the_windows() -> None:
    assert stand_in()["name"] == "opencv-python"
    version, label = stand_in()["version"].split("+")
    pins = re.findall(r"^opencv-python-headless==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert label == "headless"
    assert version == max(pins)
    asked = [
        Requirement(need)
        for one in importlib.metadata.distributions()
        for need in one.requires or ()
        if Requirement(need).name == "opencv-python"
    ]
    assert asked
    assert all(need.specifier.contains(stand_in()["version"]) for need in asked)


@pytest.mark.parametrize(
    "package, importing",
    [
        ("backbones", "import engine"),
        ("engine", "import classification"),
        ("engine", "import detection"),
        ("engine", "import segmentation"),
        ("engine", "import demo"),
        ("segmentation", "import analysis"),
    ],
)
def test_a_file_beside_a_script_that_hides_a_package(tmp_path: Path, package: str, importing: str) -> None:
    other, script = tmp_path / f"{package}.py", tmp_path / "mine.py"
    other.write_text("")
    script.write_text(importing)
    for result in (python(tmp_path, "mine.py"), python(tmp_path, "-c", importing)):
        line = last_line(result)
        assert line.startswith(f"ImportError: 'import {package}' finds {str(other)!r} instead of this project's")
        assert str(ROOT / package) in line
        assert line.endswith("rename it, or start Python where its folder is not on the path")


def test_an_installed_package_that_hides_one_of_ours(tmp_path: Path) -> None:
    other = tmp_path / "site-packages/engine"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    line = last_line(python(tmp_path, "-c", "import detection", path=other.parent))
    assert f"'import engine' finds {str(other / '__init__.py')!r}" in line
    assert line.endswith("uninstall the package that brought it, or use an environment of your own for this project")


def test_a_package_of_ours_that_a_config_names(tmp_path: Path) -> None:
    (tmp_path / "classification.py").write_text("")
    code = (
        "from pathlib import Path; from engine.config.custom_imports import read_config; "
        f"read_config(Path({str(ROOT / 'configs/classification/digits.py')!r}))"
    )
    assert str(tmp_path / "classification.py") in last_line(python(tmp_path, "-c", code))


def test_a_module_that_was_imported_before(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("")
    assert "'import engine' finds" in last_line(python(tmp_path, "-c", "import engine, classification"))


def test_names_that_do_not_matter_where_they_are(tmp_path: Path) -> None:
    """Packages that are not imported, folders of data, and whatever lies beside the config of a tool."""
    for name in ("engine", "analysis", "demo"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    (tmp_path / "detection/images").mkdir(parents=True)
    for arguments in (["-c", WITHIN], TOOL):
        result = python(tmp_path, *arguments, path=tmp_path)
        assert result.returncode == 0, result.stderr
    for file in tmp_path.glob("*.py"):
        file.unlink()
    result = python(tmp_path, "-c", "import detection; print(detection.__file__)")
    assert result.stdout.strip() == str(ROOT / "detection/__init__.py"), result.stderr


def test_a_module_of_ones_own_below_a_name_of_ours(tmp_path: Path) -> None:
    (tmp_path / "detection").mkdir()
    (tmp_path / "detection/mine.py").write_text("")
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = {TOOL[1]!r}\ncustom_imports = dict(imports=['detection.mine'])\n")
    result = python(tmp_path, TOOL[0], str(config), "--dry-run", path=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "'detection' is this project's, and a module of yours needs another name" in result.stderr
