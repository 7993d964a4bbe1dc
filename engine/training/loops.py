"""The training loops of a run: what happens in a step, between steps, and in an epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from mmengine.model import BaseModel
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from backbones.errors import ConfigError
from engine.checkpoint.preemption import Stop
from engine.config.batch import MicroBatches
from engine.data.fault_tolerance import FaultTolerantDataset, ReplacedImagesHook
from engine.data.sampling import ResumableBatchSampler, build_train_loader
from engine.distributed.agreement import StopRequest
from engine.distributed.sharding import unwrapped
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.nonfinite.guard import RollBack
from engine.optim.unused_parameters import check_unused_parameters
from engine.optim.update import forward_losses, mean_over_processes, update_weights
from engine.training.progress import FirstLineHook, ValidatedStepHook
from engine.training.validation import check_monitored, expected_scores, interval_after, validates_after

if TYPE_CHECKING:
    from engine.training.noise_scale import NoiseScaleHook
    from engine.training.runner import Runner


class _StepLoop:
    """What the two training loops share; one iteration is one optimizer step of any number of micro-batches.

    ::

        resume or start; random states of each process
        for each step:
            run_iter             forward, loss, backward, clip, check, update, averages, log, schedule
            _save_or_stop        checkpoint, if due; common stop request of all processes
            _validate            raw and averaged weights, if due
        a RollBack of the non-finite guard: resume from an older checkpoint, and again

    Attributes:
        by_epoch: Whether the loop counts in epochs or in steps.
    """

    by_epoch: bool
    runner: Runner
    dataloader: DataLoader
    max_iters: int
    val_begin: int
    val_interval: int
    dynamic_milestones: list[int]
    dynamic_intervals: list[int]
    stop_training: bool
    _iter: int
    noise_scale: NoiseScaleHook | None = None

    def __init__(self, runner: Runner, dataloader: DataLoader | dict[str, Any], **settings: Any) -> None:
        if isinstance(dataloader, dict):
            runner.register_hook(ReplacedImagesHook())
            runner.register_hook(FirstLineHook())
            runner.register_hook(ValidatedStepHook())
            dataloader = build_train_loader(
                copy.deepcopy(dataloader),
                runner.seed,
                runner.same_order,
                lambda dataset: FaultTolerantDataset(dataset, runner.work_dir),
            )
        super().__init__(runner, dataloader, **settings)  # type: ignore[call-arg]

    def seek(self, step: int) -> None:
        """Continue at another step: as many optimizer steps count as done."""
        self._iter = step

    def run(self) -> nn.Module:
        """Train from the present step to the end."""
        while True:
            try:
                return self._train()
            except RollBack as event:
                self.runner.checkpoints.roll_back(event)

    def _train(self) -> nn.Module:
        raise NotImplementedError

    def _start(self) -> None:
        runner = self.runner
        model = unwrapped(runner.model)
        if getattr(type(model), "train_step", None) is not BaseModel.train_step:
            raise ConfigError(
                f"{type(model).__name__}.train_step is its own: the loop runs forward, loss and update itself"
            )
        # mmengine has told the wrapper to count steps; every step has all of its micro-batches, so no end is needed.
        runner.optim_wrapper.initialize_count_status(runner.model, 0, -1)
        check_monitored(runner, expected_scores(runner))
        runner.call_hook("before_train")
        runner.checkpoints.set_random_state()
        self._first = self._iter

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one optimizer step, in the order in which things happen.

        Args:
            idx: Number of the step within the epoch, or of all steps, from 0.
            data_batch: Collated batch of this process, or its micro-batches.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite and the run is to stop.
            RollBack: If it is to go back to an older checkpoint.
        """
        runner, guard = self.runner, self.runner.nonfinite_guard
        model, wrapper = runner.model, runner.optim_wrapper
        HEARTBEAT.enter(Phase.STEP, self._position(idx))
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        losses = None
        if not guard.skips(self._iter + 1):
            micro_batches = data_batch if isinstance(data_batch, MicroBatches) else [data_batch]
            guard.begin()
            logs = []
            for micro_batch in micro_batches:
                with wrapper.optim_context(model):  # mixed precision; gradients are exchanged in the last one only
                    outputs = forward_losses(model, micro_batch)
                loss, log = unwrapped(model).parse_losses(outputs)
                wrapper.backward(wrapper.scale_loss(loss))  # a share of the step; gradients accumulate
                logs.append(log)
                if self.noise_scale and len(logs) == 1:
                    self.noise_scale.measure_first()
            if self._iter == self._first:
                check_unused_parameters(runner)
            losses = mean_over_processes(logs)
            if self.noise_scale:
                self.noise_scale.measure_whole(wrapper)
            norm = runner.gradient_clipper.clip(wrapper)
            # Judged before a weight changes, by figures that are the same in all processes.
            updated = guard.check(losses, norm) and update_weights(wrapper)
            wrapper.zero_grad()
            if not updated:
                guard.handle(micro_batches)
        # In this order: numbers for the log (RuntimeInfoHook), weight averages (ModelEMAHook), log line (LoggerHook),
        # learning rate of the next step (ParamSchedulerHook). A skipped step counts for all of them.
        runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=losses)
        self._iter += 1

    def _save_or_stop(self, epoch_ended: bool, last: bool) -> None:
        """Save what is due after a step, and stop if any process was asked to.

        Raises:
            Stop: In all processes after the same step.
        """
        runner, hook = self.runner, self.runner.checkpoint_hook
        hook.check()
        hook.save_if_due(runner, epoch_ended, last)
        request = max(runner.signals.stop_request, StopRequest.SAVE if hook.overdue else StopRequest.NOTHING)
        common = runner.agreement.at_step(request)
        if common == StopRequest.SAVE:
            hook.save_now(runner)
            # The votes of this step, on their way to the next one, may ask for the same.
            common = runner.agreement.at_rest(runner.signals.stop_request)
        if common > StopRequest.SAVE:
            raise Stop(common)
        HEARTBEAT.enter(Phase.DATA)

    def _validate(self, done: int, total: int) -> None:
        """Validate if that is due and was not done before the run was interrupted.

        Args:
            done: Number of epochs or steps that are done.
            total: Number of epochs or steps of the training.
        """
        runner = self.runner
        self.val_interval = interval_after(self, done)
        if validates_after(self, done, total) and runner.checkpoint_hook.validated != self._iter:
            runner.val_loop.run()
            HEARTBEAT.enter(Phase.DATA)

    def _position(self, idx: int) -> str:
        return f"step {idx + 1} of {self.max_iters}"

    @property
    def _batch_sampler(self) -> ResumableBatchSampler:
        return cast(ResumableBatchSampler, self.dataloader.batch_sampler)


