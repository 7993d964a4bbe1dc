"""Which parts of a ConvNeXt block run fused: the place where networks meet the kernels.

A block has two parts, each with a plain and a fused form: ``dwconv_norm`` and ``mlp``. On a GPU the faster form is
measured once for each network width and remembered (:mod:`backbones.kernels.autotune`); elsewhere blocks run their
plain steps and do not come here, unless a test forces them to. Parameters, their names and the modules that hold them
are the same in both. The plain form is taken too where something would be passed over: a part that was replaced or
given hooks, or a program that is being exported and has to run without these kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Protocol

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from backbones.kernels import autotune as choice
from backbones.kernels.cuda.dwconv_norm import dwconv_norm, supports
from backbones.kernels.cuda.launch import FLOATS, HAS_TRITON
from backbones.kernels.cuda.mlp import mlp
from backbones.layers import GRN

PARTS = ("dwconv_norm", "mlp")
FORMS = ("fused", "plain")
Forms = Mapping[str, Callable[..., Tensor]]


class Parts(Protocol):
    """What the kernels need of a block: its layers, and its plain steps."""

    dwconv: nn.Conv2d
    norm: nn.LayerNorm
    pwconv1: nn.Linear
    pwconv2: nn.Linear
    gamma: nn.Parameter | None

    @property
    def act(self) -> nn.Module: ...

    @property
    def grn(self) -> nn.Module: ...

    @property
    def drop_path(self) -> nn.Module: ...

    def forward_dwconv_norm(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, H, W, C)``: convolution and norm."""

    def forward_mlp(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's result from its input ``(N, C, H, W)`` and the normalised map ``(N, H, W, C)``."""


def wanted(x: Tensor) -> bool:
    """Whether the kernels have a say: on a GPU that is there, or where a form is forced."""
    return (x.is_cuda and torch.cuda.is_available()) or any(choice.forced(part) == "fused" for part in PARTS)


def forward(block: Parts, x: Tensor) -> Tensor:
    """A block's result, each part in the form that is faster here.

    Args:
        block: The block, of ConvNeXt V1 or V2.
        x: ``(N, C, H, W)``.
    """
    y = _fused_norm(block, x) if _takes_norm(block, x) else block.forward_dwconv_norm(x)
    return _fused_mlp(block, x, y) if _takes_mlp(block, x, y) else block.forward_mlp(x, y)


def _fused_norm(block: Parts, x: Tensor) -> Tensor:
    conv, norm = block.dwconv, block.norm
    assert conv.bias is not None
    return dwconv_norm(x.permute(0, 2, 3, 1), conv.weight, conv.bias, norm.weight, norm.bias, norm.eps)


def _fused_mlp(block: Parts, x: Tensor, y: Tensor) -> Tensor:
    first, second = block.pwconv1, block.pwconv2
    scales = (block.grn.gamma, block.grn.beta) if isinstance(block.grn, GRN) else (None, None)
    shortcut, keep = x.permute(0, 2, 3, 1), _keep(block.drop_path, x)
    out = mlp(shortcut, y, first.weight, first.bias, second.weight, second.bias, block.gamma, keep, *scales)
    return out.permute(0, 3, 1, 2)


def _takes_norm(block: Parts, x: Tensor) -> bool:
    """Whether convolution and norm run fused."""
    conv, norm = block.dwconv, block.norm
    if not _usable(x):
        return False
    kernel = conv.weight.shape[-1]
    fits = (
        _as_made(conv, nn.Conv2d)
        and _as_made(norm, nn.LayerNorm)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding == (kernel // 2, kernel // 2)
        and conv.padding_mode == "zeros"
        and conv.bias is not None
        and norm.elementwise_affine
    )
    if not fits or not (x.dtype == torch.float64 or supports(x.permute(0, 2, 3, 1), conv.weight)):
        return False
    static = (conv.weight.shape[0], kernel)
    forms: Forms = {"fused": partial(_fused_norm, block), "plain": block.forward_dwconv_norm}
    layers = (conv, norm)
    return _faster("dwconv_norm", static, forms, layers, x)


def _takes_mlp(block: Parts, x: Tensor, y: Tensor) -> bool:
    """Whether the rest runs fused."""
    fits = (
        _as_made(block.pwconv1, nn.Linear)
        and _as_made(block.pwconv2, nn.Linear)
        and _as_made(block.act, nn.GELU)
        and getattr(block.act, "approximate", "") == "none"
        and (_as_made(block.grn, GRN) or _as_made(block.grn, nn.Identity))
        and (_as_made(block.drop_path, DropPath) or _as_made(block.drop_path, nn.Identity))
    )
    if not fits or not _usable(y):
        return False
    static = (block.pwconv1.in_features, block.pwconv1.out_features, int(isinstance(block.grn, GRN)))
    forms: Forms = {"fused": partial(_fused_mlp, block), "plain": block.forward_mlp}
    layers = (block.pwconv1, block.grn, block.pwconv2)
    return _faster("mlp", static, forms, layers, x, y)


def _as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is just of its class, with nothing hung on it that calling its parts would leave out."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks)


def _usable(x: Tensor) -> bool:
    """Whether the operations may be called here at all."""
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return False
    if not x.is_cuda:
        return x.is_floating_point()
    return HAS_TRITON and x.dtype in FLOATS and x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] > 0


def _faster(
    part: str,
    static: tuple[int, ...],
    forms: Forms,
    layers: tuple[nn.Module, ...],
    *inputs: Tensor,
) -> bool:
    """Whether the fused form of a part is to be used."""
    x = inputs[-1]
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    trains = torch.is_grad_enabled()
    static = (*static, int(trains), int(autocast))
    if torch.compiler.is_compiling():
        return _expected(part, x.device, dtype, static) == "fused"
    if choice.forced(part) is None and not _able(x.device):
        return False
    question = choice.TuningKey.about(part, x, static, dtype)
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad] if trains else []
    calls = {name: partial(_rehearse, form, inputs, parameters, trains) for name, form in forms.items()}
    return choice.choose(question, calls, x) == "fused"


