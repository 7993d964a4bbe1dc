"""Losses of hidden units and of simple predictors, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from classification.pretraining.patches import patch_targets, to_patches
from classification.pretraining.unit_errors import (
    BLURRED,
    MEAN,
    NEAREST,
    MaskedImage,
    fill_hidden,
    measure_units,
)

HIDDEN = torch.tensor([[False, True, True], [False, False, True]])


def masked(pixels: Tensor, hidden: Tensor = HIDDEN, normalized: bool = True) -> MaskedImage:
    scale, shift = (torch.full((len(pixels), 1, 1), value) for value in (50.0, 100.0))
    return MaskedImage(pixels, hidden, scale, shift, normalized)


def random_image(channels: int = 3) -> Tensor:
    return torch.randn(channels, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_losses_are_mean_squares_of_targets_and_predictions(channels: int, normalized: bool) -> None:
    image = masked(random_image(channels), normalized=normalized)
    target, _, std = patch_targets(to_patches(image.pixels[None], 32), normalized)
    predicted = torch.randn(3, 32 * 32 * channels, generator=torch.Generator().manual_seed(1))
    found = measure_units(image, predicted)
    wanted = target[0][torch.tensor([1, 2, 5])]
    torch.testing.assert_close(torch.from_numpy(found.losses), (predicted - wanted).square().mean(1))
    assert found.places.tolist() == [[0, 1], [0, 2], [1, 2]]
    # All frequencies add up to the mean square.
    assert found.spectrum[0].sum() == pytest.approx(float(wanted.square().mean()), rel=1e-5)
    assert found.spectrum[1].sum() == pytest.approx(float(found.losses.mean()), rel=1e-5)
    off = (predicted - wanted) * (std[0][torch.tensor([1, 2, 5])] if normalized else 1) * 50
    torch.testing.assert_close(torch.from_numpy(found.deviations), off.square().mean(1).sqrt())
    pixels = 50 * torch.stack([to_patches(one[None, None], 32)[0] for one in image.pixels])  # (C, units, pixels)
    contrast = pixels.var(-1, correction=0).mean(0).sqrt()[torch.tensor([1, 2, 5])]
    torch.testing.assert_close(torch.from_numpy(found.contrasts), contrast)


def test_the_mean_of_a_unit_has_a_loss_of_one_and_a_right_prediction_none() -> None:
    image = masked(random_image())
    found = measure_units(image, image.targets()[0])
    assert found.losses.max() == 0
    assert found.simple[MEAN] == pytest.approx([3071 / 3072] * 3, abs=1e-5)
    raw = measure_units(masked(3 * random_image(), normalized=False), torch.zeros(3, 3072))
    assert raw.simple[MEAN] == pytest.approx(raw.losses, rel=0.01)  # as the mean of the pixels is nearly 0


def test_hidden_pixels_are_filled_from_visible_ones() -> None:
    pixels = torch.zeros(1, 64, 96)
    pixels[:, :32, :32], pixels[:, 32:, :32], pixels[:, 32:, 32:64] = 1.0, 2.0, 3.0
    pixels[:, to_mask(HIDDEN)] = 99.0  # which no predictor sees
    filled = fill_hidden(masked(pixels))
    assert max(filled[NEAREST].max(), filled[BLURRED].max()) == 3.0
    assert filled[NEAREST][0, 0, 33] == 1.0
    assert filled[NEAREST][0, 31, 60] == filled[NEAREST][0, 40, 90] == 3.0
    column = filled[BLURRED][0, 16, 32:64]
    assert 1.0 < column[0] < column[-1] < 3.0


def to_mask(hidden: Tensor) -> Tensor:
    return hidden.repeat_interleave(32, 0).repeat_interleave(32, 1)


def test_a_smooth_image_is_guessed_from_its_surroundings() -> None:
    down, right = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 2, 96), indexing="ij")
    hidden = torch.tensor([[False, True, False], [False, False, False]])
    found = measure_units(masked((down + right)[None], hidden), torch.zeros(1, 1024))
    assert found.losses[0] == pytest.approx(found.simple[MEAN][0]) == pytest.approx(1, abs=2e-3)
    assert found.simple[BLURRED][0] < 0.5


def test_places_are_told_by_what_is_visible_around_them() -> None:
    hidden = torch.ones(4, 5, dtype=torch.bool)
    hidden[0, 0] = hidden[1, 1] = False
    found = measure_units(masked(torch.randn(3, 128, 160), hidden), torch.zeros(18, 3072))
    by_place = dict(zip(map(tuple, found.places.tolist()), zip(found.distances, found.neighbours), strict=True))
    assert by_place[0, 1] == (1, 2)
    assert by_place[2, 2] == (pytest.approx(2**0.5), 1)
    assert by_place[3, 4] == (pytest.approx(13**0.5), 0)


@pytest.mark.parametrize(("cycles", "band"), [(0, 0), (0.5, 1), (1, 1), (1.5, 2), (4, 3), (7, 4), (16 - 0.5, 5)])
def test_a_wave_is_in_its_band(cycles: float, band: int) -> None:
    along = torch.cos(np.pi * 2 * cycles * (torch.arange(32) + 0.5) / 32)
    wave = along.expand(32, 32)[None].repeat(1, 1, 3)
    image = masked(wave, torch.tensor([[False, True, False]]), normalized=False)
    spectrum = measure_units(image, torch.zeros(1, 1024)).spectrum[0]
    assert spectrum.argmax() == band
    assert spectrum[band] == pytest.approx(spectrum.sum(), rel=1e-5)
