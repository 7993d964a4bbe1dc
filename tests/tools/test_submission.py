"""Files for the servers of COCO and ADE20K, from test images without annotations."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from engine.config.building import build
from engine.config.load import load_config
from tests.engine.prediction.test_predictor import CONFIGS, SMALL, TASKS, small_settings


def random_checkpoint(task: str, folder: Path) -> Path:
    """A checkpoint of a small model with random weights."""
    cfg = load_config(CONFIGS / TASKS[task][0], {"work_dir": str(folder), **small_settings()}).cfg
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save({"state_dict": build(MODELS, cfg.model, "model").state_dict()}, folder / "model.pth")
    return folder / "model.pth"


def submitted(task: str, tool: Any, tmp_path: Path, *options: str) -> Any:
    """What ``tools/test.py --format-only`` says, with random weights."""
    name, checkpoint = TASKS[task][0], random_checkpoint(task, tmp_path)
    where = ("--work-dir", tmp_path / "method", "--cfg-options", f"data_root={tmp_path / 'data'}", *SMALL, *options)
    return tool("test.py", CONFIGS / name, checkpoint, "--format-only", *where)


def test_coco_takes_a_zip_for_boxes_and_one_for_masks(tool: Any, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "coco/val2017", tmp_path / "data/test2017")
    listed = json.loads((digits / "coco/annotations/instances_val2017.json").read_text())
    del listed["annotations"]
    (tmp_path / "data/annotations").mkdir()
    (tmp_path / "data/annotations/image_info_test-dev2017.json").write_text(json.dumps(listed))
    place = "test_dataloader.dataset"
    ended = submitted(
        "detector",
        tool,
        tmp_path,
        f"{place}.ann_file=annotations/image_info_test-dev2017.json",
        f"{place}.data_prefix.img=test2017/",
    )
    assert (ended.code, ended.err) == (0, ""), ended.err
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        path = tmp_path / f"method/submission/{kind}/detections_test-dev2017_method_results.zip"
        assert f"to upload: {path}" in ended.out
        with zipfile.ZipFile(path) as file:
            assert file.namelist() == ["detections_test-dev2017_method_results.json"]
            entries = json.loads(file.read(file.namelist()[0]))
        assert {one["image_id"] for one in entries} <= {one["id"] for one in listed["images"]}
        assert {one["category_id"] for one in entries} <= {one["id"] for one in listed["categories"]}
        assert all(set(one) == {"image_id", "category_id", "score", key} for one in entries)


def test_ade20k_takes_a_zip_of_label_pngs_from_1(tool: Any, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "ade/images/validation", tmp_path / "data/images/testing")
    ended = submitted("segmentor", tool, tmp_path, "test_dataloader.dataset.data_prefix.img_path=images/testing")
    assert (ended.code, ended.err) == (0, ""), ended.err
    images = sorted((tmp_path / "data/images/testing").iterdir())
    with zipfile.ZipFile(tmp_path / "method/submission/method.zip") as file:
        assert file.namelist() == [f"{path.stem}.png" for path in images]
        with file.open(file.namelist()[0]) as opened, Image.open(opened) as labels, Image.open(images[0]) as image:
            assert (labels.mode, labels.size) == ("L", image.size)
            assert np.asarray(labels).min() >= 1
    assert sorted(path.name for path in (tmp_path / "method").glob("submission*")) == ["submission"]


def test_no_server_takes_the_classes_of_images(tool: Any, tmp_path: Path) -> None:
    ended = submitted("classifier", tool, tmp_path)
    line = "error: --format-only: there are no files for a server of classification; --format writes others\n"
    assert (ended.code, ended.err) == (2, line)


@pytest.mark.parametrize(
    "options, line",
    [
        ((), "one of CHECKPOINT and --from-predictions FILE says what is scored"),
        (("a.pth", "--format-only", "--format", "csv"), "--format-only writes the files for a server alone"),
    ],
)
def test_options_that_contradict_each_other(tool: Any, options: tuple[str, ...], line: str) -> None:
    ended = tool("test.py", CONFIGS / TASKS["classifier"][0], *options)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {line}")
