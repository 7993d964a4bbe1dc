"""Fused operations inside of networks, and under everything that PyTorch does to a module.

Forced, they run on a CPU too: with the plain PyTorch steps that define them, behind the same registration.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm

from backbones.convnext import Block, ConvNeXt
from backbones.errors import ConfigError
from backbones.kernels.autotune import autotuner
from backbones.kernels.cuda import dwconv_norm, grn, mlp, packed_dwconv
from backbones.kernels.cuda.block import HALVES, PACKED_CONVOLUTION
from backbones.masked import DenseLayout, PackedLayout
from tests.programs import PATIENCE

ROOT = Path(__file__).resolve().parents[4]
OPS = torch.ops.convnext
V1: dict[str, Any] = dict(layer_scale_init_value=0.5)
V2: dict[str, Any] = dict(layer_scale_init_value=0.0, use_grn=True)
BOTH = pytest.mark.parametrize("options", [V1, V2], ids=["v1", "v2"])


UNITS = torch.tensor([[0, 4, 5], [3, 1, 2], [5, 0, 2], [1, 3, 4]])
LAYOUT = PackedLayout.of(UNITS, (2, 3), 2)


class OnVisibleUnits(nn.Module):
    """A block on the visible units of images."""

    def __init__(self, block: Block, layout: PackedLayout | DenseLayout = LAYOUT) -> None:
        super().__init__()
        self.block, self.layout = block, layout

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.layout)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotuner.clear()
    yield
    autotuner.clear()


def forms(form: str) -> Any:
    return autotuner.use(dwconv_norm=form, mlp=form, packed_dwconv=form)


def make(dim: int = 6, **options: Any) -> Block:
    torch.manual_seed(0)
    block = Block(dim, kernel_size=3, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(parameter[0].numel(), 4) ** 0.5)
    return block


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def results(module: nn.Module, x: Tensor, form: str) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    leaf = x.clone().requires_grad_()
    torch.manual_seed(7)  # stochastic depth
    with forms(form):
        out = module(leaf)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        return [out.detach(), *torch.autograd.grad((out * weights).sum(), [leaf, *module.parameters()])]


def operations(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if "convnext" in str(node.target)}


def recording() -> tuple[list[torch.fx.Graph], Any]:
    """A backend of torch.compile that runs what it is given, and the list of what that was."""
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(module.graph)
        return module

    torch._dynamo.reset()
    return graphs, backend


@BOTH
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_fused_and_plain_blocks_agree(options: dict[str, Any], drop_path: float) -> None:
    block = make(drop_path=drop_path, **options)
    x = image(8, 6, 5, 4)
    ours, plain = (results(block, x, form) for form in ("fused", "plain"))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if drop_path:
        dropped = (plain[0] - x).flatten(1).abs().amax(1) == 0
        assert 0 < dropped.sum() < 8
    block.eval()
    with torch.no_grad(), forms("fused"):
        ours = block(x)
    with torch.no_grad(), forms("plain"):
        torch.testing.assert_close(ours, block(x), rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_fused_blocks_on_visible_units_are_the_dense_ones(options: dict[str, Any], drop_path: float) -> None:
    block = make(drop_path=drop_path, **options)
    whole = image(4, 6, 4, 6)
    ours, plain = (results(OnVisibleUnits(block), LAYOUT.pack(whole), form) for form in ("fused", "plain"))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    layout = DenseLayout.of(UNITS, (2, 3), 2)
    with forms("plain"):
        torch.manual_seed(7)
        dense = block(whole, layout)
    torch.testing.assert_close(ours[0], LAYOUT.pack(dense), rtol=1e-5, atol=1e-5)
    # Whole maps have no fused form with hidden positions.
    torch.testing.assert_close(results(OnVisibleUnits(block, layout), whole, "fused")[0], dense)


def test_a_cpu_runs_the_plain_steps_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    block, calls = make(**V1), []
    monkeypatch.setattr("backbones.kernels.cuda.block._is_mlp_fused", lambda *_: calls.append(1))
    block(image(1, 6, 4, 4))
    assert not calls
    with autotuner.use(mlp="fused"):
        block(image(1, 6, 4, 4))
    assert calls


def test_each_part_can_be_forced_alone() -> None:
    block, x = make(**V1).eval(), image(1, 6, 4, 4)
    packed = LAYOUT.pack(image(4, 6, 4, 6))
    for part in (*HALVES, PACKED_CONVOLUTION):
        visible = part == PACKED_CONVOLUTION
        module, inputs = (OnVisibleUnits(block), packed) if visible else (block, x)
        graphs, backend = recording()
        with torch.no_grad(), autotuner.use(**{part: "fused"}):
            torch.compile(module, backend=backend, fullgraph=True)(inputs)
        assert [operations(graph) for graph in graphs] == [{f"convnext.{part}.default"}]


@BOTH
def test_a_device_that_has_kernels_chooses_by_measuring(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The way of a GPU, walked on a CPU: both forms are rehearsed, in training with their backward pass.
    monkeypatch.setattr("backbones.kernels.cuda.block._is_responsible", lambda _: True)
    monkeypatch.setattr("backbones.kernels.cuda.block.is_capable", lambda _: True)
    monkeypatch.setattr("backbones.kernels.autotune.TIMING_ROUNDS", 2)
    block, x = make(drop_path=0.5, **options), image(4, 6, 5, 4)
    expected = results(block, x, "plain")
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.manual_seed(7)
            out = block(x)
            (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        for parameter, gradient in zip(block.parameters(), expected[2:], strict=True):
            assert parameter.grad is not None
            close = dict(rtol=0.1, atol=0.2) if autocast else dict(rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(parameter.grad, gradient, **close)  # the rehearsals left nothing
            parameter.grad = None
    with torch.no_grad():
        block(x)
        OnVisibleUnits(block)(LAYOUT.pack(image(4, 6, 4, 6)))
    asked = {(key.operation, key.dtype, key.static[-2:]) for key in autotuner.selected}
    inference = ("torch.float32", (0, 0))
    modes = {("torch.float32", (1, 0)), ("torch.bfloat16", (1, 1)), inference}
    assert asked == {(part, *mode) for part in HALVES for mode in modes} | {(PACKED_CONVOLUTION, *inference)}


def test_a_wrong_form_is_an_error() -> None:
    with (
        autotuner.use(dwconv_norm="fast", mlp="fused"),
        pytest.raises(ConfigError, match="dwconv_norm=fast is none of"),
    ):
        make(**V1)(image(1, 6, 4, 4))


class Doubled(nn.LayerNorm):
    """A layer of the same kind, and yet another."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_parts_that_were_changed_run_as_they_are() -> None:
    x, called = image(1, 6, 4, 4), []
    block = make(**V1)
    block.norm.register_forward_hook(lambda *_: called.append("norm"))
    block.pwconv2.register_forward_pre_hook(lambda *_: called.append("pwconv2"))
    results(block, x, "fused")
    assert called == ["norm", "pwconv2"]
    block = make(**V1)
    weight_norm(block.pwconv1)
    assert block.pwconv1.parametrizations
    ours, plain = (results(block, x, form) for form in ("fused", "plain"))
    assert len(ours) == 2 + len(list(block.parameters()))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    block = make(**V1)
    block.act = nn.GELU(approximate="tanh")
    block.norm = Doubled(6)
    with forms("plain"):
        expected = block(x)
    with forms("fused"):
        torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)