@LOOPS.register_module()
class EpochLoop(_StepLoop, EpochBasedTrainLoop):
    """Train for a number of epochs."""

    by_epoch = True

    def _train(self) -> nn.Module:
        self._start()
        done_in_epoch = self._iter - self._epoch * len(self.dataloader)
        if not done_in_epoch:
            self._validate(self._epoch, self.max_epochs)
        while self._epoch < self.max_epochs and not self.stop_training:
            self._run_epoch(done_in_epoch)
            done_in_epoch = 0
            self._validate(self._epoch, self.max_epochs)
        self.runner.call_hook("after_train")
        return self.runner.model

    def _run_epoch(self, done: int) -> None:
        """Run an epoch, of which some steps are done already."""
        HEARTBEAT.enter(Phase.DATA)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self._batch_sampler.seek_batch(done)
        for idx, batch in enumerate(self.dataloader, done):
            self.run_iter(idx, batch)
            if idx + 1 < len(self.dataloader):
                self._save_or_stop(epoch_ended=False, last=False)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._save_or_stop(epoch_ended=True, last=self._epoch == self.max_epochs)

    def _position(self, idx: int) -> str:
        return f"epoch {self._epoch + 1}, step {idx + 1} of {len(self.dataloader)}"


@LOOPS.register_module()
class IterationLoop(_StepLoop, IterBasedTrainLoop):
    """Train for a number of optimizer steps."""

    by_epoch = False

    def _train(self) -> nn.Module:
        self._start()
        self.runner.call_hook("before_train_epoch")
        self._validate(self._iter, self.max_iters)
        HEARTBEAT.enter(Phase.DATA)
        batches = self._batches()
        while self._iter < self.max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(self._iter, next(batches))
            self._save_or_stop(epoch_ended=False, last=self._iter == self.max_iters)
            self._validate(self._iter, self.max_iters)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _batches(self) -> Iterator[Any]:
        """Yield batches without end: where the sampler ends, its next epoch starts."""
        while True:
            self._batch_sampler.seek_step(self._iter)
            yield from self.dataloader
