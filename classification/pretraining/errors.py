"""Errors of a masked autoencoder: its loss beside that of simple predictors, by place, contrast and frequency."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import MODELS

from backbones.errors import DataError, printable
from classification.pretraining.data import UNIT
from classification.pretraining.model import PREPROCESSOR
from classification.pretraining.unit_errors import (
    BLUR,
    BLURRED,
    FREQUENCIES,
    MEAN,
    MaskedImage,
    UnitErrors,
    fill_hidden,
    measure_units,
)
from classification.pretraining.visualizer import HIDDEN_COLOUR, as_pictures
from engine.config.building import build
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings, ImageErrors, ImageScore
from engine.report.gallery import sortable_table
from engine.report.html import bars, note, number, shaded_table
from engine.report.lettering import BLACK, WHITE, Lettering, letter
from engine.report.panels import font_size, join_panels

HIGH, LOW, BEATEN = "high loss", "low loss", "worse than the mean of the unit"
NETWORK = "the network"
PERCENTS = (0, 5, 25, 50, 75, 95, 100)  # of the distribution of the images' losses
HISTOGRAM_BARS = 12
CONTRAST_GROUPS = 8  # of as many units
MAX_DRAWN_SIDE = 480  # pixels, of a panel that is larger than what the network gets
FLAT = 1e-3  # contrast in values of the file, below which a unit is constant
LEAST_VARIANCE = 1e-9  # of targets; constant units have none
LEAST_SHARE = 1e-3  # of the variance; below it a percentage says nothing
VISIBLE_COLOUR = (70, 100, 150)  # of units without an error
MAX_DRAWN_ERROR = 2.0  # of the target, white in a picture
NORMALIZED_LOSS = (
    f"The {MEAN} has about 1, as its pixels are normalised; all others get mean and deviation of the unit from the "
    "image, too."
)
PLAIN_LOSS = f"The {MEAN} is taken from the image."
NORMALIZED_CONTRAST = (
    "The loss divides by the variance of a unit over all channels. Of an almost flat unit in colour that is mostly the "
    "differences between the channels' means, which are easy to predict: such units lower the loss. Of a flat unit of "
    "one channel only noise is left, which cannot be predicted."
)
PLAIN_CONTRAST = "The loss does not divide by the contrast: units of low contrast are easy, and add little to it."
LossGroup = dict[str, float | int | str | None]


class ReconstructionErrors(ErrorAnalysis):
    """Keeps the losses of the hidden units of each image.

    Args:
        request: Config, and what is known of the test data.
    """

    score_words = (
        "Score: share of the hidden pixels' variance that is explained, in percent. "
        "Right: the loss is below those of all simple predictors."
    )

    def __init__(self, request: AnalysisRequest) -> None:
        super().__init__(request)
        model = request.cfg.model
        self._preprocessor = build(MODELS, model.get("data_preprocessor") or PREPROCESSOR, "model.data_preprocessor")
        self._normalized = bool(model.get("normalize_patches", True))
        self._indices: list[int] = []
        self._paths: list[str] = []
        self._found: list[UnitErrors] = []
        self._grid = (0, 0)

    def _image(self, sample: Mapping[str, Any]) -> MaskedImage:
        """The image of a sample as the network gets it, and what is hidden of it."""
        hidden = torch.as_tensor(sample["hidden"])
        rows, columns = hidden.shape
        with torch.no_grad():
            pixels = self._preprocessor({"inputs": torch.as_tensor(sample["inputs"])[None]}, False)["inputs"][0].float()
        whole = pixels[:, : rows * UNIT, : columns * UNIT]
        return MaskedImage(whole, hidden, self._preprocessor.std, self._preprocessor.mean, self._normalized)

    def _measure(self, sample: Mapping[str, Any]) -> UnitErrors:
        found = measure_units(self._image(sample), torch.as_tensor(sample["predicted_units"]).float())
        if not np.isfinite(found.losses).all():
            raise DataError(f"{printable(sample['img_path'])}: the prediction is not finite: the network has diverged")
        return found

    def add(self, index: int, sample: Mapping[str, Any]) -> None:
        """Measure the hidden units of an image."""
        self._found.append(self._measure(sample))
        self._indices.append(index)
        self._paths.append(str(sample["img_path"]))
        self._grid = tuple(map(max, self._grid, sample["hidden"].shape))

    def image_score(self, sample: Mapping[str, Any]) -> ImageScore | None:
        """The share of the variance that is explained; nothing to score where all hidden units are constant."""
        found = self._measure(sample)
        explained = _explained(found.losses.mean(), found.simple[MEAN].mean())
        if explained is None:
            return None
        right = all(found.losses.mean() < losses.mean() for losses in found.simple.values())
        return ImageScore(max(0.0, explained), right)

    def findings(self) -> ErrorFindings:
        """Sum up over the data set."""
        if not self._found:
            return ErrorFindings({"image_count": 0}, {"Loss": note("There are no images.")})
        losses = np.array([one.losses.mean() for one in self._found], np.float64)
        folders = _folders(self._paths)
        units = _Units(self._found)
        by_folder = self._by_folder(losses, folders)
        numbers = {
            "image_count": len(losses),
            "hidden_units": len(units.losses),
            "normalized_targets": self._normalized,
            "loss": dict(zip(map(str, PERCENTS), _rounded(np.percentile(losses, PERCENTS)), strict=True))
            | {"mean": _rounded(losses.mean())},
            "predictors": self._predictors(),
            "by_folder": by_folder,
            "by_visible_neighbours": units.groups(units.neighbours, lambda count: f"{count} of 8"),
            "by_distance": units.groups(units.distances.round(2), lambda distance: f"{distance:g}"),
            "by_place": units.by_place(self._grid),
            "by_contrast": units.by_contrast(),
            "by_frequency": _by_frequency(np.mean([one.spectrum for one in self._found], axis=0)),
        }
        words = (
            "High and low loss: the upper and the lower half of the images. Error: of the pixels as the loss compares "
            f"them, black where there is none, white from {MAX_DRAWN_ERROR:g} on, blue in visible units; with the loss "
            "of each hidden unit."
        )
        return ErrorFindings(
            numbers,
            _sections(numbers, losses, self._normalized),
            self._images(losses, folders),
            words,
            "Worst and best images",
        )

    def _predictors(self) -> dict[str, dict[str, float | None]]:
        """Mean loss over the images of the network and of the simple predictors, and what they explain."""
        losses = {NETWORK: float(np.mean([one.losses.mean() for one in self._found], dtype=np.float64))}
        for name in self._found[0].simple:
            losses[name] = float(np.mean([one.simple[name].mean() for one in self._found], dtype=np.float64))
        return {
            name: {"loss": _rounded(loss), "explained": _explained(loss, losses[MEAN])} for name, loss in losses.items()
        }

    def _by_folder(self, losses: np.ndarray, folders: Sequence[str]) -> list[LossGroup]:
        """Loss of the images of each folder; empty where there are no folders."""
        means = np.array([one.simple[MEAN].mean() for one in self._found], np.float64)
        names = np.array(folders)
        groups: list[LossGroup] = []
        for name in sorted(set(folders) - {""}):
            of_folder = names == name
            loss, mean = losses[of_folder].mean(), means[of_folder].mean()
            groups.append(_group(name, loss, mean, images=int(of_folder.sum())))
        return groups

    def _images(self, losses: np.ndarray, folders: Sequence[str]) -> list[ImageErrors]:
        """All images, in two halves by their loss."""
        middle, images = float(np.median(losses)), []
        for index, loss, folder, one in zip(self._indices, losses.tolist(), folders, self._found, strict=True):
            mean = float(one.simple[MEAN].mean())
            # Negative, so that the lowest comes first.
            kinds = {HIGH: round(loss, 4)} if loss >= middle else {LOW: round(-loss, 4)}
            if loss > mean:
                kinds[BEATEN] = round(loss - mean, 4)
            caption = f"loss {loss:.3f}, explained {number(_explained(loss, mean))} %" + f", {folder}" * bool(folder)
            images.append(ImageErrors(index, kinds, caption, [folder] if folder else []))
        return images

    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Mapping[str, Any]) -> np.ndarray:
        """Draw what the network gets, sees and predicts, what blurring predicts, and the error of each hidden unit."""
        masked = self._image(sample)
        predicted = torch.as_tensor(sample["predicted_units"]).float()
        target, mean, std = masked.targets()
        blurred = masked.units_of(fill_hidden(masked)[BLURRED])
        if self._normalized:
            blurred += mean - blurred.mean(-1, keepdim=True)
        filled = [masked.as_read(masked.with_units(units)) for units in (predicted * std + mean, blurred)]
        whole, in_place, simple = as_pictures(masked.as_read(masked.pixels), *filled)
        spots = np.kron(masked.hidden.numpy(), np.ones((UNIT, UNIT), bool))[..., None]
        error = masked.with_units((predicted - target).abs()).mean(0).numpy()
        height, width = error.shape
        factor = min(max(image.shape[:2]), max(MAX_DRAWN_SIDE, height, width)) / max(height, width)
        size = (round(factor * width), round(factor * height))

        def enlarged(picture: np.ndarray) -> np.ndarray:
            how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
            return np.asarray(cv2.resize(np.ascontiguousarray(picture), size, interpolation=how))

        grey = np.uint8(HIDDEN_COLOUR)
        heat = np.where(spots, (255 / MAX_DRAWN_ERROR * error[..., None]).clip(0, 255).astype(np.uint8), VISIBLE_COLOUR)
        losses = (predicted - target).square().mean(-1).tolist()
        rows = (
            {"image": whole, "what the encoder sees": np.where(spots, grey, whole)}
            | {"prediction": np.where(spots, in_place, grey)},
            {"prediction in its place": in_place, f"{BLURRED} in its place": simple} | {"error": heat.astype(np.uint8)},
        )
        drawn = [{title: enlarged(picture) for title, picture in row.items()} for row in rows]
        drawn[1]["error"] = _with_losses(drawn[1]["error"], masked.hidden.numpy(), losses)
        return np.vstack([join_panels(row, {}) for row in drawn])


class _Units:
    """The hidden units of all images."""

    def __init__(self, found: Sequence[UnitErrors]) -> None:
        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(one, name) for one in found])

        self.losses, self.deviations, self.contrasts = map(joined, ("losses", "deviations", "contrasts"))
        self.distances, self.neighbours, self.places = map(joined, ("distances", "neighbours", "places"))
        self.means = np.concatenate([one.simple[MEAN] for one in found])

    def groups(self, values: np.ndarray, name: Any) -> list[LossGroup]:
        """Losses of the units of each value."""
        return [self._of(name(value), values == value) for value in np.unique(values).tolist()]

    def _of(self, name: str, chosen: np.ndarray) -> LossGroup:
        loss, mean = (float(one[chosen].mean(dtype=np.float64)) for one in (self.losses, self.means))
        return _group(name, loss, mean, units=int(chosen.sum()))

    def by_place(self, grid: tuple[int, int]) -> list[list[float | None]]:
        """Mean loss of each place of the grid, ``None`` for one that was hidden in no image."""
        flat, places = self.places @ (grid[1], 1), grid[0] * grid[1]
        counts = np.bincount(flat, minlength=places)
        sums = np.bincount(flat, self.losses, places)
        means = [_rounded(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
        return [means[row * grid[1] : (row + 1) * grid[1]] for row in range(grid[0])]

    def by_contrast(self) -> list[LossGroup]:
        """Losses of constant units, and of groups of equally many others by their contrast."""
        flat = self.contrasts < FLAT
        groups = [self._of_contrast("constant", flat)] if flat.any() else []
        if not flat.all():
            edges = np.unique(np.quantile(self.contrasts[~flat], np.linspace(0, 1, CONTRAST_GROUPS + 1)))
            place = np.searchsorted(edges[1:-1], self.contrasts, side="right")
            for at in np.unique(place[~flat]).tolist():
                name = f"{edges[at]:.3g} to {edges[min(at + 1, len(edges) - 1)]:.3g}"
                groups.append(self._of_contrast(name, ~flat & (place == at)))
        return groups

    def _of_contrast(self, name: str, chosen: np.ndarray) -> LossGroup:
        error = math.sqrt(np.square(self.deviations[chosen], dtype=np.float64).mean())
        return {**self._of(name, chosen), "error": _rounded(error)}


def _group(name: str, loss: float, mean: float, **count: int) -> LossGroup:
    """A row of a table: loss, that of the unit's mean, and what is explained."""
    return {"name": name, "loss": _rounded(loss), MEAN: _rounded(mean), "explained": _explained(loss, mean), **count}


