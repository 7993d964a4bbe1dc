"""The page about the errors of a test: numbers of the task's analysis, and the worst images of each kind, drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.config import Config

from backbones.files import atomic_write
from engine.data.image_files import DamagedImageError
from engine.prediction.error_analysis import ErrorAnalysis, ErrorFindings, ImageErrors
from engine.prediction.saved import TestedImages
from engine.prediction.visualize import MAX_PICTURE_PIXELS, read_picture
from engine.report.class_scores import score_of, score_text
from engine.report.gallery import SCRIPT, Card, gallery
from engine.report.html import document, facts, note, pixels_figure
from engine.task import TaskSpec

PAGE = "errors.html"
PANEL_SIDE = 480  # pixels, longer side of the image in a panel
MAX_PER_KIND = 24  # pictures
# Of the pictures as text in the page, which stays below 15 MB: what mail servers commonly let pass.
MAX_PICTURE_BYTES = 12_000_000
QUALITY, FULL_QUALITY = 80, 90  # of the JPEGs


class DrawnImages(NamedTuple):
    """Pictures of errors.

    Attributes:
        cards: The pictures, the worst one first.
        left_out: Number of chosen images that the page has no room for.
    """

    cards: list[Card]
    left_out: int


class WrittenPage(NamedTuple):
    """A page about errors.

    Attributes:
        path: File.
        pictures: Number of pictures in it.
        left_out: Number of images with errors that it does not show.
    """

    path: Path
    pictures: int
    left_out: int


def images_to_show(images: Sequence[ImageErrors], per_kind: int | None) -> list[ImageErrors]:
    """The images with most errors of each kind, and of all kinds together, the worst one first.

    Args:
        images: Images with errors.
        per_kind: Number of images for each kind; ``None`` for all.
    """
    ranked = sorted(images, key=lambda one: (-one.total, one.index))
    kinds = dict.fromkeys(kind for one in ranked for kind in one.kinds)
    chosen = {one.index for one in ranked[:per_kind]}
    for kind in kinds:
        of_kind = [one for one in ranked if one.kinds.get(kind)]
        chosen |= {one.index for one in sorted(of_kind, key=lambda one: -one.kinds[kind])[:per_kind]}
    return [one for one in ranked if one.index in chosen]


class ImageView(NamedTuple):
    """What is drawn of an image.

    Attributes:
        path: File of the image.
        pictures: Function that draws a picture, by its caption: from the image at the size of a panel and the factors
            from pixels of the file to it.
    """

    path: str
    pictures: Mapping[str, Callable[[np.ndarray, tuple[float, float]], np.ndarray]]


def draw_worst_images(
    cfg: Config, images: TestedImages, analysis: ErrorAnalysis, findings: ErrorFindings, full: bool
) -> DrawnImages:
    """Draw the worst images, as many as the page has room for.

    Args:
        cfg: Resolved config.
        images: Truth and predictions.
        analysis: The task's analysis, which draws.
        findings: Its findings.
        full: Whether to draw all images with errors, at their own size.
    """

    def view(one: ImageErrors) -> ImageView:
        sample = images[one.index]
        path = str(sample["img_path"])
        return ImageView(path, {f"{Path(path).name}: {one.caption}": partial(analysis.draw, sample=sample)})

    chosen = images_to_show(findings.images, None if full else MAX_PER_KIND)
    cards = draw_cards(cfg, chosen, view, None if full else MAX_PICTURE_BYTES)
    return DrawnImages(cards, len(findings.images) - len(cards))


def draw_cards(
    cfg: Config, chosen: Sequence[ImageErrors], view: Callable[[ImageErrors], ImageView], room: int | None
) -> list[Card]:
    """Draw images, as many as there is room for.

    Args:
        cfg: Resolved config.
        chosen: Images in the order of the page.
        view: Returns what is drawn of an image.
        room: Bytes of the pictures as text in the page; ``None`` for all images at their own size.
    """
    cards: list[Card] = []
    full, left = room is None, room or 0
    for one in chosen:
        path, pictures = view(one)
        text = " ".join(pictures)
        try:
            pixels, scale = _panel(read_picture(cfg, path), full)
        except DamagedImageError:
            cards.append(Card(note(f"{text} (the image cannot be read)"), text, one.kinds, one.classes))
            continue
        quality, alt = FULL_QUALITY if full else QUALITY, f"predictions in {Path(path).name}"
        shown = "".join(pixels_figure(draw(pixels, scale), caption, alt, quality) for caption, draw in pictures.items())
        left -= len(shown)
        if left < 0 and not full:
            break
        cards.append(Card(shown, text, one.kinds, one.classes))
    return cards


def _panel(image: np.ndarray, full: bool) -> tuple[np.ndarray, tuple[float, float]]:
    """An image at the size of a panel, and the factors in x and y; large enough for text, if full at its own size."""
    height, width = image.shape[:2]
    factor = PANEL_SIDE / max(height, width)
    if full:
        factor = min(max(factor, 1.0), (MAX_PICTURE_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(factor * width)), max(1, round(factor * height))
    how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=how), (size[0] / width, size[1] / height)


def write_error_page(
    folder: Path,
    task: TaskSpec,
    about: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    findings: ErrorFindings,
    drawn: DrawnImages,
) -> WrittenPage:
    """Write the page.

    Args:
        folder: Folder of the page.
        task: The task.
        about: ``source`` of the predictions, ``averaged``, ``tta`` and ``command``.
        metrics: Scores of the test.
        findings: Findings of the task's analysis.
        drawn: Pictures.
    """
    modes = [text for key, text in (("averaged", "averaged weights"), ("tta", "test-time augmentation")) if about[key]]
    lead = f'<p class="lead">{escape(", ".join([str(about["source"]), *modes]))}</p>'
    known = {name: score_of(name, (task,)) for name in metrics}
    scores = facts({known[name].label: score_text(known[name], value) for name, value in metrics.items()})
    sections = {"Scores": scores, **findings.sections}
    if drawn.cards:
        left_out = f" {drawn.left_out:,} further images with errors are not shown: --full shows all." * bool(
            drawn.left_out
        )
        sections[findings.heading] = note(findings.note + left_out) + gallery(drawn.cards)
    sections["How it was made"] = facts({"command": about["command"]}) + SCRIPT
    page = folder / PAGE
    with atomic_write(page) as part:
        part.write_text(document(f"Errors: {folder.resolve().parent.name}", lead, sections), encoding="utf-8")
    return WrittenPage(page, len(drawn.cards), drawn.left_out)
