"""The task's example of ``configs/examples/`` with other values at its top: a config for data of one's own."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import timm

from analysis.own_data.class_folders import find_class_folders
from analysis.own_data.coco_files import find_coco_files
from analysis.own_data.label_images import find_label_images
from analysis.own_data.splits import HELD_OUT, Findings, Request
from backbones.errors import CheckpointError, ConfigError, DataError, UserError
from backbones.published import is_published, nearest_published
from engine.config.load import load_config
from engine.config.world import Launch

EXAMPLES = Path(__file__).resolve().parents[2] / "configs/examples"
MAX_LINE = 120
MAX_EPOCHS = 100
STEPS_PER_EPOCH = 10  # at least; a smaller batch makes more


class Habits(NamedTuple):
    """How the data of a task is found and how long it is trained.

    Attributes:
        find: Function that looks at a folder.
        min_batch: Smallest batch.
        min_steps: Steps of a training, unless that takes more than a hundred epochs; a choice, as are the examples'.
    """

    find: Callable[[Request], Findings]
    min_batch: int
    min_steps: int


HABITS = {
    "classification": Habits(find_class_folders, 8, 1000),
    "detection": Habits(find_coco_files, 2, 3000),
    "segmentation": Habits(find_label_images, 2, 3000),
}


def new_config(task: str, out: Path, request: Request) -> list[str]:
    """Look at a folder of data and write a config for it.

    Args:
        task: Name of the task.
        out: File to write, which may not exist.
        request: Settings of the command line.

    Returns:
        What was found and written, one line each.

    Raises:
        UserError: If the data is not such as the task needs, something cannot be told, or the config is wrong.
    """
    if out.suffix != ".py":
        raise ConfigError(f"--out {str(out)!r}: a config is a .py file")
    if out.exists():
        raise ConfigError(f"--out {str(out)!r} exists: name another file, or remove it")
    weights = str(request.settings.get("_weights") or "")
    if weights and not is_published(weights) and not Path(weights).exists():
        raise CheckpointError(f"--weights {weights!r} does not exist{nearest_published(weights)}")
    if not request.data.is_dir():
        raise DataError(f"--data {str(request.data)!r} is no folder")
    example = (EXAMPLES / f"{task}_own_data.py").read_text(encoding="utf-8")
    found = HABITS[task].find(request)
    written = {out.with_name(f"{out.stem}_{name}"): text for name, text in found.files.items()}
    for name, path in zip(found.files, written, strict=True):
        if path.exists():
            raise ConfigError(f"--out {str(out)!r}: {str(path)!r} exists: name another file, or remove it")
        found.settings[f"_{PurePath(name).stem}"]["ann_file"] = str(path.resolve())
    if written and "_test" in found.settings:
        found.settings["_test"].setdefault("ann_file", "")  # what is stated for val alone would carry over to it
    values = {"data_root": str(request.data), **found.settings, **request.settings}
    values |= _length(task, found.images, {**_assigned(example), **request.settings}, request.settings)
    text = fill_in(example, {**values, "_base_": [_base(base, out) for base in _assigned(example)["_base_"]]})
    text = text.replace(f"configs/examples/{task}_own_data.py", str(out))
    _write({**written, out: text}, request.data)
    share, lists = request.validation_split or HELD_OUT, " and ".join(map(str, written))
    lines = [f"no validation data: {share:.0%} of the images are held out; {lists} list them"] if written else []
    return [*found.facts, *lines, *_summary(out, _assigned(text), found.images)]


def _write(files: Mapping[Path, str], data: Path) -> None:
    """Write files, of which the last one is a config; none of them stays if it cannot be loaded."""
    out = list(files)[-1]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        load_config(out, None, Launch())
    except (UnicodeEncodeError, UserError) as error:
        for path in files:
            path.unlink(missing_ok=True)
        if isinstance(error, UnicodeEncodeError):
            raise DataError(f"a name in {str(data)!r} is not UTF-8: rename {error.object!r}") from error
        raise


def fill_in(example: str, values: Mapping[str, Any]) -> str:
    """Text of a config with other values for the variables at its top; comments stay.

    Args:
        example: Text of a config.
        values: Values by the names of the variables, each assigned once at the top level.
    """
    lines = example.splitlines()
    for node in reversed(ast.parse(example).body):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name, start, end = node.targets[0].id, node.lineno - 1, node.end_lineno or node.lineno
        if name in values:
            # Columns count bytes in the syntax tree.
            comment = lines[end - 1].encode()[node.value.end_col_offset :].decode()
            comment = "" if comment.strip() == "" or isinstance(node.value, ast.Name) else comment
            lines[start:end] = _written(name, values[name], comment)
    return "\n".join(lines) + "\n"


def _written(name: str, value: Any, comment: str) -> list[str]:
    """Lines that assign a value; a long list has several."""
    line = f"{name} = {_literal(value)}"
    if len(line + comment) <= MAX_LINE:
        return [line + comment]
    if len(line) <= MAX_LINE:
        return [comment.strip(), line]
    if isinstance(value, Mapping):
        return [f"{name} = dict({comment}", *_entries(value, "    "), ")"]
    if not isinstance(value, list | tuple):
        return [line]
    rows, row = [], "   "
    for item in map(_literal, value):
        if len(row) + len(item) + 2 > MAX_LINE:
            rows.append(row)
            row = "   "
        row += f" {item},"
    return [
        f"{name} = {'[' if isinstance(value, list) else '('}{comment}",
        *rows,
        row,
        "]" if isinstance(value, list) else ")",
    ]


def _entries(values: Mapping[str, Any], indent: str) -> list[str]:
    """A line for each entry of a mapping; an inner mapping has several if one is too long."""
    lines = []
    for key, value in values.items():
        line = f"{indent}{key}={_literal(value)},"
        is_long = len(line) > MAX_LINE and isinstance(value, Mapping)
        lines += [f"{indent}{key}=dict(", *_entries(value, f"{indent}    "), f"{indent}),"] if is_long else [line]
    return lines


def _literal(value: Any) -> str:
    """Python code for a value, in the style of the configs: double quotes, ``dict(...)``."""
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_literal(one)}' for key, one in value.items())})"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_literal, value)) + ("," if len(value) == 1 and isinstance(value, tuple) else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return repr(value)


def _assigned(text: str) -> dict[str, Any]:
    """Values of the variables at the top of a config that are plain data."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def _base(base: str, out: Path) -> str:
    """Path of a base for a config in another folder: relative inside of this tree, else whole."""
    path, folder = (EXAMPLES / base).resolve(), out.resolve().parent
    return os.path.relpath(path, folder) if folder.is_relative_to(EXAMPLES.parents[1]) else str(path)


