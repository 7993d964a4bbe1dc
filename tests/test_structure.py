"""The rules of CONTRIBUTING.md that can be read off the source: rooms and floors, names, errors, documentation."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mmengine.registry
import pytest
from mmengine.registry import MODELS, Registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "engine", "classification", "detection", "segmentation", "demo", "analysis")
MAX_ENGINE_SHARE = 0.4
MAX_LOOSE_FILES = 5
MAX_RUNNER_LINES = 250
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Private names of other packages and their modules, each for want of a public way.
PRIVATE_NAMES_ALLOWED: dict[str, set[str]] = {
    "_convolution_pointwise": {"backbones/kernels/cpu/linear.py"},  # oneDNN's convolution with a fused GELU
    "_iterator": {"engine/data/sampling.py"},  # of a loader with persistent workers
    "_linear_pointwise": {"backbones/kernels/cpu/linear.py"},  # oneDNN's inner product with a fused GELU
    "_pcontext": {"engine/launch/agent.py"},  # the processes of torch's own agent
    # Dispatch modes: their base class, and whether there is one.
    "_python_dispatch": {"analysis/flop_rules.py", "backbones/kernels/autotune.py", "engine/planning/memory.py"},
    "_reorder_linear_weight": {"backbones/kernels/cpu/linear.py"},  # the layout of oneDNN's inner product
    "_roi_align_backward": {"engine/mmcv_ops/roi_align.py"},  # torchvision's; autograd would need a second forward
    "_shutdown_workers": {"engine/data/sampling.py"},  # to end persistent workers
    "_subclasses": {"engine/planning/memory.py"},  # fake tensors
    "_version": {"backbones/kernels/cpu/weight_cache.py"},  # of a tensor: whether it was changed in place
}
MAX_PRIVATE_NAMES = 10
# Documented in spite of the underscore: of named tuples, of ctypes, of :mod:`os`.
PUBLIC_UNDERSCORES = {"_replace", "_asdict", "_fields", "_fields_", "_make", "_exit"}

UNCLEAR_ARGUMENT = re.compile(
    r"\s+\**[a-z_]+: (?:(?:Of|As|Where|What|Whose|Whether it|That|How|When)\b|(?:In|By|On|With|From|To) which\b)"
)
# Assembled, so that this file does not hold what it forbids.
# The quoted word is a key of files that older versions wrote.
UNCLEAR_WORD = re.compile(r"(?<![\"'`])\b(?:" + "men" + r"d(?:s|ed)?|" + "seed 0" + r"0\d)\b", re.I)


@cache
def sources() -> dict[Path, str]:
    """Text of every Python file of the packages and tools, under its path from the root."""
    folders = (*PACKAGES, "tools")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in paths}


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(text) for path, text in sources().items()}


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for path, tree in trees().items():
        for node in ast.walk(tree):
            yield path, node


def assigned_names(node: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module binds by assignment."""
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) and node.value is not None else []
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def test_engine_is_a_minor_part_of_the_code() -> None:
    lines = dict.fromkeys((*PACKAGES, "tools"), 0)
    for path, text in sources().items():
        lines[path.parts[0]] += text.count("\n")
    assert lines["engine"] <= MAX_ENGINE_SHARE * sum(lines.values())


def test_engine_has_few_loose_files() -> None:
    loose = [path.name for path in sources() if path.parent == Path("engine")]
    assert len(loose) <= MAX_LOOSE_FILES, loose


@pytest.mark.parametrize("path", [path for path in sources() if path.name == "__init__.py"], ids=str)
def test_a_package_says_what_it_is_for_and_exports_its_names(path: Path) -> None:
    tree = trees()[path]
    assert ast.get_docstring(tree)
    exported = [node for node in tree.body if "__all__" in assigned_names(node)]
    assert exported, f"{path} has no __all__"


def test_tests_mirror_the_packages() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder.parts and folder.parts[0] in PACKAGES:
            assert (ROOT / folder).is_dir(), f"{path.relative_to(ROOT)}: there is no {folder}"


def test_figures_of_released_code_have_a_source() -> None:
    for path in sorted((ROOT / "tests/fidelity").rglob("test_*.py")):
        assert path.parent == ROOT / "tests/fidelity", f"{path.relative_to(ROOT)}: tests/fidelity has no folders"
        text = path.read_text(encoding="utf-8")
        for source in (r"\b(?:facebookresearch|SwinTransformer)/[\w-]+", r"\.(?:py|md)(?::\d+|, lines? \d+)"):
            assert re.search(source, text), f"{path.relative_to(ROOT)}: no source with repository, file and line"


