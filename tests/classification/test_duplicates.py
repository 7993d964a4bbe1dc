"""Copies of training images among tested ones: the same file, another size and compression, mirrored, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from classification.duplicates import find_duplicates


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train = []
    for index in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        train.append(str(tmp_path / f"train{index}.png"))
        coarse.resize((96, 80), Image.Resampling.BICUBIC).save(train[-1])
    names = ("same.png", "small.jpg", "mirrored.png", "cropped.png", "grey.png")
    tested = [str(tmp_path / name) for name in names]
    shutil.copy(train[1], tested[0])
    Image.open(train[2]).resize((48, 40)).save(tested[1], quality=60)
    Image.open(train[3]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tested[2])
    Image.open(train[0]).crop((30, 20, 90, 70)).save(tested[3])
    Image.new("RGB", (96, 80), (128, 128, 128)).save(tested[4])
    found, unread = find_duplicates(tested, train, read)
    assert [(one.tested, one.original, one.exact) for one in found] == [(0, 1, True), (1, 2, False), (2, 3, False)]
    assert all(0.99 <= one.correlation <= 1.0001 for one in found)
    assert unread == 0
    assert find_duplicates(tested, [], read) == ([], 0)
