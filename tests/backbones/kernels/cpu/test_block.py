"""A block on CPU computes the same in its fused form: forward and backward, and whatever a user does to the model."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from backbones import build_backbone
from backbones.convnext import Block
from backbones.errors import ConfigError
from backbones.isotropic import IsotropicConvNeXt
from backbones.kernels import dispatch
from backbones.kernels.autotune import Candidates, TuningKey, autotuner
from backbones.kernels.cpu import autograd, native
from backbones.kernels.cpu.autograd import depthwise_weight_gradient
from backbones.kernels.cpu.block import run_cpu_block
from backbones.kernels.cpu.weight_cache import sample, weight_cache
from backbones.kernels.cuda.block import run_cuda_block
from backbones.masked import MaskedLayout

CHANNELS = 16
DRAWS = 96
FORMS = ["fused", pytest.param("native", marks=pytest.mark.native)]
SHAPES = {
    "usual": (2, 14, 14),
    "odd": (3, 9, 13),
    "one pixel": (2, 1, 1),
    "smaller than the kernel": (1, 3, 2),
    "several tiles": (1, 70, 67),
}
KINDS: dict[str, dict[str, Any]] = {
    "v1": {},
    "without layer scale": {"layer_scale_init_value": 0.0},
    "v2": {"layer_scale_init_value": 0.0, "use_grn": True},
    "stochastic depth": {"drop_path": 0.5},
    "all dropped": {"drop_path": 0.999},
    "kernel of 3": {"kernel_size": 3, "mlp_ratio": 2.5},
    "kernel of 11": {"kernel_size": 11},
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps are divided too, by images and by rows."""
    monkeypatch.setattr(autograd, "MAX_PIECE_BYTES", 16 * 1024)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes the form of each pass that is not plain, so that no test compares the plain steps with themselves."""
    noted: list[str] = []
    run_native = native.run_native_block
    outputs: list[Tensor] = []

    def noting(block: Block, x: Tensor, layout: MaskedLayout | None = None) -> Tensor | None:
        result = run_cpu_block(block, x, layout)
        if result is not None:
            made_natively = any(result.data_ptr() == one.data_ptr() for one in outputs)
            noted.append("native" if made_natively else "fused")
        return result

    monkeypatch.setattr(native, "run_native_block", lambda *given: (outputs.append(run_native(*given)), outputs[-1])[1])
    monkeypatch.setattr(dispatch, "BLOCK_FORMS", (run_cuda_block, noting))
    return noted


def made(seed: int = 0, **settings: Any) -> Block:
    torch.manual_seed(seed)
    block = Block(CHANNELS, **{"layer_scale_init_value": 0.5, **settings})
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def maps(images: int, height: int, width: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(images, CHANNELS, height, width).contiguous(memory_format=torch.channels_last)


def outcome(block: Block, x: Tensor, form: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output, gradient of the input and of every parameter."""
    x = x.clone().requires_grad_()
    block.zero_grad()
    with autotuner.use(cpu_block=form), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        torch.manual_seed(7)
        out = block(x)
    out.float().square().sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(one.grad for one in block.parameters() if one.grad is not None)]


def towards(out: Tensor) -> Tensor:
    """A direction in which to pull an output."""
    return torch.linspace(-1, 1, out.numel()).view(out.shape)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_the_plain_ones(kind: str, shape: str, calls: list[str]) -> None:
    block, x = made(**KINDS[kind]), maps(*SHAPES[shape])
    plain, fused = outcome(block, x, "plain"), outcome(block, x, "fused")
    assert calls
    assert len(plain) == len(fused) == 2 + len(list(block.parameters()))
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, theirs) < 1e-5
    assert fused[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["v1", "without layer scale", "v2", "stochastic depth"])
