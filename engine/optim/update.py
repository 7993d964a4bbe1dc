"""The parts of an optimizer step around mmengine's wrapper: losses, clipping, and the update of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.distributed.sharding import unwrapped


def forward_losses(model: nn.Module, micro_batch: Any) -> dict[str, Any]:
    """Run the forward pass of a training.

    Args:
        model: Model of mmengine, perhaps wrapped for several processes.
        micro_batch: Collated samples, as the data loader gives them.

    Returns:
        Losses by name, tensors or lists of tensors, as ``parse_losses`` of the model takes them.
    """
    data = unwrapped(model).data_preprocessor(micro_batch, True)
    return model(**data, mode="loss") if isinstance(data, Mapping) else model(*data, mode="loss")


def mean_over_processes(logs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Average the losses of all micro-batches of all processes.

    Args:
        logs: One mapping of scalars for each micro-batch of this process.

    Returns:
        Means by name, on the CPU, equal in every process, so that the log does not depend on how the batch was spread.
    """
    names = list(logs[0])
    rows = [torch.stack([torch.as_tensor(log[name]).detach().float().mean() for name in names]) for log in logs]
    means = torch.stack(rows).mean(0)
    if get_world_size() > 1:
        all_reduce(means, op="mean")
    return dict(zip(names, means.cpu(), strict=True))  # the one time in a step that the CPU waits for the GPU


def loss_scaler(wrapper: OptimWrapper) -> torch.amp.GradScaler | None:
    """The loss scaler of mixed precision; ``None`` where gradients are not scaled."""
    scaler = wrapper.loss_scaler if isinstance(wrapper, AmpOptimWrapper) else None
    return scaler if scaler is not None and scaler.is_enabled() else None


class GradientClipper:
    """Clips gradients as ``optim_wrapper.clip_grad`` says, apart from the update of the weights.

    mmengine's wrapper clips inside its ``step``, where nothing could judge the gradients before the update. Its setting
    is taken over, so that it clips no more.

    Attributes:
        settings: Arguments of the clipping function; ``None`` where gradients are not clipped.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] | None = None

    def take_over(self, wrapper: OptimWrapper) -> None:
        """Take the settings out of a wrapper; nothing is done where that has happened already."""
        if wrapper.clip_grad_kwargs:
            self.settings, wrapper.clip_grad_kwargs = wrapper.clip_grad_kwargs, None

    def clip(self, wrapper: OptimWrapper) -> float | None:
        """Clip the gradients in place and log their norm as ``train/grad_norm``.

        Returns:
            The norm before clipping; ``None`` where gradients are not clipped, or clipped by value.
        """
        if not self.settings:
            return None
        if (scaler := loss_scaler(wrapper)) is not None:
            scaler.unscale_(wrapper.optimizer)
        params = [param for group in wrapper.optimizer.param_groups for param in group["params"]]
        params = [param for param in params if param.requires_grad and param.grad is not None]
        norm = wrapper.clip_func(params, **self.settings) if params else None
        if norm is None:
            return None
        wrapper.message_hub.update_scalar(f"train/{wrapper.grad_name}", float(norm))
        return float(norm)


def update_weights(wrapper: OptimWrapper) -> bool:
    """Let the optimizer change the weights.

    Returns:
        Whether it did: a loss scaler skips the update where a gradient overflowed.
    """
    if loss_scaler(wrapper) is None:
        wrapper.step()
        return True
    # GradScaler does not tell: it does not call most optimizers at all, and a fused one it tells by ``found_inf``.
    overflow: list[Tensor | None] = []

    def note(optimizer: Optimizer, *_: Any) -> None:
        overflow.append(getattr(optimizer, "found_inf", None))

    handle = wrapper.optimizer.register_step_pre_hook(note)
    wrapper.step()
    handle.remove()
    return bool(overflow) and not (overflow[0] is not None and bool(overflow[0]))
