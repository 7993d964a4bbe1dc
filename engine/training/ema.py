"""Averaged weights beside the raw ones, both evaluated, both saved, each under its own name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from backbones.errors import UserError
from engine.distributed.sharding import local, reshard, shard_like, unwrapped

MODULE = "module."  # before each name in ``ema_state_dict``, as mmengine writes it


@HOOKS.register_module()
class ModelEMAHook(Hook):
    """Exponential moving average that never takes the place of the raw weights.

    mmengine's own hook validates the averaged weights only and saves them as ``state_dict``. The paper fine-tunes from
    the raw weights (section A.1), and both accuracies are of interest: here ``state_dict`` stays raw, the averages lie
    in ``ema_state_dict``, and :class:`engine.training.loops.ValidationLoop` evaluates both. An average is sharded like
    its parameter, where the model is.

    Args:
        decay: Weight of the past, 0.9999 in Table 5 of the paper.

    Attributes:
        averages: The average of each parameter, from the weights after the first step on. Buffers are not averaged.
        steps: Optimizer steps that went into them.

    Raises:
        UserError: If the decay is no fraction.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"KeepEMA: decay={decay}: a fraction in (0, 1) is needed, such as 0.9999")
        self.averages: dict[str, Tensor] = {}
        self.steps = 0
        self._update = get_ema_multi_avg_fn(decay)
        self._model: nn.Module

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the averaged weights inside of this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def before_run(self, runner: Any) -> None:
        """Take note of the model."""
        self._model = unwrapped(runner.model)

    @torch.no_grad()
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Average what an optimizer step has changed."""
        weights = self._weights()
        if not self.steps:
            self.averages = {name: weight.clone() for name, weight in weights.items()}
        else:
            self._update(
                [local(value) for value in self.averages.values()], [*map(local, weights.values())], self.steps
            )
        self.steps += 1

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the averages to the checkpoint."""
        checkpoint["ema_state_dict"] = self.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the averages when a run is resumed; a plain load starts new ones from the loaded weights.

        Raises:
            UserError: If the averages are of another model.
        """
        if not runner.is_resuming or "ema_state_dict" not in checkpoint:
            return
        saved = checkpoint["ema_state_dict"]
        for name, weight in self._weights().items():
            if MODULE + name not in saved or saved[MODULE + name].shape != weight.shape:
                raise UserError(f"averaged weights in the checkpoint are of another model: {name} does not fit")
            self.averages[name] = shard_like(saved[MODULE + name].to(weight.device), weight).clone()
        self.steps = int(saved["steps"])

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the model under the names in a checkpoint, averaged where they are parameters."""
        reshard(self._model)
        # By identity: a parameter that two layers share has two names.
        averages = {
            id(param): self.averages.get(name, param.detach()) for name, param in self._model.named_parameters()
        }
        state = {
            MODULE + name: averages.get(id(value), value)
            for name, value in self._model.state_dict(keep_vars=True).items()
        }
        return state | {"steps": torch.tensor(self.steps)}

    def _weights(self) -> dict[str, Tensor]:
        reshard(self._model)
        return {name: param.detach() for name, param in self._model.named_parameters()}

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights().items():
            if name in self.averages:
                ours, theirs = local(self.averages[name]), local(weight)
                held = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(held)