@cache
def _able(device: torch.device) -> bool:
    """Whether the kernels are tried on a device unasked: on GPUs that know bfloat16, from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@torch.compiler.assume_constant_result
def _expected(part: str, device: torch.device, dtype: torch.dtype, static: tuple[int, ...]) -> str:
    """The form for a graph, which may be run on maps of any size.

    Not traced, but run: within torch.compile, a traced ``is_exporting`` is always true.
    """
    if torch.compiler.is_exporting():
        return "plain"
    if choice.forced(part) is None and not _able(device):
        return "plain"
    return choice.expected(choice.TuningKey(part, choice.device_name(device), str(dtype), static, 0), FORMS)


def _rehearse(
    form: Callable[..., Tensor], inputs: tuple[Tensor, ...], parameters: list[nn.Parameter], trains: bool
) -> None:
    """Run a form as the network would, with its backward pass where it trains, and leave no gradient behind."""
    if not trains:
        form(*inputs)
        return
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    kind = inputs[0].device.type
    # Autocast would keep its casts of the weights for the real pass, with graphs that are spent by then.
    with torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    ):
        out = form(*inputs)
    torch.autograd.grad(out, [*inputs, *parameters], torch.ones_like(out), allow_unused=True)


def _keep(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """What stochastic depth multiplies each image's branch by, drawn as timm draws it."""
    rate = float(getattr(drop_path, "drop_prob", 0.0) or 0.0)
    if rate == 0.0 or not drop_path.training:
        return None
    precise = torch.promote_types(x.dtype, torch.float32)
    keep = torch.empty(x.shape[0], dtype=precise, device=x.device).bernoulli_(1 - rate)
    return keep.div_(1 - rate) if rate < 1 and getattr(drop_path, "scale_by_keep", True) else keep
