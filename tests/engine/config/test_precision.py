"""bfloat16 on a CPU: when a config gets it, what it computes, and what its checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

import engine.config.precision as precision_module
from backbones import build_backbone
from backbones.kernels.autotune import autotuner
from backbones.kernels.cpu import dispatch
from backbones.kernels.cpu.products import PRODUCTS_OPERATION
from engine.config.load import load_config, resolve
from engine.config.precision import CpuAmpOptimWrapper, share_products
from engine.config.world import Launch
from engine.optim.update import loss_scaler, update_weights
from engine.planning.memory import autocast_dtype

DIGITS = Path(__file__).resolve().parents[3] / "configs/classification/digits.py"
ASKED = {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "bfloat16"}
FORCED = {"optim_wrapper.type": "CpuAmpOptimWrapper"}


@pytest.mark.parametrize(
    "options, instructions, kind, note",
    [
        (ASKED, True, "CpuAmpOptimWrapper", "mixed precision in bfloat16, as this CPU has instructions"),
        (ASKED, False, "OptimWrapper", "mixed precision -> float32: this CPU has no bfloat16 instructions"),
        (FORCED, False, "CpuAmpOptimWrapper", None),
        ({"optim_wrapper.type": "AmpOptimWrapper"}, True, "OptimWrapper", "-> float32: float16 is for GPUs"),
        ({**ASKED, "optim_wrapper.dtype": "float16"}, True, "OptimWrapper", "-> float32: float16 is for GPUs"),
        ({**ASKED, "optim_wrapper.loss_scale": 512.0}, True, "CpuAmpOptimWrapper", "in bfloat16"),
        ({}, True, "OptimWrapper", None),
    ],
)
def test_when_a_cpu_computes_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], instructions: bool, kind: str, note: str | None
) -> None:
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda: instructions)
    resolved = load_config(DIGITS, options, Launch())
    said = [line for line in resolved.notes if "precision" in line]
    assert len(said) == (note is not None)
    assert note is None or note in said[0]
    wrapper = resolved.cfg.optim_wrapper
    assert wrapper.type == kind
    assert not {"dtype", "loss_scale"} & {*wrapper}
    assert autocast_dtype(wrapper) == (torch.bfloat16 if kind.startswith("Cpu") else None)
    # What was chosen stays: the resolved config may be trained from on another machine, or on a GPU.
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda: not instructions)
    again = resolve(resolved.cfg.copy(), resolved.cfg.batch.size, Launch())
    assert again.cfg.optim_wrapper.type == kind
    on_gpu = resolve(resolved.cfg.copy(), resolved.cfg.batch.size, Launch(1, "cuda", 1)).cfg.optim_wrapper
    assert on_gpu.type == kind.removeprefix("Cpu")
    assert autocast_dtype(on_gpu) == autocast_dtype(wrapper)


@pytest.mark.parametrize("products", ["bfloat16", "float32"])
def test_products_are_in_the_faster_precision(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision_module, "select_training_products", lambda: products)
    resolved = load_config(DIGITS, ASKED, Launch())
    assert resolved.cfg.optim_wrapper.get("products", "bfloat16") == products
    assert any("products of blocks in float32" in line for line in resolved.notes) == (products == "float32")
    on_gpu = resolve(resolved.cfg.copy(), resolved.cfg.batch.size, Launch(1, "cuda", 1)).cfg.optim_wrapper
    assert "products" not in on_gpu


def test_a_resumed_run_keeps_to_the_products_that_it_began_with() -> None:
    model = nn.Linear(3, 5)

    def began_with(**products: str) -> CpuAmpOptimWrapper:
        return CpuAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1), **products)

    saved = began_with(products="float32").state_dict()
    resumed = began_with()
    with resumed.optim_context(model):
        assert autotuner.forced(PRODUCTS_OPERATION) == "bfloat16"
    resumed.load_state_dict(saved)
    with resumed.optim_context(model):
        assert autotuner.forced(PRODUCTS_OPERATION) == "float32"
    older = {key: value for key, value in saved.items() if key != "products"}
    resumed.load_state_dict(older)
    assert resumed.products == "bfloat16"


def test_blocks_that_are_computed_anew_multiply_as_before() -> None:
    model = nn.Linear(3, 5)
    wrapper = CpuAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1), products="float32")
    seen: list[str | None] = []
    loss = model(torch.ones(2, 3)).sum()
    loss.register_hook(lambda _: seen.append(autotuner.forced(PRODUCTS_OPERATION)))
    wrapper.backward(loss)
    assert seen == ["float32"]
    assert autotuner.forced(PRODUCTS_OPERATION) is None


@pytest.mark.parametrize("own", [{}, {"products": "bfloat16"}, {"products": "float32"}])
@pytest.mark.parametrize("main", [None, "float32"])
def test_all_processes_multiply_as_the_main_one(
    own: dict[str, str], main: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_main(values: list[Any]) -> None:
        values[0] = main

    monkeypatch.setattr(precision_module, "broadcast_object_list", from_main)
    cfg = Config({"optim_wrapper": {"type": "CpuAmpOptimWrapper", **own}})
    share_products(cfg)
    assert cfg.optim_wrapper.get("products") == main


def test_what_the_processor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (("fpu avx512_bf16 avx2", True), ("amx_bf16", True), ("avx512f avx512vl", False)):
        dispatch.has_bfloat16.cache_clear()
        monkeypatch.setattr(dispatch, "cpu_info", lambda field, flags=flags: flags if field == "flags" else "")
        assert dispatch.has_bfloat16() == expected
    dispatch.has_bfloat16.cache_clear()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_backbone("convnext_atto")
        self.head = nn.Linear(self.backbone.num_features, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def one_step(wrapper: OptimWrapper, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Loss, all gradients as one vector, and the dtype of the scores."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with wrapper.optim_context(model):
        scores = model(images)
        loss = nn.functional.cross_entropy(scores.float(), torch.arange(4))
    wrapper.backward(loss)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert update_weights(wrapper)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return loss.detach(), gradient, scores.dtype


def test_losses_and_gradients_are_close_to_those_of_float32() -> None:
    torch.manual_seed(0)
    models = [Classifier(), Classifier()]
    models[1].load_state_dict(models[0].state_dict())
    wrappers = [
        kind(optimizer=torch.optim.SGD(model.parameters(), 0.1))
        for kind, model in zip((OptimWrapper, CpuAmpOptimWrapper), models)
    ]
    expected, found = map(one_step, wrappers, models)
    assert (expected[2], found[2]) == (torch.float32, torch.bfloat16)
    # A rounding to 8 bits is wrong by 2^-9 of a value at most. Forward and back through 12 blocks of two products there
    # are 50 in a row; those of different values are independent: sqrt(50) 2^-9 = 0.014, and 0.05 with a margin.
    # The loss is a mean near log(5) over scores near 0, whose errors are those of a rounding.
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=2**-8)
    error = float((found[1] - expected[1]).norm() / expected[1].norm())
    assert 2**-10 < error < 0.05  # not the same: it was bfloat16
    assert loss_scaler(wrappers[1]) is None


def test_a_checkpoint_goes_from_one_precision_to_another() -> None:
    """The optimizer's state is in float32 in both, so that a training goes on with the one or the other."""
    torch.manual_seed(0)
    kinds, model = (OptimWrapper, CpuAmpOptimWrapper), nn.Linear(3, 5)
    for before, after in (kinds, kinds[::-1]):
        wrapper = before(optimizer=torch.optim.AdamW(model.parameters()))
        with wrapper.optim_context(model):
            loss = model(torch.randn(2, 3)).float().square().mean()
        wrapper.update_params(loss)
        resumed = after(optimizer=torch.optim.AdamW(model.parameters()))
        resumed.load_state_dict(wrapper.state_dict())
        for param in model.parameters():
            moment = resumed.optimizer.state[param]["exp_avg"]
            assert torch.equal(moment, wrapper.optimizer.state[param]["exp_avg"])
            assert moment.dtype == torch.float32
