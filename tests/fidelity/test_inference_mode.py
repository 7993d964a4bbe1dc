"""How segmentors are tested: one scale by sliding windows, several scales on whole images, as the releases do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

import engine.run
from engine.config.load import load_config
from engine.config.world import Launch

ROOT = Path(__file__).resolve().parents[2]
SEGMENTORS = sorted((ROOT / "configs/segmentation").glob("upernet_*_160k.py"))
TINY = ROOT / "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py"
# SwinTransformer/Swin-Transformer-Semantic-Segmentation (mmseg 0.11), tools/test.py:88-91;
# mmseg/datasets/pipelines/test_time_aug.py:72-74 and 111 multiplies the size of the pipeline by each, and takes the
# image before the flipped one.
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SMALL = {
    "classes": ("one", "two", "three"),
    "model.backbone.depths": (1, 1, 1, 1),
    "model.backbone.dims": (8, 8, 16, 16),
    "model.decode_head.channels": 8,
    "model.auxiliary_head.channels": 8,
}


class Reached(Exception):
    """The test has come to the building of the runner."""


def config_of_test(
    path: Path, tta: bool, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any] | None = None
) -> ConfigDict:
    """The config with which ``tools/test.py`` builds its runner."""
    resolved = load_config(path, options, Launch(), training=False)

    def stop(*args: Any) -> None:
        raise Reached

    monkeypatch.setattr(engine.run, "check_data_paths", lambda *args: None)
    monkeypatch.setattr(engine.run, "build_runner", stop)
    with pytest.raises(Reached):
        engine.run.test(resolved, Launch(), str(path), tta=tta)
    return resolved.cfg


# facebookresearch/ConvNeXt, semantic_segmentation/configs: _base_/models/upernet_convnext.py:49 is test_cfg=dict(
# mode='whole'), which the _ms files inherit; upernet_convnext_tiny_512_160k_ade20k_ss.py:33 slides windows of 512, 341
# apart, upernet_convnext_xlarge_640_160k_ade20k_ss.py:33 windows of 640, 426 apart. semantic_segmentation/README.md
# tests several scales by --aug-test with an _ms file, one scale with an _ss file.
# SwinTransformer/Swin-Transformer-Semantic-Segmentation, configs/_base_/models/upernet_swin.py:49: whole, for several
# scales and also for one.
@pytest.mark.parametrize("path", SEGMENTORS, ids=lambda path: path.stem)
def test_several_scales_are_of_whole_images_and_one_is_of_windows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = config_of_test(path, False, monkeypatch).model
    assert one.test_cfg.mode == "slide"
    window, stride = tuple(one.test_cfg.crop_size), tuple(one.test_cfg.stride)
    assert (window, stride) in (((512, 512), (341, 341)), ((640, 640), (426, 426)))
    several = config_of_test(path, True, monkeypatch).model
    assert (several.type, several.module.type, several.module.test_cfg.mode) == (
        "SegTTAModel",
        "EncoderDecoder",
        "whole",
    )
    assert {**one, "test_cfg": None} == {**several.module, "test_cfg": None}


def test_windows_at_several_scales_are_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    model = config_of_test(TINY, True, monkeypatch, {"tta_model.module.test_cfg.mode": "slide"}).model
    assert (model.module.test_cfg.mode, tuple(model.module.test_cfg.crop_size)) == ("slide", (512, 512))


def test_a_model_for_tta_without_settings_of_the_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in other people's configs: the model is tested as it is."""
    model = config_of_test(TINY, True, monkeypatch, {"tta_model": {"_delete_": True, "type": "SegTTAModel"}}).model
    assert model.module.test_cfg.mode == "slide"


def rescaled(width: int, height: int, scale: tuple[int, int]) -> tuple[int, int]:
    """open-mmlab/mmcv v1.3.0, mmcv/image/geometric.py:137-146: as large as possible within long and short side."""
    factor = min(max(scale) / max(width, height), min(scale) / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


@pytest.mark.parametrize("size", [(683, 512), (300, 700), (1600, 240)], ids=str)
@pytest.mark.parametrize("side", [512, 640])
def test_the_network_sees_the_sizes_of_mmseg(side: int, size: tuple[int, int], tmp_path: Path) -> None:
    name = {512: "tiny", 640: "base_in22k"}[side]
    pipeline = load_config(ROOT / f"configs/segmentation/upernet_convnext_{name}_ade20k_160k.py").cfg.tta_pipeline
    width, height = size
    picture, labels = str(tmp_path / "picture.png"), str(tmp_path / "labels.png")
    cv2.imwrite(picture, np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3))
    cv2.imwrite(labels, np.ones((height, width), np.uint8))
    sample = dict(img_path=picture, seg_map_path=labels, reduce_zero_label=True, seg_fields=[])
    with DefaultScope.overwrite_default_scope("mmseg"):
        seen = Compose(pipeline)(sample)
    shapes = [tuple(one.shape[-2:]) for one in seen["inputs"]]
    sizes = [rescaled(width, height, (int(4 * side * ratio), int(side * ratio))) for ratio in RATIOS]
    assert shapes == [(tall, wide) for wide, tall in sizes for _ in range(2)]
    assert [bool(one.metainfo["flip"]) for one in seen["data_samples"]] == [False, True] * 6


def test_probabilities_of_all_views_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each view's scores at the image's size, softmax, turned back, mean of all: mmseg 0.11, encoder_decoder.py.

    ``whole_inference`` (lines 214-226) resizes bilinearly without aligned corners, ``inference`` (251-259) takes the
    softmax and flips, ``aug_test`` (284-289) averages and takes the argmax.
    """
    torch.manual_seed(0)
    cfg = config_of_test(TINY, True, monkeypatch, SMALL)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model: Any = MODELS.build(cfg.model).eval()
    height, width = 48, 80
    picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    views: list[tuple[Tensor, bool]] = []
    for ratio in RATIOS:
        shape = (round(2 * height * ratio), round(2 * width * ratio))
        view = F.interpolate(picture[None].float(), size=shape, mode="bilinear")[0].round().byte()
        views += [(view, False), (view.flip(-1), True)]
    data = pseudo_collate([{"inputs": [view for view, _ in views], "data_samples": [sample(*one) for one in views]}])
    expected = torch.zeros(3, height, width)
    with torch.no_grad():
        (result,) = model.test_step(data)
        for view, flipped in views:
            prepared = model.module.data_preprocessor({"inputs": [view], "data_samples": [sample(view, flipped)]})
            scores = model.module.encode_decode(prepared["inputs"], [sample(view, flipped).metainfo])
            scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
            probabilities = scores.softmax(1)[0]
            expected += (probabilities.flip(-1) if flipped else probabilities) / len(views)
    agreeing = (result.pred_sem_seg.data == expected.argmax(0)).float().mean()
    assert agreeing > 0.999


def sample(view: Tensor, flipped: bool) -> Any:
    from mmseg.structures import SegDataSample

    shape = tuple(view.shape[-2:])
    meta = dict(ori_shape=(48, 80), img_shape=shape, pad_shape=shape, img_path="picture", scale_factor=(1.0, 1.0))
    return SegDataSample(metainfo={**meta, "flip": flipped, "flip_direction": "horizontal" if flipped else None})
