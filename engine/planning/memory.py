"""What a training holds in the memory of one process: counted without computing or allocating anything.

The rule: parameters, their gradients, the optimizer's moments, averaged weights and the buckets in which processes
exchange gradients are counted tensor by tensor; of a sharded model a process holds its share. Activations are what
autograd keeps of one forward pass in training mode, counted by running the model on tensors without content, in mixed
precision as autocast casts on a GPU: backbone and head of a classifier; both heads of a segmentor with the loss at full
resolution; of a detector backbone, neck and region proposals. Not counted: a detector's heads on proposals, temporaries
of the backward pass, workspace of the kernels, gaps of the allocator, and the block that is whole while a sharded model
computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones.base import Backbone
from backbones.errors import first_line
from engine.task import Shape, task_of_model

GIB = 2**30
FULL = 4  # bytes of a float32


@dataclass(frozen=True)
class Memory:
    """Bytes of each part.

    Attributes:
        parameters: Weights and buffers.
        gradients: Of what is trained.
        moments: Of the optimizer.
        averages: A copy of the parameters, where averages are kept.
        buckets: In which several processes exchange gradients.
        activations: Of one forward pass; ``None`` where they could not be counted.
        images: Images of that pass.
        shape: Their height and width in pixels; ``None`` where the config does not tell.
        reason: Why the activations are not counted.
    """

    parameters: int
    gradients: int
    moments: int
    averages: int
    buckets: int
    activations: int | None
    images: int
    shape: Shape | None
    reason: str = ""

    @property
    def total(self) -> int:
        """All that is counted."""
        fixed = self.parameters + self.gradients + self.moments + self.averages + self.buckets
        return fixed + (self.activations or 0)

    def __str__(self) -> str:
        parts = [f"parameters {gib(self.parameters)}", f"gradients {gib(self.gradients)}"]
        for name in ("moments", "averages", "buckets"):
            if getattr(self, name):
                parts.append(f"{MEANING[name]} {gib(getattr(self, name))}")
        if self.activations is not None and self.shape is not None:
            pictures = f"{self.images} image{'s' if self.images > 1 else ''} of {self.shape[1]} x {self.shape[0]}"
            parts.append(f"activations of {pictures} {gib(self.activations)}")
        text = f"about {gib(self.total)} GiB per process: {' + '.join(parts)}"
        return text if self.activations is not None else f"{text}; activations not counted: {self.reason}"


MEANING = {"moments": "optimizer's moments", "averages": "averaged weights", "buckets": "exchange of gradients"}


def gib(count: int) -> str:
    """Bytes in GiB, as a number."""
    return f"{count / GIB:.3g}" if count < GIB / 100 else f"{count / GIB:.2f}"


def estimate_memory(model: nn.Module, cfg: Any, processes: int, images: int) -> Memory:
    """Estimate the memory of one process of a training by the rule at the head of this file.

    Args:
        model: Built on the ``meta`` device; it may lose its parameters to another device without content.
        cfg: The resolved config.
        processes: World size.
        images: Images of one forward pass.
    """
    params, buffers = _bytes(model.parameters()), _bytes(model.buffers())
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    averaged = any(hook["type"] == "ModelEMAHook" for hook in cfg.get("custom_hooks") or [])
    shape = training_shape(cfg)
    activations, reason = None, "the config does not tell the size of the training images"
    if shape is not None:
        try:
            activations = activation_bytes(model, images, shape, autocast_dtype(cfg.optim_wrapper))
        except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
            # An estimate never stops a training: a model of an unknown kind may want more than images.
            reason = first_line(error)
    sharded = processes > 1 and bool(cfg.get("env_cfg", {}).get("sharded"))
    share = processes if sharded else 1
    return Memory(
        parameters=params // share + buffers,
        gradients=FULL * trained // share,
        moments=FULL * trained * moments_of(cfg.optim_wrapper.optimizer) // share,
        averages=params // share if averaged else 0,
        buckets=FULL * trained if processes > 1 and not sharded else 0,
        activations=activations,
        images=images,
        shape=shape,
        reason=reason,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def moments_of(optimizer: Any) -> int:
    """Tensors that an optimizer keeps for each parameter; two for those that are not known here, as AdamW's."""
    if optimizer["type"] == "SGD":
        return 1 if optimizer.get("momentum") else 0
    return 2