@BOTH
def test_autocast_gives_the_precisions_that_the_plain_steps_give(options: dict[str, Any]) -> None:
    block = make(**options)
    for x in (image(2, 6, 5, 4), image(2, 6, 5, 4).bfloat16()):
        found, truth = {}, make(**options).double()(x.double())
        for form in ("fused", "plain"):
            with forms(form), torch.autocast("cpu", torch.bfloat16):
                found[form] = block(x)
                gradients = torch.autograd.grad(found[form].float().square().sum(), block.parameters())
            assert {g.dtype for g in gradients} == {torch.float32}
        assert found["fused"].dtype == found["plain"].dtype
        ours, theirs = ((found[form].double() - truth).square().mean().sqrt() for form in ("fused", "plain"))
        assert ours <= (1 + 3 / truth.numel() ** 0.5) * theirs


def test_operations_compute_in_the_precision_of_autocast() -> None:
    x, *others = (t for t in arguments()["dwconv_norm"][1] if isinstance(t, Tensor))
    visible = (image(4, 6, 2, 5), *others[:2], LAYOUT)
    wide = arguments()["mlp"][1][:6]
    with torch.autocast("cpu", torch.bfloat16):
        assert dwconv_norm.dwconv_norm(x, *others).dtype == torch.bfloat16
        assert packed_dwconv.packed_dwconv(*visible).dtype == torch.bfloat16
        assert mlp.mlp(wide[0].bfloat16(), *wide[1:]).dtype == torch.bfloat16
        assert mlp.mlp(*wide).dtype == torch.float32  # the shortcut's
    assert dwconv_norm.dwconv_norm(x, *others).dtype == torch.float32


