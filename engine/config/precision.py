"""Mixed precision on a CPU: bfloat16 where it is asked for and the processor computes in it, else float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from backbones.kernels.autotune import autotuner
from backbones.kernels.cpu.dispatch import has_bfloat16
from backbones.kernels.cpu.products import BFLOAT16_PRODUCTS, select_training_products
from engine.config.building import registered_class

AMP_SETTINGS = ("dtype", "loss_scale", "use_fp64")  # arguments of AmpOptimWrapper alone


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Autocast to bfloat16 on a CPU, where mmengine's ``AmpOptimWrapper`` refuses to run; losses are not scaled.

    Args:
        products: Precision of the products in ConvNeXt's blocks, ``bfloat16`` or ``float32``; a resumed run keeps to
            that of its checkpoint.
    """

    cast_dtype = torch.bfloat16

    def __init__(self, *args: Any, products: str = BFLOAT16_PRODUCTS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.products = products

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of a forward pass."""
        with super().optim_context(model), torch.autocast("cpu", self.cast_dtype), self._with_products():
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backward pass: blocks that it computes anew multiply as in the forward pass."""
        with self._with_products():
            super().backward(loss, **kwargs)

    def _with_products(self) -> AbstractContextManager[None]:
        return autotuner.use(cpu_products=self.products)

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer, and the precision of the products."""
        return {**super().state_dict(), "products": self.products}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; one without a precision is of a run with products in bfloat16."""
        self.products = state_dict.get("products", BFLOAT16_PRODUCTS)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "products"})


def share_products(cfg: Config) -> None:
    """Give all processes the main one's precision of products, in place: each has measured it for itself."""
    settings = cfg.get("optim_wrapper") or {}
    shared = [settings.get("products")]
    broadcast_object_list(shared)
    if shared[0] is not None:
        settings["products"] = shared[0]
    elif "products" in settings:
        del settings["products"]


def fit_precision(cfg: Config, device: str, notes: list[str]) -> None:
    """Choose what mixed precision is on a device, ``cpu`` or ``cuda``, in place; ``notes`` receives what changed."""
    settings = cfg.get("optim_wrapper") or {}
    wrapper = registered_class(OPTIM_WRAPPERS, settings.get("type"))
    if device == "cuda" and wrapper is CpuAmpOptimWrapper:  # the config of a run on a CPU
        settings.update(type="AmpOptimWrapper", dtype="bfloat16")
        settings.pop("products", None)
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
    if kind and (products := select_training_products()) != BFLOAT16_PRODUCTS:
        kept["products"] = products
        note += "; products of blocks in float32, which this CPU is faster at"
    cfg.optim_wrapper = {**kept, "type": f"{kind}OptimWrapper"}
    notes.append(f"mixed precision {note}")
