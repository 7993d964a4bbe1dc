"""The corruptions beside plain definitions of the same processes, and what is random in them."""

from __future__ import annotations

import colorsys
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.random import PCG64, Generator
from scipy import ndimage
from scipy.special import ndtr

from analysis.robustness.corruptions import (
    BAR_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    corrupt,
    image_seed,
)
from analysis.robustness.corruptions.arithmetic import (
    SAMPLE_BITS,
    exact_levels,
    filtered,
    gaussian_filtered,
    mirrored,
    mirrored_without_edge,
    packed,
    resampled,
    whole_weights,
)
from analysis.robustness.corruptions.blur import copied_from, disk_weights, motion_blurred
from analysis.robustness.corruptions.digital import smooth_noise
from analysis.robustness.corruptions.frost import frost_overlay
from analysis.robustness.corruptions.weather import plasma_cloud

ROOT = Path(__file__).resolve().parents[3]


def photograph(height: int = 96, width: int = 96) -> np.ndarray:
    """Areas of colour with edges, waves and grain."""
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / 9 + y / 17) + (x > width // 3), np.cos(x / 13 - y / 7) + (y > height // 2), np.sin((x + y) / 11)
    grain = np.random.default_rng(3).normal(0, 8, (height, width, 3))
    return np.clip(110 + 50 * np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


def rng(seed: int = 0) -> Generator:
    return Generator(PCG64(seed))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_is_the_copies_of_the_released_loop(reach: int) -> None:
    height, width = 23, 31
    across, down = rng().integers(-reach, reach, (2, height - 2 * reach, width - 2 * reach), dtype=np.int32)
    image = np.arange(height * width * 3).reshape(height, width, 3)
    before = image.copy()
    for h in range(height - reach, reach, -1):
        for w in range(width - reach, reach, -1):
            there = h + down[h - reach - 1, w - reach - 1], w + across[h - reach - 1, w - reach - 1]
            # Python's swap of two views copies the second to the first and then that one to itself.
            image[h, w], image[there] = image[there], image[h, w]
    assert np.array_equal(before.reshape(-1, 3)[copied_from(height, width, reach, across, down)], image.reshape(-1, 3))
    assert len(np.unique(image)) < image.size  # copies, no permutation


@pytest.mark.parametrize("shape", [(5, 9), (17, 17), (40, 3)])
def test_filters_are_exact(shape: tuple[int, int]) -> None:
    image = photograph(20, 30)
    weights = whole_weights(rng().dirichlet(np.ones(shape[0] * shape[1])).reshape(shape), 16)
    assert weights.sum() == 2**16
    origin = (shape[0] // 3, shape[1] // 2)
    padded = np.pad(
        image.astype(np.int64),
        ((origin[0], shape[0] - 1 - origin[0]), (origin[1], shape[1] - 1 - origin[1]), (0, 0)),
        "edge",
    )
    expected = sum(
        int(weights[i, j]) * padded[i : i + 20, j : j + 30] for i in range(shape[0]) for j in range(shape[1])
    )
    assert np.array_equal(filtered(image, weights, origin, cv2.BORDER_REPLICATE), expected)


@pytest.mark.parametrize("sigma", [0.7, 1.5, 6])
def test_gaussians_are_scipys(sigma: float) -> None:
    image = photograph()
    expected = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")
    assert np.abs(gaussian_filtered(image, sigma) - expected).max() < 0.2
    flat = np.full((9, 9), 77, np.uint8)
    assert np.array_equal(gaussian_filtered(flat, sigma), np.full((9, 9), 77))


@pytest.mark.parametrize("sigma", [2.44, 19.5, 170.8])
def test_smooth_noise_is_scipys(sigma: float) -> None:
    ours = smooth_noise((51, 60), (sigma, sigma), rng())
    drawn = rng().integers(-(2**15), 2**15, (51, 60), dtype=np.int32) / 2**15
    assert np.abs(ours - ndimage.gaussian_filter(drawn, sigma, mode="reflect", truncate=3)).max() < 1e-5


@pytest.mark.parametrize("fold, mode", [(mirrored, "reflect"), (mirrored_without_edge, "mirror")])
def test_samples_are_scipys(fold, mode: str) -> None:
    image = photograph(20, 31)
    rows, columns = rng().integers(-30 * 64, 60 * 64, (2, 40, 40)) / 64
    expected = [
        ndimage.map_coordinates(image[..., channel].astype(float), (rows, columns), order=1, mode=mode)
        for channel in range(3)
    ]
    ours = exact_levels(resampled(packed(image), rows, columns, fold), SAMPLE_BITS)
    assert np.abs(ours - np.stack(expected, axis=-1)).max() < 0.01


def test_zoom_blur_is_the_mean_of_scipys_zooms() -> None:
    image = photograph(90, 90)
    total = np.zeros(image.shape)
    factors = np.arange(1, 1.16, 0.01)
    for factor in factors:
        cut = int(np.ceil(90 / factor))
        top = (90 - cut) // 2
        zoomed = ndimage.zoom(image[top : top + cut, top : top + cut].astype(float), (factor, factor, 1), order=1)
        trim = (len(zoomed) - 90) // 2
        total += zoomed[trim : trim + 90, trim : trim + 90]
    expected = (total + image) / (len(factors) + 1)
    assert len(factors) == 16
    assert np.abs(corrupt(image, "zoom_blur", 2, 0) - expected).max() < 1.1


@pytest.mark.parametrize("name, severity", [("brightness", 1), ("brightness", 5), ("saturate", 1), ("saturate", 5)])
def test_colours_change_in_hsv(name: str, severity: int) -> None:
    image = np.concatenate([rng().integers(0, 256, (60, 3)), [[0, 0, 0], [9, 9, 9], [255, 255, 255], [255, 0, 0]]])
    out = corrupt(image.astype(np.uint8)[None], name, severity, 0)[0]
    for pixel, ours in zip(image / 255, out, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        if name == "brightness":
            value = min(value + 0.1 * severity, 1)
        else:
            factor, more = {1: (0.3, 0), 5: (20, 0.2)}[severity]
            saturation = min(saturation * factor + more, 1)
        assert np.abs(ours - 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))).max() <= 1


def test_noises_have_the_stated_size() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for severity, scale in enumerate((0.08, 0.12), 1):
        noise = corrupt(grey, "gaussian_noise", severity, 1) - 128.0
        assert noise.std() == pytest.approx(255 * scale, rel=0.02)
        assert noise.mean() == pytest.approx(-0.5, abs=0.6)  # cut off, not rounded
    for severity, photons in enumerate((60, 25), 1):
        noise = corrupt(grey, "shot_noise", severity, 1) - 128.0
        assert noise.std() == pytest.approx(255 * np.sqrt(128 / 255 / photons), rel=0.03)
    for severity, share in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1):
        out = corrupt(grey, "impulse_noise", severity, 1)
        assert [(out == value).mean() for value in (0, 255)] == pytest.approx([share / 2] * 2, rel=0.05)
    assert (corrupt(grey, "speckle_noise", 1, 1) - 128.0).std() == pytest.approx(128 * 0.15, rel=0.02)
    assert (corrupt(grey, "brownish_noise", 2, 1) - 128.0).std(axis=(0, 1)) == pytest.approx([12.8] * 3, rel=0.02)
    wave = corrupt(grey, "single_frequency_greyscale", 3, 1) - 128.0
    assert wave.std() == pytest.approx(39.2 / np.sqrt(2), rel=0.03)
    assert np.array_equal(wave[..., 0], wave[..., 2])
    assert np.abs(corrupt(grey, "cocentric_sine_waves", 1, 1) - 128.0).max() == pytest.approx(0.5 * 38.4, abs=1)


def test_a_disk_and_a_line_are_where_they_should_be() -> None:
    for radius, softness in ((3, 0.1), (6, 0.5), (10, 0.5)):
        weights = disk_weights(radius, softness)
        assert weights.sum() == pytest.approx(2**15 * (1.011 if radius == 10 else 1), rel=1e-3)
        assert np.abs(weights - weights[::-1, ::-1]).max() <= 1
        area = (weights > 0.5 * weights.max()).sum()
        assert area == pytest.approx(np.pi * radius**2, rel=0.12)
    dot = np.zeros((60, 60), np.uint8)
    dot[30, 30] = 255
    seen = motion_blurred(dot, 10, 8, 0)
    assert list(np.flatnonzero(seen.sum(axis=0))) == list(range(10, 31))  # a pixel sees those to its right
    assert list(np.flatnonzero(seen.sum(axis=1))) == [30]
    assert seen[30, 30] == seen.max()
    assert len(np.flatnonzero(motion_blurred(dot, 10, 8, -90).sum(axis=1))) == 21


def test_clouds_and_frost_fill_their_range() -> None:
    cloud = plasma_cloud(64, 2.0, rng())
    assert (cloud.min(), cloud.max()) == (0, 1)
    steps = np.abs(np.diff(np.concatenate([cloud, cloud[:1]]), axis=0)).mean(axis=1)
    assert steps[-1] < 2 * steps.mean()  # the edges meet
    overlay = frost_overlay(80, 100, rng())
    assert overlay.shape == (80, 100)
    assert (overlay.mean(), overlay.std()) == pytest.approx((0, 1), abs=1e-9)


def test_cutouts_and_samples_set_whole_pixels() -> None:
    image = np.full((224, 224, 3), 77, np.uint8)
    shares = []
    for severity in range(1, 6):
        outs = [corrupt(image, "checkerboard_cutout", severity, seed)[::4, ::4] for seed in range(60)]
        assert set(np.unique(outs)) <= {77, 128}
        shares.append(np.mean([(out == 128).mean() for out in outs]))
        black = (corrupt(image, "blue_noise_sample", severity, 0) == 0).all(axis=-1).mean()
        threshold = 0.3 * (0.8, 1.6, 2.4, 4, 5.6)[severity - 1] - 2.5
        assert black == pytest.approx(ndtr(threshold), abs=0.01)
    assert shares == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3], abs=0.03)


