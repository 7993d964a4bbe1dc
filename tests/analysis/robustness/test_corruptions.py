from __future__ import annotations

import numpy as np
import pytest

from analysis.robustness.corruptions import (
    BAR_CORRUPTIONS,
    CORRUPTIONS,
    DENSE_CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    corrupt,
    image_seed,
)
from backbones.errors import ConfigError, DataError

ALL = list(dict.fromkeys((*CORRUPTIONS, *EXTRA_CORRUPTIONS, *BAR_CORRUPTIONS, *DENSE_CORRUPTIONS)))


def photograph(height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth areas of colour with edges."""
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(x / 9 + y / 17) + (x > width // 3),
        np.cos(x / 13 - y / 7) + (y > height // 2),
        np.sin((x + y) / 11),
    ]
    return np.stack([np.clip(128 + 50 * wave, 0, 255) for wave in waves], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(224, 224), (40, 65), (7, 5), (1, 1), (2, 300)])
def test_every_size_keeps_its_shape_and_the_image_is_not_changed(name: str, shape: tuple[int, int]) -> None:
    image = photograph(*shape)
    before = image.copy()
    for severity in (1, 3, 5):
        out = corrupt(image, name, severity, seed=0)
        assert out.shape == (*shape, 3)
        assert out.dtype == np.uint8
        assert out.flags.c_contiguous
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_and_nothing_else_does(name: str) -> None:
    image = photograph()
    first = corrupt(image, name, 3, seed=5)
    np.random.seed(1)
    assert np.array_equal(corrupt(image[:, ::-1][:, ::-1], name, 3, seed=5), first)


def test_errors_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"gaussian_nois.*nearest: gaussian_noise"):
        corrupt(photograph(), "gaussian_nois", 1, 0)
    with pytest.raises(ConfigError, match="known: gaussian_noise, "):
        corrupt(photograph(), "#", 1, 0)
    for severity in (0, 6, 2.5):
        with pytest.raises(ConfigError, match=r"severity .* of snow"):
            corrupt(photograph(), "snow", severity, 0)  # type: ignore[arg-type]
    for image in (photograph().astype(np.float32), photograph()[..., 0], photograph()[:0]):
        with pytest.raises(DataError, match="uint8 RGB"):
            corrupt(image, "snow", 1, 0)


def test_seeds_are_fixed_for_all_time_and_differ() -> None:
    assert image_seed("a/b.jpg", "fog", 1) == 16059953008728623362
    seeds = {image_seed(key, name, severity) for key in ("a", 1, "1/x") for name in ALL for severity in range(1, 6)}
    assert len(seeds) == 3 * len(ALL) * 5
