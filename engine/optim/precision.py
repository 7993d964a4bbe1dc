"""Which parts stay in float32 in mixed precision.

Autocast keeps most of what needs it in float32: layer norms and the sums of losses. It does not keep the logarithms of
:func:`torch.nn.functional.cross_entropy`, which on a GPU come in the dtype of the scores. The classifier casts its
scores itself, and response normalisation computes in float32 by itself (:class:`backbones.layers.GRN`).
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from engine.optim.tensors import map_tensors


def losses_in_float32(model: nn.Module) -> None:
    """Let the losses of detectors and segmentors, modules whose names begin with ``loss``, see float32 alone."""
    for name, module in model.named_modules():
        if any(part.startswith("loss") for part in name.split(".")):
            module.register_forward_pre_hook(_widen, with_kwargs=True)


def attention_in_float32(model: nn.Module) -> None:
    """Let deformable attention sample float32 where autocast gives bfloat16.

    With values in bfloat16, mmcv's layer warns and takes its plain form even on a GPU, which samples float32 there.
    """
    name = "mmcv.ops.multi_scale_deform_attn"
    if name not in sys.modules:  # then no layer of it is in the model
        return
    for module in model.modules():
        if isinstance(module, sys.modules[name].MultiScaleDeformableAttention):
            module.value_proj.register_forward_hook(_from_bfloat16)


def _from_bfloat16(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.float() if output.dtype == torch.bfloat16 else output


def _widen(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return map_tensors(_wide, (args, kwargs))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