# By their constants, saturate first takes colour away and then adds it, and the elastic transform first moves far.
@pytest.mark.parametrize("name", sorted({*CORRUPTIONS, *EXTRA_CORRUPTIONS, *BAR_CORRUPTIONS} - {"saturate"}))
def test_the_distance_grows_with_the_severity(name: str) -> None:
    image = photograph(160, 160)
    distances = [
        np.mean([distance(corrupt(image, name, severity, seed), image) for seed in range(6)])
        for severity in (1, 2, 3, 4, 5)
    ]
    assert distances[0] > 0
    if name == "elastic_transform":
        assert distances[2] < distances[4] < distances[0]
    else:
        assert distances[0] < distances[4]
        assert all(two > 0.85 * one for one, two in pairwise(distances)), distances


DIGESTS = """
import hashlib, sys
import cv2
import numpy as np
sys.path.insert(0, {root!r})
cv2.setUseOptimized({optimized})
from analysis.robustness.corruptions import *
y, x = np.mgrid[:90, :110]
image = np.stack([128 + 99 * np.sin(x / 9 + y / 17), y * 2.5 % 255, 128 + 90 * np.cos(x * y / 99)], -1).astype(np.uint8)
for name in dict.fromkeys((*CORRUPTIONS, *EXTRA_CORRUPTIONS, *BAR_CORRUPTIONS, *DENSE_CORRUPTIONS)):
    for severity in (1, 5):
        out = corrupt(image, name, severity, image_seed("a", name, severity))
        print(name, severity, hashlib.sha256(out.tobytes()).hexdigest())
print(hashlib.sha256((np.abs(np.linspace(1, 300, 99999)) ** 1.4).tobytes()).hexdigest())
"""