def _rounded(value: Any) -> Any:
    return np.round(value, 4).tolist()


def _explained(loss: float, mean: float) -> float | None:
    """Percent of the variance that is explained; ``None`` where there is none."""
    return round(100 * (1 - float(loss) / float(mean)), 2) if mean > LEAST_VARIANCE else None


def _folders(paths: Sequence[str]) -> list[str]:
    """Folder of each image below the one that holds all of them; empty texts where they lie in one."""
    parents = [str(Path(path).parent) for path in paths]
    common = os.path.commonpath(parents) if parents else ""
    return [(Path(parent).relative_to(common).parts or ("",))[0] for parent in parents]


def _by_frequency(spectrum: np.ndarray) -> list[LossGroup]:
    """Share of the targets' variance and what is explained of it, from coarse to fine, by the length of a wave."""
    longest, *lengths = (f"{UNIT / edge:g}" for edge in FREQUENCIES[1:-1])
    names = ["one colour", f"{longest} px and longer"]
    names += [f"{short} to {long} px" for long, short in pairwise([longest, *lengths])]
    names += [f"below {lengths[-1]} px (diagonal)"]
    target, error = spectrum.tolist()
    total = sum(target) or 1.0
    return [
        {"name": name, "share": round(100 * there / total, 2), "loss": _rounded(left)}
        | {"explained": _explained(left, there) if there > LEAST_SHARE * total else None}
        for name, there, left in zip(names, target, error, strict=True)
    ]


