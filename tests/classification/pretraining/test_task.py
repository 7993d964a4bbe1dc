"""What engine and analysis do with masked pre-training: plan, memory, FLOPs, half precision after a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.config_flops import count_config
from backbones.convnext import Block
from classification.pretraining.model import MaskedAutoencoder
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.memory import activation_bytes
from engine.planning.plan import build_on_meta

CONFIG = Path(__file__).resolve().parents[3] / "configs/pretraining/fcmae_digits.py"
FORMS = ("packed", "dense")


def test_flops_are_those_of_the_form() -> None:
    packed, dense = (count_config(CONFIG, (224, 224), {"model.form": form}) for form in FORMS)
    assert packed.params == dense.params
    assert packed.heavy == dense.heavy == ()
    assert packed.parts == "encoder (packed, 60 % hidden) and decoder"
    stages = ("backbone.stages.0", "backbone.stages.1", "backbone.stages.2", "backbone.stages.3")
    share = sum(packed.by_module[one] for one in stages) / sum(dense.by_module[one] for one in stages)
    # 19 of 49 units, and depthwise convolutions on whole maps.
    assert 19 / 49 < share < 0.5


def test_memory_is_that_of_the_form() -> None:
    found = []
    for form in FORMS:
        model = build_on_meta(load_config(CONFIG, {"model.form": form}, Launch()).cfg)
        found.append(activation_bytes(model, 4, (224, 224)))
    packed, dense = found
    assert packed < 0.55 * dense


def test_a_dry_run_needs_no_images(tool: Any, tmp_path: Path) -> None:
    ended = tool("train.py", CONFIG, "--dry-run", "--gpus", "8", "--cfg-options", f"data_root={tmp_path / 'absent'}")
    assert ended.code == 0, ended.err
    assert "memory: about" in ended.out
    assert "batch: 8 processes x 8 images x 1 accumulation = global batch 64" in ended.out


def test_a_dry_run_refuses_what_the_first_step_would(tool: Any) -> None:
    ended = tool("train.py", CONFIG, "--dry-run", "--cfg-options", "model.mask_ratio=0.95")
    assert (ended.code, ended.err.strip()) == (
        2,
        "error: model.mask_ratio=0.95 hides all of 9 units: take larger images",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_are_finite_in_half_precision_after_a_training(dtype: torch.dtype) -> None:
    """Initial weights of standard deviation 1 gave NaN here (facebookresearch/ConvNeXt-V2, issue 64)."""
    torch.manual_seed(0)
    model = MaskedAutoencoder({"type": "convnextv2_atto"}, decoder_dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(6):
        order = torch.stack([torch.randperm(9) for _ in range(2)])
        data = {"inputs": torch.randn(2, 3, 96, 96), "data_samples": {"order": order, "img_path": ["", ""]}}
        losses.append(model(**data, mode="loss")["loss"])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    seen: list[float] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(float(output.float().abs().max()))

    for module in model.backbone.modules():
        if isinstance(module, Block):
            module.register_forward_hook(note)
    with torch.autocast("cpu", dtype):
        model.backbone(torch.randn(2, 3, 96, 96))
    assert len(seen) == 12
    assert all(value < torch.finfo(dtype).max / 100 for value in seen)
