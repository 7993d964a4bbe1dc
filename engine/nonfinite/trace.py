"""Run a step again and find the module whose output or gradient is the first that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm

from engine.distributed.sharding import local
from engine.nonfinite.batch_codec import describe_tensor
from engine.optim.tensors import map_tensors, tensors_in
from engine.optim.update import forward_losses

OUTPUT = "output"
MAX_INPUTS = 4


class Trace:
    """Watches every module of a model inside of a ``with`` block, without changing values or gradients.

    The gradient that a module sends to its input is checked apart from what other users of the same input send: each
    module gets views of its inputs, so that a residual connection is not confused with its neighbour.

    Args:
        model: Model to watch.

    Attributes:
        forward: Description of the first output that was not finite, in the order in which modules finish; ``None`` if
            all were finite.
        backward: Description of the first gradient that was not finite, in the order of the backward pass.
        micro_batch: Index of the present micro-batch within the step, from 0; set by the caller.
        going_back: Whether this is the backward pass, in which checkpointed blocks run forward a second time; set by
            the caller.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forward: dict[str, Any] | None = None
        self.backward: dict[str, Any] | None = None
        self.micro_batch = 0
        self.going_back = False
        self._model = model
        self._modules = dict(model.named_modules())
        self._handles: list[Any] = []

    def __enter__(self) -> Trace:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(partial(self._leave, name), with_kwargs=True))
        for name, param in self._model.named_parameters():
            if param.requires_grad:
                owner, _, own = name.rpartition(".")
                self._handles.append(param.register_hook(partial(self._check_gradient, owner, f"gradient of {own}")))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        def viewed(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            view = tensor.view_as(tensor)
            self._handles.append(view.register_hook(partial(self._check_gradient, name, "gradient of its input")))
            return view

        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in((args, kwargs))):
            return map_tensors(viewed, (args, kwargs))
        return None

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = _floating_tensors(output)
        for tensor in tensors:
            if tensor.requires_grad:
                hook = partial(self._check_gradient, name, "gradient of its output")
                self._handles.append(tensor.register_hook(hook))
        bad = next((tensor for tensor in tensors if not _finite(tensor)), None)
        if bad is None or self.going_back or self.forward is not None:
            return
        inputs = _floating_tensors((args, kwargs))
        self.forward = {
            **self._found(name, OUTPUT, bad),
            "inputs_finite": all(map(_finite, inputs)),
            "inputs": [describe_tensor(tensor) for tensor in inputs[:MAX_INPUTS]],
            "parameters_not_finite": [own for own, param in module.named_parameters() if not _finite(local(param))],
        }

    def _check_gradient(self, name: str, what: str, gradient: Tensor) -> None:
        if self.backward is None and not _finite(gradient):
            self.backward = self._found(name, what, gradient)

    def _found(self, name: str, what: str, tensor: Tensor) -> dict[str, Any]:
        module = self._modules[name]
        place = {"module": name, "class": type(module).__name__, "what": what, "micro_batch": self.micro_batch}
        return {**place, "synchronised": isinstance(module, SyncBatchNorm), "tensor": describe_tensor(tensor)}


def run_again(
    model: BaseModel,
    micro_batches: Sequence[Any],
    precision: Callable[[], AbstractContextManager[Any]],
    scale: float = 1.0,
) -> dict[str, Any]:
    """Forward and backward of one optimizer step, watched; nothing is updated.

    Random numbers are drawn from the present states; buffers, such as running statistics, change as in training.

    Args:
        model: Model, not wrapped for several processes.
        micro_batches: Collated micro-batches of the step.
        precision: Factory of the context of the forward pass, such as autocast.
        scale: Loss scale of float16.

    Returns:
        Plain data: ``losses`` (means of the micro-batches by name), ``forward`` and ``backward`` as in
        :class:`Trace`, and ``found``, the one of the two that is the cause, or ``None``.
    """
    model.zero_grad()
    trace = Trace(model)
    logs = []
    # Compiled parts run eagerly: inside of them there would be no modules to watch.
    with torch.compiler.set_stance("force_eager"), trace:
        for number, micro_batch in enumerate(micro_batches):
            trace.micro_batch = number
            with precision():
                outputs = forward_losses(model, micro_batch)
            loss, log = model.parse_losses(outputs)
            trace.going_back = True
            (loss * (scale / len(micro_batches))).backward()
            trace.going_back = False
            logs.append(log)
    model.zero_grad()
    losses = {
        name: sum(float(torch.as_tensor(log[name]).detach().mean()) for log in logs) / len(logs) for name in logs[0]
    }
    # A finite loss may have come through an intended infinity, such as a masked score.
    found = trace.backward if math.isfinite(losses["loss"]) else trace.forward
    return {"losses": losses, "forward": trace.forward, "backward": trace.backward, "found": found}


def _floating_tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tensors_in(tree) if leaf.is_floating_point()]


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())
