"""A stand-in for ``mmcv._ext``, the compiled module from which mmcv's Python wrappers take every op.

A module of :data:`OP_MODULES` serves the ops in its ``__all__``. They have the names and the arguments that mmcv 2.x's
wrappers (``mmcv/ops/*.py``) use: tensors of any one device, among them buffers of the wrapper into which results are
written. Half precision is computed in float32. To add an op, write a module and add its name to the list.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from backbones.errors import MachineError
from engine.mmcv_ops.unserved import UNSERVED_OPS

OP_MODULES = (
    "bbox_overlaps",
    "border_align",
    "carafe",
    "deform_conv",
    "deform_roi_pool",
    "focal_loss",
    "line_nms",
    "masked_conv",
    "ms_deform_attn",
    "nms",
    "polygons",
    "prroi_pool",
    "psa_mask",
    "roi_align",
    "roi_pool",
    "rotated_boxes",
    "sync_bn",
)
VERSION_FUNCTIONS = ("get_compiler_version", "get_compiling_cuda_version")  # asked for by mmcv.utils.collect_env
MAX_POOLING = 'roi_align(pool_mode="max")'
_EXTENSION = "mmcv._ext"
# Packages that bind dummies at import time when mmcv.ops cannot be imported.
_EARLY_BINDING_PACKAGES = ("mmdet.models", "mmdet.structures", "mmseg.models")


class MissingOpError(MachineError):
    """An mmcv op without a stand-in was called; the message is one line and says how to get the op."""


def missing_op(op: str) -> MissingOpError:
    """The error for a call of an op that neither mmcv nor this package has.

    Args:
        op: Name of the op.
    """
    import mmcv

    purpose = f" ({UNSERVED_OPS[op]})" if op in UNSERVED_OPS else ""
    return MissingOpError(
        f"mmcv op '{op}'{purpose} is missing: this installation of mmcv has no compiled ops and torchvision does not "
        "stand in for this one. Building mmcv from source gives all of them; it needs a C++ compiler and, "
        "for a GPU, the CUDA toolkit: pip install 'setuptools>=80,<82' wheel && MMCV_WITH_OPS=1 pip install "
        "--no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary onedl-mmcv "
        f"onedl-mmcv=={mmcv.__version__}"
    )


def check_layers(model: nn.Module) -> None:
    """Refuse a model with a layer of mmcv whose op is missing here, before its first step would.

    Args:
        model: Built model; it is not run.

    Raises:
        MissingOpError: With the op.
    """
    if not isinstance(sys.modules.get(_EXTENSION), _StandIn):
        return
    for layer in model.modules():
        package, _, module = type(layer).__module__.rpartition(".")
        if package != "mmcv.ops":
            continue
        for op in {f"{module}_forward", module} & UNSERVED_OPS.keys():
            raise missing_op(op)
        if module == "roi_align" and layer.pool_mode == "max":
            raise missing_op(MAX_POOLING)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, else a float32 copy (exact for half precision)."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def write_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor, buffers: Sequence[Tensor | None]
) -> None:
    """Differentiate a plain PyTorch form, which is computed once more, and write the gradients into buffers.

    Args:
        function: Function of ``inputs`` that returns one tensor.
        inputs: Tensors to differentiate by; half precision is computed in float32.
        grad_output: Gradient with respect to the result of ``function``.
        buffers: Output buffer for each input, of its shape; ``None`` where no gradient is wanted.
    """
    wanted = [buffer is not None for buffer in buffers]
    leaves = [
        at_least_float32(tensor.detach()).clone().requires_grad_(want)
        for tensor, want in zip(inputs, wanted, strict=True)
    ]
    with torch.enable_grad():
        result = function(*leaves)
    gradients = torch.autograd.grad(
        result,
        [leaf for leaf, want in zip(leaves, wanted, strict=True) if want],
        grad_output.to(result.dtype),
        materialize_grads=True,
    )
    for buffer, gradient in zip((b for b in buffers if b is not None), gradients, strict=True):
        buffer.copy_(gradient)


def install() -> str:
    """Make ``mmcv.ops`` importable, before anything imports it; a second call changes nothing.

    Returns:
        ``"compiled"`` where mmcv has its own compiled ops (left untouched), else ``"torchvision"``.

    Raises:
        RuntimeError: If mmdet or mmseg was imported before and has already replaced the ops by dummies.
    """
    present = sys.modules.get(_EXTENSION)
    if present is not None:
        return "torchvision" if isinstance(present, _StandIn) else "compiled"
    if importlib.util.find_spec(_EXTENSION) is not None:
        return "compiled"
    late = [name for name in _EARLY_BINDING_PACKAGES if name in sys.modules]
    if late:
        raise RuntimeError(
            f"engine.mmcv_ops.install() came too late: {late[0]} is imported already, without its ops; "
            "import `detection` or `segmentation` first"
        )
    sys.modules[_EXTENSION] = _StandIn()
    return "torchvision"


class _StandIn(ModuleType):
    """Takes the place of the compiled module: every name can be imported, the ops of ``OP_MODULES`` can be called."""

    def __init__(self) -> None:
        super().__init__(_EXTENSION, "Stand-in for mmcv's compiled module, served by torchvision.")
        # mmengine asks importlib for this spec and fails on None; no loader, since nothing was loaded.
        self.__spec__ = ModuleSpec(_EXTENSION, loader=None)
        for name in OP_MODULES:
            module = importlib.import_module(f"engine.mmcv_ops.{name}")
            vars(self).update({op: getattr(module, op) for op in module.__all__})
        for version in VERSION_FUNCTIONS:
            setattr(self, version, lambda: "none: ops are served by torchvision")

    def __getattr__(self, name: str) -> Callable[..., None]:
        # Python probes modules for dunder names (__path__, __file__, ...); those must stay absent.
        if name.startswith("__"):
            raise AttributeError(f"module '{_EXTENSION}' has no attribute '{name}'")

        def missing(*args: Any, **kwargs: Any) -> None:
            raise missing_op(name)

        return missing
