"""Weights out: every exported file is read back, run beside its source, and kept only where both agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from analysis.export.formats import FORMATS, Run, missing_packages
from analysis.export.source import Range, Shape, Source
from backbones.errors import UserError, describe_error
from engine.visualize import find_images

TOLERANCE = 1e-3  # relative to the source's greatest output
PHOTOGRAPHS = 4  # of a folder, at most
STEP = (37, 64)  # pixels, rows and columns, from the first size that is compared to the second; 37 divides by nothing
RANDOM_BATCHES = (1, 3)
FIXING = "if another size of the image is the cause, --shape H W fixes the size"


@dataclass(frozen=True)
class Difference:
    """How far an exported file is from its source on one batch.

    Attributes:
        images: ``random`` or ``photographs``.
        shape: ``(N, H, W)``.
        output: The output that is furthest away.
        absolute: Greatest difference of a number.
        relative: The same over the greatest number of that output of the source.
    """

    images: str
    shape: tuple[int, int, int]
    output: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes:
        files: What was written: the asked-for file last, and before it, for a large network in ONNX, its data.
        taken: Heights and widths that the file takes, each as the least and the greatest.
        notes: What a person should know, one line each.
        differences: From the source, by batch.
    """

    files: tuple[Path, ...]
    taken: tuple[Range, Range]
    notes: tuple[str, ...]
    differences: tuple[Difference, ...]


def check_request(name: str, out: Path, checkpoint: str) -> None:
    """Refuse before any work what cannot end well.

    Args:
        name: Of the format.
        out: File to write.
        checkpoint: File that is read.

    Raises:
        UserError: If a package is not installed, or the file to write is of the wrong kind.
    """
    if missing := missing_packages(name):
        raise UserError(
            f"--format {name} needs {', '.join(missing)}: install this project's extra with pip install -e '.[export]'"
        )
    suffix = FORMATS[name].suffix
    if out.suffix != suffix:
        raise UserError(f"--out {str(out)!r}: a file of --format {name} ends with {suffix}")
    if out.is_dir() or (out.exists() and Path(checkpoint).exists() and out.samefile(checkpoint)):
        raise UserError(f"--out {str(out)!r} is the checkpoint itself, or a folder: choose another file")


def export(
    source: Source,
    name: str,
    out: Path,
    images: Path | None = None,
    fixed: bool = False,
    show: Callable[[Sequence[Difference]], None] = lambda differences: None,
) -> Export:
    """Write a network in a format, read it back, compare, and only then put it into its place.

    Args:
        source: The network.
        name: Of the format, a key of ``FORMATS``.
        out: File to write; one that is there is replaced at the end.
        images: An image or a folder of images to compare on; by default the two photographs of scikit-learn.
        fixed: Export for images of the source's size only.
        show: Called with the differences before they are judged.

    Returns:
        What was written.

    Raises:
        UserError: If the network cannot be exported in this format, the file cannot be written, or it does not compute
            what the source does.
    """
    for side, (least, _) in zip(source.shape, source.taken):
        if side < least:
            raise UserError(f"--shape {source.shape[0]} {source.shape[1]}: at least {least} x {least} are needed")
    photographs, notes = load_photographs(images), list(source.notes)
    if not fixed and not _runs(source, _stepped(source.shape, source.taken)):
        fixed = True
        notes.append("the network takes images of one size only")
    with _aside(out) as path:
        taken = _write(source, name, path, fixed, notes)
        run = _open(source, name, path)
        shapes = (source.shape, source.shape if fixed else _stepped(source.shape, taken))
        differences = tuple(compare(source, run, kind, batch) for kind, batch in _batches(source, photographs, shapes))
        show(differences)
        _judge(differences, name)
        files = sorted(path.parent.iterdir(), key=lambda file: file == path)  # the data before what refers to it
        for file in files:
            os.replace(file, out.parent / file.name)
    return Export(tuple(out.parent / file.name for file in files), taken, tuple(notes), differences)


