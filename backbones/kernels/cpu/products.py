"""Precision of a block's products under autocast to bfloat16: bfloat16, or float32 where the CPU is faster at it.

AMX multiplies bfloat16 five times as fast as float32, AVX512_BF16 of many Intel CPUs only half as fast, and without
such instructions PyTorch emulates them. In inference each block measures both. Training measures a product and its
gradients once on a machine, and all blocks follow; a run does so before it begins, and its checkpoints record the
result, so that a resumed run keeps to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from backbones.kernels.autotune import TuningKey, autotuner
from backbones.kernels.cpu.dispatch import cpu_name, simd_name
from backbones.kernels.cpu.linear import input_gradient, linear, weight_gradient

PRODUCTS_OPERATION = "cpu_products"
BFLOAT16_PRODUCTS, FLOAT32_PRODUCTS = "bfloat16", "float32"
FLOAT32_SUFFIX = f"_{FLOAT32_PRODUCTS}"  # of forms whose products are in float32 though autocast asks for bfloat16
# Shape of the map and hidden channels of the products that are measured: those of ConvNeXt-T's third stage, 4 images.
MEASURED_SHAPE, MEASURED_HIDDEN = (4, 14, 14, 384), 1536


def has_float32_products(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a layer with such a weight can have products in float32 where ``dtype`` is asked for."""
    return dtype == torch.bfloat16 and weight.dtype == torch.float32


def product_dtype(form: str, dtype: torch.dtype) -> torch.dtype:
    """Precision of the products of a form where ``dtype`` is asked for."""
    return torch.float32 if form.endswith(FLOAT32_SUFFIX) else dtype


def training_suffix() -> str:
    """Suffix of the forms that training takes under autocast to bfloat16: empty, or ``FLOAT32_SUFFIX``."""
    return FLOAT32_SUFFIX if select_training_products() == FLOAT32_PRODUCTS else ""


def select_training_products() -> str:
    """Precision of the products of a training under autocast to bfloat16: forced, remembered, or measured now.

    Raises:
        ConfigError: If a precision was forced that does not exist.
    """
    key = TuningKey(PRODUCTS_OPERATION, cpu_name(), str(torch.bfloat16), (torch.get_num_threads(),), 0)
    if simd_name() != "AVX512":  # blocks train in their plain steps
        return autotuner.predict(key, (BFLOAT16_PRODUCTS,))
    return autotuner.select(key, _PRODUCTS, torch.empty(1))


def _multiply(dtype: torch.dtype) -> None:
    """A product and its two gradients, from maps in float32."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        x = torch.ones(MEASURED_SHAPE).to(dtype)
        weight = torch.ones(MEASURED_HIDDEN, MEASURED_SHAPE[-1]).to(dtype)
        hidden = linear(x, weight, None)
        input_gradient(hidden, weight)
        weight_gradient(hidden, x)


_PRODUCTS: dict[str, Callable[[], object]] = {
    BFLOAT16_PRODUCTS: partial(_multiply, torch.bfloat16),
    FLOAT32_PRODUCTS: partial(_multiply, torch.float32),
}