def autocast_dtype(optim_wrapper: Any) -> torch.dtype | None:
    """The dtype of mixed precision, ``None`` without."""
    if optim_wrapper.get("type") != "AmpOptimWrapper":
        return None
    return torch.bfloat16 if optim_wrapper.get("dtype") == "bfloat16" else torch.float16


def training_shape(cfg: Any) -> Shape | None:
    """Height and width of the training images: the crop, or the largest that multi-scale training draws."""
    size = cfg.model.get("data_preprocessor", {}).get("size")
    if size is not None:
        return (int(size[0]), int(size[1]))
    squares, scales = [], []
    for step in _steps(cfg.get("train_pipeline") or cfg.train_dataloader.dataset.get("pipeline", [])):
        if isinstance(step.get("size"), int):
            squares.append((step["size"], step["size"]))
        for scale in [step.get("scale"), *(step.get("scales") or [])]:
            if isinstance(scale, list | tuple) and min(scale) > 1:
                scales.append((min(scale), max(scale)))
    found = squares or scales
    return max(found, key=prod) if found else None


def _steps(node: Any) -> Iterator[Any]:
    """Steps of a pipeline, nested ones too."""
    if isinstance(node, dict):
        yield node
        yield from _steps(node.get("transforms"))
    elif isinstance(node, list | tuple):
        for one in node:
            yield from _steps(one)


def activation_bytes(model: Any, images: int, shape: Shape, dtype: torch.dtype | None = None) -> int:
    """Count what autograd keeps of one forward pass in training mode.

    Args:
        model: On the ``meta`` device. With a ``dtype`` its parameters are replaced by others without content.
        images: Images of the pass.
        shape: Their height and width in pixels.
        dtype: Of mixed precision; ``None`` for float32.

    Returns:
        Bytes. Where blocks are recomputed, their inputs and the largest block.
    """
    model.train()
    # Autocast casts for real devices alone, so that mixed precision wants tensors that pretend to be on one.
    device = "meta" if dtype is None else "cuda"
    with nullcontext() if dtype is None else _pretending():
        if dtype is not None:
            model.to_empty(device=device)
        meter = LiveStorages()
        with meter, _autocast(dtype), _recomputing(model, meter) as (inputs, recomputed):
            kept = task_of_model(model).activation_forward(model, torch.empty(images, 3, *shape, device=device))
        count = meter.bytes + max(recomputed, default=0)  # by now autocast has dropped its copies of the weights
        del kept, inputs
    return count


class LiveStorages(TorchDispatchMode):
    """Sums up the memory that was made inside of ``with meter:`` and is still in use.

    Attributes:
        bytes: Of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._live: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in inputs:
                self._enter(one.untyped_storage())
        return result

    def _enter(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._live:
            self.bytes += size
            self._live[key] = weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        del self._live[key]
        self.bytes -= size


def _pretending() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode  # late: it takes two seconds to import

    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Cast as on a GPU; ``torch.autocast`` itself does nothing on a machine without one."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@contextmanager
def _recomputing(model: nn.Module, meter: LiveStorages) -> Iterator[tuple[list[Tensor], list[int]]]:
    """Blocks that are recomputed in the backward pass leave their inputs alone here too.

    Yields:
        The inputs of all blocks, and what each block would hold while it is recomputed, in bytes.
    """
    held: list[Tensor] = []
    sizes: list[int] = []

    def run_blocks(network: Backbone, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        recomputed = network.recomputed_blocks()
        for block in blocks:
            held.append(x)
            before = meter.bytes
            x = block(x)
            if block in recomputed:
                sizes.append(meter.bytes - before)
                x = x.detach().requires_grad_()
        return x

    networks = [one for one in model.modules() if isinstance(one, Backbone) and one.grad_checkpointing]
    for network in networks:
        vars(network)["run_blocks"] = partial(run_blocks, network)
    try:
        yield held, sizes
    finally:
        for network in networks:
            del vars(network)["run_blocks"]
