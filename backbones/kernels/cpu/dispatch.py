"""When a form may replace the plain steps on a CPU, and the properties of the CPU that forms depend on."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

from backbones.kernels.autotune import has_dispatch_mode
from backbones.kernels.cpu.linear import has_onednn_products

# Below this the overhead of calls exceeds the work, and no form is worth measuring.
MIN_MULTIPLY_ADDS = 1 << 24
# Of the libraries behind products and convolutions; forms that were measured under one are not taken without it.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# The hooks of all modules, by kind; PyTorch has no public way to ask for them.
GLOBAL_HOOKS = [kept for name, kept in vars(module_hooks).items() if name.endswith(("ward_hooks", "ward_pre_hooks"))]


@cache
def cpu_name() -> str:
    """Model of the processor, the instruction set that PyTorch uses, and what limits oneDNN and MKL to older ones."""
    limits = [f"{name}={os.environ[name]}" for name in ISA_LIMITS if os.environ.get(name)]
    return " ".join([cpu_model(), torch.backends.cpu.get_cpu_capability(), *limits])


def cpu_model() -> str:
    """Model of the processor."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_info(field: str) -> str:
    """A field of the first processor in ``/proc/cpuinfo``, such as ``model name`` or ``flags``, or an empty text."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(field)), "")


@cache
def simd_name() -> str:
    """Instruction set: ``NEON`` on Arm, else the one PyTorch uses, which ``ATEN_CPU_CAPABILITY=avx2`` limits."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "NEON"
    return torch.backends.cpu.get_cpu_capability()


@cache
def has_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16: AVX512_BF16, AMX, or those of Armv8.6."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(f"{cpu_info('flags')} {cpu_info('Features')}".split())


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """Precision of products with this input; ``None`` where no form supports it."""
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    inputs = (torch.float32, dtype) if autocast else (dtype,)
    fits = dtype in (torch.float32, torch.bfloat16) and x.dtype in inputs
    return dtype if fits and torch.backends.mkldnn.enabled and has_onednn_products(dtype) else None


def is_usable_parameter(parameter: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether a parameter is a plain CPU tensor in the precision that products in ``dtype`` expect of it."""
    kind = torch.float32 if torch.is_autocast_enabled("cpu") else dtype
    if parameter is None or parameter.dtype != kind or parameter.device.type != "cpu":
        return False
    return type(parameter) is nn.Parameter or is_plain_tensor(parameter)


def is_observed(x: Tensor) -> bool:
    """Whether something traces or intercepts operators or modules, which has to see the plain steps."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or has_dispatch_mode()
        or any(GLOBAL_HOOKS)
        or not is_plain_tensor(x)
    )


def is_plain_tensor(x: Tensor) -> bool:
    """Whether a tensor is its values in memory alone: no subclass, no tangent, not wrapped by :mod:`torch.func`."""
    if type(x) not in (Tensor, nn.Parameter) or forward_ad.unpack_dual(x).tangent is not None:
        return False
    try:
        return bool(x.data_ptr()) or not x.numel()
    except RuntimeError:  # there is no memory
        return False
