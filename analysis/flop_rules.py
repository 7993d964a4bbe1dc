"""Multiply-adds of PyTorch's operators as they are dispatched, by the handles of fvcore.

fvcore's handles read the operands of an operator from TorchScript values. Here every dispatched call is described as
such values, with the shapes of its tensors, so that models are counted on the ``meta`` device, without computing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from fvcore.nn.jit_handles import (
    Handle,
    addmm_flop_jit,
    batchnorm_flop_jit,
    bmm_flop_jit,
    conv_flop_count,
    elementwise_flop_counter,
    get_shape,
    matmul_flop_jit,
    norm_flop_counter,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # the class has no public name

# "We sample four regular locations" in each bin: He et al., "Mask R-CNN" (2017), section 3. It stands for mmdet's
# sampling_ratio=0 too, which adapts the number to the size of each box.
ROI_ALIGN_SAMPLES = 4
BILINEAR = 4  # multiply-adds of one bilinear sample, as fvcore counts them


# The operands are ``torch.Value``, whose methods torch's type stubs leave out.


def count_convolution(inputs: list[Any], outputs: list[Any]) -> float:
    """A convolution; the arguments are (images, weight, bias, stride, padding, dilation, transposed, ...)."""
    return conv_flop_count(*map(get_shape, (inputs[0], inputs[1], outputs[0])), inputs[6].toIValue())


def count_batched_product_and_sum(inputs: list[Any], outputs: list[Any]) -> int:
    """The product of ``baddbmm(sum, left, right)``."""
    return int(bmm_flop_jit(inputs[1:3], outputs))


def count_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products of softmax(Q K^T) V; Q is (..., L, E), K (..., S, E), V (..., S, E')."""
    query, key, value = (get_shape(one) for one in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def count_roi_align(inputs: list[Any], outputs: list[Any]) -> int:
    """Bilinear samples of every bin; the arguments are (features, boxes, scale, height, width, samples per side)."""
    per_side: int = inputs[5].toIValue()
    return prod(get_shape(outputs[0])) * (per_side**2 if per_side > 0 else ROI_ALIGN_SAMPLES) * BILINEAR


# Name of the dispatched operator -> its kind in the table, and fvcore's handle.
RULES: dict[str, tuple[str, Handle]] = {
    "aten::convolution": ("conv", count_convolution),
    "aten::addmm": ("linear", addmm_flop_jit),
    "aten::mm": ("linear", matmul_flop_jit),
    "aten::mv": ("linear", elementwise_flop_counter(1, 0)),
    "aten::bmm": ("matmul", bmm_flop_jit),
    "aten::baddbmm": ("matmul", count_batched_product_and_sum),
    "aten::native_batch_norm": ("norm", batchnorm_flop_jit),
    "aten::native_layer_norm": ("norm", norm_flop_counter(2)),
    "aten::native_group_norm": ("norm", norm_flop_counter(1)),
    "aten::_adaptive_avg_pool2d": ("pooling", elementwise_flop_counter(1, 0)),
    "aten::upsample_nearest2d": ("resizing", elementwise_flop_counter(0, 1)),
    "aten::upsample_bilinear2d": ("resizing", elementwise_flop_counter(0, BILINEAR)),
    "aten::grid_sampler_2d": ("resizing", elementwise_flop_counter(0, BILINEAR)),
    "torchvision::roi_align": ("roi_align", count_roi_align),
    "convnext::roi_align": ("roi_align", count_roi_align),
    "aten::_scaled_dot_product_flash_attention_for_cpu": ("attention", count_attention),
}
# Operators without arithmetic: the ones that fvcore ignores, as far as they are not views, and what the dispatcher
# shows beside them.
FREE = {
    f"aten::{name}"
    for name in (
        *("arange", "bitwise_not", "cat", "clamp", "clamp_", "clone", "constant_pad_nd", "copy_", "dropout", "empty"),
        *("empty_like", "empty_strided", "eq", "fill_", "floor", "floor_divide", "full", "full_like", "gather", "ge"),
        *("gt", "index", "index_put_", "lift_fresh", "masked_fill", "max", "new_empty", "new_empty_strided"),
        *("new_full", "new_zeros", "nonzero", "ones", "ones_like", "relu", "relu_", "remainder", "roll", "stack"),
        *("scalar_tensor", "unsafe_split", "zero_", "zeros", "zeros_like", "_to_copy", "_unsafe_view", "as_strided_"),
    )
}


class OperatorCounter(TorchDispatchMode):
    """Apply the rules to every operator that runs inside of ``with counter:``.

    Attributes:
        work: Multiply-adds by module and kind of operator.
        uncounted: Number of calls of each operator without a rule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[tuple[str, str]] = Counter()
        self.uncounted: Counter[str] = Counter()
        self._running = [""]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Assign the operators to the model's modules by forward hooks, which are removed at the end."""

        def enter(name: str, *_: Any) -> None:
            self._running.append(name)

        def leave(*_: Any) -> None:
            self._running.pop()

        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(enter, name)))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        if name in RULES:
            kind, rule = RULES[name]
            outputs = result if isinstance(result, tuple | list) else (result,)
            graph = torch.Graph()  # owns the values: it has to live until the rule has read them
            self.work[self._running[-1], kind] += int(
                rule([_value(graph, one) for one in args], [_value(graph, one) for one in outputs])
            )
        elif not func.is_view and name not in FREE:
            self.uncounted[name] += 1
        return result


def _value(graph: Any, argument: object) -> torch.Value:
    """An argument of a call as a TorchScript value: a tensor by its type and shape, anything else as a constant."""
    if not isinstance(argument, Tensor):
        return graph.insertConstant(argument)
    value = graph.addInput()
    value.inferTypeFrom(argument)
    return value
