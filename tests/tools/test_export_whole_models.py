"""Detectors and Mask2Former through tools/export.py: onnxruntime finds what the PyTorch model predicts, at any size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS, DefaultScope
from sklearn.datasets import load_sample_images
from torch import nn

from detection.export import pair_objects
from engine.config.load import load_config
from engine.config.world import Launch
from engine.task import image_meta
from tests.programs import Ended

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def base(name: str) -> str:
    """A base config as it is written in a list."""
    return repr(str(CONFIGS / f"_base_/{name}.py"))


SIZES = ((96, 128), (160, 112))
MULTIPLES = ((96, 128), (160, 96))  # of 32, for a neck that doubles its maps
SMALL = 'type="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)'
RETINANET = f"""
_base_ = ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"]
custom_imports = dict(imports=["detection"])
classes = ("one", "two", "three")
data_root = "data"
batch = dict(size=16, per_gpu=2)
model = dict(
    backbone=dict({SMALL}),
    neck=dict(out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
_base_.test_pipeline[1].scale = (128, 96)
"""
MASK_RCNN = f"""
_base_ = {str(CONFIGS / "detection/mask_rcnn_digits.py")!r}
model = dict(backbone=dict({SMALL}))
"""
FASTER_RCNN = f"""
_base_ = {str(CONFIGS / "detection/mask_rcnn_digits.py")!r}
model = dict(
    type="FasterRCNN",
    backbone=dict({SMALL}),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)
"""
CASCADE = f"""
_base_ = [{base("cascade_mask_rcnn")}, {base("coco_instance")}, {base("runtime")}]
classes = ("one", "two", "three")
batch = dict(size=16, per_gpu=2)
model = dict(
    backbone=dict({SMALL}),
    neck=dict(out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
for _head in _base_.model.roi_head.bbox_head:
    _head.update(in_channels=32, fc_out_channels=64, conv_out_channels=32)
_base_.test_pipeline[1].scale = (128, 96)
"""
DINO = f"""
_base_ = [{base("dino")}, {base("coco_instance")}, {base("runtime")}]
classes = ("one", "two", "three")
batch = dict(size=16, per_gpu=2)
model = dict(
    num_queries=40,
    backbone=dict({SMALL}),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
    test_cfg=dict(max_per_img=30),
)
_base_.test_pipeline[1].scale = (128, 96)
"""
RTMDET_INS = f"""
_base_ = ["mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py"]
custom_imports = dict(imports=["detection"])
classes = ("one", "two", "three")
data_root = "data"
batch = dict(size=16, per_gpu=2)
model = dict(
    backbone=dict(_delete_=True, {SMALL}, out_indices=(1, 2, 3)),
    neck=dict(in_channels="from_backbone", out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
    test_cfg=dict(nms_pre=100, max_per_img=30),
)
_base_.test_pipeline[1].scale = (128, 96)
"""
PANOPTIC = f"""
_base_ = {str(CONFIGS / "detection/mask2former_panoptic_digits.py")!r}
model = dict(backbone=dict({SMALL}), test_cfg=dict(instance_on=True, object_mask_thr=0.3, iou_thr=0.5))
_base_.test_pipeline[1].scale = (128, 96)
"""
PANOPTIC_FPN = f"""
_base_ = {str(CONFIGS / "detection/panoptic_fpn_digits.py")!r}
model = dict(backbone=dict({SMALL}), test_cfg=dict(panoptic=dict(stuff_area_limit=64)))
_base_.test_pipeline[1].scale = (128, 96)
"""
SEMANTIC = f"""
_base_ = [{base("mask2former_semantic")}, {base("ade20k")}, {base("runtime")}]
classes = ("one", "two", "three")
batch = dict(size=16, per_gpu=2)
model = dict(
    backbone=dict({SMALL}),
    decode_head=dict(
        num_queries=10, pixel_decoder=dict(encoder=dict(num_layers=1)), transformer_decoder=dict(num_layers=1)
    ),
)
_base_.test_pipeline[1].scale = (128, 96)
"""
OBJECTS = ("boxes", "scores", "labels")
CASES = {
    "retinanet": (RETINANET, OBJECTS),
    "faster_rcnn": (FASTER_RCNN, OBJECTS),
    "mask_rcnn": (MASK_RCNN, (*OBJECTS, "masks")),
    "cascade": (CASCADE, (*OBJECTS, "masks")),
    "dino": (DINO, OBJECTS),
    "rtmdet_ins": (RTMDET_INS, (*OBJECTS, "masks")),
    "panoptic_fpn": (PANOPTIC_FPN, ("panoptic",)),
    "panoptic": (PANOPTIC, (*OBJECTS, "masks", "panoptic")),
    "semantic": (SEMANTIC, ("scores",)),
}
SCORING = re.compile(
    r"(retina_cls|rpn_cls|rpn_reg|fc_cls|fc_reg|conv_logits|cls_embed|(rtm_cls|rtm_kernel|cls_branches)\.\d)\.weight$"
)
RARE = re.compile(r"bbox_head\.(retina_cls|rtm_cls\.\d|cls_branches\.\d)\.bias$")  # initialised for scores near 0
ROW = re.compile(r"^(random|photographs) +1 x \d+ x \d+ +(\w+) +\S+ +(\S+)$", re.MULTILINE)


def checkpoint(config: Path, file: Path) -> nn.Module:
    """A model whose scores lie far apart, as those of a trained one do, saved to a file."""
    cfg = load_config(config, launch=Launch(), training=False).cfg
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model: nn.Module = MODELS.build(cfg.model)
        model.init_weights()
    for name, parameter in model.named_parameters():
        if SCORING.search(name):
            nn.init.normal_(parameter, std=3 * parameter[0].numel() ** -0.5)
        if RARE.search(name):
            nn.init.zeros_(parameter)
    torch.save({"state_dict": model.state_dict()}, file)
    return model.eval()


def images(sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Two photographs at each size, each (1, 3, H, W)."""
    found = []
    for picture in load_sample_images().images:
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5
        found += [nn.functional.interpolate(pixels, size) * 4 for size in sizes]
    return found


def predicted(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """What the library's model predicts, in the order of the file's outputs."""
    with torch.no_grad():
        if hasattr(model, "decode_head"):
            return [model.inference(image, [image_meta(image)])]
        sample = DetDataSample(metainfo=image_meta(image))
        (found,) = model(image, [sample], mode="predict")
    objects = found.pred_instances if "pred_instances" in found else {}
    outputs = [objects[field] for field in ("bboxes", "scores", "labels", "masks") if field in objects]
    return [*outputs, *([found.pred_panoptic_seg.sem_seg] if "pred_panoptic_seg" in found else [])]


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_finds_what_the_model_predicts(tool: Any, tmp_path: Path, case: str) -> None:
    text, names = CASES[case]
    config, out = tmp_path / f"{case}.py", tmp_path / "x.onnx"
    config.write_text(f'"""A small one."""\n{text}')
    model = checkpoint(config, tmp_path / "x.pth")
    ended: Ended = tool("export.py", config, tmp_path / "x.pth", "--out", out)
    assert ended.code == 0, ended.err
    rows = ROW.findall(ended.out)
    assert {row[1] for row in rows} == set(names)
    assert all(float(row[2]) <= 1e-3 for row in rows)
    assert "H 32 or more, W 32 or more" in ended.out
    # RTMDet pads to the size that it was trained at.
    assert re.findall(r"steps are unknown here: (.+)", ended.out) == (["Pad"] if case == "rtmdet_ins" else [])
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    doubling = case in ("rtmdet_ins", "panoptic_fpn")
    said = "height and width of an image have to be multiples of 32: the network does not run on 88 x 88 pixels"
    assert (said in ended.out) == doubling
    assert session.get_modelmeta().custom_metadata_map.get("size_multiple") == ("32" if doubling else None)
    assert tuple(one.name for one in session.get_outputs()) == names
    for image in images(MULTIPLES if doubling else SIZES):
        found = [torch.from_numpy(np.asarray(one)) for one in session.run(None, {"images": image.numpy()})]
        expected = predicted(model, image)
        if case != "semantic":
            assert len(expected[0] if "boxes" in names else expected[0].unique()) > 5
        for name, one, other in zip(names, *pair_objects(names, found, expected), strict=True):
            assert one.shape == other.shape, name
            if other.is_floating_point():
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
            else:
                assert (one != other).float().mean() < 1e-3, name


def test_a_detector_is_no_program_of_torch_export(tool: Any, tmp_path: Path) -> None:
    config = tmp_path / "retinanet.py"
    config.write_text(f'"""A small one."""\n{RETINANET}')
    checkpoint(config, tmp_path / "x.pth")
    ended: Ended = tool("export.py", config, tmp_path / "x.pth", "--out", tmp_path / "x.pt2")
    assert ended.code == 2
    assert ended.err.startswith(
        "error: --format torch_export: what a detector gives depends on the contents of the image"
    )
    assert len(ended.err.splitlines()) == 1
    blind = ("--cfg-options", "model.test_cfg.score_thr=2.0")
    ended = tool("export.py", config, tmp_path / "x.pth", "--out", tmp_path / "x.onnx", *blind)
    assert ended.code == 2
    assert "the detector finds nothing in the photographs" in ended.err
    ended = tool("export.py", config, tmp_path / "x.pth", "--out", tmp_path / "x.pkl")
    assert "no format: state --format" in ended.err
    assert not list(tmp_path.glob("x.pt2")) + list(tmp_path.glob("x.onnx"))
