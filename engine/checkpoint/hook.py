"""When checkpoints are written, and which of them are kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from backbones.errors import UserError
from backbones.files import remove_partial_files, atomic_write
from engine.checkpoint.store import CHECKPOINT_NAME, LAST_CHECKPOINT, CheckpointWriter, begin_run, checkpoints
from engine.config.schema import is_whole
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.task import task_of

LESS_IS_BETTER = ("loss", "error")


@HOOKS.register_module()
class ResumableCheckpointHook(Hook):
    """Saves checkpoints in the background, from which a run resumes exactly; keeps the last ones and the best weights.

    The arguments are those of mmengine's ``CheckpointHook`` where they mean the same. mmengine's hook overwrites files
    in place while the training waits, and removes the oldest file before the new one is complete. Here
    :class:`engine.checkpoint.store.CheckpointWriter` writes; the loops call :meth:`save_if_due` and :meth:`save_now` at
    the steps from which a run can be resumed.

    Args:
        interval: Epochs, or steps in a run of steps, between files ``epoch_N.pth`` or ``iter_N.pth``.
        max_keep_ckpts: How many of these are kept, the last ones; -1 for all.
        save_last: Save at the end whatever the interval.
        save_best: The score, as the log names it, whose best weights are kept as ``best_<score>.pth``; ``auto`` for
            the task's ``main_metric``, ``None`` for none.
        minutes: Save ``step_N.pth`` when so much time has passed since the last file; it goes when the next is safe.
        by_epoch: Count in epochs or in steps; as the loop does, if not given.
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
        if not is_whole(interval, 1) or not is_whole(max_keep_ckpts, -1) or max_keep_ckpts == 0:
            raise UserError(
                f"default_hooks.checkpoint: interval={interval!r}, max_keep_ckpts={max_keep_ckpts!r}: positive whole "
                "numbers are needed, or -1 to keep all"
            )
        if not isinstance(minutes, int | float) or not minutes > 0:
            raise UserError(f"default_hooks.checkpoint.minutes={minutes!r}: a positive number is needed")
        if not (save_best is None or isinstance(save_best, str)):
            raise UserError(f"default_hooks.checkpoint.save_best={save_best!r}: the name of one score, auto or None")
        if not isinstance(save_last, bool) or not (by_epoch is None or isinstance(by_epoch, bool)):
            raise UserError(
                f"default_hooks.checkpoint: save_last={save_last!r}, by_epoch={by_epoch!r}: True or False is needed"
            )
        self.interval, self.keep, self.save_last = interval, max_keep_ckpts, save_last
        self.save_best, self.minutes, self.by_epoch = save_best, minutes, by_epoch
        self.best: dict[str, Any] = {}
        self.validated = -1
        self._writer = CheckpointWriter()
        self._passing: list[Path] = []
        self._saved = (-1, -1)
        self._since = time.monotonic()
        self._folder = Path()

    def before_train(self, runner: Any) -> None:
        """Find out how the loop counts, and what an interrupted run has left."""
        self._folder = Path(runner.work_dir)
        epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self.by_epoch = epochs if self.by_epoch is None else self.by_epoch
        if self.by_epoch and not epochs:
            raise UserError("default_hooks.checkpoint.by_epoch=True: this training counts in steps, leave it out")
        # A run that was taken back comes to steps again that are saved otherwise.
        self._saved, self._since = (-1, -1), time.monotonic()
        if is_main_process():
            begin_run(self._folder, runner.run_id)
            remove_partial_files(self._folder)
            self._passing = [file for _, file, _ in checkpoints(self._folder) if _is_passing(file)]

    @property
    def overdue(self) -> bool:
        """Whether so much time has passed that the work since the last file is worth saving."""
        return time.monotonic() - self._since > 60 * self.minutes

    def check(self) -> None:
        """Raise what went wrong in the background."""
        self._writer.check()

    def save_if_due(self, runner: Any, epoch_ended: bool, last: bool) -> None:
        """Save if the interval says so.

        Args:
            runner: All its processes take part.
            epoch_ended: Whether this is the end of an epoch, or a step within one.
            last: Whether this is the end of the training.
        """
        if self.by_epoch and not epoch_ended:
            return
        count = runner.epoch if self.by_epoch else runner.iter
        if count % self.interval == 0 or (last and self.save_last):
            name = f"{'epoch' if self.by_epoch else 'iter'}_{count}.pth"
            runner.logger.info(f"saving {name}")
            self._save(runner, self._folder / name)

    def save_now(self, runner: Any) -> None:
        """Save now, all processes together; nothing is done where this very state is saved already."""
        if self._saved != (runner.iter, self.validated):
            self._save(runner, self._folder / f"step_{runner.iter}.pth")

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Keep the weights if they are the best so far."""
        score = self._score(runner.cfg, metrics or {})
        self.validated = runner.iter
        if score is None:
            return
        value = float((metrics or {})[score])
        if math.isnan(value):  # nothing would be better ever after
            return
        sign = -1.0 if any(word in score.lower() for word in LESS_IS_BETTER) else 1.0
        if self.best.get("score") == score and not sign * value > sign * self.best["value"]:
            return
        self.best = {"score": score, "value": value, "epoch": runner.epoch, "iter": runner.iter}
        file = self._folder / f"best_{score.replace('/', '_')}.pth"
        runner.logger.info(f"best {score} so far, {value:.4f}: {file.name}")
        state = runner.checkpoints.state(resumable=False)
        if is_main_process():
            self._writer.write(state, file, lambda: None)

    def after_train(self, runner: Any) -> None:
        """Wait until all is written."""
        self.wait()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {"best": dict(self.best), "validated": self.validated}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.validated = dict(saved["best"]), saved["validated"]

    def wait(self) -> None:
        """Return when all is written."""
        with HEARTBEAT.during(Phase.SAVING):
            self._writer.wait()

    def drain(self) -> None:
        """Return when all is written or has failed: another error ends the run."""
        self._writer.drain()

    def _save(self, runner: Any, file: Path) -> None:
        with HEARTBEAT.during(Phase.SAVING):
            state = runner.checkpoints.state()
            self._saved, self._since = (runner.iter, self.validated), time.monotonic()
            if is_main_process():
                self._writer.write(state, file, lambda: self._tidy(file))

    def _tidy(self, newest: Path) -> None:
        """Point at the newest file, which is safe, and remove what it makes superfluous."""
        with atomic_write(self._folder / LAST_CHECKPOINT) as place:
            place.write_text(str(newest), encoding="utf-8")
        for file in self._passing:
            if file != newest:
                file.unlink(missing_ok=True)
        self._passing = [newest] if _is_passing(newest) else []
        regular = {_named(file)[1]: file for file in self._folder.glob("*.pth") if self._is_regular(file)}
        # After a return to an older file there may be newer ones, which are damaged or of no use: they are left alone.
        last = max(regular, default=0) if self._passing else _named(newest)[1]
        past = sorted(count for count in regular if count <= last)
        for count in past[: -self.keep] if self.keep > 0 else []:
            regular[count].unlink(missing_ok=True)

    def _score(self, cfg: Config, metrics: dict[str, float]) -> str | None:
        if self.save_best is None or not metrics:
            return None
        if self.save_best == "auto":
            main = task_of(cfg).main_metric
            return main if main in metrics else next(iter(metrics))
        if self.save_best not in metrics:
            raise UserError(
                f"default_hooks.checkpoint.save_best={self.save_best!r} is no score of the validation: choose from "
                f"{', '.join(metrics)}"
            )
        return self.save_best

    def _is_regular(self, file: Path) -> bool:
        """Whether the interval asked for a file."""
        return _named(file)[0] == ("epoch" if self.by_epoch else "iter")


def _named(file: Path) -> tuple[str, int]:
    """What a checkpoint's name counts, and how many of it; nothing for other names."""
    match = CHECKPOINT_NAME.fullmatch(file.name)
    return (match[1], int(match[2])) if match else ("", 0)


def _is_passing(file: Path) -> bool:
    return _named(file)[0] == "step"