def test_in_bfloat16_the_error_is_that_of_pytorch(kind: str, calls: list[str]) -> None:
    """Over many draws: the rounding of one set of weights is a matter of luck."""
    ours, theirs = [0.0] * 13, [0.0] * 13
    for seed in range(DRAWS):
        block = made(seed, **KINDS[kind])
        x = maps(4, 8, 8)
        truth = outcome(block, x, "plain")
        plain, fused = (outcome(block, x, form, torch.bfloat16) for form in ("plain", "fused"))
        assert [one.dtype for one in fused] == [one.dtype for one in plain]
        for i, (our, their, right) in enumerate(zip(fused, plain, truth, strict=True)):
            ours[i] += error(our, right) / DRAWS
            theirs[i] += error(their, right) / DRAWS
    assert len(calls) == DRAWS
    assert max(ours) > 1e-4  # bfloat16 was used
    assert all(our <= 1.05 * their for our, their in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_is_the_plain_one(kind: str, dtype: torch.dtype, form: str, calls: list[str]) -> None:
    block, x = made(**KINDS[kind]).eval(), maps(3, 14, 9)
    found = []
    for one, precision in (("plain", torch.float32), ("plain", dtype), (form, dtype)):
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
        with autotuner.use(cpu_block=one), torch.inference_mode(), autocast:
            found.append(block(x))
    truth, plain, ours = found
    assert calls == [form]
    assert ours.dtype == plain.dtype
    assert error(ours, truth) < max(1e-5, 1.2 * error(plain, truth))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_half_precision_input_keeps_its_place(kind: str, form: str, calls: list[str]) -> None:
    """As in the first block of a stage under autocast, which comes after a convolution.

    With layer scale the sum is of float32, whatever is added; without, V2 goes on in half precision.
    """
    scale = {"layer_scale_init_value": 0.01} if kind == "v1" else KINDS[kind]
    block, x = made(**scale).eval(), maps(2, 9, 9).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, ours = (outcome_of(block, x, one) for one in ("plain", form))
    assert calls == [form]
    assert ours.dtype == plain.dtype == (torch.float32 if kind == "v1" else torch.bfloat16)
    truth = outcome_of(block, x.float(), "plain")
    assert error(ours, truth) < 1.2 * error(plain, truth)


def outcome_of(block: Block, x: Tensor, form: str) -> Tensor:
    with torch.no_grad(), autotuner.use(cpu_block=form):
        return block(x)


def test_a_model_in_bfloat16_runs(calls: list[str]) -> None:
    block, x = made().bfloat16().eval(), maps(2, 7, 7).bfloat16()
    with torch.no_grad():
        with autotuner.use(cpu_block="fused"):
            fused = block(x)
        with autotuner.use(cpu_block="plain"):
            plain = block(x)
    assert calls
    assert fused.dtype == torch.bfloat16
    assert error(fused, plain) < 2e-2


def changes() -> dict[str, Any]:
    def step(block: Block) -> None:
        optimizer = torch.optim.AdamW(block.parameters(), lr=0.1, foreach=True)
        for parameter in block.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    def one_row(block: Block) -> None:
        block.pwconv1.weight.data[5] = 0

    def one_column(block: Block) -> None:
        block.pwconv2.weight.data[:, 5] = 0

    def swapped(block: Block) -> None:
        block.pwconv2.weight.data.copy_(block.pwconv2.weight.data.flip(0))

    return {
        "a step": step,
        "a checkpoint": lambda block: block.load_state_dict(made(mlp_ratio=4.0, drop_path=0.1).state_dict()),
        "one row through .data": one_row,
        "one column through .data": one_column,
        "rows swapped through .data": swapped,
        "layer scale through .data": lambda block: block.gamma.data.mul_(2),
        "a bias through .data": lambda block: block.pwconv2.bias.data.add_(1),
        "a fresh parameter": lambda block: setattr(block.pwconv1, "weight", nn.Parameter(-block.pwconv1.weight)),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", changes())
def test_kept_weights_are_never_stale(change: str, form: str, calls: list[str]) -> None:
    block, x = made().eval(), maps(2, 8, 8)
    before = outcome_of(block, x, form)
    kept = weight_cache.entries[block]
    assert torch.equal(outcome_of(block, x, form), before)
    assert weight_cache.entries[block] is kept, "nothing changed, and the weights were packed again"
    if change == "a checkpoint":
        nn.init.ones_(block.pwconv1.weight)
        outcome_of(block, x, form)
    changes()[change](block)
    after = outcome_of(block, x, form)
    assert error(after, outcome_of(block, x, "plain")) < 1e-5
    assert change == "a checkpoint" or error(after, before) > 1e-3
    assert set(calls) == {form}


@pytest.mark.native
def test_the_shift_of_the_response_normalisation_is_never_stale(calls: list[str]) -> None:
    """It is part of what is laid out."""
    block, x = made(**KINDS["v2"]).eval(), maps(2, 8, 8)
    outcome_of(block, x, "native")
    block.grn.beta.data.add_(1)
    assert error(outcome_of(block, x, "native"), outcome_of(block, x, "plain")) < 1e-5
    assert calls == ["native", "native"]


@pytest.mark.parametrize("channels", [1, 2, 7, 16, 40, 61, 96, 127, 254, 768, 1536])
@pytest.mark.parametrize("turned", [False, True])
def test_the_values_compared_are_of_all_rows_and_columns(channels: int, turned: bool) -> None:
    shape = (channels, 4 * channels) if turned else (4 * channels, channels)
    found = sample(torch.arange(channels * 4 * channels).view(shape))
    assert len((found // shape[1]).unique()) == shape[0]
    assert len((found % shape[1]).unique()) == shape[1]


def test_a_step_too_small_to_see_counts_too(calls: list[str]) -> None:
    """Else a run and a resumed one, which packs afresh, would differ in the last bits."""
    block, x = made().eval(), maps(1, 8, 8)
    with autotuner.use(cpu_block="fused"), torch.no_grad():
        block(x)
        kept = weight_cache.entries[block]
        block.pwconv1.weight.mul_(1)
        block(x)
    assert len(calls) == 2
    assert weight_cache.entries[block] is not kept


def test_dropped_images_pass_and_the_same_ones(calls: list[str]) -> None:
    block, x = made(drop_path=0.5), maps(16, 4, 4)
    fused, plain = outcome(block, x, "fused")[0], outcome(block, x, "plain")[0]
    same = [bool(torch.equal(one, other)) for one, other in zip(fused, x, strict=True)]
    assert calls
    assert any(same)
    assert not all(same)
    assert same == [bool(torch.equal(one, other)) for one, other in zip(plain, x, strict=True)]


def test_two_runs_are_the_same_to_the_last_bit(calls: list[str]) -> None:
    block, x = made(drop_path=0.3), maps(4, 14, 14)
    first, second = outcome(block, x, "fused"), outcome(block, x, "fused")
    assert len(calls) == 2
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_second_derivatives(calls: list[str]) -> None:
    block, x = made(drop_path=0.5), maps(6, 5, 5)
    penalties = []
    for form in ("fused", "plain"):
        leaf = x.clone().requires_grad_()
        block.zero_grad()
        with autotuner.use(cpu_block=form):
            torch.manual_seed(7)
            (slope,) = torch.autograd.grad(block(leaf).square().sum(), leaf, create_graph=True)
        slope.square().sum().backward()
        penalties.append([leaf.grad, block.pwconv1.weight.grad.clone()])
    assert calls
    assert all(error(one, other) < 1e-5 for one, other in zip(*penalties, strict=True))


def test_frozen_parameters_and_inputs_get_no_gradient(calls: list[str]) -> None:
    block, x = made(), maps(2, 6, 6)
    plain = outcome(block, x, "plain")[-1]
    block.dwconv.weight.requires_grad_(False)
    block.norm.bias.requires_grad_(False)
    block.zero_grad()
    with autotuner.use(cpu_block="fused"):
        block(x).square().sum().backward()
    assert calls
    assert block.dwconv.weight.grad is None
    assert block.norm.bias.grad is None
    assert error(block.pwconv2.bias.grad, plain) < 1e-5


@pytest.mark.parametrize("side", [3, 7, 11])
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 2), (2, 5, 6), (2, 20, 12), (1, 64, 65), (1, 130, 20)])
def test_the_weight_gradient_of_a_depthwise_convolution(side: int, shape: tuple[int, int, int]) -> None:
    x, gradient = maps(*shape), maps(*shape).flip(0, 2)
    weight = torch.zeros(CHANNELS, 1, side, side, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x.double(), weight, padding=side // 2, groups=CHANNELS)
    (expected,) = torch.autograd.grad(out, weight, gradient.double())
    assert error(depthwise_weight_gradient(x, gradient, side), expected) < 1e-5


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(block: Block) -> None:
    block.pwconv2.register_forward_hook(lambda module, args, out: 3 * out)


def replaced(block: Block) -> None:
    fresh = Doubled(CHANNELS, 4 * CHANNELS)
    fresh.load_state_dict(block.pwconv1.state_dict())
    block.pwconv1 = fresh


def parametrised(block: Block) -> None:
    nn.utils.parametrizations.weight_norm(block.pwconv1)


def another_activation(block: Block) -> None:
    block.act = nn.GELU(approximate="tanh")


def strided(block: Block) -> None:
    block.dwconv.padding_mode = "circular"
    block.dwconv._reversed_padding_repeated_twice = [3, 3, 3, 3]


def hooked_backward(block: Block) -> None:
    block.pwconv2.register_full_backward_pre_hook(lambda module, grad: grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [hooked, hooked_backward, replaced, parametrised, another_activation, strided])
def test_changed_parts_run_as_they_are(change: Any, form: str, calls: list[str]) -> None:
    block, x = made().eval(), maps(1, 8, 8)
    change(block)
    with torch.no_grad(), autotuner.use(cpu_block=form):
        assert torch.equal(block(x), block.forward_mlp(x, block.forward_dwconv_norm(x)))
    assert not calls


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ],
)
def test_hooks_of_all_modules_are_called(register: Any, calls: list[str]) -> None:
    handle = register(lambda *_: None)
    with autotuner.use(cpu_block="fused"):
        made()(maps(1, 8, 8))
        assert not calls
        handle.remove()
        made()(maps(1, 8, 8))
    assert calls


