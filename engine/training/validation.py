"""The validation of a run, of the raw and of the averaged weights."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Mapping
from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import ValLoop

from backbones.errors import ConfigError
from engine.checkpoint.preemption import Stop
from engine.distributed.agreement import StopRequest
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.report.class_scores import ClassScores, class_lines, collect_class_scores, score_of
from engine.task import TASK_SPECS, task_of
from engine.training.ema import ModelEMAHook
from engine.training.validation_loss import MAX_LOSS_IMAGES, ValidationLoss


def interval_after(loop: Any, done: int) -> int:
    """Epochs or steps from one validation to the next, after a number of them.

    Args:
        loop: Loop of a training.
        done: Number of epochs or steps that are done.
    """
    interval: int = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
    return interval


def validates_after(loop: Any, done: int, total: int) -> bool:
    """Whether a training validates after a number of epochs or steps.

    Args:
        loop: Loop of the training.
        done: Number of epochs or steps that are done.
        total: Number of epochs or steps of the training.
    """
    due = done >= max(loop.val_begin, 1) and (done % interval_after(loop, done) == 0 or done == total)
    return due and loop.runner.val_loop is not None


def check_monitored(runner: Any, scores: Collection[str] | None) -> None:
    """Check that every score that something follows is one of the validation's.

    Followed are scores by early stopping, by schedules (``ReduceOnPlateauLR``) and where the best weights are kept.

    Args:
        runner: Runner with hooks and schedules.
        scores: Names of the scores; ``None`` if they are not known yet.

    Raises:
        ConfigError: With the first that is not, and all that there are.
    """
    best = runner.checkpoint_hook.save_best
    monitored = [("default_hooks.checkpoint.save_best", best)] if best not in (None, "auto") else []
    hooks = (one for one in runner.hooks if isinstance(one, EarlyStoppingHook))
    schedules = (one for one in runner.param_schedulers or [] if hasattr(one, "monitor"))
    monitored += [
        (f"{type(one).__name__.removeprefix('Resumable')}.monitor", one.monitor) for one in (*hooks, *schedules)
    ]
    for place, name in monitored:
        if scores is not None and name not in scores:
            known = f"choose from {', '.join(scores)}" if scores else "there is no validation"
            raise ConfigError(f"{place}={name!r} is no score of the validation: {known}")


def expected_scores(runner: Any) -> list[str] | None:
    """Names of a validation's scores before the first one; ``None`` if a metric does not say (``score_names``)."""
    if runner.val_loop is None:
        return []
    names: list[str] = []
    for metric in runner.val_loop.evaluator.metrics:
        if (own := getattr(metric, "score_names", None)) is None:
            return None
        names += [f"{metric.prefix}/{name}" if metric.prefix else name for name in own]
    if isinstance(runner.val_loop, ValidationLoop):
        names += runner.val_loop.loss.score_names
    averaged = any(isinstance(hook, ModelEMAHook) for hook in runner.hooks)
    return names + [f"ema/{name}" for name in names] * averaged


