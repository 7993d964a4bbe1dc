"""Images that are too small for the network, or of several sizes in a batch: found before the first step."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

import detection  # noqa: F401
import segmentation  # noqa: F401
from backbones.errors import ConfigError
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.check import check_datasets
from engine.data.network_input import NetworkInput
from tests.bad_inputs.builders import CONFIG

CLASSES = ("wall", "sky")


def rooms(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Images and labels of sizes (width, height), the same in training and validation but for the pixels."""
    for seed, split in enumerate(("training", "validation")):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        noise = np.random.default_rng(seed)
        for number, (width, height) in enumerate(sizes):
            name = f"{number:03}"
            image = noise.integers(0, 255, (height, width, 3), np.uint8)
            Image.fromarray(image).save(folder / f"images/{split}/{name}.jpg")
            Image.fromarray(np.resize(np.array([1, 2], np.uint8), (height, width))).save(
                folder / f"annotations/{split}/{name}.png"
            )
    return folder


def resolved(root: Path, **options: Any) -> Config:
    weights = {f"model.{head}.loss_decode.class_weight": None for head in ("decode_head", "auxiliary_head")}
    return load_config(
        CONFIG["segmentor"], {"data_root": str(root), "classes": CLASSES, **weights, **options}, Launch()
    ).cfg


def errors(cfg: Config) -> list[tuple[str, str, str]]:
    found = check_datasets(cfg, ("train", "val")).errors
    return sorted((item.kind, item.split, Path(item.file).name) for item in found)


def test_a_small_image_is_named_wherever_it_is(tmp_path: Path) -> None:
    """Training pads it to the crop; a validation sends it to the network as it is."""
    cfg = resolved(rooms(tmp_path, (40, 40), (40, 40), (40, 31), (40, 40)))
    assert errors(cfg) == [("image too small", "val", "002.jpg")]
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=32)
    assert errors(cfg) == []
    cfg.model.data_preprocessor.size = (16, 16)
    cfg.train_dataloader.dataset.pipeline[2].crop_size = (30, 30)
    assert errors(cfg) == [("image too small", "train", f"00{i}.jpg") for i in range(4)]


def test_classification_takes_images_of_any_size(tmp_path: Path) -> None:
    cfg = load_config(CONFIG["classifier"], {"data_root": str(tmp_path)}, Launch()).cfg
    assert NetworkInput(cfg, cfg.val_dataloader.dataset, False, no_annotations).problem((3, 2)) is None


def no_annotations(size: tuple[int, int]) -> dict[str, Any]:
    return {}