def test_other_precisions_and_transforms_take_the_plain_steps(calls: list[str]) -> None:
    block, x = made().eval(), maps(2, 8, 8)
    with autotuner.use(cpu_block="fused"):
        block.double()(x.double())
        block.float()
        slope = torch.func.grad(lambda one: block(one).sum())(x)
        _, tangent = torch.func.jvp(block, (x,), (torch.ones_like(x),))
        torch.func.vmap(block)(x[None])
        torch.func.grad(lambda own: torch.func.functional_call(block, own, (x,)).sum())(dict(block.named_parameters()))
        with forward_ad.dual_level():
            assert forward_ad.unpack_dual(block(forward_ad.make_dual(x, torch.ones_like(x)))).tangent is not None
            own = {"norm.bias": forward_ad.make_dual(block.norm.bias, torch.ones(CHANNELS))}
            assert forward_ad.unpack_dual(torch.func.functional_call(block, own, (x,))).tangent is not None
        traced = torch.jit.trace(block, x, check_trace=False)
        exported = torch.export.export(block, (x,)).module()
    assert slope.shape == tangent.shape == x.shape
    assert not calls
    assert error(traced(x), exported(x)) < 1e-6
    assert all("mkldnn" not in str(node.target) for node in exported.graph.nodes)


NETWORKS: dict[str, Callable[[], Any]] = {
    "v1": lambda: build_backbone("convnext_atto", drop_path_rate=0.2, layer_scale_init_value=0.5),
    "v2": lambda: build_backbone("convnextv2_atto", drop_path_rate=0.2),
    "isotropic": lambda: IsotropicConvNeXt(4, 24, out_indices=(1, 3)),
    "recomputed": lambda: build_backbone("convnext_atto", grad_checkpointing=True, layer_scale_init_value=0.5),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_whole_networks(kind: str, calls: list[str]) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]().train()
    images = torch.randn(2, 3, 64, 48)
    names, found = list(network.state_dict()), []
    for form in ("plain", "fused"):
        network.zero_grad()
        with autotuner.use(cpu_block=form):
            torch.manual_seed(3)
            out = network(images)
            # Not the squares: those of a normalised vector are constant, and their gradient is rounding.
            loss = sum((one * towards(one)).sum() for one in (out if isinstance(out, tuple) else (out,)))
            loss.backward()
        first = (out[0] if isinstance(out, tuple) else out).detach()
        found.append([first, *(one.grad for one in network.parameters() if one.grad is not None)])
    assert calls
    assert list(network.state_dict()) == names
    worst = [error(fused, plain) for plain, fused in zip(*found, strict=True)]
    assert max(worst) < 1e-5, kind


