"""What a run says about its progress: a bar on the terminal, an early line, and where a test is, to the launcher."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import TestLoop
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.report.html import duration
from engine.training.validation import interval_after, validates_after

if TYPE_CHECKING:
    from engine.training.runner import Runner

SECONDS_TO_FIRST_LINE = 15.0


class FirstLineHook(Hook):
    """One line on how fast a slow training is, well before the first regular line of the log."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self._began, self._ended = 0.0, list[float]()
        self._silent = True

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self._began, self._ended, self._silent = time.monotonic(), [], True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log the line after the first step that ends when the training has taken some seconds."""
        if not self._silent:
            return
        self._ended.append(time.monotonic())
        interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 0)
        if interval and (batch_idx + 1) % interval == 0:
            self._silent = False  # the regular line says more
        elif self._ended[-1] - self._began >= SECONDS_TO_FIRST_LINE:
            self._silent = False
            # The first step waits for the data and the kernels: where there are others, it tells nothing of them.
            times = self._ended if len(self._ended) > 1 else [self._began, *self._ended]
            seconds = (times[-1] - times[0]) / (len(times) - 1)
            left = duration(seconds * (runner.max_iters - runner.iter - 1))
            runner.logger.info(
                f"step {runner.iter + 1:,} of {runner.max_iters:,}: {seconds:.3g} s for a step, about {left} left, "
                "without validations"
            )


class ValidatedStepHook(Hook):
    """Logs the step before a validation where no other since the validation before is logged.

    Otherwise the losses of validations that are close to each other would have no loss of the training beside them. An
    epoch logs its end by itself if it is shorter than the interval.
    """

    priority = "BELOW_NORMAL"  # that of the hook for all other lines

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log the step in the same way as others."""
        if is_logged_for_validation(runner):
            hook = next(hook for hook in runner.hooks if isinstance(hook, LoggerHook))
            values, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(line)
            runner.visualizer.add_scalars(values, step=runner.iter + 1, file_path=hook.json_log_path)


def is_logged_for_validation(runner: Runner) -> bool:
    """Whether a step is logged for the validation after it alone; to be asked before the step counts as done."""
    loop, done = runner.train_loop, runner.iter + 1
    interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 0)
    if not interval or loop.by_epoch or not validates_after(loop, done, runner.max_iters):
        return False
    if done == len(loop.dataloader) <= interval:  # the hook logs the end of the first pass over the data
        return False
    between = interval_after(loop, done)
    before = (done - 1) // between * between
    return done // interval == before // interval


@LOOPS.register_module()
class AnnouncedTestLoop(TestLoop):
    """Announces each batch of a test to the launcher, which notices a rank that hangs and names one that dies."""

    def run(self) -> dict[str, Any]:
        """Test; what follows writes the results."""
        metrics: dict[str, Any] = super().run()
        HEARTBEAT.enter(Phase.SAVING)
        return metrics

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predict one batch, and after the last one wait for the other ranks: the scores may take longer than a batch.

        Args:
            idx: Number of the batch, from 0.
            data_batch: Collated batch of this process.
        """
        HEARTBEAT.enter(Phase.BATCH, f"test, batch {idx + 1} of {len(self.dataloader)}")
        super().run_iter(idx, data_batch)
        last = idx + 1 == len(self.dataloader)
        if last:
            self.runner.agreement.barrier()
        HEARTBEAT.enter(Phase.VALIDATION if last else Phase.DATA)


@HOOKS.register_module()
class ProgressBar(Hook):
    """A bar with rate, remaining time and loss on a terminal; elsewhere there are only the lines of the log.

    Log lines are written above the bar.
    """

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._redirect = ExitStack()

    def before_train(self, runner: Runner) -> None:
        """Start the training bar at the step of the run."""
        self._open(runner, "train", runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance by one optimizer step."""
        if not self._bar.disable and outputs is not None:  # a step that was not skipped
            self._bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}", refresh=False)
        self._bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self._close()

    def before_test_epoch(self, runner: Runner) -> None:
        """Start the test bar."""
        self._open(runner, "test", len(runner.test_dataloader), 0)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance by one batch."""
        self._bar.update()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar."""
        self._close()

    def _open(self, runner: Runner, label: str, total: int, done: int) -> None:
        self._close()  # of a training that was rolled back
        if sys.stderr.isatty() and is_main_process():
            self._redirect.enter_context(logging_redirect_tqdm([runner.logger]))
            self._bar = tqdm(desc=label, total=total, initial=done, unit="it", dynamic_ncols=True)

    def _close(self) -> None:
        self._bar.close()
        self._redirect.close()
