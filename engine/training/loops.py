"""mmengine's loops, with accumulation inside a step and with the averaged weights evaluated beside the raw ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop
from torch import nn

from engine.checkpoint.preemption import Stop
from engine.config.batch import MicroBatches
from engine.distributed.agreement import StopRequest
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.nonfinite.guard import RollBack
from engine.optim.unused_parameters import check_first_step
from engine.training.ema import ModelEMAHook


class _StepLoop:
    """One iteration is one optimizer step of any number of micro-batches; its log is that of the global batch.

    After each step, and wherever else a run can go on from, the processes agree whether to save or to leave.
    """

    by_epoch: bool
    runner: Any
    dataloader: Any
    max_iters: int
    val_begin: int
    val_interval: int
    stop_training: bool
    _iter: int
    _max_iters: int

    def __init__(self, runner: Any, dataloader: Any, **settings: Any) -> None:
        if isinstance(dataloader, dict):
            dataloader = runner.build_training_loader(dataloader)
        super().__init__(runner, dataloader, **settings)  # type: ignore[call-arg]

    def seek(self, step: int) -> None:
        """Continue at another step.

        Args:
            step: Number of optimizer steps that count as done.
        """
        self._iter = step

    def _begin(self) -> None:
        wrapper = self.runner.optim_wrapper
        parts = wrapper._accumulative_counts
        # The runner has counted in steps; the wrapper counts forward passes.
        wrapper.initialize_count_status(self.runner.model, self._iter * parts, self.max_iters * parts)
        self.runner.call_hook("before_train")
        self.runner.checkpoints.restore_random_state()
        check_first_step(self.runner)

    def run(self) -> nn.Module:
        """Train from the present step to the end."""
        while True:
            try:
                return self._train()
            except RollBack as event:
                self.runner.checkpoints.roll_back(event)

    def _train(self) -> nn.Module:
        raise NotImplementedError

    def _due(self, done: int, last: int) -> bool:
        """Whether a validation follows, after so many epochs or steps of all."""
        self._decide_current_val_interval()  # type: ignore[attr-defined]
        return done >= max(self.val_begin, 1) and (done % self.val_interval == 0 or done == last)

    def _step(self, batch: Any) -> dict[str, torch.Tensor] | None:
        model = self.runner.model
        parts = batch if isinstance(batch, MicroBatches) else [batch]
        return self.runner.nonfinite_guard.step(
            parts,
            lambda wrapper: mean_over_processes([model.train_step(part, optim_wrapper=wrapper) for part in parts]),
        )

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one optimizer step."""
        HEARTBEAT.enter(Phase.STEP, self._place(idx))
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        outputs = self._step(data_batch)
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _boundary(self, epoch_ended: bool, last: bool) -> None:
        """Save and leave if that is asked for."""
        saving = self.runner.checkpoint_hook
        saving.check()
        saving.at_boundary(self.runner, epoch_ended, last)
        request = max(self.runner.signals.stop_request, StopRequest.SAVE if saving.late else StopRequest.NOTHING)
        common = self.runner.agreement.at_step(request)
        if common == StopRequest.SAVE:
            saving.in_between(self.runner)
            # The votes of this step, on their way to the next one, may ask for the same.
            common = self.runner.agreement.at_rest(self.runner.signals.stop_request)
        if common > StopRequest.SAVE:
            raise Stop(common)
        HEARTBEAT.enter(Phase.DATA)

    def _place(self, idx: int) -> str:
        return f"step {idx + 1} of {self._max_iters}"

    def _validate(self, due: bool) -> None:
        """Validate what has not been validated: a run that was stopped in between does it when it goes on."""
        if due and self.runner.val_loop is not None and self.runner.checkpoint_hook.validated != self._iter:
            self.runner.val_loop.run()
            HEARTBEAT.enter(Phase.DATA)


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

    by_epoch = True

    def _train(self) -> nn.Module:
        self._begin()
        passed = self._iter - self._epoch * len(self.dataloader)
        if not passed:
            self._validate(self._due(self._epoch, self._max_epochs))
        while self._epoch < self._max_epochs and not self.stop_training:
            self._run_epoch(passed)
            passed = 0
            self._validate(self._due(self._epoch, self._max_epochs))
        self.runner.call_hook("after_train")
        return self.runner.model

    def _place(self, idx: int) -> str:
        return f"epoch {self._epoch + 1}, step {idx + 1} of {len(self.dataloader)}"

    def _run_epoch(self, passed: int) -> None:
        HEARTBEAT.enter(Phase.DATA)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self.dataloader.batch_sampler.seek_batch(passed)
        for idx, batch in enumerate(self.dataloader, passed):
            self.run_iter(idx, batch)
            if idx + 1 < len(self.dataloader):
                self._boundary(epoch_ended=False, last=False)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._boundary(epoch_ended=True, last=self._epoch == self._max_epochs)


@LOOPS.register_module()
class IterationLoop(_StepLoop, IterBasedTrainLoop):
    """Train for a number of optimizer steps."""

    by_epoch = False

    def _train(self) -> nn.Module:
        self._begin()
        self.runner.call_hook("before_train_epoch")
        self._validate(self._due(self._iter, self._max_iters))
        HEARTBEAT.enter(Phase.DATA)
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(self._iter, next(batches))
            self._boundary(epoch_ended=False, last=self._iter == self._max_iters)
            self._validate(self._due(self._iter, self._max_iters))
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _batches(self) -> Iterator[Any]:
        """Without end: where the sampler comes to one, its next epoch begins."""
        while True:
            self.dataloader.batch_sampler.seek_step(self._iter)
            yield from self.dataloader


@LOOPS.register_module()
class ValidationLoop(ValLoop):
    """Validate the raw weights and, where they are kept, the averaged ones under ``ema/``."""

    def run(self) -> dict[str, float]:
        """Evaluate and log once."""
        HEARTBEAT.enter(Phase.VALIDATION)
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        metrics = self._evaluate()
        for hook in self.runner.hooks:
            if isinstance(hook, ModelEMAHook):
                with hook.averaged():
                    metrics |= {f"ema/{name}": value for name, value in self._evaluate().items()}
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _evaluate(self) -> dict[str, float]:
        self.runner.model.eval()
        for idx, batch in enumerate(self.dataloader):
            HEARTBEAT.enter(Phase.VALIDATION)
            self.run_iter(idx, batch)
            request = self.runner.agreement.at_step(self.runner.signals.stop_request)
            if request > StopRequest.SAVE:
                raise Stop(request)
        return dict(self.evaluator.evaluate(len(self.dataloader.dataset)))
