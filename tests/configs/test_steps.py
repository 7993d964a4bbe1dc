"""Every config takes one optimizer step, in a shrunken form, on made-up data of its task's format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import engine.training.runner  # noqa: F401  (registers the constructor)
from backbones.variants import CONVNETS, CONVNEXT_ISOTROPIC, CONVNEXT_V1, CONVNEXT_V2, SWIN, VIT
from engine.config.load import load_config
from engine.config.world import Launch

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("[a-z]*/*.py"))
SIDE, IMAGES, WIDTH, SAMPLES = 64, 2, 16, 8
NARROW = (
    *("in_channels", "out_channels", "feat_channels", "conv_out_channels", "fc_out_channels", "inner_channels"),
    "channels",
)


def small_network(name: str) -> dict[str, Any]:
    """Arguments that make a registered network small and leave its kind."""
    if name in CONVNEXT_V1 or name in CONVNEXT_V2:
        return {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    if name in CONVNEXT_ISOTROPIC:
        return {"depth": 4, "dim": 16}
    if name in SWIN:
        return {"timm_options": {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}}
    if name in VIT:
        small = {"embed_dim": 32, "depth": 4, "num_heads": 2}
        return {"timm_options": {"patch_size": 16, "img_size": SIDE, **small}}
    if name in CONVNETS:
        return {"timm_options": {"layers": (1, 1, 1, 1)}}
    return {"type": "roadmap50_resnet"}


def walk(node: Any) -> Iterator[ConfigDict]:
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from walk(value)


def shrunken(path: Path) -> Config:
    name = load_config(path, None, Launch()).cfg.model.backbone.type
    options = {f"model.backbone.{key}": value for key, value in small_network(name).items()}
    cfg = load_config(path, options, Launch()).cfg
    cfg.optim_wrapper.accumulative_counts = 1
    cfg.model.backbone.drop_path_rate = 0.0  # a dropped block would not learn in the one step
    model = cfg.model
    parts = ("neck", "rpn_head", "roi_head", "bbox_head", "semantic_head", "decode_head", "auxiliary_head")
    layers = [node for node in walk(model) if "num_layers" in node]
    for node in layers:
        node.num_layers = 1
    for node in walk(model):
        if node.get("type") == "GN":
            node.num_groups = 4
        if "num_queries" in node:
            node.num_queries = SAMPLES
        if node.get("type") == "BatchFixedSizePad":
            node.size = (SIDE, SIDE)
    for node in walk([model.get(part) for part in parts]):
        for key in () if layers else NARROW:  # a transformer has its width in many places
            if isinstance(node.get(key), int) and node[key] >= 64 and not (key == "in_channels" and "in_index" in node):
                node[key] = WIDTH
    for node in walk(model.get("train_cfg")):
        for key in ("num", "nms_pre", "max_per_img"):
            if key in node:
                node[key] = SAMPLES
    if "size" in model.get("data_preprocessor", {}):
        model.data_preprocessor.size = (SIDE, SIDE)
    return cfg


def images(cfg: Config) -> dict[str, Any]:
    labels = torch.randint(0, cfg.model.num_classes, (IMAGES,))
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    return {"inputs": pixels, "label": labels, "img_path": ["image"] * IMAGES}


def instances(cfg: Config) -> dict[str, Any]:
    panoptic = cfg.get("task") == "panoptic"
    masks = panoptic or any(step.get("with_mask") for step in cfg.train_pipeline)
    shapes = [[3, SIDE, SIDE]] * IMAGES
    known = cfg.model.panoptic_fusion_head.num_things_classes if panoptic else 80
    batch = demo_mm_inputs(IMAGES, shapes, num_items=[3] * IMAGES, num_classes=known, with_mask=masks)
    for sample in batch["data_samples"] if panoptic else ():
        labels = torch.full((1, SIDE, SIDE), 255)
        labels[..., : SIDE // 2] = known  # the first class of stuff
        sample.gt_sem_seg = PixelData(sem_seg=labels)
    return batch


def label_maps(cfg: Config) -> dict[str, Any]:
    samples = []
    for _ in range(IMAGES):
        labels = torch.randint(0, cfg.model.decode_head.num_classes, (1, SIDE, SIDE))
        meta = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
    pixels = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(IMAGES)]
    return {"inputs": pixels, "data_samples": samples}


def masked_images(cfg: Config) -> dict[str, Any]:
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    order = torch.stack([torch.randperm((SIDE // 32) ** 2) for _ in range(IMAGES)])
    return {"inputs": pixels, "data_samples": {"order": order, "img_path": ["image"] * IMAGES}}


BATCH: dict[str, Callable[[Config], dict[str, Any]]] = {
    "classification": images,
    "detection": instances,
    "segmentation": label_maps,
    "pretraining": masked_images,
}


def task(path: Path) -> str:
    """The task of a config by its folder; of an example by the beginning of its name."""
    return path.stem.partition("_")[0] if path.parent.name == "examples" else path.parent.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_one_step(path: Path) -> None:
    torch.manual_seed(0)
    cfg = shrunken(path)
    if task(path) == "detection" and "roi_head" in cfg.model and cfg.classes != "coco":
        cfg.model.roi_head.mask_head.num_classes = cfg.model.roi_head.bbox_head.num_classes = 80  # of the made-up boxes
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if "encoder" in cfg.model:  # memory without values until then
        model.init_weights()
    wrapper_cfg = dict(cfg.optim_wrapper)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(wrapper_cfg.pop("constructor"))
    wrapper = constructor(wrapper_cfg, wrapper_cfg.pop("paramwise_cfg", None))(model)
    reached: set[str] = set()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter_name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=parameter_name: reached.add(name))
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    losses = model.train().train_step(BATCH[task(path)](cfg), optim_wrapper=wrapper)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
    assert set(before) - reached == set()
    # Some gradients are zero in a first step: those behind a batch norm that timm starts at 0, of empty classes...
    changed = [name for name, parameter in trained.items() if not torch.equal(parameter, before[name])]
    assert len(changed) > len(before) / 2
