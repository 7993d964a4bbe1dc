"""The page about what a network looks at, as a program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from analysis.explain.cams import PACKAGE
from backbones.packages import is_absent
from engine.config.building import build
from engine.config.load import load_config
from tests.engine.prediction.test_predictor import CONFIGS, SMALL, small_settings
from tests.pages import Page

CLASSIFIER, DETECTOR = CONFIGS / "classification/digits.py", CONFIGS / "detection/mask_rcnn_digits.py"
PRETRAINING = CONFIGS / "pretraining/fcmae_digits.py"
WITHOUT_PACKAGE = ("--parts", "features", "embeddings", "collapse")


def checkpoint(config: Path, data: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A file of random weights, and the settings of its model."""
    cfg = load_config(config, {"data_root": str(data), **small_settings()}).cfg
    init_default_scope(cfg.default_scope)
    file = folder / f"{config.stem}.pth"
    torch.save({"state_dict": build(MODELS, cfg.model, "model").state_dict()}, file)
    DefaultScope._instance_dict.clear()
    return file, ("--cfg-options", f"data_root={data}", f"work_dir={folder}", *SMALL)


def test_a_detector_of_test_images_beside_a_classifier(tool: Any, digits: Path, tmp_path: Path) -> None:
    file, options = checkpoint(DETECTOR, digits / "coco", tmp_path)
    other, _ = checkpoint(CLASSIFIER, digits / "imagenet", tmp_path)
    command = (DETECTOR, file, *WITHOUT_PACKAGE, "--n", 2, "--beside", CLASSIFIER, other, *options)
    done = tool("explain.py", *command)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"page: {tmp_path}/explain.html; the numbers are in explain.json"
    page, numbers = Page((tmp_path / "explain.html").read_text()), json.loads((tmp_path / "explain.json").read_text())
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    images = len(list((digits / "coco/val2017").glob("*.jpg")))
    # Of each of two images the input, mean and four channels of four stages; itself and five neighbours.
    assert len(page.sources) == 2 * (4 * 6 + 6)
    assert page.tags.count("circle") == images + 8  # of the map, and of the two lines of four blocks
    assert len(numbers["embeddings"]["map"]) == images
    assert 0 < sum(numbers["embeddings"]["variance"]) <= 1
    for near in numbers["embeddings"]["neighbours"].values():
        cosines = [one["cosine"] for one in near]
        assert cosines == sorted(cosines, reverse=True)
    names = [one["network"] for one in numbers["collapse"]["networks"]]
    assert names == ["mask_rcnn_digits (convnext_atto)", "digits (convnext_atto)"]
    assert "get_instance" not in done.err  # a warning of mmengine's about two visualizers of one name
    assert str(tmp_path) not in page.words


def test_masked_pretraining_has_all_but_the_maps_of_classes(tool: Any, digits: Path, tmp_path: Path) -> None:
    file, options = checkpoint(PRETRAINING, digits / "imagenet", tmp_path)
    image = sorted((digits / "coco/val2017").glob("*.jpg"))[0]
    done = tool("explain.py", PRETRAINING, file, image, "--out", tmp_path / "page.html", *options)
    assert done.code == 0, done.err
    numbers = json.loads((tmp_path / "page.json").read_text())
    assert list(numbers) == ["command", "features", "embeddings", "collapse"]
    assert list(numbers["embeddings"]["neighbours"]) == [image.name]
    (network,) = numbers["collapse"]["networks"]
    assert list(network["distances"]) == ["before GRN", "after GRN"]
    refused = tool("explain.py", PRETRAINING, file, "--parts", "cam", *options)
    assert refused.code == 2
    line = "error: --parts cam: pretraining has no scores of classes (TaskSpec.explain)"
    assert refused.err.splitlines()[-1] == line


def test_a_classifiers_maps_or_the_line_that_says_what_to_install(tool: Any, digits: Path, tmp_path: Path) -> None:
    file, options = checkpoint(CLASSIFIER, digits / "imagenet", tmp_path)
    done = tool("explain.py", CLASSIFIER, file, "--parts", "cam", "--n", 1, "--classes", "two", *options)
    if is_absent(PACKAGE):
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith("error: --parts cam: package 'pytorch_grad_cam' is missing: pip")
        return
    assert done.code == 0, done.err
    page = Page((tmp_path / "explain.html").read_text())
    assert [line for line in page.lines if line.startswith("two: ")] == [
        "two: Grad-CAM",
        "two: Grad-CAM++",
        "two: LayerCAM",
    ]
    (image,) = json.loads((tmp_path / "explain.json").read_text())["cam"]
    assert list(image["scores"]) == ["two"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--n", 0), "explain.py: error: --n: at least 1"),
        (
            ("--parts", "features", "--classes", "two"),
            "error: --classes: the classes are those of cam, which is not among --parts",
        ),
        (
            ("--parts", "features", "--beside", CLASSIFIER, "other.pth"),
            "error: --beside: the other network is compared by collapse, which is not among --parts",
        ),
        ((), "error: checkpoint 'absent.pth' does not exist"),
    ],
)
def test_bad_input_is_one_line(tool: Any, digits: Path, options: tuple[object, ...], line: str) -> None:
    command = (CLASSIFIER, "absent.pth", *options, "--cfg-options", f"data_root={digits / 'imagenet'}")
    done = tool("explain.py", *command)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(line)
