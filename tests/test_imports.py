"""Imports point downwards only: backbones <- engine <- the three tasks, demo <- analysis <- tools."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "backbones": set(),
    "engine": {"backbones"},
    "classification": {"backbones", "engine"},
    "detection": {"backbones", "engine"},
    "segmentation": {"backbones", "engine"},
    "demo": {"backbones", "engine"},
    "analysis": {"backbones", "engine", "classification", "detection", "segmentation", "demo"},
}
OURS = {*MAY_IMPORT, "tools", "configs", "tests"}


def imported(source: str) -> set[str]:
    """Top-level names of all imports, those inside functions and ``import_module("...")`` included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {name.partition(".")[0] for name in names}


def test_the_search_sees_every_kind_of_import() -> None:
    source = "import tools.a, os\nfrom engine.b import c\ndef f(): importlib.import_module('detection.d')"
    assert imported(source) & OURS == {"tools", "engine", "detection"}


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = imported(path.read_text(encoding="utf-8")) & OURS - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_importing_backbones_needs_no_vision_or_plotting_package() -> None:
    heavy = ("cv2", "mmcv", "mmdet", "mmseg", "matplotlib", "sklearn")
    code = f"import sys, backbones; print([name for name in {heavy!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