def test_no_name_is_public_in_two_modules() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        if path.parts[0] == "tools":  # programs
            continue
        for node in tree.body:
            names = [node.name] if isinstance(node, ast.ClassDef | FUNCTIONS[0]) else assigned_names(node)
            for name in names:
                if not name.startswith("_"):
                    places[name].append(str(path))
    found = {name: where for name, where in places.items() if len(where) > 1}
    assert not found


def defined_in(tree: ast.Module) -> set[str]:
    """Names that a module defines itself: functions, classes, variables, attributes of ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= set(assigned_names(node))
    return names


def private_names(tree: ast.Module) -> set[str]:
    """Names with an underscore that a module uses and does not define: those of other modules and packages."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names} | set((node.module or "").split("."))
        elif isinstance(node, ast.Import):
            used |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "attrgetter"):
            used |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    private = {name for name in used if str(name).startswith("_") and not str(name).startswith("__")}
    return private - PUBLIC_UNDERSCORES - defined_in(tree)


def test_the_search_for_private_names_sees_what_it_should() -> None:
    source = "from torch import _C\nclass A:\n def __init__(self):\n  self._own = 1\n  self._own + b._theirs"
    source += "\nfrom torch._inductor.config import x\nimport torch._dynamo as y\ngetattr(x, '_z', 3)"
    assert private_names(ast.parse(source)) == {"_C", "_theirs", "_inductor", "_dynamo", "_z"}


def test_private_names_of_others_are_few_and_listed() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees().items():
        for name in private_names(tree):
            found[name].add(str(path))
    assert found == PRIVATE_NAMES_ALLOWED
    assert len(PRIVATE_NAMES_ALLOWED) <= MAX_PRIVATE_NAMES


def test_no_module_keeps_state_of_its_own() -> None:
    empty = {"{}", "[]", "set()", "dict()", "list()", "defaultdict(list)", "defaultdict(dict)", "OrderedDict()"}
    found = []
    for path, tree in trees().items():
        for node in tree.body:
            value = getattr(node, "value", None)
            if value is not None and assigned_names(node) not in ([], ["__all__"]) and ast.unparse(value) in empty:
                found.append(f"{path}:{node.lineno}")
    found += [f"{path}:{node.lineno}" for path, node in nodes() if isinstance(node, ast.Global)]
    assert not found


def test_an_error_says_which_kind_it_is() -> None:
    found = []
    for path, node in nodes():
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "UserError":
            found.append(f"{path}:{node.lineno}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            found += [f"{path}:{node.lineno}" for kind in node.args if ast.unparse(kind) == "UserError"]
    assert not found


def test_no_object_of_a_library_is_patched_and_no_registered_name_taken() -> None:
    found = []
    for path, node in nodes():
        if isinstance(node, ast.keyword) and node.arg == "force" and ast.unparse(node.value) == "True":
            found.append(f"{path}:{node.value.lineno}")
    for path, text in sources().items():
        found += [f"{path}:{n}" for n, line in enumerate(text.splitlines(), 1) if "ignore[method-assign]" in line]
    assert not found


def test_arguments_are_described_by_noun_phrases() -> None:
    assert UNCLEAR_ARGUMENT.match("        rounds: Of taking turns.")
    assert not UNCLEAR_ARGUMENT.match("        rounds: Number of rounds.")
    found = []
    for path, text in sources().items():
        found += [
            f"{path}:{n} {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if UNCLEAR_ARGUMENT.match(line)
        ]
    assert not found


def test_texts_use_the_customary_words() -> None:
    texts = dict(sources())
    for pattern in ("*.md", "docs/*.md", "configs/**/*.py", "tests/**/*.yaml"):
        texts |= {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in ROOT.glob(pattern)}
    found = []
    for path, text in texts.items():
        found += [
            f"{path}:{n} {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if UNCLEAR_WORD.search(line)
        ]
    assert not found


def test_the_runner_is_divided() -> None:
    for path, text in sources().items():
        if path.parts[:2] == ("engine", "training"):
            assert text.count("\n") <= MAX_RUNNER_LINES, path


def test_no_registered_name_is_also_a_librarys() -> None:
    """A config finds one class under a name, in whichever scope it is read."""
    import classification  # noqa: F401
    import detection  # noqa: F401
    import engine.training  # noqa: F401
    import segmentation  # noqa: F401

    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    assert "ImageClassifier" in MODELS.module_dict
    for root in roots:
        ours = {name for name, made in root.module_dict.items() if made.__module__.partition(".")[0] in PACKAGES}
        assert not [name for child in root.children.values() for name in child.module_dict if name in ours]
