"""Export: every file is read back, compared with its source, and kept only if the outputs agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from analysis.export.formats import EXPORT_FORMATS, RunFunction
from analysis.export.source import ExportSource, Shape, SizeRange
from backbones.channels import COLOUR_CHANNELS
from backbones.errors import ConfigError, DataError, MachineError, UserError, describe_error
from backbones.packages import install_command, is_absent
from engine.prediction.images import find_images

MAX_RELATIVE_DIFFERENCE = 1e-3  # relative to the largest absolute output of the source
MAX_PHOTOGRAPHS = 4
SIZE_STEP = (37, 64)  # (rows, columns) in pixels from the first compared size to the second; 37 is a prime
SIZE_MULTIPLE = 32  # of height and width, for networks whose maps have to be twice as large as the next ones
UNEVEN_SIDE = 2 * SIZE_MULTIPLE + 24  # its maps of strides 4 to 32 have 22, 11, 5 and 2 rows
RANDOM_BATCHES = (1, 3)
PHOTOGRAPHS = "photographs"
FIXED_SIZE_HINT = "if another size of the image is the cause, --shape H W fixes the size"


@dataclass(frozen=True)
class OutputDifference:
    """Difference between an exported file and its source on one batch.

    Attributes:
        images: ``random`` or ``photographs``.
        shape: ``(N, H, W)``.
        output: Name of the output with the largest relative difference.
        absolute: Largest absolute difference.
        relative: ``absolute`` divided by the largest absolute value of that output of the source.
    """

    images: str
    shape: tuple[int, int, int]
    output: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class ExportResult:
    """Result of :func:`export_network`.

    Attributes:
        files: Written files: the requested file last, after the external data of a large ONNX network.
        input_sizes: Ranges of height and width that the file accepts.
        notes: Remarks for the user, one line each.
        differences: Differences from the source, one per batch.
    """

    files: tuple[Path, ...]
    input_sizes: tuple[SizeRange, SizeRange]
    notes: tuple[str, ...]
    differences: tuple[OutputDifference, ...]


def check_export(name: str, out: Path, checkpoint: str) -> None:
    """Check before any work that a format is installed and the file can be written.

    Args:
        name: Name of the format.
        out: File to write.
        checkpoint: Checkpoint to read.

    Raises:
        MachineError: If a package is not installed.
        ConfigError: If the file to write has the wrong suffix, or is the checkpoint or a folder.
    """
    if missing := [package for package in EXPORT_FORMATS[name].packages if is_absent(package)]:
        raise MachineError(
            f"--format {name} needs {', '.join(missing)}: install this project's extra, {install_command(missing[0])}"
        )
    suffix = EXPORT_FORMATS[name].suffix
    if out.suffix != suffix:
        raise ConfigError(f"--out {str(out)!r}: a file of --format {name} ends with {suffix}")
    if out.is_dir() or (out.exists() and Path(checkpoint).exists() and out.samefile(checkpoint)):
        raise ConfigError(f"--out {str(out)!r} is the checkpoint itself, or a folder: choose another file")


def export_network(
    source: ExportSource,
    name: str,
    out: Path,
    images: Path | None = None,
    fixed: bool = False,
    show: Callable[[Sequence[OutputDifference]], None] = lambda differences: None,
) -> ExportResult:
    """Write a network in a format, read it back, compare the outputs, and only then move it to its path.

    Args:
        source: Network to export.
        name: Name of the format, a key of ``EXPORT_FORMATS``.
        out: File to write; an existing one is replaced at the end.
        images: Image or folder of images to compare on; by default the two photographs of scikit-learn.
        fixed: Export for images of the source's size only.
        show: Callback with the differences, before a too large one is refused.

    Raises:
        ConfigError: If the network cannot be exported in this format, or the file does not compute the same.
        MachineError: If the file cannot be written.
    """
    smallest = source.input_sizes[0][0]
    if min(source.shape) < smallest:
        raise ConfigError(f"--shape {source.shape[0]} {source.shape[1]}: at least {smallest} x {smallest} are needed")
    photographs, notes = load_photographs(images), list(source.notes)
    source = _with_example(source, photographs)
    if not fixed and not _runs(source, (UNEVEN_SIDE, UNEVEN_SIDE)):
        source = replace(source, size_multiple=SIZE_MULTIPLE)
    if not fixed and not _runs(source, _other_shape(source, source.input_sizes)):
        fixed = True
        notes.append("the network takes images of one size only")
    elif source.size_multiple > 1:
        notes.append(
            f"height and width of an image have to be multiples of {SIZE_MULTIPLE}: the network does not run on "
            f"{UNEVEN_SIDE} x {UNEVEN_SIDE} pixels"
        )
    with _temporary_path(out) as path:
        try:
            input_sizes, differences = _write_and_compare(source, name, path, fixed, photographs, notes, show)
        except ConfigError as error:
            if fixed or source.recordable is None or not EXPORT_FORMATS[name].traced:
                raise
            # What the example decided may hold for its size alone.
            notes.append(f"for images of one size only: at any size, {describe_error(error)}")
            input_sizes, differences = _write_and_compare(source, name, path, True, photographs, notes, show)
        # External data before the file that refers to it.
        files = sorted(path.parent.iterdir(), key=lambda file: file == path)
        for file in files:
            os.replace(file, out.parent / file.name)
    return ExportResult(tuple(out.parent / file.name for file in files), input_sizes, tuple(notes), differences)


def _write_and_compare(
    source: ExportSource,
    name: str,
    path: Path,
    fixed: bool,
    photographs: Sequence[Image.Image],
    notes: list[str],
    show: Callable[[Sequence[OutputDifference]], None],
) -> tuple[tuple[SizeRange, SizeRange], tuple[OutputDifference, ...]]:
    """Write the file, run it and its source, and refuse a difference."""
    input_sizes = _write(source, name, path, fixed, notes)
    run = _open(source, name, path)
    shapes = (source.shape, source.shape if fixed else _other_shape(source, input_sizes))
    differences = tuple(
        difference
        for kind, batch in _batches(source, photographs, shapes)
        for difference in compare_outputs(source, run, kind, batch)
    )
    show(differences)
    _check_differences(differences, name)
    return input_sizes, differences


def _with_example(source: ExportSource, photographs: Sequence[Image.Image]) -> ExportSource:
    """Give a network that is recorded the first photograph for which none of its outputs is empty.

    Raises:
        ConfigError: If there is none: what follows an empty output would not be recorded, nor compared.
    """
    if source.recordable is None:
        return source
    for kind, batch in _batches(source, photographs, (source.shape,)):
        if kind == PHOTOGRAPHS and all(one.numel() for one in source.run(batch)):
            return replace(source, example=batch)
    raise ConfigError(
        f"the {source.kind} finds nothing in the photographs, so that nothing could be compared: give --images with "
        "an image in which it finds something"
    )


def compare_outputs(source: ExportSource, run: RunFunction, kind: str, images: Tensor) -> list[OutputDifference]:
    """Run source and exported file on one batch.

    Numbers are compared by their difference; labels, masks and other whole values by the share that differs.

    Args:
        source: Exported network.
        run: Function that runs the exported file.
        kind: ``random`` or ``photographs``.
        images: Normalised images, ``(N, 3, H, W)``.

    Returns:
        The difference of the output that differs most; of every output, where outputs are objects.

    Raises:
        ConfigError: If the file does not run, or its outputs have other shapes or are not finite.
    """
    expected = source.run(images)
    count, _, height, width = images.shape
    where = f"{count} {kind} images of {height} x {width}"
    try:
        found = run(images)
    except Exception as error:  # each runtime has errors of its own
        raise ConfigError(
            f"refused: the exported file does not run on {where}: {describe_error(error, 200)}; {FIXED_SIZE_HINT}"
        ) from error
    if source.align is not None:
        found, expected = (tuple(outputs) for outputs in source.align(found, expected))
    if [one.shape for one in found] != [one.shape for one in expected]:
        shapes = ", ".join(str(tuple(one.shape)) for one in found)
        raise ConfigError(f"refused: the exported file gives {shapes} for {where}; {FIXED_SIZE_HINT}")
    if not all(one.isfinite().all() for one in (*found, *expected)):
        raise ConfigError(f"refused: the outputs for {where} are not finite")
    measured = [(*_difference(a, b), name) for a, b, name in zip(found, expected, source.outputs)]
    shown = [max(measured)] if source.align is None else measured
    return [
        OutputDifference(kind, (count, height, width), name, absolute, relative) for relative, absolute, name in shown
    ]


def load_photographs(path: Path | None) -> list[Image.Image]:
    """Photographs in RGB: those of a folder, or the two in scikit-learn.

    Raises:
        DataError: If there is none, or one cannot be read.
    """
    if path is None:
        return [Image.fromarray(image) for image in load_sample_images().images]
    photographs = []
    for file in find_images([path])[:MAX_PHOTOGRAPHS]:
        try:
            photographs.append(Image.open(file).convert("RGB"))
        except OSError as error:
            raise DataError(f"{str(file)!r} cannot be read: it is damaged, or no image") from error
    return photographs


def _batches(
    source: ExportSource, photographs: Sequence[Image.Image], shapes: Sequence[Shape]
) -> Iterator[tuple[str, Tensor]]:
    """Batches of random images and of photographs at each of the shapes."""
    generator = torch.Generator().manual_seed(0)
    for count, shape in zip(RANDOM_BATCHES, shapes):
        size = (source.batch_size or count, source.channels, *shape)
        yield "random", torch.randn(size, generator=generator)
    prepared = source.preprocessing
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (prepared.mean, prepared.std))
    for height, width in dict.fromkeys(shapes):
        resized = [np.array(photograph.resize((width, height))) for photograph in photographs]
        colours = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        pixels = colours[:, [channel % COLOUR_CHANNELS for channel in range(source.channels)]]
        for batch in ((pixels / 255 - mean) / std).split(source.batch_size or len(pixels)):
            yield PHOTOGRAPHS, batch.contiguous()


def _other_shape(source: ExportSource, input_sizes: tuple[SizeRange, SizeRange]) -> Shape:
    """Another shape within the ranges that the exported file accepts, of sides that the network runs on."""
    multiple = source.size_multiple
    height, width = (
        larger if most is None else min(larger, most)
        for larger, (_, most) in zip(
            (multiple * ((side + step) // multiple) for side, step in zip(source.shape, SIZE_STEP)), input_sizes
        )
    )
    return height, width


def _runs(source: ExportSource, shape: Shape) -> bool:
    try:
        source.run(torch.zeros(1, source.channels, *shape))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def _write(source: ExportSource, name: str, path: Path, fixed: bool, notes: list[str]) -> tuple[SizeRange, SizeRange]:
    """Write for images of any size, or for the source's size if the exporter fails at that."""
    chosen = EXPORT_FORMATS[name]
    if fixed and chosen.traced:
        source = replace(source, preprocessing=source.preprocessing.for_size(source.shape))
    try:
        return chosen.write(source, path, fixed)
    except (UserError, OSError):
        raise
    except Exception as error:  # the exporters raise many kinds
        if fixed or not chosen.traced:
            raise ConfigError(
                f"--format {name}: {source.name} cannot be exported: {describe_error(error, 200)}"
            ) from error
        notes.append(f"the exporter cannot leave the size of the image open ({describe_error(error, 200)})")
    return _write(source, name, path, True, notes)