def compare(source: Source, run: Run, kind: str, images: Tensor) -> Difference:
    """Run source and exported file on one batch.

    Args:
        source: The network.
        run: Runs the file.
        kind: ``random`` or ``photographs``.
        images: Normalised, ``(N, 3, H, W)``.

    Raises:
        UserError: If the file does not run, or gives other outputs or numbers that are not finite.
    """
    expected = source.run(images)
    count, _, height, width = images.shape
    where = f"{count} {kind} images of {height} x {width}"
    try:
        found = run(images)
    except Exception as error:  # each runtime has errors of its own
        raise UserError(
            f"refused: the exported file does not run on {where}: {describe_error(error, 200)}; {FIXING}"
        ) from error
    if [one.shape for one in found] != [one.shape for one in expected]:
        shapes = ", ".join(str(tuple(one.shape)) for one in found)
        raise UserError(f"refused: the exported file gives {shapes} for {where}; {FIXING}")
    if not all(one.isfinite().all() for one in (*found, *expected)):
        raise UserError(f"refused: the outputs for {where} are not finite")
    worst = max(
        ((_relative(a, b), float((a - b).abs().max()), name) for a, b, name in zip(found, expected, source.outputs))
    )
    return Difference(kind, (count, height, width), worst[2], worst[1], worst[0])


def load_photographs(path: Path | None) -> list[Image.Image]:
    """Real images in RGB: those of a folder, or the two that scikit-learn brings with it.

    Raises:
        UserError: If there is none, or one cannot be read.
    """
    if path is None:
        return [Image.fromarray(image) for image in load_sample_images().images]
    photographs = []
    for file in find_images(path)[:PHOTOGRAPHS]:
        try:
            photographs.append(Image.open(file).convert("RGB"))
        except OSError as error:
            raise UserError(f"{str(file)!r} cannot be read: it is damaged, or no image") from error
    return photographs


def _batches(
    source: Source, photographs: Sequence[Image.Image], shapes: Sequence[Shape]
) -> Iterator[tuple[str, Tensor]]:
    """Random and real images at each of the shapes; two shapes that are the same differ in the size of the batch."""
    generator = torch.Generator().manual_seed(0)
    for count, shape in zip(RANDOM_BATCHES, shapes):
        yield "random", torch.randn(count, 3, *shape, generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source.mean, source.std))
    for height, width in dict.fromkeys(shapes):
        resized = [np.array(photograph.resize((width, height))) for photograph in photographs]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        yield "photographs", ((pixels / 255 - mean) / std).contiguous()


def _stepped(shape: Shape, taken: tuple[Range, Range]) -> Shape:
    """Another shape than the first, of those that the exported file takes."""
    height, width = (
        side + step if most is None else min(side + step, most) for side, step, (_, most) in zip(shape, STEP, taken)
    )
    return height, width


def _runs(source: Source, shape: Shape) -> bool:
    try:
        source.run(torch.zeros(1, 3, *shape))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def _write(source: Source, name: str, path: Path, fixed: bool, notes: list[str]) -> tuple[Range, Range]:
    """Write for images of any size, and where the exporter cannot do that, for the source's."""
    chosen = FORMATS[name]
    try:
        return chosen.write(source, path, fixed)
    except (UserError, OSError):
        raise
    except Exception as error:  # the exporters raise many kinds
        if fixed or not chosen.traced:
            raise UserError(
                f"--format {name}: {source.name} cannot be exported: {describe_error(error, 200)}"
            ) from error
        notes.append(f"the exporter cannot leave the size of the image open ({describe_error(error, 200)})")
    return _write(source, name, path, True, notes)


def _open(source: Source, name: str, path: Path) -> Run:
    try:
        return FORMATS[name].open(source, path)
    except Exception as error:
        raise UserError(f"refused: the exported file cannot be opened: {describe_error(error, 200)}") from error


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A path of the same name in a folder that goes away, on the same disk: what is there at the end was moved out."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
    except OSError as error:
        raise UserError(f"--out {str(out)!r} cannot be written: {error.strerror or error}") from error


def _judge(differences: Sequence[Difference], name: str) -> None:
    worst = max(differences, key=lambda difference: difference.relative)
    if worst.relative > TOLERANCE:
        count, height, width = worst.shape
        raise UserError(
            f"refused: the {name} file differs from its source by {worst.relative:.2g} of the greatest {worst.output} "
            f"on {count} {worst.images} images of {height} x {width} ({TOLERANCE:g} is allowed); {FIXING}"
        )


def _relative(found: Tensor, expected: Tensor) -> float:
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    return difference / scale if scale else (0.0 if difference == 0 else inf)
