"""The hook that decides when checkpoints are written and which are kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from backbones.errors import ConfigError
from backbones.files import atomic_write, remove_partial_files
from engine.checkpoint.store import CHECKPOINT_NAME, LAST_CHECKPOINT, CheckpointWriter, begin_run, checkpoints
from engine.config.schema import is_whole
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.task import task_of

if TYPE_CHECKING:
    from engine.training.runner import Runner

LOWER_IS_BETTER = ("loss", "error")


@HOOKS.register_module()
class ResumableCheckpointHook(Hook):
    """Saves checkpoints in the background, from which a run resumes exactly; keeps the last ones and the best weights.

    The arguments are those of mmengine's ``CheckpointHook`` where they mean the same. mmengine's hook overwrites files
    in place while the training waits, and removes the oldest file before the new one is complete. Here
    :class:`engine.checkpoint.store.CheckpointWriter` writes; the loops call :meth:`save_if_due` and :meth:`save_now` at
    the steps from which a run can be resumed.

    Args:
        interval: Epochs, or steps in a run of steps, between files ``epoch_N.pth`` or ``iter_N.pth``.
        max_keep_ckpts: Maximum number of these files, the latest ones; -1 for no limit.
        save_last: Save at the end of training, whatever the interval.
        save_best: Metric, as in the log, whose best weights are kept as ``best_<metric>.pth``; ``auto`` for the task's
            ``main_metric``, ``None`` for no such file.
        minutes: Minutes since the last file after which ``step_N.pth`` is saved; it is deleted after the next file.
        by_epoch: Whether the interval is in epochs; by default as the training loop counts.

    Attributes:
        best: Metric, value, epoch and step of the best validation so far.
        validated: Step of the last validation; -1 before the first.

    Raises:
        ConfigError: If an argument is of a wrong kind.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        max_keep_ckpts: int = 2,
        save_last: bool = True,
        save_best: str | None = "auto",
        minutes: float = 30.0,
        by_epoch: bool | None = None,
    ) -> None:
        for fits, problem in (
            (
                is_whole(interval, 1) and is_whole(max_keep_ckpts, -1) and max_keep_ckpts != 0,
                f": interval={interval!r}, max_keep_ckpts={max_keep_ckpts!r}: positive whole numbers are needed, or -1 "
                "to keep all",
            ),
            (isinstance(minutes, int | float) and minutes > 0, f".minutes={minutes!r}: a positive number is needed"),
            (isinstance(save_best, str | None), f".save_best={save_best!r}: the name of one score, auto or None"),
            (
                isinstance(save_last, bool) and isinstance(by_epoch, bool | None),
                f": save_last={save_last!r}, by_epoch={by_epoch!r}: True or False is needed",
            ),
        ):
            if not fits:
                raise ConfigError(f"default_hooks.checkpoint{problem}")
        self.interval, self.keep, self.save_last = interval, max_keep_ckpts, save_last
        self.save_best, self.minutes, self.by_epoch = save_best, minutes, by_epoch
        self.best: dict[str, Any] = {}
        self.validated = -1
        self._writer = CheckpointWriter()
        self._step_files: list[Path] = []
        self._saved = (-1, -1)
        self._since = time.monotonic()
        self._folder = Path()

    def before_train(self, runner: Runner) -> None:
        """Assign the work directory to this run, and find the step files of an interrupted one."""
        self._folder = Path(runner.work_dir)
        epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self.by_epoch = epochs if self.by_epoch is None else self.by_epoch
        if self.by_epoch and not epochs:
            raise ConfigError("default_hooks.checkpoint.by_epoch=True: training counts in steps: leave by_epoch out")
        # A run that was rolled back reaches steps again whose files are of its earlier state.
        self._saved, self._since = (-1, -1), time.monotonic()
        if is_main_process():
            begin_run(self._folder, runner.run_id)
            remove_partial_files(self._folder)
            self._step_files = [file for _, file, _ in checkpoints(self._folder) if _named(file)[0] == "step"]

    @property
    def overdue(self) -> bool:
        """Whether more than ``minutes`` have passed since the last file."""
        return time.monotonic() - self._since > 60 * self.minutes

    def check(self) -> None:
        """Raise the error of a write in the background, if there is one."""
        self._writer.check()

    def save_if_due(self, runner: Runner, epoch_ended: bool, last: bool) -> None:
        """Save if the interval is reached; all processes call it.

        Args:
            runner: Runner after a step.
            epoch_ended: Whether this is the end of an epoch.
            last: Whether this is the end of the training.
        """
        if self.by_epoch and not epoch_ended:
            return
        count = runner.epoch if self.by_epoch else runner.iter
        if count % self.interval == 0 or (last and self.save_last):
            name = f"{self._unit}_{count}.pth"
            runner.logger.info(f"saving {name}")
            self._save(runner, self._folder / name)

    def save_now(self, runner: Runner) -> None:
        """Save now, unless the present state is saved already; all processes call it."""
        if self._saved != (runner.iter, self.validated):
            self._save(runner, self._folder / f"step_{runner.iter}.pth")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the weights if they are the best so far."""
        metrics = metrics or {}
        score = self._score(runner.cfg, metrics)
        self.validated = runner.iter
        if score is None or math.isnan(value := float(metrics[score])):  # no value would ever be better than NaN
            return
        sign = -1.0 if any(word in score.lower() for word in LOWER_IS_BETTER) else 1.0
        if self.best.get("score") == score and not sign * value > sign * self.best["value"]:
            return
        self.best = {"score": score, "value": value, "epoch": runner.epoch, "iter": runner.iter}
        file = self._folder / f"best_{score.replace('/', '_')}.pth"
        runner.logger.info(f"best {score} so far, {value:.4f}: {file.name}")
        state = runner.checkpoints.state(resumable=False)
        if is_main_process():
            self._writer.write(state, file, lambda: None)

    def after_train(self, runner: Runner) -> None:
        """Wait until all files are written."""
        self.wait()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"best": dict(self.best), "validated": self.validated}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best, self.validated = dict(saved["best"]), saved["validated"]

    def wait(self) -> None:
        """Wait until all files are written; raise the error of a write."""
        with HEARTBEAT.during(Phase.SAVING):
            self._writer.wait()

    def drain(self) -> None:
        """Wait until all files are written or have failed, without raising: another error ends the run."""
        self._writer.drain()

    def _save(self, runner: Runner, file: Path) -> None:
        with HEARTBEAT.during(Phase.SAVING):
            state = runner.checkpoints.state()
            self._saved, self._since = (runner.iter, self.validated), time.monotonic()
            if is_main_process():
                self._writer.write(state, file, lambda: self._tidy(file))

    def _tidy(self, newest: Path) -> None:
        """Record the newest file, which is complete, and delete files that are no longer needed."""
        with atomic_write(self._folder / LAST_CHECKPOINT) as place:
            place.write_text(str(newest), encoding="utf-8")
        for file in self._step_files:
            if file != newest:
                file.unlink(missing_ok=True)
        self._step_files = [newest] if _named(newest)[0] == "step" else []
        regular = {_named(file)[1]: file for file in self._folder.glob("*.pth") if _named(file)[0] == self._unit}
        # After a rollback there may be newer files, which are damaged or obsolete: they are kept and not counted.
        last = max(regular, default=0) if self._step_files else _named(newest)[1]
        past = sorted(count for count in regular if count <= last)
        for count in past[: -self.keep] if self.keep > 0 else []:
            regular[count].unlink(missing_ok=True)

    def _score(self, cfg: Config, metrics: dict[str, float]) -> str | None:
        if self.save_best is None or not metrics:
            return None
        if self.save_best == "auto":
            main = task_of(cfg).main_metric
            # An evaluator may put its prefix before the name: mmdet's own logs coco/bbox_mAP.
            return next((name for name in metrics if name.rpartition("/")[2] == main), next(iter(metrics)))
        if self.save_best not in metrics:
            raise ConfigError(
                f"default_hooks.checkpoint.save_best={self.save_best!r} is no score of the validation: choose from "
                f"{', '.join(metrics)}"
            )
        return self.save_best

    @property
    def _unit(self) -> str:
        """Unit in the names of the files that are saved at the interval."""
        return "epoch" if self.by_epoch else "iter"


def _named(file: Path) -> tuple[str, int]:
    """Unit and count in the name of a checkpoint, such as ``("epoch", 3)``; ``("", 0)`` for other names."""
    match = CHECKPOINT_NAME.fullmatch(file.name)
    return (match[1], int(match[2])) if match else ("", 0)