def _with_losses(picture: np.ndarray, hidden: np.ndarray, losses: Sequence[float]) -> np.ndarray:
    """The loss of each hidden unit written in its middle."""
    side, size = picture.shape[0] / hidden.shape[0], font_size(*picture.shape[:2])
    texts = [
        Lettering(f"{loss:.2f}", (column + 0.5) * side, (row + 0.5) * side - size / 2, size, WHITE, BLACK, True)
        for (row, column), loss in zip(np.argwhere(hidden).tolist(), losses, strict=True)
    ]
    return letter(picture, texts)


def _sections(numbers: Mapping[str, Any], losses: np.ndarray, normalized: bool) -> dict[str, str]:
    """The page's sections by their headings."""
    place = (
        "Loss by the number of visible units among the eight around a hidden one, by the distance to the nearest "
        "visible one in units, and by the place in the image."
    )
    flat = (
        "Contrast: standard deviation of a unit's pixels around the mean of their channel, in the values of the file. "
        "Error: root of the mean squared error, in the same values. "
        f"{NORMALIZED_CONTRAST if normalized else PLAIN_CONTRAST}"
    )
    waves = (
        "The targets' variance by the length of a wave, and how much of it is explained. One colour: differences "
        "between the channels' means in a unit."
    )
    return {
        "Loss": _loss_section(numbers, losses, normalized),
        "By folder": _group_table("folder", numbers["by_folder"], "images"),
        "By place in the mask": note(place)
        + "<h3>Visible units around it</h3>"
        + _group_table("visible", numbers["by_visible_neighbours"], "units")
        + "<h3>Distance to the nearest visible unit</h3>"
        + _group_table("distance", numbers["by_distance"], "units")
        + "<h3>Place in the image</h3>"
        + shaded_table(numbers["by_place"]),
        "By contrast": _group_table("contrast", numbers["by_contrast"], "error", "units") + note(flat),
        "By frequency": _table(
            ["wave", "share of the variance", "loss", "explained"],
            [[one["name"], one["share"], one["loss"], one["explained"]] for one in numbers["by_frequency"]],
        )
        + note(waves),
    }


