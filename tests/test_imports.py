"""Imports point downwards only: backbones <- engine <- the three tasks, demo <- analysis <- tools.

Within engine the same holds, in the order of ``ENGINE_ORDER``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import PATIENCE

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
# The modules and packages in engine/, from low to high.
ENGINE_ORDER = (
    *("launch", "cli", "mmcv_ops", "task", "config", "distributed", "optim", "checkpoint", "data"),
    *("planning", "report", "nonfinite", "training", "prediction", "run"),
)


def nodes(tree: ast.AST, type_checking: bool) -> Iterator[ast.AST]:
    """All nodes below one; without those of ``if TYPE_CHECKING:``, which is false when a program runs, if asked to."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not type_checking:
            for other in node.orelse:
                yield other
                yield from nodes(other, type_checking)
        else:
            yield from nodes(node, type_checking)


def imported(source: str, type_checking: bool = True) -> set[str]:
    """Modules and names of all imports, those inside functions and ``import_module("...")`` included."""
    names = set()
    for node in nodes(ast.parse(source), type_checking):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


def imported_packages(source: str) -> set[str]:
    """The first parts of the names of all imports."""
    return {name.partition(".")[0] for name in imported(source)}


def imported_parts(source: str) -> set[str]:
    """The modules and packages directly in ``engine/`` that a program imports when it runs."""
    return {name.split(".")[1] for name in imported(source, type_checking=False) if name.startswith("engine.")}


def test_the_search_sees_every_kind_of_import() -> None:
    source = "import tools.a, os\nfrom engine.b import c\ndef f(): importlib.import_module('detection.d')"
    assert imported_packages(source) & OURS == {"tools", "engine", "detection"}


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = imported_packages(path.read_text(encoding="utf-8")) & OURS - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_search_in_engine_ignores_imports_for_types_alone() -> None:
    source = "from engine import a\nimport engine.b.c\nif TYPE_CHECKING:\n import engine.d\nelse:\n import engine.f"
    assert imported_parts(source) == {"a", "b", "f"}


def test_the_order_of_engine_is_whole() -> None:
    found = {
        path.stem for path in (ROOT / "engine").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__"} == set(ENGINE_ORDER)
    # load_model, once it is used: tests/tools/test_help.py sees that nothing heavy is imported before.
    assert imported_parts((ROOT / "engine/__init__.py").read_text(encoding="utf-8")) == {"prediction"}


@pytest.mark.parametrize("part", ENGINE_ORDER)
def test_a_part_of_engine_imports_only_lower_ones(part: str) -> None:
    allowed = {*ENGINE_ORDER[: ENGINE_ORDER.index(part) + 1]}
    module = ROOT / f"engine/{part}.py"
    for path in [module] if module.is_file() else sorted((ROOT / "engine" / part).rglob("*.py")):
        wrong = imported_parts(path.read_text(encoding="utf-8")) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_importing_backbones_needs_no_vision_or_plotting_package() -> None:
    heavy = ("cv2", "mmcv", "mmdet", "mmseg", "matplotlib", "sklearn")
    code = f"import sys, backbones; print([name for name in {heavy!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
