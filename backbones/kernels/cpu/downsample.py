"""Norm and convolution between two stages on CPU: in one pass for inference, where there is a C compiler.

PyTorch writes the normalised map, under autocast once more in bfloat16, and reads it again for the convolution. Here
each patch is normalised and multiplied at once (:mod:`backbones.kernels.cpu.native`). As for
:mod:`backbones.kernels.cpu.block`, inference measures once which form is faster, and the plain steps are taken for
layers that were replaced or have hooks. Training takes the plain steps. Under autocast to bfloat16 both may have
products in float32, as the blocks (:mod:`backbones.kernels.cpu.products`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from backbones.kernels.autotune import TuningKey, autotuner
from backbones.kernels.cpu import native
from backbones.kernels.cpu.dispatch import MIN_MULTIPLY_ADDS, compute_dtype, cpu_name, is_observed, is_usable_parameter
from backbones.kernels.cpu.native import DownsampleWeights
from backbones.kernels.cpu.products import FLOAT32_SUFFIX, has_float32_products, product_dtype
from backbones.kernels.cpu.weight_cache import weight_cache
from backbones.kernels.protocol import NATIVE_FORM, PLAIN_FORM, is_unmodified
from backbones.layers import LayerNorm2d

DOWNSAMPLE_OPERATION = "cpu_downsample"
SIDE_2 = ((2, 2), (2, 2), (0, 0), (1, 1), 1)  # kernel size, stride, padding, dilation, groups


def run_cpu_downsample(layer: nn.Sequential, x: Tensor) -> Tensor | None:
    """``(N, C, H, W) -> (N, outputs, H // 2, W // 2)``; ``None`` where the plain steps are to be taken.

    Raises:
        ConfigError: If a form was forced that does not exist.
    """
    if torch.is_grad_enabled():
        weight_cache.discard(layer)
        return None
    if not autotuner.measures() or x.device.type != "cpu" or x.ndim != 4 or is_observed(x):
        return None
    dtype = compute_dtype(x)
    parameters = None if dtype is None else _parameters(layer, dtype)
    if dtype is None or parameters is None:
        return None

    norm = layer[0]
    assert isinstance(norm, LayerNorm2d)

    def one_pass(form: str) -> Tensor:
        products = product_dtype(form, dtype)
        packed = weight_cache.get(layer, parameters, products, lambda: native.pack_downsample(parameters, products))
        rows = x.permute(0, 2, 3, 1).contiguous()
        rows = rows.to(products) if products == torch.float32 else rows
        return native.run_native_downsample(rows, packed, norm.eps).permute(0, 3, 1, 2).to(dtype)

    dtypes = {NATIVE_FORM: dtype}
    if has_float32_products(parameters.weight, dtype):
        dtypes[NATIVE_FORM + FLOAT32_SUFFIX] = torch.float32
    forms: dict[str, Callable[[], Tensor]] = {
        form: partial(one_pass, form) for form in dtypes if native.has_product(parameters.weight, dtypes[form])
    }
    if not forms:
        return None
    forms[PLAIN_FORM] = lambda: nn.Sequential.forward(layer, x)
    static = (*parameters.weight.shape[:2], torch.get_num_threads())
    key = TuningKey(DOWNSAMPLE_OPERATION, cpu_name(), str(dtype), static, x.numel().bit_length() - 1)
    if autotuner.forced(DOWNSAMPLE_OPERATION) is not None:
        form = autotuner.predict(key, (NATIVE_FORM, PLAIN_FORM, NATIVE_FORM + FLOAT32_SUFFIX))
    elif x.numel() * static[0] < MIN_MULTIPLY_ADDS:
        return None
    else:
        form = autotuner.select(key, forms, x)
    return None if form == PLAIN_FORM or form not in forms else forms[form]()


def _parameters(layer: nn.Sequential, dtype: torch.dtype) -> DownsampleWeights | None:
    """Parameters of a norm and a convolution of kernel size and stride 2, all in float32, without hooks."""
    norm, conv = layer
    if not is_unmodified(norm, LayerNorm2d) or not is_unmodified(conv, nn.Conv2d):
        return None
    assert isinstance(norm, LayerNorm2d)
    assert isinstance(conv, nn.Conv2d)
    if (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) != SIDE_2:
        return None
    found = (norm.weight, norm.bias, conv.weight, conv.bias)
    if not all(one is not None and one.dtype == torch.float32 and is_usable_parameter(one, dtype) for one in found):
        return None
    return DownsampleWeights._make(found)