def _loss_section(numbers: Mapping[str, Any], losses: np.ndarray, normalized: bool) -> str:
    """Predictors, percentiles and histogram."""
    counts, edges = np.histogram(losses, HISTOGRAM_BARS)
    predictors = [[name, one["loss"], one["explained"]] for name, one in numbers["predictors"].items()]
    words = (
        "Mean squared error over the hidden units, with the same mask for an image every time. "
        f"{NORMALIZED_LOSS if normalized else PLAIN_LOSS} The nearest visible pixel is repeated; visible pixels are "
        f"blurred with a deviation of {BLUR:g} pixels. Explained: percent of the variance, which is the loss of the "
        f"{MEAN}."
    )
    rows = [
        (f"{low:.3f} to {high:.3f}", float(count), f"{count:,}")
        for count, (low, high) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True)
    ]
    percentiles = [[f"{percent} %", numbers["loss"][str(percent)]] for percent in PERCENTS]
    return (
        _table(["predictor", "loss", "explained"], predictors)
        + note(words)
        + "<h3>Images by their loss</h3>"
        + bars(rows)
        + "<h3>Percentiles</h3>"
        + _table(["of the images, up to", "loss"], percentiles)
    )


def _group_table(what: str, groups: Sequence[LossGroup], *others: str) -> str:
    """Table of groups; empty without any."""
    columns = ["loss", MEAN, "explained", *others]
    rows = [[one["name"], *(one[column] for column in columns)] for one in groups]
    return _table([what, *columns], rows) if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that can be sorted; of the numbers losses have three digits, percents one."""
    percents = {"explained", "share of the variance"}

    def text(column: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        if value is None or column in percents:
            return number(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"

    return sortable_table(head, [[text(*cell) for cell in zip(head, row, strict=True)] for row in rows])
