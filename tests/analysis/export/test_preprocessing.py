"""Preprocessing in exported files: the snippets of docs/export.md, run as they stand, against the product's answers."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import FUNCTIONS, MODELS, DefaultScope, init_default_scope
from PIL import Image

from analysis.export.exporter import export_network
from analysis.export.preprocessing import Preprocessing, assumed_preprocessing, preprocessing_of
from analysis.export.source import source_from_config
from engine.config.load import load_config
from engine.config.world import Launch
from engine.task import task_of

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "classifier": ROOT / "configs/classification/digits.py",
    "detector": ROOT / "configs/detection/mask_rcnn_digits.py",
    "segmentor": ROOT / "configs/segmentation/upernet_digits.py",
}
SMALL = {"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 16, 24, 32]}
CENTRE = [{"type": "ClassificationTransform", "size": 64, "crop_ratio": 0.8}]
SIZES = ((301, 97), (83, 211), (64, 65), (40, 39), (1, 7))  # width, height
PROBABILITY_TOLERANCE = 1e-4
LEVELS = 2  # of 255, for OpenCV's fixed-point weights
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.S)


def snippet(needle: str) -> str:
    (found,) = (text for text in SNIPPETS if needle in text)
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth pictures of odd sizes with some noise, and files that decoders treat differently."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = []
    for number, size in enumerate(SIZES):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(coarse, np.int16) + draw.integers(-20, 21, (size[1], size[0], 3)), 0, 255)
        files.append(folder / f"{number}.png")
        Image.fromarray(noisy.astype(np.uint8)).save(files[-1])
    first = Image.open(files[0])
    turned = first.getexif()
    turned[274] = 6
    others: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (first, {"exif": turned, "quality": 95}),
        "grey.jpg": (first.convert("L"), {}),
        "palette.png": (first.convert("P"), {}),
        "alpha.png": (first.convert("RGBA"), {}),
        "deep.png": (Image.fromarray(np.asarray(first.convert("L")).astype(np.uint16) * 257), {}),
    }
    for name, (image, options) in others.items():
        image.save(folder / name, **options)
        files.append(folder / name)
    return files


def checkpoint_of(kind: str, folder: Path, options: dict[str, Any]) -> Path:
    """A checkpoint of a config's model with a small backbone and large random weights in its head."""
    cfg = load_config(CONFIG[kind], options, Launch()).cfg
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        if kind == "classifier":
            model.head.weight.data.normal_(0, 0.7)
    torch.save({"state_dict": model.state_dict()}, folder / "x.pth")
    return folder / "x.pth"


def test_the_snippet_for_onnx_answers_as_predict_does(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Path]
) -> None:
    checkpoint = checkpoint_of("classifier", tmp_path, SMALL)
    stated = ["--cfg-options", *(f"{name}={value}" for name, value in SMALL.items())]
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = {str(CONFIG['classifier'])!r}\ntest_pipeline = {CENTRE!r}\n")
    out = tmp_path / "x.onnx"
    done = tool("export.py", config, checkpoint, "--format", "onnx", "--out", out, *stated)
    assert done.code == 0, done.err
    done = tool(
        *("predict.py", config, checkpoint, images[0].parent, "--out", tmp_path / "drawn"),
        *("--format", "csv", "--no-data-check", *stated),
    )
    assert done.code == 0, done.err
    with (tmp_path / "drawn/results/predictions.csv").open(newline="") as file:
        expected = {row["image"]: row for row in csv.DictReader(file)}
    assert len(expected) == len(images)
    assert len({row["class"] for row in expected.values()}) > 2  # answers that a wrong picture would change
    monkeypatch.chdir(tmp_path)
    for image in images:
        (tmp_path / "x.jpg").write_bytes(image.read_bytes())
        names: dict[str, Any] = {}
        exec(snippet("def prepare") + snippet("import onnxruntime"), names)
        row = expected[str(image)]
        best = int(names["probabilities"].argmax())
        assert json.loads(names["about"]["classes"])[best] == row["class"], image.name
        rounding = 0.5e-4  # the table has four digits
        assert abs(names["probabilities"][best] - float(row["probability"])) < PROBABILITY_TOLERANCE + rounding


