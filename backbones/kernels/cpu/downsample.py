"""Norm and convolution between two stages on CPU: in one pass for inference, where there is a C compiler.

PyTorch writes the normalised map, under autocast once more in bfloat16, and reads it again for the convolution. Here
each patch is normalised and multiplied at once (:mod:`backbones.kernels.cpu.native`). As for
:mod:`backbones.kernels.cpu.block`, inference measures once which form is faster, and the plain steps are taken where
something would be passed over. Training has the plain steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from backbones.kernels import autotune as choice
from backbones.kernels.cpu import native as cpu_native
from backbones.kernels.cpu.dispatch import SMALLEST_WORK, cpu_name, held_as, hooked, precision, watched
from backbones.kernels.cpu.weight_cache import forget, laid_out
from backbones.layers import LayerNorm2d

OPERATION = "cpu_downsample"
NATIVE, PLAIN = "native", "plain"


class Parameters(NamedTuple):
    """Of the norm and of the convolution."""

    scale: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor


def run(layer: nn.Sequential, x: Tensor) -> Tensor | None:
    """The result ``(N, outputs, H // 2, W // 2)`` for ``(N, C, H, W)``, or None where the plain steps are to be taken.

    Raises:
        UserError: If a form was forced that there is not.
    """
    if torch.is_grad_enabled():
        forget(layer)
        return None
    if not choice.measures() or x.device.type != "cpu" or x.ndim != 4 or watched(x):
        return None
    dtype = precision(x)
    parameters = None if dtype is None else _parameters(layer, dtype)
    if dtype is None or parameters is None or not cpu_native.has_product(parameters.weight, dtype):
        return None

    norm = layer[0]
    assert isinstance(norm, LayerNorm2d)

    def native() -> Tensor:
        packed = laid_out(layer, parameters, dtype, lambda: cpu_native.pack_downsample(*parameters, dtype))
        rows = x.permute(0, 2, 3, 1).contiguous()
        return cpu_native.downsample(rows, packed, norm.eps).permute(0, 3, 1, 2)

    forms = {NATIVE: native, PLAIN: lambda: nn.Sequential.forward(layer, x)}
    static = (*parameters.weight.shape[:2], torch.get_num_threads())
    question = choice.TuningKey(OPERATION, cpu_name(), str(dtype), static, x.numel().bit_length() - 1)
    if choice.forced(OPERATION) is None and x.numel() * static[0] < SMALLEST_WORK:
        return None
    return native() if choice.choose(question, forms, x) == NATIVE else None


def _parameters(layer: nn.Sequential, dtype: torch.dtype) -> Parameters | None:
    """The parameters of a norm and a convolution of side and stride 2 in float32, with nothing hung on them."""
    norm, conv = layer
    if type(norm) is not LayerNorm2d or type(conv) is not nn.Conv2d or hooked(norm) or hooked(conv):
        return None
    if (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) != ((2, 2), (2, 2), (0, 0), (1, 1), 1):
        return None
    found = [one._parameters.get(name) for one in (norm, conv) for name in ("weight", "bias")]
    fits = all(held_as(one, dtype) and one.dtype == torch.float32 for one in found if one is not None)
    return Parameters._make(found) if fits and None not in found else None