@BOTH
def test_checkpointed_networks_give_the_same_gradients(options: dict[str, Any]) -> None:
    sizes: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), kernel_size=3, drop_path_rate=0.5)
    network = ConvNeXt(**sizes, **options)
    names = set(network.state_dict())
    again = ConvNeXt(**sizes, **options, grad_checkpointing=True)
    again.load_state_dict(network.state_dict())
    assert set(again.state_dict()) == names
    x = image(4, 3, 32, 32)
    for a, b in zip(results(network, x, "fused"), results(again, x, "fused"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@BOTH
def test_compiled_blocks_hold_the_operations(options: dict[str, Any]) -> None:
    block = make(**options)
    graphs, backend = recording()
    compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 6, 5, 4), (3, 6, 4, 7)):
        for a, b in zip(results(compiled, image(*shape), "fused"), results(block, image(*shape), "fused"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert {frozenset(operations(graph)) for graph in graphs} == {
        frozenset({"convnext.dwconv_norm.default", "convnext.mlp.default"})
    }
    torch._dynamo.reset()
    traced = torch.compile(block, backend="aot_eager", fullgraph=True)
    x = image(2, 6, 5, 4)
    for a, b in zip(results(traced, x, "fused"), results(block, x, "fused"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@BOTH
def test_compiled_blocks_on_visible_units_hold_the_operation(options: dict[str, Any]) -> None:
    module = OnVisibleUnits(make(**options))
    x = LAYOUT.pack(image(4, 6, 4, 6))
    expected = results(module, x, "fused")
    graphs, backend = recording()
    for compiled in (
        torch.compile(module, backend=backend, fullgraph=True),
        torch.compile(module, backend="aot_eager", fullgraph=True),
    ):
        for a, b in zip(results(compiled, x, "fused"), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch._dynamo.reset()
    assert [operations(graph) for graph in graphs] == [{"convnext.packed_dwconv.default", "convnext.mlp.default"}]


def test_exported_programs_need_no_kernels() -> None:
    block = make(**V2).eval()
    with forms("fused"):
        expected = block(image(2, 6, 5, 4))
        for strict in (False, True):
            program = torch.export.export(block, (image(2, 6, 5, 4),), strict=strict)
            assert not operations(program.graph)
            torch.testing.assert_close(program.module()(image(2, 6, 5, 4)), expected)
        assert "convnext::" not in str(torch.jit.trace(block, image(2, 6, 5, 4)).inlined_graph)


def test_ddp_averages_the_gradients_of_fused_blocks(tmp_path: Path) -> None:
    block = make(**V1)
    expected = results(block, image(2, 6, 5, 4), "fused")[2:]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(block)
        with forms("fused"):
            out = wrapped(image(2, 6, 5, 4))
            (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    finally:
        dist.destroy_process_group()
    for parameter, gradient in zip(block.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def arguments() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Each operation with tensors that take gradients."""

    def leaf(*shape: int) -> Tensor:
        return image(*shape).requires_grad_()

    conv = (leaf(2, 4, 3, 5), leaf(5, 1, 3, 3), leaf(5), leaf(5), leaf(5), 1e-6)
    wide = (leaf(2, 2, 3, 4), leaf(2, 2, 3, 4), leaf(7, 4), leaf(7), leaf(4, 7), leaf(4))
    keep = torch.tensor([2.0, 0.0])
    return {
        "dwconv_norm": (OPS.dwconv_norm.default, (*conv, True)),
        "dwconv_norm in inference": (OPS.dwconv_norm.default, (*(t.detach() for t in conv[:5]), 1e-6, False)),
        "packed_dwconv": (OPS.packed_dwconv.default, (leaf(4, 6, 2, 5), *conv[1:3], UNITS, LAYOUT.slots, 3)),
        "grn": (OPS.grn.default, (leaf(2, 3, 2, 5), leaf(1, 1, 1, 5), leaf(1, 1, 1, 5))),
        "mlp": (OPS.mlp.default, (*wide, leaf(4), keep, None, None, True)),
        "mlp with grn": (OPS.mlp.default, (*wide, None, None, leaf(1, 1, 1, 7), leaf(1, 1, 1, 7), True)),
    }


def in_float64(one: Any) -> Any:
    """A tensor of numbers in float64, with a gradient if it had one; anything else as it is."""
    is_map = isinstance(one, Tensor) and one.is_floating_point()
    return one.detach().double().requires_grad_(one.requires_grad) if is_map else one


def result(operation: Any, *tensors: Any) -> Tensor:
    """What an operation computes, without what it keeps for its backward pass."""
    out = operation(*tensors)
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("name", arguments())
def test_operations_are_registered_as_pytorch_wants_them(name: str) -> None:
    operation, tensors = arguments()[name]
    torch.library.opcheck(operation, tensors)


def test_only_the_result_can_be_differentiated() -> None:
    for name in ("dwconv_norm", "grn", "mlp", "mlp with grn"):
        operation, tensors = arguments()[name]
        first, *kept = operation(*tensors)
        assert first.requires_grad
        assert not any(tensor.requires_grad for tensor in kept)


def test_gradients_of_the_plain_steps_in_float64() -> None:
    for operation, tensors in arguments().values():
        wide = tuple(in_float64(one) for one in tensors)
        if any(isinstance(t, Tensor) and t.requires_grad for t in wide):
            assert torch.autograd.gradcheck(partial(result, operation), wide)


def test_what_does_not_work_says_so() -> None:
    x, *others = (t for t in arguments()["dwconv_norm"][1] if isinstance(t, Tensor))
    call = partial(dwconv_norm.dwconv_norm, x)
    with pytest.raises(TypeError, match=r"dwconv_norm does not take torch\.int64"):
        dwconv_norm.dwconv_norm(x.long(), *others)
    with pytest.raises(TypeError, match=r"dwconv_norm does not take torch\.complex64"):
        call(others[0].to(torch.complex64), *others[1:])
    with pytest.raises(ValueError, match=r"K odd and at most 13"):
        call(torch.zeros(5, 1, 4, 4), *others[1:])
    with pytest.raises(ValueError, match=r"K odd and at most 13"):
        call(torch.zeros(5, 1, 15, 15), *others[1:])
    with pytest.raises(ValueError, match=r"three vectors \(C,\)"):
        call(others[0], torch.zeros(4), *others[2:])
    visible = image(4, 6, 2, 5)
    for map_, weight, layout, message in (
        (visible.long(), others[0], LAYOUT, r"packed_dwconv does not take torch\.int64"),
        (visible, torch.zeros(5, 1, 4, 4), LAYOUT, "K odd and at most 13 and units of at most 32"),
        (visible[:, :4], others[0], LAYOUT, r"a map \(4, 6, 2, C\) and a bias \(C,\), not \(4, 4, 2, 5\)"),
        (visible, others[0], LAYOUT.of_images(slice(3)), r"a map \(3, 6, 2, C\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            packed_dwconv.packed_dwconv(map_, weight, others[1], layout)
    with pytest.raises(TypeError, match=r"grn does not take torch\.int64"):
        grn.grn(x.long(), others[1], others[1])
    with pytest.raises(ValueError, match="twice C values"):
        grn.grn(x, torch.zeros(4), others[1])
    wide: list[Any] = list(arguments()["mlp"][1][:-1])
    for place, wrong, message in (
        (1, wide[1].long(), "mlp does not take torch.int64"),
        (1, torch.zeros(2, 2, 3, 5), "do not fit 4 channels"),
        (5, torch.zeros(5), "bias2 has 5 values, 4 are needed"),
        (7, torch.zeros(3), "keep has 3 values, 2 are needed"),
        (8, torch.zeros(7), "go together"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            mlp.mlp(*wide[:place], wrong, *wide[place + 1 :])


def test_second_derivatives_are_refused() -> None:
    x, *others = (t for t in arguments()["dwconv_norm"][1] if isinstance(t, Tensor))
    (gradient,) = torch.autograd.grad(dwconv_norm.dwconv_norm(x, *others).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="dwconv_norm_backward"):
        gradient.sum().backward()
    x = image(4, 6, 2, 5).requires_grad_()
    out = packed_dwconv.packed_dwconv(x, *others[:2], LAYOUT)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="packed_dwconv_backward"):
        gradient.sum().backward()


def test_importing_needs_neither_triton_nor_a_gpu() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from backbones.kernels import autotuner\n"
        "from backbones.convnext import Block\n"
        "with autotuner.use(dwconv_norm='fused', mlp='fused'):\n"
        "    x = torch.randn(1, 4, 5, 5, requires_grad=True); Block(4)(x).sum().backward()\n"
        "print([name for name in sys.modules if 'kernels' in name and '_triton' in name], x.grad is not None)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("[] True")


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_on_a_gpu(options: dict[str, Any], dtype: torch.dtype) -> None:
    network = ConvNeXt((1, 1, 1, 1), (32, 64, 96, 128), **options).cuda().eval()
    x = image(2, 3, 224, 224).cuda()
    outputs = {}
    for form in ("fused", "plain"):
        with forms(form), torch.autocast("cuda", dtype, enabled=dtype != torch.float32), torch.no_grad():
            outputs[form] = network(x).float()
    with torch.no_grad(), forms("plain"):
        truth = network.double()(x.double()).float()
    errors = {form: (out - truth).square().mean().sqrt() for form, out in outputs.items()}
    assert errors["fused"] <= 1.3 * errors["plain"] + 1e-6


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_on_a_gpu(options: dict[str, Any], mode: str) -> None:
    block = make(32, **options).cuda()
    compiled = torch.compile(block, mode=mode, fullgraph=True)
    x = image(4, 32, 14, 14).cuda().contiguous(memory_format=torch.channels_last)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        with forms("fused"):
            found = torch.autograd.grad(compiled(x).square().sum(), list(block.parameters()))
            expected = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_on_visible_units_on_a_gpu(mode: str) -> None:
    layout = PackedLayout.of(UNITS.cuda(), (2, 3), 8)
    module = OnVisibleUnits(make(32, **V2).cuda(), layout)
    compiled = torch.compile(module, mode=mode, fullgraph=True)
    x = layout.pack(image(4, 32, 16, 24).cuda())
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        with forms("fused"):
            found = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
            expected = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_measures_once_and_trains_the_same() -> None:
    block = make(32, **V1).cuda()
    x = image(4, 32, 14, 14).cuda()
    torch.manual_seed(0)
    block(x).sum().backward()
    state = torch.cuda.get_rng_state()
    assert autotuner.selected
    known = dict(autotuner.selected)
    block(x).sum().backward()
    assert autotuner.selected == known
    torch.manual_seed(0)
    assert torch.equal(state, torch.cuda.get_rng_state())
