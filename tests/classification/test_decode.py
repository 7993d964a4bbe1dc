"""Crops read from image files: Pillow's pixels, and its opinion on what is damaged, by shorter ways."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from classification import decode
from classification.decode import read_crop, read_rgb
from engine.data.image_files import DamagedImage

BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """640 x 427 pixels of a Chinese temple."""
    return Image.fromarray(load_sample_image("china.jpg"))


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


def by_pillow(path: str, crop: decode.Crop, side: int) -> np.ndarray:
    top, left, height, width = crop
    part = read_rgb(path).crop((left, top, left + width, top + height))
    return np.asarray(part.resize((side, side), BICUBIC)).astype(int)


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "4:2:0": ("a.jpg", "RGB", {"quality": 90, "subsampling": 2}),
    "4:4:4": ("a.jpg", "RGB", {"quality": 95, "subsampling": 0}),
    "progressive": ("a.jpg", "RGB", {"progressive": True}),
    "not transformed": ("a.jpg", "RGB", {"keep_rgb": True}),
    "grey": ("a.jpg", "L", {}),
    "print": ("a.jpg", "CMYK", {}),
    "png": ("a.png", "RGB", {}),
    "palette": ("a.png", "P", {}),
    "transparent": ("a.webp", "RGBA", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_is_pillows_within_a_level(kind: str, photograph: Image.Image, tmp_path: Path) -> None:
    name, mode, options = KINDS[kind]
    path = saved(tmp_path, name, photograph.crop((90, 80, 391, 280)).convert(mode), **options)
    for crop in ((0, 0, 200, 301), (17, 33, 120, 95), (150, 201, 50, 100), (60, 60, 64, 64)):
        found = read_crop(path, lambda image, crop=crop: crop, 64)
        assert (found.shape, found.dtype, found.flags.c_contiguous) == ((64, 64, 3), np.uint8, True)
        difference = np.abs(found - by_pillow(path, crop, 64))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02


def test_the_crop_is_drawn_from_the_size_in_the_file(photograph: Image.Image, tmp_path: Path) -> None:
    asked = []

    def draw(image: Image.Image) -> decode.Crop:
        asked.append(image.size)
        return 0, 0, 10, 10

    read_crop(saved(tmp_path, "a.jpg", photograph), draw, 8)
    assert asked == [(640, 427)]


def harmed(content: bytes, seed: int) -> bytes:
    """With some bytes replaced that are not at the end."""
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(8):
        changed[draw.randrange(200, len(changed) - 40)] = draw.randrange(256)
    return bytes(changed)


def test_what_pillow_refuses_is_refused(photograph: Image.Image, tmp_path: Path) -> None:
    """And of what it makes a picture in spite of the damage, the same picture is made."""
    file = io.BytesIO()
    photograph.crop((200, 100, 320, 220)).save(file, "JPEG", quality=90)
    seen = {"refused": 0, "read": 0}
    crop, side = (0, 0, 96, 96), 20
    for seed in range(40):
        path = tmp_path / f"{seed}.jpg"
        path.write_bytes(harmed(file.getvalue(), seed))
        expected = refused = None
        try:
            expected = by_pillow(str(path), crop, side)
        except DamagedImage as error:
            refused = str(error)
        if expected is None:
            seen["refused"] += 1
            with pytest.raises(DamagedImage) as raised:
                read_crop(str(path), lambda image: crop, side)
            assert str(raised.value) == refused
        else:
            seen["read"] += 1
            difference = np.abs(read_crop(str(path), lambda image: crop, side) - expected)
            assert difference.max() <= 1
    assert min(seen.values()) >= 3


def test_a_file_that_was_cut_off_is_refused(photograph: Image.Image, tmp_path: Path) -> None:
    path = Path(saved(tmp_path, "a.jpg", photograph))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DamagedImage, match="the end marker of a JPEG is absent"):
        read_crop(str(path), lambda image: (0, 0, 20, 20), 8)
