"""A ConvNeXt block on a GPU: which of its halves run fused.

A block has two halves, each with a plain and a fused form: ``dwconv_norm`` and ``mlp``. On maps that hold the visible
units of images alone, the convolution of the first half is ``packed_dwconv``. The faster form is measured once for each
network width and remembered (:mod:`backbones.kernels.autotune`). On other devices the fused forms run only where they
are forced, as in tests. Parameters, their names and the modules that hold them are the same in both.
The plain form is also taken for layers that were replaced or given hooks, and in a program that is being exported and
has to run without these kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from backbones.kernels.autotune import TuningKey, autotuner
from backbones.kernels.cuda.dwconv_norm import dwconv_norm, supports_dwconv_norm
from backbones.kernels.cuda.launch import FLOATS, HAS_TRITON, is_capable
from backbones.kernels.cuda.mlp import mlp
from backbones.kernels.cuda.packed_dwconv import packed_dwconv, supports_packed_dwconv
from backbones.kernels.protocol import FUSED_FORM, PLAIN_FORM, BlockLayers, draw_drop_path, is_unmodified
from backbones.layers import GRN, DropPath
from backbones.masked import MaskedLayout, PackedLayout

HALVES = ("dwconv_norm", "mlp")
PACKED_CONVOLUTION = "packed_dwconv"
Forms = Mapping[str, Callable[..., Tensor]]


def run_cuda_block(block: BlockLayers, x: Tensor, layout: MaskedLayout | None = None) -> Tensor | None:
    """Output of a block, ``(N, C, H, W) -> (N, C, H, W)``, each half in its faster form; ``None`` off the GPU.

    Args:
        block: A block of ConvNeXt V1 or V2.
        x: Map; in ``layout``, if that is given.
        layout: Arrangement of the visible units in maps; packed ones have a convolution of their own.

    Raises:
        ConfigError: If a form was forced that does not exist.
    """
    if not _is_responsible(x) or not isinstance(layout, PackedLayout | None):
        return None
    if layout is None:
        y = _fused_dwconv_norm(block, x) if _is_dwconv_norm_fused(block, x) else block.forward_dwconv_norm(x)
    else:
        fused = _is_packed_dwconv_fused(block, x, layout)
        y = _fused_packed_dwconv(block, layout, x) if fused else block.forward_dwconv_norm(x, layout)
    return _fused_mlp(block, x, y) if _is_mlp_fused(block, x, y) else block.forward_mlp(x, y)


def _is_responsible(x: Tensor) -> bool:
    """Whether a tensor is on a GPU, or a fused form is forced."""
    forced = any(autotuner.forced(one) == FUSED_FORM for one in (*HALVES, PACKED_CONVOLUTION))
    return (x.is_cuda and torch.cuda.is_available()) or forced


def _fused_dwconv_norm(block: BlockLayers, x: Tensor) -> Tensor:
    conv, norm = block.dwconv, block.norm
    assert conv.bias is not None
    return dwconv_norm(x.permute(0, 2, 3, 1), conv.weight, conv.bias, norm.weight, norm.bias, norm.eps)


def _fused_packed_dwconv(block: BlockLayers, layout: PackedLayout, x: Tensor) -> Tensor:
    conv = block.dwconv
    assert conv.bias is not None
    out: Tensor = block.norm(packed_dwconv(x.permute(0, 2, 3, 1), conv.weight, conv.bias, layout))
    return out


def _fused_mlp(block: BlockLayers, x: Tensor, y: Tensor) -> Tensor:
    first, second = block.pwconv1, block.pwconv2
    scales = (block.grn.gamma, block.grn.beta) if isinstance(block.grn, GRN) else (None, None)
    shortcut = x.permute(0, 2, 3, 1)
    factors = draw_drop_path(block.drop_path, x, torch.promote_types(x.dtype, torch.float32))
    keep = None if factors is None else factors.flatten()
    out = mlp(shortcut, y, first.weight, first.bias, second.weight, second.bias, block.gamma, keep, *scales)
    return out.permute(0, 3, 1, 2)


def _is_dwconv_norm_fused(block: BlockLayers, x: Tensor) -> bool:
    """Whether convolution and norm run fused."""
    conv, norm = block.dwconv, block.norm
    if not _is_supported(x):
        return False
    kernel = conv.weight.shape[-1]
    fits = _is_same_size_convolution(conv) and is_unmodified(norm, nn.LayerNorm) and norm.elementwise_affine
    if not fits or not (x.dtype == torch.float64 or supports_dwconv_norm(x.permute(0, 2, 3, 1), conv.weight)):
        return False
    static = (conv.weight.shape[0], kernel)
    forms: Forms = {FUSED_FORM: partial(_fused_dwconv_norm, block), PLAIN_FORM: block.forward_dwconv_norm}
    layers = (conv, norm)
    return _is_fused("dwconv_norm", static, forms, layers, x)


def _is_packed_dwconv_fused(block: BlockLayers, x: Tensor, layout: PackedLayout) -> bool:
    """Whether the convolution of the visible units reads its neighbours in the packed map."""
    conv = block.dwconv
    if not _is_supported(x) or not _is_same_size_convolution(conv):
        return False
    if not (x.dtype == torch.float64 or supports_packed_dwconv(x.permute(0, 2, 3, 1), conv.weight)):
        return False
    static = (conv.weight.shape[0], conv.weight.shape[-1], layout.side)
    forms: Forms = {
        FUSED_FORM: partial(_fused_packed_dwconv, block, layout),
        PLAIN_FORM: partial(block.forward_dwconv_norm, layout=layout),
    }
    return _is_fused(PACKED_CONVOLUTION, static, forms, (conv, block.norm), x)


def _is_same_size_convolution(conv: nn.Conv2d) -> bool:
    """Whether a layer is a convolution with bias that keeps the size of a map, by padding with zeros."""
    kernel = conv.weight.shape[-1]
    return (
        is_unmodified(conv, nn.Conv2d)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding == (kernel // 2, kernel // 2)
        and conv.padding_mode == "zeros"
        and conv.bias is not None
    )


def _is_mlp_fused(block: BlockLayers, x: Tensor, y: Tensor) -> bool:
    """Whether the MLP, layer scale, stochastic depth and residual run fused."""
    fits = (
        is_unmodified(block.pwconv1, nn.Linear)
        and is_unmodified(block.pwconv2, nn.Linear)
        and is_unmodified(block.act, nn.GELU)
        and block.act.approximate == "none"
        and is_unmodified(block.grn, GRN, nn.Identity)
        and is_unmodified(block.drop_path, DropPath, nn.Identity)
    )
    if not fits or not _is_supported(y):
        return False
    static = (block.pwconv1.in_features, block.pwconv1.out_features, int(isinstance(block.grn, GRN)))
    forms: Forms = {FUSED_FORM: partial(_fused_mlp, block), PLAIN_FORM: block.forward_mlp}
    layers = (block.pwconv1, block.grn, block.pwconv2)
    return _is_fused("mlp", static, forms, layers, x, y)


def _is_supported(x: Tensor) -> bool:
    """Whether the fused operations can be called on this tensor."""
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return False
    if not x.is_cuda:
        return x.is_floating_point()
    return HAS_TRITON and x.dtype in FLOATS and x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] > 0


def _is_fused(
    half: str,
    static: tuple[int, ...],
    forms: Forms,
    layers: tuple[nn.Module, ...],
    *inputs: Tensor,
) -> bool:
    """Whether the fused form of a half is selected."""
    x = inputs[-1]
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    training = torch.is_grad_enabled()
    static = (*static, int(training), int(autocast))
    if torch.compiler.is_compiling():
        from backbones.kernels.cuda.compiled import predict_form

        return predict_form(half, x.device, dtype, static) == FUSED_FORM
    if autotuner.forced(half) is None and not is_capable(x.device):
        return False
    key = TuningKey.of_tensor(half, x, static, dtype)
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad] if training else []
    calls = {name: partial(_rehearse, form, inputs, parameters, training) for name, form in forms.items()}
    return autotuner.select(key, calls, x) == FUSED_FORM


def _rehearse(
    form: Callable[..., Tensor], inputs: tuple[Tensor, ...], parameters: list[nn.Parameter], training: bool
) -> None:
    """Run a form as the network would, with its backward pass in training, and leave no gradient behind."""
    if not training:
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
