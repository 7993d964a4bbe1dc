"""The page of a config's data: images beside what the network gets of them, classes, sizes, rates, and what is odd."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from analysis.browse.draws import Draw, NetworkInputs
from analysis.browse.rates import rate_charts
from analysis.browse.statistics import (
    ClassCounts,
    choose_images,
    count_classes,
    image_sizes,
    measure_objects,
    octaves,
    oddities,
    size_facts,
)
from analysis.start_check import silence
from backbones.errors import ConfigError, DataError
from engine.config.classes import class_colours
from engine.config.load import Resolved
from engine.config.world import Launch
from engine.data.fault_tolerance import REPLACED_IMAGES_FILE
from engine.planning.plan import epoch_steps, training_plan
from engine.report.environment import read_text
from engine.report.html import bars, document, facts, note, pixels_figure
from engine.report.run_dir import write_page
from engine.task import task_of

DRAWN_EPOCHS = 3  # of each image
MAX_CLASS_BARS = 24  # of the most frequent and of the rarest classes together; the rest is folded away


def browse_command(config: str) -> str:
    """The command that writes the page of a config."""
    return f"python tools/browse.py {shlex.quote(config)}"


def browse(
    resolved: Resolved, launch: Launch, split: str, count: int, classes: Sequence[str], page: Path
) -> tuple[list[str], list[str]]:
    """Write the page of a split of a config's data.

    Args:
        resolved: Config, resolved for training if the split is that of the training.
        launch: Processes and devices of the training, on which the length of an epoch depends.
        split: ``train``, ``val`` or ``test``; of the last two the page shows what a test reads.
        count: Number of images.
        classes: Names of classes, of which each image has one; empty for any images.
        page: File to write.

    Returns:
        What was looked at, and what is odd, in lines.

    Raises:
        UserError: If the config or its data is wrong, or the file cannot be written.
    """
    cfg = resolved.cfg
    with tempfile.TemporaryDirectory() as folder:
        source = NetworkInputs(cfg, split, Path(folder))
        found = count_classes(source)
        if classes and not found.of_image:
            raise ConfigError("--classes: the images of this config have no classes")
        chosen = choose_images(source, found, count, classes)
        originals = [source.original(index) for index in chosen]
        draws = [source.draws(chosen, epoch) for epoch in range(DRAWN_EPOCHS if split == "train" else 1)]
        every = [one for epoch in draws for one in epoch]
        objects = measure_objects(source, every)
        unreadable = len(read_text(Path(folder) / REPLACED_IMAGES_FILE).splitlines())
    odd = oddities(source, found, every, objects)
    if unreadable:
        odd.append(f"{unreadable} times an image could not be read: python tools/check_data.py names them")
    sections = {
        "What the network gets": _pictures(source, chosen, originals, draws),
        "Classes": _classes(source, found),
        "Sizes of objects": _objects(source, objects),
        "Sizes of images": facts(size_facts(image_sizes(source), every)),
        "Rates": _rates(resolved, launch, len(source)) if split == "train" else "",
        "The pipeline": _pipeline(cfg, split, source),
    }
    name = Path(cfg.filename or "config").stem
    title = f"{name}: {split} data"
    text = document(title, _lead(f"{_scope(source, found)}; {len(chosen)} of them below.", split, odd), sections)
    write_page(page, text)
    return [f"{split} data: {_scope(source, found)}; {len(chosen)} images shown"], odd


def _scope(source: NetworkInputs, found: ClassCounts) -> str:
    """Numbers of images and, where images have some, of classes."""
    return f"{len(source):,} images" + (f", {len(source.classes):,} classes" if found.of_image else "")


def _lead(words: str, split: str, odd: Sequence[str]) -> str:
    how = "Each is drawn as the first epochs of a training draw it." if split == "train" else "As a test reads them."
    warnings = "".join(f'<p class="state wrong">{escape(line)}</p>' for line in odd)
    nothing = '<p class="state">Nothing odd was found in what was looked at.</p>'
    return f'<p class="lead">{escape(words)} {how}</p>{warnings or nothing}'


def _pictures(
    source: NetworkInputs, chosen: Sequence[int], originals: Sequence[Draw], draws: Sequence[Sequence[Draw]]
) -> str:
    rows = []
    for place, index in enumerate(chosen):
        name = Path(str(source.entry(index).get("img_path", index))).name
        figures = [_figure(originals[place], f"original {originals[place].size[1]} x {originals[place].size[0]}", name)]
        for epoch, drawn in enumerate(draws):
            kept = drawn[place].kept
            left = f", {100 * kept:.0f} % of the image" if kept is not None else ""
            when = f"epoch {epoch + 1}" if source.training else "input"
            words = f"{when}: {drawn[place].size[1]} x {drawn[place].size[0]}{left}"
            figures.append(_figure(drawn[place], words, name))
        rows.append(f'<h3>{escape(f"{index}: {name}")}</h3><div class="gallery draws">{"".join(figures)}</div>')
    return "".join(rows)


def _figure(draw: Draw, words: str, name: str) -> str:
    caption = f"{draw.caption} · {words}" if draw.caption else words
    return pixels_figure(draw.picture, caption, f"{name}, {words}")


def _classes(source: NetworkInputs, found: ClassCounts) -> str:
    names = source.classes
    if not found.of_image or not names:
        return ""
    colours: dict[str, str] = {}
    if task_of(source.cfg).coloured_classes:
        palette = class_colours(source.dataset.metainfo)
        colours = {name: f"rgb{palette[index]}" for index, name in enumerate(names)}
    order = sorted(range(len(names)), key=lambda index: (-found.counts.get(index, 0), index))
    rows = [(names[i], float(found.counts.get(i, 0)), f"{found.counts.get(i, 0):,}") for i in order]
    half = MAX_CLASS_BARS // 2
    some = rows if len(rows) <= MAX_CLASS_BARS else [*rows[:half], *rows[-half:]]
    words = f"{found.counted.capitalize()} of each class in "
    words += f"all {found.total:,} images" if found.complete else f"{len(found.of_image):,} of {found.total:,} images"
    words += f"; the {half} most frequent and the {half} rarest of {len(rows):,}." if len(some) < len(rows) else "."
    every = f"<details><summary>All {len(rows):,} classes</summary>{bars(rows, colours)}</details>"
    return note(words) + bars(some, colours) + (every if len(some) < len(rows) else "")


def _objects(source: NetworkInputs, objects: np.ndarray) -> str:
    found = octaves(objects)
    if not found:
        return ""
    sizes = source.spec.reference_sizes(source.cfg)
    rows = []
    for (low, high), count in found.items():
        beside = [
            f"{name} {', '.join(f'{value:g}' for value in values if low <= value < high)}"
            for name, values in sizes.items()
            if any(low <= value < high for value in values)
        ]
        name = f"under {high} px" if not low else f"{low} to {high} px"
        rows.append((name, float(count), " · ".join([f"{count:,}", *beside])))
    words = f"Square roots of the areas of {len(objects):,} boxes in the network's input"
    return note(f"{words}, with the {' and '.join(sizes)} that lie there." if sizes else f"{words}.") + bars(rows)


def _rates(resolved: Resolved, launch: Launch, images: int) -> str:
    with silence():
        plan = training_plan(resolved, launch)
    try:
        plan = plan.with_data(images, epoch_steps(resolved.cfg.train_dataloader, images, launch.processes))
    except (ConfigError, DataError) as error:  # a part of the data, to look at, may be too small to be trained on
        return note(str(error))
    return rate_charts(resolved.cfg, plan.schedule)


def _pipeline(cfg: Any, split: str, source: NetworkInputs) -> str:
    steps = [*(source.settings.get("pipeline") or [])]
    outer = cfg[f"{split}_dataloader"].dataset
    steps += [*(outer.get("pipeline") or [])] if outer is not source.settings else []
    settings: Mapping[str, Any] = source.spec.preprocessor(cfg)
    lines = [_step(one) for one in [*steps, settings]]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _step(step: Mapping[str, Any]) -> str:
    others = ", ".join(f"{key}={value!r}" for key, value in step.items() if key != "type")
    return f"{step['type']}({others})"
