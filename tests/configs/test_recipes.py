"""Every run as it would really start, against what the sources print about it (``tests/data/recipes.yaml``)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config

from backbones import build_backbone
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.memory import autocast_dtype
from engine.task import task_of

ROOT = Path(__file__).resolve().parents[2]
TABLES = yaml.safe_load((ROOT / "tests/data/recipes.yaml").read_text(encoding="utf-8"))
RECIPES = {name: (table["cite"], {**table["all"], **own}) for table in TABLES for name, own in table["runs"].items()}
# No source prints these runs: the demo's, those of one's own data, V1's small sizes, and the ablations on a subset
# that its source leaves open ("ConvNeXt-XL on 128 A100").
WITHOUT_SOURCE = re.compile(r"digits|own_(data|images)|convnext_(atto|femto|pico|nano)_in1k_300e|_ablation")
CLUSTER = Launch(processes=16, device="cuda", local_processes=8)
EXPECTED_IN_DOCSTRING = ("top1", "box_ap", "mask_ap", "miou", "miou_multi_scale")
HEADS = {
    "CascadeRoIHead": "cascade",
    "StandardRoIHead": "mask_rcnn",
    "LinearProbeHead": "linear",
    "Mask2Former": "mask2former",
    "Mask2FormerHead": "mask2former",
    "DINO": "dino",
    "RTMDet": "rtmdet",
}
WARM_UPS = ("LinearLR", "LinearWarmUpLR")
SCHEDULES = {"CosineAnnealingLR": "cosine", "PolyDecayLR": "poly", "MultiStepLR": "steps"}


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from walk(value)


def classes(cfg: Config) -> int:
    nodes = list(walk(cfg.model.to_dict()))
    counts = {node["num_classes"] for node in nodes if "num_classes" in node}
    counts |= {node["num_things_classes"] + node["num_stuff_classes"] for node in nodes if "num_things_classes" in node}
    (count,) = counts
    return count


def warmup(cfg: Config, by_epoch: bool) -> int:
    """Length of the linear warm-up; one of steps reaches the peak after them, at ``end - 1``."""
    ends = [one["end"] for one in cfg.param_scheduler if one["type"] in WARM_UPS and one.get("by_epoch") == by_epoch]
    return sum(ends) if by_epoch else sum(end - 1 for end in ends)


def rand_augment(cfg: Config) -> list[float]:
    match = re.fullmatch(r"rand-m(\d+)-mstd([\d.]+)-inc1", cfg.train_pipeline[0].rand_augment)
    assert match is not None
    return [float(match[1]), float(match[2])]


def ema(cfg: Config) -> float | None:
    return next((hook["decay"] for hook in cfg.custom_hooks if hook["type"] == "ModelEMAHook"), None)


def layer_scale(cfg: Config) -> float | str:
    """The value that the built blocks have, whoever states it."""
    with torch.device("meta"):
        network = build_backbone(**{"name": cfg.model.backbone.type, **options_of(cfg)})
    values = {getattr(module, "layer_scale_init_value", None) for module in network.modules()} - {None}
    return values.pop() if values else "absent"


def size(cfg: Config) -> int:
    """Side of the images of training, which those of testing have to have too."""
    (side,) = {cfg.train_pipeline[0]["size"], cfg.test_pipeline[0]["size"]}
    return side


def options_of(cfg: Config) -> dict[str, Any]:
    return {key: value for key, value in cfg.model.backbone.items() if key not in ("type", "weights")}


def groups(cfg: Config) -> int:
    """Groups below the head that the run really has."""
    stated = cfg.optim_wrapper.paramwise_cfg.get("num_groups")
    with torch.device("meta"):
        return stated or build_backbone(cfg.model.backbone.type, **options_of(cfg)).num_layers


def precision(cfg: Config) -> str:
    return str(autocast_dtype(cfg.optim_wrapper) or torch.float32).removeprefix("torch.")


def shortest_sides(cfg: Config) -> list[int]:
    """Range of the short side in the branch of the training pipeline that only resizes."""
    (choice,) = (step for step in cfg.train_pipeline if step["type"] == "RandomChoice")
    sides = [side for side, _ in choice["transforms"][0][0]["scales"]]
    return [min(sides), max(sides)]


def crop(cfg: Config) -> int:
    """Side of the training crop, which the padding of the model and the window of slide testing have to be too."""
    found = {tuple(step["crop_size"]) for step in cfg.train_pipeline if step["type"] == "RandomCrop"}
    found |= {tuple(cfg.model.data_preprocessor.size), tuple(cfg.model.test_cfg.get("crop_size", found.copy().pop()))}
    ((height, width),) = found
    assert height == width
    if cfg.model.test_cfg.mode == "whole":
        (resize,) = (step for step in cfg.train_pipeline if step["type"] == "RandomChoiceResize")
        assert (min(resize.scales), max(resize.scales), resize.max_size) == (height // 2, 2 * height, 4 * height)
        assert {tuple(step["scale"]) for step in cfg.test_pipeline if "scale" in step} == {(4 * height, height)}
        return height
    assert cfg.model.test_cfg.mode == "slide"
    assert [step / height for step in cfg.model.test_cfg.stride] == pytest.approx([2 / 3, 2 / 3], abs=2e-3)
    resized = [tuple(step["scale"]) for step in walk([*cfg.train_pipeline, *cfg.test_pipeline]) if "scale" in step]
    assert set(resized) == {(4 * height, height)}
    return height


def heads(cfg: Config) -> str:
    """Kind of the heads: that of two stages, of the segmentor, or of the whole detector."""
    parts = (cfg.model.get("roi_head"), cfg.model.get("decode_head"), cfg.model)
    return next(HEADS[part["type"]] for part in parts if part)


def levels(cfg: Config) -> int:
    """Number of scales, which neck, encoder and decoder state too."""
    model = cfg.model
    found = {model.num_feature_levels, model.neck.num_outs, model.encoder.layer_cfg.self_attn_cfg.num_levels}
    (count,) = found | {model.decoder.layer_cfg.cross_attn_cfg.num_levels}
    return count


def queries(cfg: Config) -> int:
    (count,) = {node["num_queries"] for node in walk(cfg.model.to_dict()) if "num_queries" in node}
    return count


def scales(cfg: Config) -> list[float]:
    """Ratios of multi-scale testing (section 2.8); the released command scales what one-scale testing shows."""
    several = [tuple(step["scale"]) for step in walk(cfg.tta_pipeline) if "scale" in step]
    assert all(width == 4 * height for width, height in several)
    return [height / crop(cfg) for _, height in several]


def jitter(cfg: Config) -> list[float]:
    """Side of large-scale jitter, which crop and padding have to have too, and the range of its scales."""
    steps = {step["type"]: step for step in cfg.train_pipeline}
    resize, (pad,) = steps["RandomResize"], cfg.model.data_preprocessor.batch_augments
    assert (pad.type, pad.pad_mask) == ("BatchFixedSizePad", True)
    ((side, other),) = {tuple(one) for one in (resize["scale"], steps["RandomCrop"]["crop_size"], pad.size)}
    assert side == other
    assert resize["keep_ratio"]
    return [side, *resize["ratio_range"]]


def optimizer(key: str) -> Callable[[Config], Any]:
    return lambda cfg: cfg.optim_wrapper.optimizer.get(key)


def paramwise(key: str, default: Any) -> Callable[[Config], Any]:
    return lambda cfg: cfg.optim_wrapper.get("paramwise_cfg", {}).get(key, default)


def preprocessing(key: str) -> Callable[[Config], Any]:
    return lambda cfg: cfg.model.get("data_preprocessor", {}).get(key, 0.0)


READ: dict[str, Callable[[Config], Any]] = {
    "task": lambda cfg: task_of(cfg).name,
    "network": lambda cfg: cfg.model.backbone.type,
    "heads": heads,
    "levels": levels,
    "queries": queries,
    "backbone_rate": lambda cfg: cfg.optim_wrapper.paramwise_cfg.get("custom_keys", {})["backbone"]["lr_mult"],
    "power": lambda cfg: cfg.param_scheduler[-1]["power"],
    "classes": classes,
    "size": size,
    "crop_ratio": lambda cfg: cfg.test_pipeline[0]["crop_ratio"],
    "crop": crop,
    "scales": scales,
    "shortest_sides": shortest_sides,
    "jitter": jitter,
    "nms": lambda cfg: cfg.model.test_cfg.rcnn.nms.type,
    "optimizer": optimizer("type"),
    "lr": optimizer("lr"),
    "weight_decay": optimizer("weight_decay"),
    "betas": optimizer("betas"),
    "batch": lambda cfg: 16 * cfg.train_dataloader.batch_size,
    "epochs": lambda cfg: cfg.train_cfg.max_epochs,
    "steps": lambda cfg: cfg.train_cfg.max_iters,
    "schedule": lambda cfg: SCHEDULES[cfg.param_scheduler[-1]["type"]],
    "milestones": lambda cfg: cfg.param_scheduler[-1]["milestones"],
    "final_lr": lambda cfg: cfg.param_scheduler[-1]["eta_min"],
    "warmup_epochs": lambda cfg: warmup(cfg, by_epoch=True),
    "warmup_steps": lambda cfg: warmup(cfg, by_epoch=False),
    "layer_decay": paramwise("decay_rate", 1.0),
    "decay_type": paramwise("decay_type", "layer"),
    "groups": groups,
    "rand_augment": rand_augment,
    "color_jitter": lambda cfg: bool(cfg.train_pipeline[0].get("color_jitter")),
    "mixup": preprocessing("mixup"),
    "cutmix": preprocessing("cutmix"),
    "erasing": preprocessing("erasing"),
    "smoothing": preprocessing("label_smoothing"),
    "drop_path": lambda cfg: cfg.model.backbone.get("drop_path_rate", 0.0),
    "layer_scale": layer_scale,
    "head_init_scale": lambda cfg: cfg.model.get("head_init_scale", 1.0),
    "test_mode": lambda cfg: cfg.model.test_cfg.mode,
    "multi_scale_test_mode": lambda cfg: cfg.tta_model.module.test_cfg.mode,
    "init_std": lambda cfg: cfg.model.backbone.get("init_std"),
    "frozen_stages": lambda cfg: cfg.model.backbone.get("frozen_stages", -1),
    "no_decay": paramwise("no_decay", None),
    "clip": lambda cfg: cfg.optim_wrapper.get("clip_grad", {}).get("max_norm"),
    "precision": precision,
    "ema": ema,
    "area": lambda cfg: cfg.train_pipeline[0]["scale"],
    "mask_ratio": lambda cfg: cfg.model.mask_ratio,
    "decoder": lambda cfg: [cfg.model.decoder_depth, cfg.model.decoder_dim],
}


def same(found: Any, printed: Any) -> bool:
    if isinstance(printed, list):
        return list(found or ()) == pytest.approx(printed)
    if isinstance(printed, float):
        return found == pytest.approx(printed)
    return found == printed


def test_every_config_has_its_recipe_and_every_recipe_its_config() -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in (ROOT / "configs").glob("[a-z]*/*.py")}
    assert {name for name in files if not WITHOUT_SOURCE.search(name)} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_resolved_run_is_the_printed_one(name: str) -> None:
    cite, printed = RECIPES[name]
    cfg = load_config(ROOT / f"configs/{name}.py", None, CLUSTER).cfg
    wrong = {}
    for key, value in printed.items():
        if key in EXPECTED_IN_DOCSTRING or (value == "absent" and key != "layer_scale"):
            continue
        found = READ[key](cfg)
        if not same(found, value):
            wrong[key] = f"{found} here, {value} in {cite}"
    assert wrong == {}


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_says_what_to_expect(name: str) -> None:
    cite, printed = RECIPES[name]
    text = ast.get_docstring(ast.parse((ROOT / f"configs/{name}.py").read_text(encoding="utf-8"))) or ""
    for key in EXPECTED_IN_DOCSTRING:
        if key in printed:
            assert re.search(rf"(?<![\d.]){printed[key]}(?![\d.]*\d)", text), f"{key} {printed[key]} of {cite}"
