"""A work directory that is removed or moved while the training runs: it goes on in a new one of the same name."""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner

from backbones.errors import MachineError, printable
from engine.checkpoint.store import RUN_ID_FILE, begin_run
from engine.report.recorder import ForeignFolderError
from engine.training.progress import is_logged_for_validation

LOOK_SECONDS = 1.0
GONE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)  # where no folder is any more


class WorkFolderHook(Hook):
    """Makes the work directory again where it is gone, before anything is written to it.

    Nothing of the training is lost by that: the state is in memory, and the next checkpoint has all of it. A look asks
    the file system several times, which it may feel over a network: one is taken every second, before a step's
    values are logged, and before a validation's metrics.

    Args:
        clock: Source of the seconds.
    """

    priority = "VERY_HIGH"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._looked = clock, -math.inf

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look before a step, once a second."""
        self._keep_now_and_then(runner)

    def _after_iter(self, runner: Runner, batch_idx: int, *_: Any, mode: str = "train", **__: Any) -> None:
        if self._is_written(runner, batch_idx, mode):
            self._keep(runner)
        else:
            self._keep_now_and_then(runner)

    def _after_epoch(self, runner: Runner, *_: Any, **__: Any) -> None:
        self._keep(runner)

    def after_train(self, runner: Runner) -> None:
        """Look before the last files are written."""
        self._keep(runner)

    def after_run(self, runner: Runner) -> None:
        """Look before the logs are closed."""
        self._keep(runner)

    def _is_written(self, runner: Runner, batch_idx: int, mode: str) -> bool:
        """Whether files are opened after a batch: by metrics after the last one, or for the values of a step."""
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook) and mode == "train"]
        due = any(self.every_n_inner_iters(batch_idx, interval) for interval in intervals)
        due = due or (mode == "train" and is_logged_for_validation(runner))
        return due or self.end_of_epoch(getattr(runner, f"{mode}_dataloader"), batch_idx)

    def _keep_now_and_then(self, runner: Runner) -> None:
        if (now := self._clock()) - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._keep(runner)

    def _keep(self, runner: Any) -> None:
        folder, log_dir = Path(runner.work_dir), Path(runner.log_dir)
        try:
            if not is_main_process() or (log_dir.is_dir() and (folder / RUN_ID_FILE).exists()):
                return
        except OSError:  # storage that fails just now: whoever writes tells
            return
        try:
            if (folder / RUN_ID_FILE).is_file() and (folder / RUN_ID_FILE).read_text("utf-8") != runner.run_id:
                raise ForeignFolderError(_gone(folder, "another training is there now"))
            (log_dir / "vis_data" / "vis_image").mkdir(parents=True, exist_ok=True)
            begin_run(folder, runner.run_id)
            runner.dump_config()
            for handler in runner.logger.handlers:
                if isinstance(handler, logging.FileHandler):
                    former = handler.setStream(open(handler.baseFilename, "a", encoding=handler.encoding))  # noqa: SIM115
                    with suppress(OSError):  # its disk is gone too
                        if former is not None:
                            former.close()
        except OSError as error:
            raise MachineError(_gone(folder, str(error.strerror))) from error
        if board := runner.visualizer.get_backend("TensorboardVisBackend"):
            with suppress(OSError):
                board.experiment.close()
            board.experiment.file_writer = board.experiment.all_writers = None  # the next value opens another file
        runner.logger.warning(
            f"work_dir {printable(folder)} is gone, removed or moved: going on in a new one of this name; what was "
            "saved and logged before this step is where the old one is"
        )


@contextmanager
def kept_work_folder(runner: Runner) -> Iterator[None]:
    """Context of a training whose work directory may disappear.

    Raises:
        MachineError: In place of the error of whoever finds no work directory any more.
    """
    runner.register_hook(WorkFolderHook())
    try:
        yield
    except OSError as error:
        if error.errno not in GONE_ERRNOS or Path(runner.log_dir).is_dir():
            raise
        raise MachineError(_gone(Path(runner.work_dir), "a file was just being written")) from error


def _gone(folder: Path, why: str) -> str:
    where = "start again, with --resume where it is now"
    return f"work_dir {printable(folder)} was removed or moved while it was in use ({why}): {where}"
