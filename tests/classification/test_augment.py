"""RandAugment on arrays against timm's on Pillow images: equal random choices, pixels within one level."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from timm.data import auto_augment as timm_ops

from backbones import UserError
from classification.augment import ARRAY_OPS, FILL_COLOR, PillowOp, rand_augment

DESCRIPTION = "rand-m9-mstd0.5-inc1"
FILL: dict[str, Any] = {"fillcolor": FILL_COLOR, "resample": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Not square, so that width and height cannot be mistaken for each other."""
    return np.array(Image.fromarray(load_sample_image("flower.jpg")).resize((120, 88), Image.Resampling.BICUBIC))


def timms(description: str = DESCRIPTION) -> Any:
    settings = dict(img_mean=FILL_COLOR, interpolation=Image.Resampling.BICUBIC)
    return timm_ops.rand_augment_transform(description, settings)


LEVELS = np.linspace(-1, 1, 9).tolist()
ARGUMENTS: dict[Any, list[tuple[float, ...]]] = {
    timm_ops.auto_contrast: [()],
    timm_ops.equalize: [()],
    timm_ops.invert: [()],
    timm_ops.posterize: [(bits,) for bits in range(1, 9)],
    timm_ops.solarize: [(threshold,) for threshold in (0, 1, 26, 128, 255, 256)],
    timm_ops.solarize_add: [(add,) for add in (0, 1, 99, 110, 128)],
    timm_ops.brightness: [(0.1,), (0.33,), (1.0,), (1.81,), (1.9,)],
    timm_ops.contrast: [(0.1,), (0.33,), (1.0,), (1.81,), (1.9,)],
    timm_ops.color: [(0.1,), (0.33,), (1.0,), (1.81,), (1.9,)],
    timm_ops.sharpness: [(0.1,), (0.33,), (1.0,), (1.81,), (1.9,)],
    timm_ops.shear_x: [(0.3 * level,) for level in LEVELS],
    timm_ops.shear_y: [(0.3 * level,) for level in LEVELS],
    timm_ops.translate_x_rel: [(0.45 * level,) for level in (*LEVELS, 2.5, -4.0)],
    timm_ops.translate_y_rel: [(0.45 * level,) for level in (*LEVELS, 2.5, -4.0)],
}


def test_array_ops_are_all_compared() -> None:
    assert set(ARGUMENTS) == set(ARRAY_OPS)


@pytest.mark.parametrize("operation", ARGUMENTS, ids=lambda operation: operation.__name__)
def test_array_ops_give_pillows_pixels(operation: Any, picture: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
    for before in (picture, noise, np.ascontiguousarray(picture[:, :, ::-1] // 3 + 40)):
        kept = before.copy()
        for level in ARGUMENTS[operation]:
            expected = np.asarray(operation(Image.fromarray(before), *level, **FILL)).astype(int)
            found = ARRAY_OPS[operation](before, *level, **FILL)
            assert (found.shape, found.dtype) == (before.shape, np.uint8)
            difference = np.abs(found - expected)
            assert difference.max() <= 1, level
            assert (difference > 0).mean() < 0.03, level
        assert np.array_equal(before, kept)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("operation", ARGUMENTS, ids=lambda operation: operation.__name__)
def test_array_ops_of_small_images_of_one_colour(operation: Any, size: tuple[int, int]) -> None:
    before = np.full((*size, 3), (0, 7, 255), np.uint8)
    for level in ARGUMENTS[operation]:
        expected = np.asarray(operation(Image.fromarray(before), *level, **FILL)).astype(int)
        assert np.abs(ARRAY_OPS[operation](before, *level, **FILL) - expected).max() <= 1


def test_posterize_to_no_bit_is_black(picture: np.ndarray) -> None:
    """Magnitude 10, which 9 with a standard deviation of 0.5 reaches: Pillow refuses it."""
    with pytest.raises(ValueError, match="bits must be"):
        ImageOps.posterize(Image.fromarray(picture), 0)
    assert ARRAY_OPS[timm_ops.posterize](picture, 0).max() == 0


class Recorder:
    """Replaces an operation and records its arguments."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name, self.calls = name, calls

    def __call__(self, image: Any, *level: float, **settings: Any) -> Any:
        self.calls.append((self.name, level, settings))
        return image


@pytest.mark.parametrize("description", [DESCRIPTION, "rand-m7-n3-mstd1-p0.8", "rand-m9-mstd101-tweights"])
def test_rand_augment_makes_timms_random_choices(description: str) -> None:
    """Operations, magnitudes and signs of equal random states, and the states afterwards."""
    calls: dict[str, list[Any]] = {"ours": [], "timm": []}
    sides: dict[str, Any] = {"ours": rand_augment(description), "timm": timms(description)}
    states: dict[str, list[Any]] = {"ours": [], "timm": []}
    for name, augment in sides.items():
        for op in augment.ops:
            op.aug_fn = Recorder(op.name, calls[name])
        for seed in range(400):
            random.seed(seed)
            np.random.seed(seed)
            augment(None)
            states[name].append((random.random(), np.random.random()))
    assert calls["ours"] == calls["timm"]
    assert states["ours"] == states["timm"]
    if sides["timm"].choice_weights is None:
        assert {name for name, _, _ in calls["ours"]} == {op.name for op in sides["timm"].ops}


def test_rand_augment_replaces_each_of_timms_operations(picture: np.ndarray) -> None:
    for ours, theirs in zip(rand_augment(DESCRIPTION).ops, timms().ops, strict=True):  # type: ignore[attr-defined]
        ours.prob = theirs.prob = 1.0
        for magnitude in (1, 5, 9):
            ours.magnitude = theirs.magnitude = magnitude
            random.seed(magnitude)
            expected = np.asarray(theirs(Image.fromarray(picture))).astype(int)
            random.seed(magnitude)
            assert np.abs(ours(picture) - expected).max() <= 1, theirs.name


def test_rand_augment_leaves_only_rotation_to_pillow() -> None:
    ops = rand_augment(DESCRIPTION).ops  # type: ignore[attr-defined]
    assert {op.name for op in ops if isinstance(op.aug_fn, PillowOp)} == {"Rotate"}


def test_rand_augment_leaves_unknown_operations_to_pillow(picture: np.ndarray) -> None:
    (blur,) = (op for op in rand_augment("rand-m9-t3a").ops if op.name == "GaussianBlur")  # type: ignore[attr-defined]
    assert isinstance(blur.aug_fn, PillowOp)
    blur.prob = 1.0
    random.seed(1)
    assert blur(picture).shape == picture.shape
    pickle.loads(pickle.dumps(blur))


@pytest.mark.parametrize("description", ["augmix-m5", "rand-x9", "rand-mhigh1", "rand-m9.5", 9])
def test_rand_augment_refuses_other_descriptions(description: Any) -> None:
    with pytest.raises(UserError, match=r"rand-m9-mstd0\.5-inc1 is the paper's"):
        rand_augment(description)


@pytest.mark.parametrize("threads", [1, 3])
def test_array_ops_do_not_depend_on_threads(threads: int, picture: np.ndarray) -> None:
    before = torch.get_num_threads()
    large = np.tile(picture, (3, 3, 1))
    torch.set_num_threads(threads)
    try:
        found = ARRAY_OPS[timm_ops.shear_x](large, 0.21, **FILL)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found, ARRAY_OPS[timm_ops.shear_x](large, 0.21, **FILL))