def photographs(folder: Path, *sizes: tuple[int, int]) -> Config:
    """A detector's config, without padding, of images of sizes (width, height), each with an object, in both splits."""
    (folder / "annotations").mkdir(parents=True)
    for seed, split in enumerate(("train2017", "val2017")):
        (folder / split).mkdir()
        images, objects = [], []
        for number, (width, height) in enumerate(sizes, 1):
            noise = np.random.default_rng(100 * seed + number).integers(0, 255, (height, width, 3), np.uint8)
            Image.fromarray(noise).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
            polygon = [0, 0, width, 0, width, height, 0, height]
            objects.append(
                {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": width * height}
                | {"bbox": [0, 0, width, height], "segmentation": [polygon]}
            )
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    options = {"data_root": str(folder), "classes": ("cat",), "model.data_preprocessor.pad_size_divisor": 1}
    return load_config(CONFIG["detector"], options, Launch()).cfg


def test_a_detector_names_what_is_too_small_for_it(tmp_path: Path) -> None:
    """Images are resized to a longer side of 160 pixels; training leaves out those with a side below 32."""
    cfg = photographs(tmp_path, (60, 40), (100, 18), (300, 50), (400, 1))
    assert errors(cfg) == [
        ("damaged image", "val", "4.png"),
        ("image too small", "train", "3.png"),
        ("image too small", "val", "2.png"),
        ("image too small", "val", "3.png"),
    ]
    (small,) = (one for one in check_datasets(cfg, ("train", "val")).errors if one.file.endswith("val2017/2.png"))
    assert small.problem == "reaches the network with 160 x 29 pixels, of which it needs 32 x 32"
    cfg.model.data_preprocessor.pad_size_divisor = 32
    assert errors(cfg) == [("damaged image", "val", "4.png")]


def test_augmentations_of_a_batch_may_enlarge_it(tmp_path: Path) -> None:
    cfg = photographs(tmp_path, (60, 40), (300, 50))
    assert errors(cfg) == [("image too small", split, "2.png") for split in ("train", "val")]
    cfg.model.data_preprocessor.batch_augments = [dict(type="BatchFixedSizePad", size=(160, 160))]
    assert errors(cfg) == [("image too small", "val", "2.png")]


PLAIN = [dict(type="LoadCheckedImage"), dict(type="LoadLabels", num_classes=2, reduce_zero_label=True)]
PACK = dict(type="PackSegInputs")


@pytest.mark.parametrize(
    "sizes, steps, kind",
    [
        ([(200, 160), (160, 200)], [], "sizes in a batch"),
        ([(200, 160)] * 2, [], None),
        ([(100, 90), (90, 100)], [], None),  # padded to 128 x 128
        ([(200, 160)] * 2, [dict(type="RandomResize", scale=(400, 200), keep_ratio=True)], "sizes in a batch"),
        ([(200, 160), (160, 200)], [dict(type="RandomCrop", crop_size=(128, 128))], None),
        ([(200, 160), (160, 200)], [dict(type="Resize", scale=(150, 150), keep_ratio=False)], None),
    ],
)
def test_images_of_a_training_batch_need_one_size(
    tmp_path: Path, sizes: list[tuple[int, int]], steps: list[dict[str, Any]], kind: str | None
) -> None:
    if steps and steps[0]["type"] == "RandomResize":
        steps = [{**steps[0], "ratio_range": (0.8, 2.0)}]
    cfg = resolved(rooms(tmp_path, *sizes))
    cfg.train_dataloader.dataset.pipeline = [*PLAIN, *steps, PACK]
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert [found[0] for found in errors(cfg)] == ([kind] if kind else [])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    cfg.train_dataloader.batch_size = 1
    assert errors(cfg) == []


@pytest.mark.parametrize("crop, size, padded", [((64, 96), (512, 512), True), ((128, 128), None, False)])
def test_training_images_that_are_mostly_padding_are_a_warning(
    tmp_path: Path, crop: tuple[int, int], size: tuple[int, int] | None, padded: bool
) -> None:
    """A crop of one's own leaves the size to which a library's config pads."""
    cfg = resolved(rooms(tmp_path, (200, 160), (100, 90)))
    cfg.train_dataloader.dataset.pipeline = [*PLAIN, dict(type="RandomCrop", crop_size=crop), PACK]
    if size:
        cfg.model.data_preprocessor.size = size
    found = [one for one in check_datasets(cfg, ("train", "val")).findings if one.kind == "mostly padding"]
    assert len(found) == padded
    if padded:
        assert "becomes 96 x 64 pixels and is padded to 512 x 512: 98% of what" in str(found[0])
        assert "set model.data_preprocessor.size=(64, 96)" in str(found[0])


def test_images_of_a_validation_batch_need_one_size(tmp_path: Path) -> None:
    """mmseg does not pad these before it compares them."""
    cfg = resolved(rooms(tmp_path, (100, 90), (90, 100)))
    cfg.val_dataloader.batch_size = 2
    (found,) = check_datasets(cfg, ("train", "val")).errors
    assert "a batch of 2 needs one size; set val_dataloader.batch_size=1" in str(found)


def test_a_pipeline_that_loads_images_otherwise_is_not_judged(tmp_path: Path) -> None:
    cfg = load_config(CONFIG["classifier"], {"data_root": str(tmp_path)}, Launch()).cfg
    with pytest.raises(ConfigError, match="LoadImageFromFile"):
        NetworkInput(cfg, cfg.val_dataloader.dataset, False, no_annotations).after_pipeline((40, 40))