@pytest.mark.parametrize("form", FORMS)
def test_copies_and_files_of_a_network_that_has_run(form: str, calls: list[str]) -> None:
    block, x = made().eval(), maps(1, 8, 8)
    with autotuner.use(cpu_block=form), torch.no_grad():
        expected = block(x)
        file = io.BytesIO()
        torch.save(block, file)
        file.seek(0)
        for other in (copy.deepcopy(block), torch.load(file, weights_only=False)):
            assert torch.equal(other(x), expected)
    assert calls == [form] * 3


def test_what_decides(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    block, x = made(), maps(2, 8, 8)
    asked: list[str] = []
    monkeypatch.setattr(autotuner, "select", lambda key, candidates, x: asked.append(key.operation) or "fused")
    block(x)
    assert (calls, asked) == ([], []), "a tiny block runs plain, unmeasured"
    monkeypatch.setattr("backbones.kernels.cpu.block.MIN_MULTIPLY_ADDS", 1)
    for simd, fast in (("AVX512", True), ("AVX2", False)):
        monkeypatch.setattr("backbones.kernels.cpu.block.simd_name", lambda simd=simd: simd)
        calls.clear()
        block.train()(x)
        with torch.no_grad():
            block(x)
        assert calls == ["fused", "fused"] * fast, "training goes by the CPU"
    with torch.no_grad():
        assert not asked, "nothing is measured in training"
        block.eval()(x)
    assert (asked, calls) == (["cpu_block"], ["fused"]), "inference is measured"
    monkeypatch.setattr(autotuner, "select", lambda key, candidates, x: "plain")
    with torch.no_grad():
        block(x)
    assert calls == ["fused"]


@pytest.mark.parametrize("found", FORMS)
def test_the_forms_that_are_measured(found: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Each gives the same, and the one that is named is taken."""
    monkeypatch.setattr("backbones.kernels.cpu.block.MIN_MULTIPLY_ADDS", 1)
    block, x = made().eval(), maps(2, 8, 8)
    measured: dict[str, Tensor] = {}

    def selected(key: TuningKey, candidates: Candidates, x: Tensor) -> str:
        measured.update({name: call() for name, call in candidates.items()})
        return found

    monkeypatch.setattr(autotuner, "select", selected)
    with torch.no_grad():
        out = block(x)
    assert calls == [found]
    assert list(measured) == [*(["native"] if native.reason_missing() is None else []), "fused", "plain"]
    assert torch.equal(out, measured[found])
    assert all(error(one, out) < 1e-5 for one in measured.values())


def test_a_form_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="cpu_block=quick is none of native, fused, plain"):
        outcome_of(made(), maps(1, 8, 8), "quick")
