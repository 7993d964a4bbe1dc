"""The estimate of memory: what autograd keeps is counted to the byte, without computing or allocating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from backbones import build_backbone
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.memory import (
    LiveStorages,
    Memory,
    activation_bytes,
    autocast_dtype,
    estimate_memory,
    training_shape,
)
from engine.planning.plan import build_on_meta
from engine.task import task_of_model

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CLASSIFICATION = CONFIGS / "classification/convnext_tiny_in1k_300e.py"
MASK = CONFIGS / "detection/mask_rcnn_convnext_tiny_coco_3x.py"
LSJ = CONFIGS / "detection/mask_rcnn_convnextv2_base_coco_lsj_3x.py"
UPERNET = CONFIGS / "segmentation/upernet_convnext_tiny_ade20k_160k.py"
PANOPTIC = CONFIGS / "detection/mask2former_panoptic_digits.py"
SEMANTIC = CONFIGS / "segmentation/mask2former_convnext_tiny_ade20k_160k.py"
SHAPE = (8, 16)
PIXELS = 8 * 16


class Two(nn.Module):
    """A convolution and a ReLU: autograd keeps the input of the one, the output of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x: Tensor, mode: str) -> Tensor:
        return torch.relu(self.conv(x))


class Pooled(nn.Module):
    """A network without a head."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.backbone = build_backbone(name, **options)

    def forward(self, x: Tensor, mode: str) -> Tensor:
        return self.backbone(x)


def on_meta(build: Any, *args: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return build(*args, **options)


@pytest.mark.parametrize("images", [1, 4])
def test_activations_by_hand(images: int) -> None:
    numbers = images * PIXELS * (3 + 5)
    assert activation_bytes(on_meta(Two), images, SHAPE) == 4 * numbers
    weight = 5 * 3 * 3 * 3  # the copy in half precision that the backward pass needs
    for dtype in (torch.float16, torch.bfloat16):
        assert activation_bytes(on_meta(Two), images, SHAPE, dtype) == 2 * (numbers + weight)
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "swin_tiny", "vit_small", "resnet50"])
def test_recomputed_and_mixed_activations_are_fewer(name: str) -> None:
    def count(dtype: torch.dtype | None = None, images: int = 16, **options: Any) -> int:
        return activation_bytes(on_meta(Pooled, name, **options), images, (224, 224), dtype)

    plain, some, none = count(), count(grad_checkpointing=(0, 1)), count(grad_checkpointing=True)
    assert none < some < plain
    assert count(torch.bfloat16) < 0.9 * plain
    assert plain == pytest.approx(2 * count(images=8), rel=0.01)


def test_a_recomputed_network_keeps_the_inputs_of_its_blocks_and_one_block() -> None:
    """12 equal blocks of a ViT: what does not depend on their number is the embedding."""
    images, tokens, dim = 2, 14 * 14 + 1, 384
    one = images * tokens * dim * 4
    plain = activation_bytes(on_meta(Pooled, "vit_small"), images, (224, 224))
    recomputed = activation_bytes(on_meta(Pooled, "vit_small", grad_checkpointing=True), images, (224, 224))
    block = (plain - recomputed + 12 * one) / 11
    assert 10 * one < block < 20 * one
    assert 12 * one + block < recomputed < 12 * one + block + 4 * one


def memory(path: Path, launch: Launch, **options: Any) -> Memory:
    resolved = load_config(path, options, launch)
    return estimate_memory(build_on_meta(resolved.cfg), resolved.cfg, launch.processes, resolved.plan.per_process)


def test_the_parts_of_a_training() -> None:
    params, few = 28_589_128, {"batch.per_gpu": 2}
    alone = memory(CLASSIFICATION, Launch(), **few)
    statistics = 2 * 3 * 4  # mean and deviation of the colours
    assert (alone.parameters, alone.gradients, alone.averages) == (4 * params + statistics, 4 * params, 4 * params)
    assert (alone.moments, alone.buckets) == (8 * params, 0)
    assert (alone.images, alone.shape) == (2, (224, 224))
    assert alone.activations is not None
    assert alone.total == 20 * params + statistics + alone.activations
    several = memory(CLASSIFICATION, Launch.on_gpus(8), **few)
    assert several.buckets == 4 * params
    sharded = memory(CLASSIFICATION, Launch.on_gpus(8), **few, **{"env_cfg.sharded": True})
    assert (sharded.gradients, sharded.moments, sharded.averages) == (params // 2, params, params // 2)
    assert sharded.buckets == 0
    plain = memory(CLASSIFICATION, Launch(), **few, **{"optim_wrapper.optimizer.type": "SGD"})
    assert plain.moments == 0
    assert "optimizer's moments" not in str(plain)
    frozen = memory(CLASSIFICATION, Launch(), **few, **{"model.backbone.frozen_stages": 4})
    learns = 768 * 1000 + 1000 + 2 * 768  # the head and the norm before it
    assert (frozen.parameters, frozen.gradients, frozen.averages) == (alone.parameters, 4 * learns, 4 * learns)
    assert frozen.activations is not None
    assert frozen.activations < alone.activations / 50


def test_the_sentence() -> None:
    gib = 2**30
    known = Memory(gib, gib, 2 * gib, 0, gib // 2, 3 * gib, 2, (800, 1333))
    assert str(known) == (
        "about 7.50 GiB per process: parameters 1.00 + gradients 1.00 + optimizer's moments 2.00 + exchange of "
        "gradients 0.50 + activations of 2 images of 1333 x 800 3.00"
    )
    unknown = Memory(gib, gib, 0, gib, 0, None, 1, None, "it is too odd")
    assert str(unknown).endswith("averaged weights 1.00; activations not counted: it is too odd")


@pytest.mark.parametrize(
    "path, shape", [(CLASSIFICATION, (224, 224)), (MASK, (800, 1333)), (LSJ, (1024, 1024)), (UPERNET, (512, 512))]
)
def test_the_size_of_the_training_images(path: Path, shape: tuple[int, int]) -> None:
    assert training_shape(load_config(path, None, Launch()).cfg) == shape


RESIZE, CROP = {"type": "RandomResize", "scale": (100, 60)}, {"type": "RandomCrop", "crop_size": (40, 80)}
PAD = {"type": "BatchFixedSizePad", "size": (90, 90)}


@pytest.mark.parametrize(
    "pipeline, augments, shape",
    [
        ([RESIZE], [], (60, 100)),
        ([{**RESIZE, "ratio_range": (0.1, 2.0)}], [], (120, 200)),
        ([{**RESIZE, "ratio_range": (0.1, 2.0)}, CROP], [], (40, 80)),
        ([{**RESIZE, "ratio_range": (0.1, 2.0)}, CROP], [PAD], (90, 90)),
        ([RESIZE], [PAD], (90, 100)),  # what is larger is not padded
        ([{**RESIZE, "scale": [(100, 40), (100, 60)]}], [], (60, 100)),
        ([{**RESIZE, "scale": (0.5, 2.0)}, {"type": "RandomCrop", "crop_size": (0.5, 0.5)}], [PAD], None),
        ([{"type": "RandomChoice", "transforms": [[RESIZE], [CROP]]}], [], (60, 100)),
        ([{"type": "RandomChoice", "transforms": [[RESIZE, CROP], [CROP]]}], [PAD], (90, 90)),
    ],
)
def test_the_size_after_jitter_crop_and_padding(
    pipeline: list[Any], augments: list[Any], shape: tuple[int, int] | None
) -> None:
    cfg = Config({"model": {"data_preprocessor": {"batch_augments": augments}}, "train_pipeline": pipeline})
    assert training_shape(cfg) == shape


def test_mixed_precision_of_a_config() -> None:
    assert autocast_dtype({"type": "OptimWrapper"}) is None
    assert autocast_dtype({"type": "AmpOptimWrapper"}) is torch.float16
    assert autocast_dtype({"type": "AmpOptimWrapper", "dtype": "bfloat16"}) is torch.bfloat16


@pytest.mark.parametrize("path", [MASK, UPERNET], ids=["detector", "segmentor"])
def test_heads_count_too(path: Path) -> None:
    cfg = load_config(path, {"model.backbone.type": "convnext_atto"}, Launch()).cfg
    model = build_on_meta(cfg)
    shape = (128, 128)
    assert activation_bytes(model, 2, shape) > 1.3 * activation_bytes(Bare(model.backbone), 2, shape)


@pytest.mark.parametrize(
    "path, options, images, side",
    [
        (PANOPTIC, {}, 4, 160),
        (
            SEMANTIC,
            {
                "model.backbone.type": "convnext_atto",
                "model.decode_head.num_queries": 20,
                "model.decode_head.pixel_decoder.encoder.num_layers": 1,
                "model.decode_head.transformer_decoder.num_layers": 2,
            },
            2,
            512,
        ),
    ],
    ids=["panoptic", "semantic"],
)
def test_a_model_that_has_to_compute_is_counted_from_small_images(
    path: Path, options: dict[str, Any], images: int, side: int
) -> None:
    estimate, cfg = memory(path, Launch(), **options), load_config(path, options, Launch()).cfg
    model = build(MODELS, cfg.model, "model", cfg.default_scope).train()
    with LiveStorages() as meter:
        kept: Any = task_of_model(model).activation_forward(model, torch.zeros(images, 3, side, side))
    assert (estimate.images, estimate.shape) == (images, (side, side))
    assert estimate.activations == pytest.approx(meter.bytes, rel=0.05)
    losses = kept if isinstance(kept, dict) else kept[1][0]
    assert {"loss_cls", "loss_mask", "loss_dice", "d0.loss_dice"} <= {*losses}


def test_a_model_that_has_to_compute_and_images_of_an_unknown_size() -> None:
    estimate = memory(PANOPTIC, Launch(), train_pipeline=[{"type": "LoadCheckedImage"}, {"type": "PackDetInputs"}])
    assert str(estimate).endswith("; activations not counted: the config does not tell the size of the training images")


class Bare(nn.Module):
    """A backbone alone."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, mode: str) -> Any:
        return self.backbone(x)