@pytest.mark.parametrize("name, needle", [("timm", "import timm"), ("torch_export", "torch.export.load")])
def test_the_other_snippets_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Path], name: str, needle: str
) -> None:
    options = {"test_pipeline": CENTRE}
    cfg = load_config(CONFIG["classifier"], options, Launch()).cfg
    checkpoint = checkpoint_of("classifier", tmp_path, options)
    one = source_from_config(str(CONFIG["classifier"]), str(checkpoint), False, None, options)
    suffix = {"timm": ".safetensors", "torch_export": ".pt2"}[name]
    export_network(one, name, tmp_path / f"x{suffix}", fixed=True)
    monkeypatch.chdir(tmp_path)
    for image in images[:3]:
        (tmp_path / "x.jpg").write_bytes(image.read_bytes())
        names: dict[str, Any] = {}
        exec(snippet("def prepare") + snippet(needle), names)
        (expected,) = one.run(product_input(cfg, MODELS.build(cfg.model).data_preprocessor, image))
        torch.testing.assert_close(names["logits"].detach(), expected, rtol=1e-4, atol=1e-4)


def product_input(cfg: Any, preprocessor: Any, image: Path) -> torch.Tensor:
    """An image as the product's tests give it to the network."""
    init_default_scope(cfg.default_scope)
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if "Annotations" not in step.type]
    steps = [step for step in steps if step.type != "LoadLabels"]
    item = Compose(steps)({"img_path": str(image), "img_id": 0, **task_of(cfg).image_fields})
    collate = FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])
    inputs: torch.Tensor = preprocessor(collate([item]), False)["inputs"]
    return inputs if isinstance(inputs, torch.Tensor) else torch.stack(list(inputs))


def resizing(width: int, height: int, keep_ratio: bool) -> list[dict[str, Any]]:
    """The test pipeline of a segmentor that resizes."""
    resize = {"type": "Resize", "scale": (width, height), "keep_ratio": keep_ratio}
    return [{"type": "LoadCheckedImage"}, resize, {"type": "PackSegInputs"}]


@pytest.mark.parametrize(
    "kind, options, resize",
    [
        ("classifier", {}, "exact"),
        ("classifier", {"test_pipeline": CENTRE}, "shorter_side"),
        ("detector", {"test_pipeline.1.scale": (411, 233)}, "within"),
        ("segmentor", {"test_pipeline": resizing(90, 55, keep_ratio=True)}, "within"),
        ("segmentor", {"test_pipeline": resizing(90, 55, keep_ratio=False)}, "exact"),
        ("segmentor", {}, "none"),
    ],
)
def test_the_snippet_prepares_images_as_the_tests_of_each_task_do(
    kind: str, options: dict[str, Any], resize: str, images: list[Path]
) -> None:
    cfg = load_config(CONFIG[kind], {**SMALL, **options}, Launch(), training=False).cfg
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        preprocessor = MODELS.build(cfg.model).data_preprocessor
        found = preprocessing_of(cfg, SimpleNamespace(data_preprocessor=preprocessor), None)  # type: ignore[arg-type]
    assert (found.resize, found.other_steps) == (resize, ())
    assert found.exif_rotation == (kind != "classifier")
    names: dict[str, Any] = {}
    exec(snippet("def prepare"), names)
    about = {"preprocessing": json.dumps(found.as_dict())}
    level = 1 / 255 / min(found.std)
    for image in images:
        expected = product_input(cfg, preprocessor, image).numpy()
        prepared = names["prepare"](image, about)
        assert prepared.shape == expected.shape, image.name
        most = 1e-5 if kind == "classifier" else LEVELS * level + 1e-5
        assert np.abs(prepared - expected).max() < most, image.name


def test_a_step_of_ones_own_is_named() -> None:
    cfg = load_config(CONFIG["segmentor"], SMALL, Launch(), training=False).cfg
    cfg.test_dataloader.dataset.pipeline.insert(1, {"type": "CLAHE"})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert preprocessing_of(cfg, model, None).other_steps == ("CLAHE",)
    fixed = preprocessing_of(cfg, model, (96, 64))
    assert (fixed.resize, fixed.resize_to, fixed.pad_multiple) == ("exact", (96, 64), 1)


def test_what_is_assumed_without_a_config() -> None:
    small, large = assumed_preprocessing((224, 224)), assumed_preprocessing((384, 384))
    assert (small.resize, small.resize_to, small.crop) == ("shorter_side", (256,), (224, 224))
    assert (large.resize, large.resize_to, large.crop) == ("exact", (384, 384), None)
    assert small.for_size((224, 224)) == small
    assert Preprocessing().resize == "none"
