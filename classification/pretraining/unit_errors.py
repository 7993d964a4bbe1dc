"""What a masked autoencoder gets wrong in the hidden units of an image, and what simple predictors would."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.fft import dctn
from scipy.ndimage import uniform_filter
from torch import Tensor

from classification.pretraining.data import UNIT
from classification.pretraining.patches import patch_targets, to_images, to_patches

MEAN, NEAREST, BLURRED = "mean of the unit", "nearest visible pixel", "blurred visible pixels"
BLUR = UNIT / 2  # pixels, deviation of the Gaussian
MIN_WEIGHT = 1e-6  # of what a blur sees of visible pixels; where it sees less, their mean takes over
# Cycles along a unit; the last ones are those of diagonals. Above each the next band begins.
FREQUENCIES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class UnitErrors(NamedTuple):
    """Errors of the hidden units of an image, in the order of reading.

    Attributes:
        losses: Mean squared error of each, as the training has it, float32, (H,).
        simple: The same of the simple predictors, (H,) each, by their names.
        deviations: Root mean squared error in the values of the file, (H,).
        contrasts: Standard deviation of the pixels around the mean of their channel in the values of the file, (H,).
        distances: Distance to the nearest visible unit in units, (H,), 1 for one beside it.
        neighbours: Number of visible units among the eight around each, (H,).
        places: Row and column of each, (H, 2).
        spectrum: Mean square of target and error, (2, bands), by ``FREQUENCIES``; all bands add up to the mean square.
    """

    losses: np.ndarray
    simple: dict[str, np.ndarray]
    deviations: np.ndarray
    contrasts: np.ndarray
    distances: np.ndarray
    neighbours: np.ndarray
    places: np.ndarray
    spectrum: np.ndarray


class MaskedImage(NamedTuple):
    """An image with hidden units, and how its values come about.

    Attributes:
        pixels: The network's input, normalised, float32, (C, rows * unit, columns * unit).
        hidden: Whether each unit is hidden, bool, (rows, columns).
        scale: Standard deviation of each channel, by which values of the file were divided, (C, 1, 1).
        shift: Their means, which were taken off before, (C, 1, 1).
        normalized: Whether the targets are normalised by mean and variance of their unit.
    """

    pixels: Tensor
    hidden: Tensor
    scale: Tensor
    shift: Tensor
    normalized: bool

    def targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Target of the hidden units, (H, D), their means and deviations, (H, 1) or a number."""
        target, mean, std = patch_targets(self.units_of(self.pixels)[None], self.normalized)
        return (target[0], mean[0], std[0]) if self.normalized else (target[0], mean, std)

    def units_of(self, pixels: Tensor) -> Tensor:
        """The hidden units, (H, D), of an image (C, rows * unit, columns * unit)."""
        return to_patches(pixels[None], UNIT)[0][self.hidden.flatten()]

    def with_units(self, units: Tensor) -> Tensor:
        """The image, normalised, whose hidden units, (H, D), are replaced by others."""
        patches = to_patches(self.pixels[None], UNIT)
        patches[0, self.hidden.flatten()] = units
        rows, columns = self.hidden.shape
        return to_images(patches, (rows, columns), UNIT)[0]

    def as_read(self, pixels: Tensor) -> Tensor:
        """A normalised image with the values that a file has."""
        return pixels * self.scale + self.shift


def fill_hidden(image: MaskedImage) -> dict[str, Tensor]:
    """Hidden pixels filled in from visible ones by simple means, (C, rows * unit, columns * unit) each, by their names.

    Args:
        image: Image with at least one visible unit.
    """
    pixels = image.pixels.permute(1, 2, 0).numpy()
    hidden = np.kron(image.hidden.numpy(), np.ones((UNIT, UNIT), bool))
    _, labels = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros((labels.max() + 1, pixels.shape[2]), pixels.dtype)
    values[labels[~hidden]] = pixels[~hidden]
    seen = (~hidden).astype(np.float32)
    weight = np.asarray(cv2.GaussianBlur(seen, (0, 0), BLUR))[..., None] + MIN_WEIGHT
    blurred = [cv2.GaussianBlur(np.ascontiguousarray(one * seen), (0, 0), BLUR) for one in np.moveaxis(pixels, -1, 0)]
    smooth = (np.stack(blurred, -1) + MIN_WEIGHT * pixels[~hidden].mean(0)) / weight
    filled = {NEAREST: values[labels], BLURRED: smooth}
    return {name: torch.from_numpy(np.ascontiguousarray(one)).permute(2, 0, 1).float() for name, one in filled.items()}


def simple_predictions(image: MaskedImage) -> dict[str, Tensor]:
    """Predictions of the simple predictors for the hidden units, (H, D) each, as targets, by their names.

    Where targets are normalised, each gets mean and deviation of the unit from the image, as the network does: what it
    says is the pattern alone.
    """
    std = image.targets()[2]
    found = {name: image.units_of(filled) for name, filled in fill_hidden(image).items()}
    if image.normalized:
        zero = torch.zeros_like(next(iter(found.values())))
        return {MEAN: zero, **{name: (one - one.mean(-1, keepdim=True)) / std for name, one in found.items()}}
    own = image.units_of(image.pixels).mean(-1, keepdim=True)
    return {MEAN: own.expand_as(next(iter(found.values()))), **found}


def measure_units(image: MaskedImage, predicted: Tensor) -> UnitErrors:
    """Errors of the predicted hidden units, (H, D), of an image."""
    target, _, std = image.targets()
    difference = predicted - target
    channels = len(image.pixels)
    in_file, off = (
        one.unflatten(1, (-1, channels)) * image.scale.flatten()
        for one in (image.units_of(image.pixels), difference * std)
    )
    hidden = image.hidden.numpy()
    places = np.argwhere(hidden)
    apart = np.linalg.norm(places[:, None] - np.argwhere(~hidden)[None], axis=-1)
    around = np.rint(9 * uniform_filter((~hidden).astype(np.float64), 3, mode="constant")).astype(int)
    return UnitErrors(
        losses=difference.square().mean(-1).numpy(),
        simple={name: (one - target).square().mean(-1).numpy() for name, one in simple_predictions(image).items()},
        deviations=off.square().mean((1, 2)).sqrt().numpy(),
        contrasts=in_file.var(1, correction=0).mean(-1).sqrt().numpy(),
        distances=apart.min(1),
        neighbours=around[hidden],
        places=places,
        spectrum=np.stack([_spectrum(one, channels) for one in (target, difference)]),
    )


def _spectrum(units: Tensor, channels: int) -> np.ndarray:
    """Mean square of units, (H, D), by frequency, (bands,)."""
    pixels = units.unflatten(1, (UNIT, UNIT, channels)).numpy()
    energy = np.square(dctn(pixels, axes=(1, 2), norm="ortho")).mean((0, 3)) / UNIT**2
    along = np.arange(UNIT) / 2
    band = np.searchsorted(FREQUENCIES, np.hypot(along[:, None], along))
    return np.bincount(band.ravel(), energy.ravel(), len(FREQUENCIES))
