"""mmengine's loops, with accumulation inside a step and with the averaged weights evaluated beside the raw ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop

from engine.batch import MicroBatches
from engine.ema import KeepEMA


class _StepLoop:
    """One iteration is one optimizer step of any number of micro-batches; its log is that of the global batch."""

    runner: Any
    max_iters: int
    _iter: int

    def run(self) -> Any:
        wrapper = self.runner.optim_wrapper
        parts = wrapper._accumulative_counts
        # The runner has counted in steps; the wrapper counts forward passes.
        wrapper.initialize_count_status(self.runner.model, self._iter * parts, self.max_iters * parts)
        return super().run()  # type: ignore[misc]

    def _step(self, batch: Any) -> dict[str, torch.Tensor]:
        model, wrapper = self.runner.model, self.runner.optim_wrapper
        parts = batch if isinstance(batch, MicroBatches) else [batch]
        return mean_over_processes([model.train_step(part, optim_wrapper=wrapper) for part in parts])


def mean_over_processes(logs: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Average the losses of all micro-batches of all processes.

    Args:
        logs: One mapping of scalars for each micro-batch of this process.

    Returns:
        The means, equal in every process, so that the log does not depend on how the batch was spread.
    """
    names = list(logs[0])
    rows = [torch.stack([torch.as_tensor(log[name]).detach().float().mean() for name in names]) for log in logs]
    means = torch.stack(rows).mean(0)
    if get_world_size() > 1:
        all_reduce(means, op="mean")
    return dict(zip(names, means, strict=True))


@LOOPS.register_module()
class EpochLoop(_StepLoop, EpochBasedTrainLoop):
    """Train for a number of epochs."""

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one optimizer step."""
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        outputs = self._step(data_batch)
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1


@LOOPS.register_module()
class IterationLoop(_StepLoop, IterBasedTrainLoop):
    """Train for a number of optimizer steps."""

    def run_iter(self, data_batch: Any) -> None:
        """Run one optimizer step."""
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        outputs = self._step(data_batch)
        self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1


@LOOPS.register_module()
class ValidationLoop(ValLoop):
    """Validate the raw weights and, where they are kept, the averaged ones under ``ema/``."""

    def run(self) -> dict[str, float]:
        """Evaluate and log once."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        metrics = self._evaluate()
        for hook in self.runner.hooks:
            if isinstance(hook, KeepEMA):
                with hook.averaged():
                    metrics |= {f"ema/{name}": value for name, value in self._evaluate().items()}
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _evaluate(self) -> dict[str, float]:
        self.runner.model.eval()
        for idx, batch in enumerate(self.dataloader):
            self.run_iter(idx, batch)
        return dict(self.evaluator.evaluate(len(self.dataloader.dataset)))
