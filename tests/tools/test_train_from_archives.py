"""A training on images, labels and annotations in archives ends bit by bit as one on the folders in them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine import DefaultScope

from demo.drawing import DIGIT_CLASSES
from engine.data.fault_tolerance import REPLACED_IMAGES_FILE, FaultTolerantDataset
from segmentation.data import LabelPngDataset
from tests.tools.test_exact_resume import CONFIGS, DEATH, EVERY_STEP, TASKS, assert_same_run

SHORT = {"detector": "train_cfg.max_epochs=1", "segmentor": "train_cfg.max_iters=6"}
FOLDERS = {"detector": "coco", "segmentor": "ade"}


@pytest.fixture(scope="module")
def roots(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder that has, in place of each data root, what is downloaded for it."""
    downloads = tmp_path_factory.mktemp("downloads")
    (downloads / "coco").mkdir()
    for name in ("train2017", "val2017"):
        shutil.make_archive(str(downloads / "coco" / name), "zip", digits / "coco", name)
    shutil.make_archive(str(downloads / "coco/annotations_trainval2017"), "zip", digits / "coco", "annotations")
    shutil.make_archive(str(downloads / "ade"), "tar", digits, "ade")
    return {"folders": digits, "archives": downloads}


def train(tool: Any, folder: Path, task: str, root: Path, *flags: str, workers: int = 0, **environment: str) -> Any:
    config = folder.with_suffix(".py")
    config.write_text(TASKS[task].format(configs=str(CONFIGS), data=str(root)) + EVERY_STEP + DEATH, encoding="utf-8")
    options = ["--cfg-options", f"train_dataloader.num_workers={workers}", SHORT[task]]
    return tool("train.py", config, "--work-dir", folder, *flags, *options, **environment)


@pytest.mark.parametrize("task", list(SHORT))
def test_the_same_training(tool: Any, roots: dict[str, Path], tmp_path: Path, task: str) -> None:
    ended = train(tool, tmp_path / "folders", task, roots["folders"])
    assert ended.code == 0, ended.err
    killed = train(tool, tmp_path / "killed", task, roots["archives"], workers=2, ASK_AT="3", ASK_BY="SIGKILL")
    assert killed.code != 0
    ended = train(tool, tmp_path / "killed", task, roots["archives"], "--resume")
    assert ended.code == 0, ended.err
    assert_same_run(tmp_path / "killed", tmp_path / "folders")
    checkpoint = next((tmp_path / "folders").glob("best_*.pth"))
    metrics = []
    for name in ("folders", "killed"):  # the configs of the folders and of the archives
        tested = tool("test.py", tmp_path / f"{name}.py", checkpoint, "--work-dir", tmp_path / f"test_{name}")
        assert (tested.code, tested.err) == (0, ""), tested.err
        metrics.append(json.loads((tmp_path / f"test_{name}/test.json").read_text(encoding="utf-8"))["metrics"])
    assert metrics[0] == metrics[1] != {}
    assert not (roots["archives"] / "coco/train2017").exists()
    assert not (roots["archives"] / "ade").exists()


@pytest.mark.parametrize("task", list(SHORT))
def test_the_data_check(tool: Any, roots: dict[str, Path], tmp_path: Path, task: str) -> None:
    config = {"detector": "detection/mask_rcnn_digits.py", "segmentor": "segmentation/upernet_digits.py"}[task]

    def check(root: Path) -> Any:
        return tool("check_data.py", CONFIGS / config, "--cfg-options", f"data_root={root / FOLDERS[task]}")

    told = [check(root) for root in roots.values()]
    assert [one.code for one in told] == [0, 0], told
    timeless = [re.sub(r"[0-9.]+ s\b|/\S+", "", one.out) for one in told]
    assert timeless[0] == timeless[1] != ""
    shutil.copytree(roots["archives"], tmp_path / "damaged", ignore=shutil.ignore_patterns(".*"))
    archive = tmp_path / "damaged" / {"detector": "coco/train2017.zip", "segmentor": "ade.tar"}[task]
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    told = check(tmp_path / "damaged")
    assert told.code != 0
    assert f"{archive}: is damaged or cut off" in told.out + told.err
    assert "Traceback" not in told.err


def test_a_damaged_image_in_an_archive_is_replaced(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "ade", tmp_path / "ade")
    image = sorted((tmp_path / "ade/images/training").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-9])
    shutil.make_archive(str(tmp_path / "ade"), "zip", tmp_path, "ade")
    shutil.rmtree(tmp_path / "ade")
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    pipeline = [dict(type="LoadCheckedImage"), dict(type="LoadLabels", num_classes=11)]
    classes = dict(classes=("background", *DIGIT_CLASSES))
    suffix = image.suffix
    settings = dict(data_root=str(tmp_path / "ade"), data_prefix=prefix, img_suffix=suffix)
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = LabelPngDataset(pipeline=pipeline, metainfo=classes, **settings)
    assert FaultTolerantDataset(dataset, tmp_path)[0]["img"].ndim == 3
    (line,) = (tmp_path / REPLACED_IMAGES_FILE).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["file"] == str(image)
    assert "truncated" in line or "cut off" in line or "incomplete" in line
