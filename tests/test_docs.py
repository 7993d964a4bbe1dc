"""What the documents name exists: files, functions, dotted names, programs and their options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PACKAGES = ("backbones", "engine", "classification", "detection", "segmentation", "demo", "analysis")
FOLDERS = "|".join((*PACKAGES, "tools", "configs", "tests", "docs"))

# A path below one of our folders; braces are alternatives, <...> stands for anything.
PATH = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/(?:[\w.*/-]|{{[\w.,*]+}}|<\w+>)*)(?::([A-Za-z_][\w.]*))?")
DOTTED = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?![\w/])")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PROGRAM = re.compile(r"(?:python|bash) (tools/\w+\.(?:py|sh))((?:[^`\n]|\\\n)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def alternatives(pattern: str) -> Iterator[str]:
    """A pattern with braces, spelt out: ``a{b,c}`` is ``ab`` and ``ac``."""
    found = re.search(r"{([^{}]*)}", pattern)
    if found is None:
        yield pattern
        return
    for choice in found[1].split(","):
        yield from alternatives(pattern[: found.start()] + choice + pattern[found.end() :])


def exists(named: str) -> bool:
    """Whether a path is there, in the project or, without suffix, as a config."""
    pattern = re.sub(r"<\w+>", "*", named).rstrip(".")
    places = (pattern, f"configs/{pattern}.py", f"configs/{pattern}")
    return any(next(ROOT.glob(place.rstrip("/")), None) is not None for place in places)


@cache
def definitions(path: Path) -> dict[str, ast.AST]:
    """Names defined or imported at the top of a module, and ``Class.attribute``."""
    found: dict[str, ast.AST] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef) and not prefix:
                add(node.body, f"{node.name}.")
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update({prefix + one.id: node for one in targets if isinstance(one, ast.Name)})
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update({(alias.asname or alias.name): node for alias in node.names})
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":  # names of lazy packages
                add(node.body, prefix)

    add(ast.parse(text(path)).body, "")
    return found


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or package of ours, or something that one defines."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:end])
        path = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
        if path.is_file():
            rest = parts[end:]
            return not rest or ".".join(rest[:2]) in definitions(path) or rest[0] in definitions(path)
    return False


def missing(document: str, folder: Path = ROOT) -> list[str]:
    """What a document names and is not there."""
    found = []
    for named, function in PATH.findall(document):
        for one in alternatives(named):
            if not exists(one):
                found.append(one)
            elif function and one.endswith(".py") and function not in definitions(ROOT / one):
                found.append(f"{one}:{function}")
    found += [name for name in DOTTED.findall(document) if not resolves(name)]
    found += [link for link in LINK.findall(document) if not (folder / link).exists()]
    for program, arguments in PROGRAM.findall(document):
        source = text(ROOT / program) if (ROOT / program).is_file() else ""
        if program.endswith(".sh") and (same := (ROOT / program).with_suffix(".py")).is_file():
            source += text(same)
        source += text(ROOT / "engine/cli.py") + text(ROOT / "tools/train.py") * program.startswith("tools/dist_train")
        # Up to a comment, which may speak of another program.
        options = OPTION.findall(arguments.partition("  #")[0])
        found += [f"{program} {option}" for option in options if f'"{option}"' not in source]
    return sorted(set(found))


def test_the_search_sees_what_is_missing() -> None:
    document = """
    `engine/run.py:train`, `engine/run.py:nowhere`, tests/test_{docs,nothing}.py, `backbones.errors.UserError`,
    `backbones.errors.NoError`, [map](docs/NOTHING.md), `configs/_base_/nothing.py` and engine/nothing/.

        python tools/train.py CONFIG --resume --nothing  # --else
    """
    assert missing(document) == [
        "backbones.errors.NoError",
        "configs/_base_/nothing.py",
        "docs/NOTHING.md",
        "engine/nothing/.",
        "engine/run.py:nowhere",
        "tests/test_nothing.py",
        "tools/train.py --nothing",
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(path: Path) -> None:
    assert not missing(text(path), path.parent)


@pytest.mark.parametrize("name", ["docs/ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_newcomers_documents_are_linked_from_the_readme(name: str) -> None:
    assert f"]({name})" in text(ROOT / "README.md")


@pytest.mark.parametrize("index", [0, 1], ids=["detector", "segmentor"])
def test_the_example_of_another_model_builds(index: int, tmp_path: Path) -> None:
    from engine.config.load import load_config
    from engine.config.world import Launch
    from engine.planning.plan import training_plan

    blocks = re.findall(r"```python\n(_base_ = .*?)```", text(ROOT / "docs/ARCHITECTURE.md"), re.DOTALL)
    assert len(blocks) == 2
    config = tmp_path / "example.py"
    config.write_text(blocks[index].replace("../_base_", str(ROOT / "configs/_base_")), encoding="utf-8")
    launch = Launch.on_gpus(8)
    resolved = load_config(config, None, launch)
    model = resolved.cfg.model
    if index == 0:
        assert model.neck.in_channels == [192, 384, 768]
        assert model.bbox_head.num_classes == 80
    else:
        assert (model.decode_head.in_channels, model.decode_head.c1_in_channels) == (768, 96)
        assert model.decode_head.num_classes == model.auxiliary_head.num_classes == 150
    assert training_plan(resolved, launch).rows


def test_the_example_of_other_data_resolves(tmp_path: Path) -> None:
    from engine.config.load import load_config

    (block,) = re.findall(r"```python\n(_base_ = .*?)```", text(ROOT / "README.md"), re.DOTALL)
    experiment = text(ROOT / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py")
    config = tmp_path / "example.py"
    lines = block + experiment[experiment.index("\nmodel = ") :]
    config.write_text(lines.replace("../_base_", str(ROOT / "configs/_base_")), encoding="utf-8")
    cfg = load_config(config).cfg
    assert cfg.train_dataloader.dataset.data_root == "data/pets"
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2


def test_every_program_is_in_the_readme() -> None:
    former = {
        "throughput",
        "data_speed",
        "detection_speed",
        "checkpointing",
    }  # they print the command that took their place
    called_by_programs = {"launch", "demo", "keep"}
    programs = {path.stem for path in (ROOT / "tools").glob("*.py")} - former - called_by_programs
    readme = text(ROOT / "README.md")
    assert not {name for name in programs if f"tools/{name}.py" not in readme}
