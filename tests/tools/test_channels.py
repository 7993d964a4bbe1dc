"""Images of one channel and of five, for each task, through the tools: plan, train, test, draw, count, export."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = {
    "classification": (CONFIGS / "classification" / "digits.py", "epoch_1.pth"),
    "detection": (CONFIGS / "detection" / "mask_rcnn_digits.py", "epoch_1.pth"),
    "segmentation": (CONFIGS / "segmentation" / "upernet_digits.py", "iter_2.pth"),
    "pretraining": (CONFIGS / "pretraining" / "fcmae_digits.py", "epoch_1.pth"),
}
MEAN, STD = [9000.0, 7000.0, 5000.0, 3000.0, 1000.0], [4000.0] * 5
SETTINGS = {
    "classification": """
train_cfg = dict(max_epochs=1)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
""",
    "detection": """
model.update(test_cfg=dict(rcnn=dict(score_thr=0.0)))
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
""",
    "segmentation": """
model = dict(data_preprocessor=dict(size=(64, 64)),
             decode_head=dict(loss_decode=dict(class_weight=None)),
             auxiliary_head=dict(loss_decode=dict(class_weight=None)))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2))
train_dataloader = dict(num_workers=0, dataset=dict(reduce_zero_label=False, img_suffix=".SUFFIX"))
val_dataloader = dict(num_workers=0, dataset=dict(reduce_zero_label=False, img_suffix=".SUFFIX"))
test_dataloader = dict(num_workers=0, dataset=dict(reduce_zero_label=False, img_suffix=".SUFFIX"))
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadLabels", num_classes="from_classes", reduce_zero_label=False),
    dict(type="RandomCrop", crop_size=(64, 64)),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadLabels", num_classes="from_classes", reduce_zero_label=False),
    dict(type="PackSegInputs"),
]
""",
}
SETTINGS["pretraining"] = SETTINGS["classification"] + "model.update(decoder_dim=16)\n"
SETTINGS["classification"] += """
augmented = dict(type="ClassificationTransform", size=48, training=True, rand_augment="rand-m5-n1-mstd0.5-inc1")
train_pipeline = [augmented | dict(scale=(0.75, 1.0), flip=0.0)]
del augmented
"""


def write_image(path: Path, channels: int, seed: int, side: int = 64) -> str:
    """A grey PNG, or five bands of 16 bits as TIFF; the name of the file."""
    random = np.random.default_rng(seed)
    if channels == 1:
        Image.fromarray(random.integers(0, 256, (side, side), np.uint8)).save(path.with_suffix(".png"))
        return f"{path.stem}.png"
    bands = random.integers(0, 12000, (side, side, channels)).astype(np.uint16)
    tifffile.imwrite(path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig")
    return f"{path.stem}.tif"


def write_classification(root: Path, channels: int) -> Path:
    for split, name in ((split, name) for split in ("train", "val") for name in ("a", "b")):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(2):
            write_image(folder / f"{index}", channels, hash_of(split, name, index))
    return root / "val" / "a"


def write_detection(root: Path, channels: int) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, objects = [], []
        for index in range(1, 5):
            name = write_image(root / split / f"{index}", channels, hash_of(split, "", index))
            images.append({"id": index, "file_name": name, "width": 64, "height": 64})
            polygon = [8, 8, 40, 8, 40, 30, 8, 30]
            objects.append(
                {"id": index, "image_id": index, "category_id": 1 + index % 2, "bbox": [8, 8, 32, 22], "iscrowd": 0}
                | {"area": 704, "segmentation": [polygon]}
            )
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
        content["categories"].append({"id": 2, "name": "b"})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root / "val2017"


def write_segmentation(root: Path, channels: int) -> Path:
    for split in ("training", "validation"):
        images, labels = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(2):
            write_image(images / f"{index}", channels, hash_of(split, "", index))
            Image.fromarray((np.indices((64, 64))[0] % 2).astype(np.uint8)).save(labels / f"{index}.png")
    return root / "images" / "validation"


def hash_of(*parts: Any) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


WRITERS = {
    "classification": write_classification,
    "detection": write_detection,
    "segmentation": write_segmentation,
    "pretraining": write_classification,
}


def write_config(path: Path, task: str, channels: int, data: Path) -> Path:
    scale = ", max_value=1" if task == "classification" else ""
    values = f"mean={MEAN[:channels]}, std={STD[:channels]}{scale}"
    statistics = f"model.setdefault('data_preprocessor', dict()).update({values})" if channels > 3 else ""
    settings = SETTINGS[task].replace("SUFFIX", "png" if channels == 1 else "tif")
    path.write_text(
        f'_base_ = ["{TASKS[task][0]}"]\nmodel = dict()\n{settings}\n'
        f"model.update(backbone=dict(in_channels={channels}))\n"
        f'classes = ("a", "b")\ndata_root = "{data}"\nparam_scheduler = None\nbatch = dict(size=2, per_gpu=2)\n'
        f"default_hooks = {{**locals().get('default_hooks', {{}}), 'logger': dict(interval=1)}}\n{statistics}\n"
    )
    return path


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("task", TASKS)
def test_other_numbers_of_channels_through_the_tools(task: str, channels: int, tool: Any, tmp_path: Path) -> None:
    pictures = WRITERS[task](tmp_path / "data", channels)
    config, folder = write_config(tmp_path / "config.py", task, channels, tmp_path / "data"), tmp_path / "run"
    checkpoint = folder / TASKS[task][1]

    planned = tool("train.py", config, "--dry-run")
    assert planned.code == 0, planned.err
    assert "activations of 2 images" in planned.out
    trained = tool("train.py", config, "--work-dir", folder)
    assert trained.code == 0, trained.err
    said = trained.out + trained.err
    assert "data check: 0 errors, 0 warnings" in said
    left_out = {"classification": "rand_augment", "segmentation": "PhotoMetricDistortion"}.get(task)
    assert left_out is None or f"{left_out}: left out" in said
    if channels == 1 and task != "classification":
        assert "data_preprocessor.mean of grey images: 114.495" in said

    tested = tool("test.py", config, checkpoint, "--work-dir", folder)
    assert tested.code == 0, tested.err
    drawn = tool("predict.py", config, checkpoint, pictures, "--out", tmp_path / "drawn")
    assert drawn.code == 0, drawn.err
    picture = np.asarray(Image.open(drawn.out.splitlines()[-1]).convert("RGB"))[:300, :300]
    assert picture.std() > 20
    if channels == 1 and task in ("classification", "pretraining"):
        assert np.array_equal(picture[..., 0], picture[..., 1])
    counted = tool("flops.py", config)
    assert counted.code == 0, counted.err
    exported = tool("export.py", config, checkpoint, "--format", "onnx", "--out", tmp_path / "network.onnx")
    assert exported.code == 0, exported.err
    count = 1 if task == "detection" else "N"
    assert f"takes normalised images ({count}, {channels}, H, W)" in exported.out


@pytest.mark.parametrize("channels", [1, 4])
def test_a_classifier_begins_with_a_pre_training_of_as_many_channels(channels: int, tool: Any, tmp_path: Path) -> None:
    write_classification(tmp_path / "data", channels)
    weights, backbone = tmp_path / "pretraining" / "epoch_1.pth", "model.backbone.type=convnextv2_atto"
    for task, options in (("pretraining", []), ("classification", [f"model.backbone.weights={weights}"])):
        config = write_config(tmp_path / f"{task}.py", task, channels, tmp_path / "data")
        ended = tool("train.py", config, "--work-dir", tmp_path / task, "--cfg-options", backbone, *options)
        assert ended.code == 0, ended.err
    (report,) = json.loads((tmp_path / "classification" / "weights.json").read_text())["receipts"]
    assert (report["adapted"], report["fresh"]) == ("", ["norm.weight", "norm.bias"])
    assert len(list((tmp_path / "pretraining" / "pictures").glob("*.png"))) == 4  # of the validation


def test_pages_of_rows_and_values_beyond_the_statistics(tool: Any, tmp_path: Path) -> None:
    write_classification(tmp_path / "data", 5)
    rows, bright = (tmp_path / "data" / "train" / "a" / f"{index}.tif" for index in range(2))
    tifffile.imwrite(rows, np.random.default_rng(0).integers(0, 12000, (64, 64, 5)).astype(np.uint16))
    tifffile.imwrite(bright, np.full((64, 64, 5), 3e9, np.float32), photometric="minisblack", planarconfig="contig")
    config = write_config(tmp_path / "config.py", "classification", 5, tmp_path / "data")
    ended = tool("check_data.py", config, "--json", tmp_path / "found.json")
    assert ended.code == 0, ended.out
    (warning,) = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert (warning["kind"], warning["file"]) == ("other values", str(bright))
    assert warning["what"] == "has values from 3e+09 to 3e+09, normalised by mean 9000 and deviation 4000"


def test_a_file_with_another_number_of_channels_is_named(tool: Any, tmp_path: Path) -> None:
    write_classification(tmp_path / "data", 5)
    wrong = tmp_path / "data" / "train" / "a" / "0.tif"
    tifffile.imwrite(wrong, np.zeros((64, 64, 4), np.uint16), photometric="minisblack", planarconfig="contig")
    config = write_config(tmp_path / "config.py", "classification", 5, tmp_path / "data")
    ended = tool("check_data.py", config, "--json", tmp_path / "found.json")
    assert ended.code == 1
    (error,) = [one for one in json.loads((tmp_path / "found.json").read_text())["findings"] if one["level"] == "error"]
    assert (error["kind"], error["file"]) == ("channels image", str(wrong))
    assert error["what"] == "has 4 channels, model.backbone.in_channels is 5"
    trained = tool("train.py", config, "--work-dir", tmp_path / "run")
    assert trained.code == 2
    assert "has 4 channels" in trained.err.splitlines()[-1]
