"""Averaged weights beside the raw ones, both evaluated, both saved, each under its own name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KeepEMA(EMAHook):
    """Exponential moving average that never takes the place of the raw weights.

    mmengine's own hook validates the averaged weights only and saves them as ``state_dict``. The paper fine-tunes from
    the raw weights (section A.1), and both accuracies are of interest: here ``state_dict`` stays raw, the averages lie
    in ``ema_state_dict``, and :class:`engine.loops.ValidationLoop` evaluates both.

    Args:
        decay: Weight of the past, 0.9999 in Table 5 of the paper.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(ema_type="ExponentialMovingAverage", momentum=1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the averaged weights inside of this context."""
        self._swap_ema_parameters()
        try:
            yield
        finally:
            self._swap_ema_parameters()

    def before_val_epoch(self, runner: Any) -> None:
        """Leave the raw weights in place; the loop asks for :meth:`averaged`."""

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Nothing was swapped."""

    def before_test_epoch(self, runner: Any) -> None:
        """Test what was loaded."""

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Nothing was swapped."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the averages to the checkpoint."""
        checkpoint["ema_state_dict"] = self.ema_model.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the averages when a run is resumed; a plain load starts new ones from the loaded weights."""
        if runner._resume and "ema_state_dict" in checkpoint:
            self.ema_model.load_state_dict(checkpoint["ema_state_dict"])
