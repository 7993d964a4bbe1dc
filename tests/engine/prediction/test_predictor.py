"""From Python in a few lines: the same predictions and pictures as ``tools/predict.py``, from files and from pixels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import engine
from backbones.errors import DataError
from engine import load_model
from engine.config.building import build
from engine.config.load import load_config
from engine.data.image_files import DamagedImageError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALL = ("model.backbone.depths=[1,1,1,1]", "model.backbone.dims=[8,16,16,16]", "model.backbone.weights=None")
TASKS = {
    "classifier": ("classification/digits.py", "imagenet", "csv"),
    "detector": ("detection/mask_rcnn_digits.py", "coco", "coco"),
    "segmentor": ("segmentation/upernet_digits.py", "ade", "png"),
}


@pytest.fixture(scope="module", params=TASKS)
def written(request: pytest.FixtureRequest, tool: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task with a checkpoint of random weights, an image, and what ``tools/predict.py`` wrote for it."""
    name, data, form = TASKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    options = (f"data_root={digits / data}", f"work_dir={folder / 'work'}", *SMALL)
    cfg = load_config(CONFIGS / name, dict(part.split("=", 1) for part in options[:2]) | small_settings()).cfg
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save({"state_dict": build(MODELS, cfg.model, "model").state_dict()}, folder / "model.pth")
    image = sorted((digits / "coco/val2017").glob("*.jpg"))[0]
    command = (CONFIGS / name, folder / "model.pth", image, "--out", folder / "out", "--format", form)
    ended = tool("predict.py", *command, "--cfg-options", *options)
    assert ended.code == 0, ended.err
    return request.param, load_model(CONFIGS / name, folder / "model.pth", options=options), image, folder / "out"


def small_settings() -> dict[str, Any]:
    return {"model.backbone.depths": [1] * 4, "model.backbone.dims": [8, 16, 16, 16], "model.backbone.weights": None}


def test_a_prediction_is_that_of_the_program(written: Any) -> None:
    task, model, image, out = written
    prediction = model.predict(image)
    assert model.classes == prediction.classes
    if task == "classifier":
        (row,) = csv.DictReader((out / "results/predictions.csv").open())
        (name, probability), *others = prediction.top(3)
        assert (
            (row["class"], row["probability"]) == (name, f"{probability:.4f}") == (prediction.name, row["probability"])
        )
        assert [one for _, one in others] == sorted((one for _, one in others), reverse=True)
        assert prediction.probabilities.shape == (len(model.classes),)
    elif task == "detector":
        boxes, masks = (json.loads((out / f"results/{kind}.json").read_text()) for kind in ("bbox", "segm"))
        found = prediction.to_coco(image_id=boxes[0]["image_id"])
        assert len(found) == len(prediction.labels) > 0
        assert [{k: v for k, v in one.items() if k != "segmentation"} for one in found] == boxes
        assert [one["segmentation"] for one in found] == [one["segmentation"] for one in masks]
        assert prediction.boxes.shape == (len(found), 4)
        with Image.open(image) as opened:
            assert prediction.masks.shape == (len(found), opened.height, opened.width)
    else:
        (label,) = (out / "results").iterdir()
        offset = int(model.cfg.test_dataloader.dataset.reduce_zero_label)
        assert np.array_equal(np.asarray(Image.open(label)), prediction.labels.numpy() + offset)
        assert sum(prediction.shares().values()) == pytest.approx(1)
        name, share = next(iter(prediction.shares().items()))
        assert share == (prediction.labels == model.classes.index(name)).float().mean().item()


def test_pixels_give_what_their_file_gives(written: Any, tmp_path: Path) -> None:
    _, model, image, _ = written
    with Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    Image.fromarray(pixels).save(tmp_path / "image.png")
    of_file, of_pixels = model.predict(tmp_path / "image.png"), model.predict(pixels)
    assert equal(of_file.sample.to_dict(), of_pixels.sample.to_dict())
    for count, one in enumerate((of_file, of_pixels, of_pixels)):
        assert one.draw(tmp_path / f"{count}.png") == tmp_path / f"{count}.png"
    drawn = [np.asarray(Image.open(tmp_path / f"{count}.png")) for count in range(3)]
    assert all(np.array_equal(drawn[0], one) for one in drawn[1:])


def equal(one: Any, other: Any) -> bool:
    """Whether nested predictions have the same tensors; paths may differ."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "all_items"):
        one, other = dict(one.all_items()), dict(other.all_items())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one if key != "img_path")
    return bool(np.all(one == other))


def test_a_picture_is_that_of_the_program(written: Any, tmp_path: Path) -> None:
    _, model, image, out = written
    path = model.predict(str(image)).draw(tmp_path / "picture.png")
    (drawn,) = out.glob("*.png")
    assert path.read_bytes() == drawn.read_bytes()


def test_what_is_no_image_is_an_error(written: Any, tmp_path: Path) -> None:
    _, model, _, _ = written
    with pytest.raises(DamagedImageError, match=r"absent\.jpg: is missing"):
        model.predict("absent.jpg")
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 0, 3), np.uint8)):
        line = rf"an image is uint8 \(H, W, 3\) in RGB, this one is {pixels.dtype} \(4, .*\)"
        with pytest.raises(DataError, match=line):
            model.predict(pixels)
    line = r"an image is a file, or pixels as an array, uint8 \(H, W, 3\) in RGB, not "
    for wrong in ([str(tmp_path)], b"a.jpg", None, torch.zeros(4, 4, 3)):
        with pytest.raises(DataError, match=rf"{line}{type(wrong).__name__}$"):
            model.predict(wrong)
    with pytest.raises(DataError, match=rf"{line}Image: np\.asarray\(image\.convert\('RGB'\)\) are the pixels"):
        model.predict(Image.new("L", (4, 4)))


def test_an_absent_name_of_the_package_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'load_modle'"):
        engine.load_modle  # noqa: B018
