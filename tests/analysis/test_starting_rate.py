"""The note about pre-trained weights at a rate for training from scratch: where it belongs, and in no recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.optim import build_optim_wrapper

from analysis.dry_run import dry_run
from analysis.starting_rate import starting_rate_note
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import build_on_meta

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCRATCH = "classification/convnext_tiny_in1k_300e.py"
WEIGHTS = {"model.backbone.weights": "absent.pth"}
RATE, GROUPS = "optim_wrapper.optimizer.lr", "optim_wrapper.paramwise_cfg"
FROZEN = {"model.backbone.frozen_stages": 4}


def note(config: str, **options: Any) -> str | None:
    cfg = load_config(CONFIGS / config, options, Launch()).cfg
    model = build_on_meta(cfg)
    return starting_rate_note(cfg, model, build_optim_wrapper(model, cfg.optim_wrapper))


def test_a_recipe_from_scratch_that_begins_with_weights() -> None:
    said = (
        "optim_wrapper.optimizer.lr=0.004 for 4,096 images is a rate for training from scratch, and {} is set: the "
        "recipes of fine-tuning have 5e-05 for 512 images and layer-wise decay of 0.7 to 0.9 (docs/recipes.md)"
    )
    assert note(SCRATCH, load_from="absent.pth") == said.format("load_from")
    assert note(SCRATCH) is None
    lines = dry_run(load_config(CONFIGS / SCRATCH, WEIGHTS, Launch()), Launch(), data_check=False)
    assert lines.count("note: " + said.format("model.backbone.weights")) == 1


@pytest.mark.parametrize(
    "options, noted",
    [
        ({"batch.size": 1024}, True),  # the rate follows the batch
        ({"batch.size": 1024, RATE: 9e-4}, False),
        ({"batch.size": 512}, True),
        ({"batch.size": 64}, False),  # 6.25e-5: in proportion, but small in itself
        ({"batch.size": 64, RATE: 1e-3}, True),
        ({"batch.size": 64, RATE: 3e-4}, False),
        ({GROUPS: {"decay_rate": 0.8}}, False),
        (FROZEN, False),  # a linear probe
        ({**FROZEN, "model.backbone.frozen_stages": 1}, True),
        ({GROUPS: {"custom_keys": {"backbone": {"lr_mult": 0.1}}}}, False),
        ({GROUPS: {"custom_keys": {"head": {"lr_mult": 10}}}}, True),
        ({"optim_wrapper.optimizer.type": "SGD", RATE: 0.1}, False),
    ],
    ids=str,
)
def test_the_settings_that_count(options: dict[str, Any], noted: bool) -> None:
    assert bool(note(SCRATCH, **WEIGHTS, **options)) == noted


@pytest.mark.parametrize(
    "config",
    [
        "classification/convnext_tiny_in22k_ft_in1k_224",
        "classification/convnextv2_tiny_fcmae_ft_in1k",
        "classification/convnextv2_nano_fcmae_ft_in22k",
        "classification/vit_huge_ft_in1k_512",
        "detection/mask_rcnn_convnext_tiny_coco_3x",
        "detection/mask_rcnn_swin_tiny_coco_3x",
        "detection/cascade_mask_rcnn_resnet50_coco_3x",
        "detection/mask_rcnn_digits",
        "segmentation/upernet_swin_tiny_ade20k_160k",
        "segmentation/upernet_digits",
        "pretraining/own_images",
        *(f"examples/{task}_own_data" for task in ("classification", "detection", "segmentation")),
    ],
)
def test_recipes_that_begin_with_weights(config: str) -> None:
    """Each combination of rate, batch and layer-wise decay once."""
    assert note(f"{config}.py", **WEIGHTS) is None