def digests(optimized: bool, **variables: str) -> list[str]:
    program = DIGESTS.format(root=str(ROOT), optimized=optimized)
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_instructions_of_the_processor_do_not_matter() -> None:
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    plain = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "OPENCV_IPP": "disabled",
        "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,AVX,FP16,SSE4.2,SSE4.1",
        "OPENBLAS_CORETYPE": "Nehalem" if sys.platform == "linux" and "x86" in os.uname().machine else "",
    }
    fast, slow = digests(True), digests(False, **plain)
    if {"AVX2", "AVX512F"} & set(found):  # the last line is a power, which other instructions round otherwise
        assert fast[-1] != slow[-1]
    assert fast[:-1] == slow[:-1]


PLAIN = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
)


@pytest.mark.parametrize("name", [*PLAIN, "saturate"])
def test_what_is_not_random_is_that_of_another_implementation(name: str) -> None:
    reference = pytest.importorskip(
        "imagecorruptions", reason="pip install imagecorruptions-imaug", exc_type=ImportError
    )
    image = photograph(224, 224)
    for severity in range(1, 6):
        theirs = reference.corrupt(image, severity=severity, corruption_name=name)
        assert distance(corrupt(image, name, severity, 0), theirs) < 0.3


@pytest.mark.parametrize("name", [name for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS) if name not in PLAIN])
def test_what_is_random_is_as_far_away_as_in_another_implementation(name: str) -> None:
    reference = pytest.importorskip(
        "imagecorruptions", reason="pip install imagecorruptions-imaug", exc_type=ImportError
    )
    image = photograph(224, 224)
    ours_name = "elastic_transform_in_place" if name == "elastic_transform" else name
    for severity in (1, 3, 5):
        ours, theirs = [], []
        for seed in range(12):
            ours.append(distance(corrupt(image, ours_name, severity, image_seed(seed, name, severity)), image))
            np.random.seed(seed)
            theirs.append(distance(reference.corrupt(image, severity=severity, corruption_name=name), image))
        spread = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(12)
        # The overlays of frost are other ones.
        slack = 0.2 if name == "frost" else 0.02
        assert abs(np.mean(ours) - np.mean(theirs)) < 4 * spread + slack * np.mean(theirs)