def drop_former_scores(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Drop the scores of averaged weights of a checkpoint, in place, if the run has none: it would log them anew.

    Args:
        runner: Runner that resumes; a line says that the averages end.
        checkpoint: Content of the checkpoint.
    """
    if "ema_state_dict" not in checkpoint or any(isinstance(hook, ModelEMAHook) for hook in runner.hooks):
        return
    scalars = checkpoint["message_hub"].get("log_scalars", {})
    for name in [name for name in scalars if name.startswith("val/ema/")]:
        del scalars[name]
    runner.logger.warning("the averaged weights of the checkpoint end here: custom_hooks have no ModelEMAHook")


def score_records(scalars: Mapping[str, Any]) -> dict[str, int]:
    """Number of values that a message hub (``log_scalars``) holds of each score of the validation."""
    return {name: len(one.data[0]) for name, one in scalars.items() if name.startswith("val/")}


def drop_stale_scores(scalars: dict[str, Any], before: Mapping[str, int], metrics: Collection[str]) -> None:
    """Drop scores, in place, that a checkpoint brought and no metric gives any more: each log line would repeat them.

    Args:
        scalars: ``log_scalars`` of the message hub after a validation.
        before: Result of :func:`score_records` before it.
        metrics: Names of the scores that it gave.
    """
    for name, count in score_records(scalars).items():
        if name.removeprefix("val/") not in metrics and before.get(name) == count:  # times grew meanwhile
            del scalars[name]


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's early stopping whose best score and count of validations without progress a resumed run keeps.

    Args:
        monitor: Name of the score.
        min_delta: Smallest progress that counts, in the unit of the log; by default 0.1 on a scale of 0 to 100, which
            is 0.001 of COCO's AP, and 0.001 of a loss.
        settings: Other arguments of mmengine's hook.

    Attributes:
        reason: Why it ended the training; empty if it did not.
    """

    def __init__(self, monitor: str, min_delta: float | None = None, **settings: Any) -> None:
        if min_delta is None:
            name = monitor.rpartition("/")[2]  # after the prefix of a metric, or of averaged weights
            min_delta = 1e-3 if "loss" in name else 0.1 / score_of(name, tuple(TASK_SPECS.values())).factor
        super().__init__(monitor, min_delta=min_delta, **settings)
        self.reason = ""

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """End the training where the score has not improved, and say how to go on."""
        super().after_val_epoch(runner, metrics)
        if self.wait_count >= self.patience:  # not by its other limits, nor by another hook
            waited = f"{self.wait_count} validation{'s' if self.wait_count > 1 else ''} ago"
            self.reason = f"{self.monitor} was best at {self.best_score:.4g}, {waited}"
            go_on = f"--resume with a patience of more than {self.patience} goes on"
            runner.logger.info(f"early stopping: {self.reason}; {go_on}")

    def _check_stop_condition(self, current_score: float) -> tuple[bool, str]:
        stops, message = super()._check_stop_condition(current_score)
        self.reason = message.strip() if stops else ""
        return stops, message

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add best score and count to the checkpoint, under the name of the score."""
        checkpoint.setdefault("early_stopping", {})[self.monitor] = [float(self.best_score), self.wait_count]

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Restore them when a run is resumed."""
        saved = checkpoint.get("early_stopping", {}) if runner.is_resuming else {}
        if self.monitor in saved:
            self.best_score, self.wait_count = saved[self.monitor]


@LOOPS.register_module()
class ValidationLoop(ValLoop):
    """Validate the raw weights and, where they are kept, the averaged ones under ``ema/``.

    Args:
        runner: Runner of the training.
        dataloader: Validation data, or their settings.
        evaluator: Metrics, or their settings.
        loss_images: Number of images, spread over the data, of which the loss is computed too; 0 for none. A classifier
            and a masked autoencoder have that of all images from their metrics.
        settings: Other arguments of mmengine's loop.

    Attributes:
        loss: Loss of a validation.
        class_scores: Scores of each class in the last validation: of the raw weights under an empty name, of the
            averaged ones under ``EMA``.
    """

    class_scores: dict[str, ClassScores]
    _has_run = False

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Any, loss_images: int = MAX_LOSS_IMAGES, **settings: Any
    ) -> None:
        super().__init__(runner, dataloader, evaluator, **settings)
        self.loss = ValidationLoss(runner, self.dataloader, loss_images)
        runner.register_hook(self.loss, "HIGH")  # before the batch's time is taken

    def run(self) -> dict[str, float]:
        """Evaluate and log once."""
        with HEARTBEAT.during(Phase.VALIDATION):
            return self._validate()

    def _validate(self) -> dict[str, float]:
        scalars = self.runner.message_hub.log_scalars
        before = score_records(scalars)
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        metrics = self._evaluate()
        self.class_scores = {"": collect_class_scores(self.evaluator)}
        for hook in self.runner.hooks:
            if isinstance(hook, ModelEMAHook):
                with hook.averaged():
                    metrics |= {f"ema/{name}": value for name, value in self._evaluate().items()}
                    self.class_scores["EMA"] = collect_class_scores(self.evaluator)
        for weights, scores in self.class_scores.items():
            heading = f"scores of the classes{f', {weights}' if weights else ''}"
            if lines := class_lines(heading, scores, (task_of(self.runner.cfg),)):
                self.runner.logger.info(lines)
        check_monitored(self.runner, metrics)
        if not self._has_run:
            drop_stale_scores(scalars, before, metrics)
        self._has_run = True
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the weights that the model holds.

        Raises:
            Stop: If any process was asked to stop.
        """
        self.runner.model.eval()
        self.loss.begin()
        for idx, batch in enumerate(self.dataloader):
            HEARTBEAT.enter(Phase.BATCH, f"validation, batch {idx + 1} of {len(self.dataloader)}")
            self.run_iter(idx, batch)
            request = self.runner.agreement.at_step(self.runner.signals.stop_request)
            if request > StopRequest.SAVE:
                raise Stop(request)
            if idx + 1 == len(self.dataloader):
                self.runner.agreement.barrier()  # announced as of the last batch: the scores may take longer
            HEARTBEAT.enter(Phase.VALIDATION)
        return self.evaluator.evaluate(len(self.dataloader.dataset)) | self.loss.finish()
