"""When one of our forms may take the place of PyTorch's operators on a CPU, and what such a form depends on."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

# Multiply-adds below which the calls cost more than the work, and no form is worth measuring.
SMALLEST_WORK = 1 << 24


@cache
def cpu_name() -> str:
    """The processor's model and the instructions that PyTorch uses of it."""
    return f"{cpu_model()} {torch.backends.cpu.get_cpu_capability()}"


def cpu_model() -> str:
    """The processor's model."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_info(field: str) -> str:
    """What Linux says of the first processor, such as its ``model name`` or ``flags``; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(field)), "")


@cache
def has_avx512() -> bool:
    """Whether PyTorch uses AVX-512 here."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


@cache
def _computes(dtype: torch.dtype) -> bool:
    """Whether this build and CPU have oneDNN's products in a precision."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision(x: Tensor) -> torch.dtype | None:
    """The precision of products with this input, where it is one of those that our forms have."""
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    inputs = (torch.float32, dtype) if autocast else (dtype,)
    fits = dtype in (torch.float32, torch.bfloat16) and x.dtype in inputs
    return dtype if fits and torch.backends.mkldnn.enabled and _computes(dtype) else None


def held_as(parameter: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether a parameter is there as the plain steps would have it for products in a precision."""
    kind = torch.float32 if torch.is_autocast_enabled("cpu") else dtype
    if parameter is None or type(parameter) not in (nn.Parameter, Tensor):
        return False
    return parameter.dtype == kind and parameter.device.type == "cpu"


def watched(x: Tensor) -> bool:
    """Whether something looks at the operators, which has to see the plain ones."""
    return (
        type(x) not in (Tensor, nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or bool(module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks)
    )


def hooked(layer: nn.Module) -> bool:
    """Whether something hangs on a layer that a form of ours would pass over."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
