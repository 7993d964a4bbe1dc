"""Every function that mmcv's ops take from its compiled module: who uses it, and whether it is served without one."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from engine.mmcv_ops.extension import OP_MODULES, VERSION_FUNCTIONS
from engine.mmcv_ops.unserved import UNSERVED_OPS


@dataclass(frozen=True)
class CompiledFunction:
    """A function of mmcv's compiled module.

    Attributes:
        name: Its name.
        module: Module of ``mmcv.ops`` that calls it.
        users: Modules of the other packages that use that module, by import or by the name of a layer.
        served: Module of ours that stands in for it; empty if none does.
        reason: Reason why none does.
    """

    name: str
    module: str
    users: tuple[str, ...]
    served: str
    reason: str


def served_functions() -> dict[str, str]:
    """Name of the module of ours that serves a function, by the function."""
    served = dict.fromkeys(VERSION_FUNCTIONS, "extension")
    for module in OP_MODULES:
        served |= dict.fromkeys(import_module(f"engine.mmcv_ops.{module}").__all__, module)
    return served


def _package(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    found = find_spec(name)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _loaded(tree: ast.Module) -> list[str]:
    """Names that a module takes from ``_ext`` by mmcv's ``load_ext``."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        name
        for call in calls
        if ast.unparse(call.func).endswith("load_ext") and ast.literal_eval(call.args[0]) == "_ext"
        for name in ast.literal_eval(call.args[1])
    ]


def _layer_names(tree: ast.Module) -> set[str]:
    """Public classes and functions of a module, and the names under which classes are registered."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            names.add(node.name)
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("register_module"):
                    values = [*decorator.args, *(keyword.value for keyword in decorator.keywords)]
                    names |= {str(value.value) for value in values if isinstance(value, ast.Constant)}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names - {"ext_module"}


def _words(tree: ast.Module) -> Iterator[str]:
    """What a module imports from mmcv's ops, and its strings, which may name a layer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcv.ops"):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _words_by_module(packages: Sequence[str]) -> dict[str, set[str]]:
    """The words of each module of some packages; those of their configs under one name each."""
    words: dict[str, set[str]] = {}
    for package in packages:
        root = _package(package)
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            name = f"{package}'s configs" if ".mim" in parts else ".".join(parts)
            words.setdefault(name, set()).update(_words(_tree(path)))
    return words


def compiled_functions(packages: Sequence[str]) -> list[CompiledFunction]:
    """The functions of mmcv's compiled module, as the installed mmcv names them.

    Args:
        packages: Packages that are searched for users.
    """
    trees = {path.stem: _tree(path) for path in sorted((_package("mmcv") / "ops").glob("*.py"))}
    words, served = _words_by_module(packages), served_functions()
    functions = []
    for module, tree in trees.items():
        loaded = _loaded(tree)
        if not loaded:
            continue
        layers = _layer_names(tree)
        # Other ops of mmcv that are built on this module pass its functions on.
        for other in trees.values():
            imports = [node for node in ast.walk(other) if isinstance(node, ast.ImportFrom)]
            built_on = any((node.module or "").rpartition(".")[2] == module for node in imports)
            if built_on and other is not trees["__init__"] and not _loaded(other):
                layers |= _layer_names(other)
        users = tuple(name for name, found in words.items() if found & layers)
        functions += [
            CompiledFunction(name, module, users, served.get(name, ""), UNSERVED_OPS.get(name, "")) for name in loaded
        ]
    return functions


def ops_markdown(packages: Sequence[str]) -> str:
    """The table of the functions for the docs, a row for each module of ``mmcv.ops``.

    Args:
        packages: Packages that are searched for users.
    """
    functions = compiled_functions(packages)
    count = sum(bool(function.served) for function in functions)
    lines = [
        f"{count} of the {len(functions)} functions of mmcv's compiled module are served.",
        "",
        "| module of `mmcv.ops` | functions | used by | served by, or why not |",
        "|---|---|---|---|",
    ]
    for module in dict.fromkeys(function.module for function in functions):
        rows = [function for function in functions if function.module == module]
        for served in dict.fromkeys(function.served for function in rows):
            group = [function for function in rows if function.served == served]
            names = ", ".join(f"`{function.name}`" for function in group)
            answer = f"`engine/mmcv_ops/{served}.py`" if served else f"not served: {group[0].reason}"
            lines.append(f"| `{module}` | {names} | {', '.join(group[0].users) or 'none'} | {answer} |")
    return "\n".join(lines)