def _length(task: str, images: int, values: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Batch and epochs for a number of training images, where they are not stated."""
    batch, habits = int(values["_batch"]), HABITS[task]
    while "_batch" not in stated and batch > habits.min_batch and images < STEPS_PER_EPOCH * batch:
        batch //= 2
    epochs = min(MAX_EPOCHS, max(int(values["_epochs"]), -(-habits.min_steps * batch // max(images, 1))))
    return {"_batch": batch, "_epochs": stated.get("_epochs", epochs)}


def _summary(out: Path, values: Mapping[str, Any], images: int) -> list[str]:
    batch, epochs = values["_batch"], values["_epochs"]
    length = f"{epochs} epoch{'s' * (epochs != 1)} of {images // batch:,} steps, batch {batch}"
    lines = [f"wrote {out}: {values['_network']}, images of {values['_size']} pixels, {length}"]
    if values["_weights"] is None:
        published = timm.list_models(f"{values['_network']}.*", pretrained=True)
        such = f", such as to {published[0]!r}, which timm downloads" if published else ""
        lines.append(
            "it begins with no weights; with those of ImageNet it learns far more from few images: set _weights"
            f"{such} (docs/weights.md)"
        )
    commands = ("check_data.py {}", "train.py {} --dry-run", "train.py {}")
    file = str(out) if re.fullmatch(r"[\w./-]+", str(out)) else f"'{out}'"
    return [*lines, "next:", *(f"    python tools/{command.format(file)}" for command in commands)]
