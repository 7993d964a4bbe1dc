"""Mixed precision on a CPU: bfloat16 where it is asked for and the processor computes in it, else float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from backbones.kernels.cpu.dispatch import has_bfloat16
from engine.config.building import registered_class

AMP_SETTINGS = ("dtype", "loss_scale", "use_fp64")  # arguments of AmpOptimWrapper alone


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Autocast to bfloat16 on a CPU, where mmengine's ``AmpOptimWrapper`` refuses to run; losses are not scaled."""

    cast_dtype = torch.bfloat16

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of a forward pass."""
        with super().optim_context(model), torch.autocast("cpu", self.cast_dtype):
            yield


def fit_precision(cfg: Config, device: str, notes: list[str]) -> None:
    """Choose what mixed precision is on a device, ``cpu`` or ``cuda``, in place; ``notes`` receives what changed."""
    settings = cfg.get("optim_wrapper") or {}
    wrapper = registered_class(OPTIM_WRAPPERS, settings.get("type"))
    if device == "cuda" and wrapper is CpuAmpOptimWrapper:  # the config of a run on a CPU
        settings.update(type="AmpOptimWrapper", dtype="bfloat16")
    if device != "cpu" or wrapper is None or not issubclass(wrapper, AmpOptimWrapper):
        return
    kind, note = "", "-> float32: float16 is for GPUs, optim_wrapper.dtype=bfloat16 for CPUs too"
    if settings.get("dtype") == "bfloat16":
        note = (
            "-> float32: this CPU has no bfloat16 instructions; optim_wrapper.type=CpuAmpOptimWrapper takes it anyway"
        )
        if has_bfloat16():
            kind, note = "CpuAmp", "in bfloat16, as this CPU has instructions; optim_wrapper.type=OptimWrapper: float32"
    kept = {key: value for key, value in settings.items() if key not in AMP_SETTINGS}
    cfg.optim_wrapper = {**kept, "type": f"{kind}OptimWrapper"}
    notes.append(f"mixed precision {note}")
