"""Exponential moving averages of the weights beside the raw weights: both are evaluated, both are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from backbones.errors import CheckpointError, ConfigError
from engine.distributed.sharding import local, reshard, shard_like, unwrapped

if TYPE_CHECKING:
    from engine.training.runner import Runner

PREFIX = "module."  # before each name in ``ema_state_dict``, as mmengine writes it


@HOOKS.register_module()
class ModelEMAHook(Hook):
    """Exponential moving average that never takes the place of the raw weights.

    mmengine's ``EMAHook`` validates the averaged weights only and saves them as ``state_dict``. The paper fine-tunes
    from the raw weights (section A.1), and both accuracies are of interest: here ``state_dict`` holds the raw weights
    and ``ema_state_dict`` the averages, and :class:`engine.training.validation.ValidationLoop` evaluates both. In a
    sharded model, an average is sharded like its parameter.

    Args:
        decay: Decay of the average, 0.9999 in Table 5 of the paper.

    Attributes:
        averages: Averages by name of the parameter, starting with the weights before the first step, as in timm's
            ``ModelEma`` of the released code. Buffers are not averaged, and frozen parameters are their own averages.
        steps: Number of optimizer steps that were averaged.

    Raises:
        ConfigError: If the decay is not in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"ModelEMAHook: decay={decay}: a fraction in (0, 1) is needed, such as 0.9999")
        self.averages: dict[str, Tensor] = {}
        self.steps = 0
        self._update = get_ema_multi_avg_fn(decay)
        self._model: nn.Module

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model holds the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def before_run(self, runner: Runner) -> None:
        """Remember the model."""
        self._model = unwrapped(runner.model)

    def before_train(self, runner: Runner) -> None:
        """Start with the weights that the training starts with, unless averages were resumed."""
        if not self.averages:
            self.averages = {name: weight.clone() for name, weight in self._weights().items()}

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the averages with the weights after an optimizer step."""
        weights = self._weights()
        self._update([local(self.averages[name]) for name in weights], [*map(local, weights.values())], self.steps)
        self.steps += 1

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the averages to the checkpoint."""
        checkpoint["ema_state_dict"] = self.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore the averages when a run is resumed; otherwise new ones start from the loaded weights.

        Raises:
            CheckpointError: If the averages belong to another model.
        """
        if not runner.is_resuming:
            return
        if "ema_state_dict" not in checkpoint:
            runner.logger.warning("the checkpoint has no averaged weights: averages begin anew with its raw weights")
            return
        saved = checkpoint["ema_state_dict"]
        for name, weight in self._weights().items():
            if PREFIX + name not in saved or saved[PREFIX + name].shape != weight.shape:
                raise CheckpointError(f"averaged weights in the checkpoint are of another model: {name} does not fit")
            self.averages[name] = shard_like(saved[PREFIX + name].to(weight.device), weight).clone()
        self.steps = int(saved["steps"])

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the model by their names in a checkpoint: averages of parameters, and buffers."""
        reshard(self._model)
        # Looked up by identity: a parameter that two layers share has two names.
        averages = {
            id(param): self.averages.get(name, param.detach()) for name, param in self._model.named_parameters()
        }
        state = {
            PREFIX + name: averages.get(id(value), value)
            for name, value in self._model.state_dict(keep_vars=True).items()
        }
        return state | {"steps": torch.tensor(self.steps)}

    def _weights(self) -> dict[str, Tensor]:
        reshard(self._model)
        return {name: param.detach() for name, param in self._model.named_parameters() if param.requires_grad}

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights().items():
            if name in self.averages:
                ours, theirs = local(self.averages[name]), local(weight)
                held = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(held)