def _open(source: ExportSource, name: str, path: Path) -> RunFunction:
    try:
        return EXPORT_FORMATS[name].open(source, path)
    except Exception as error:
        raise ConfigError(f"refused: the exported file cannot be opened: {describe_error(error, 200)}") from error


@contextmanager
def _temporary_path(out: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder on the same disk."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
    except OSError as error:
        raise MachineError(f"--out {str(out)!r} cannot be written: {error.strerror or error}") from error


def _check_differences(differences: Sequence[OutputDifference], name: str) -> None:
    worst = max(differences, key=lambda difference: difference.relative)
    if worst.relative > MAX_RELATIVE_DIFFERENCE:
        count, height, width = worst.shape
        raise ConfigError(
            f"refused: the {name} file differs from its source by {worst.relative:.2g} of the greatest {worst.output} "
            f"on {count} {worst.images} images of {height} x {width} ({MAX_RELATIVE_DIFFERENCE:g} is allowed); "
            f"{FIXED_SIZE_HINT}"
        )


def _difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative and absolute difference; of whole values the number that differs, and its share of those not 0."""
    if expected.is_floating_point():
        apart, values = (found - expected).abs(), expected.abs()
        difference, scale = (float(one.max()) if one.numel() else 0.0 for one in (apart, values))
    else:
        difference, scale = float((found != expected).sum()), float(expected.count_nonzero())
    return (difference / scale if scale else (0.0 if difference == 0 else inf)), difference
