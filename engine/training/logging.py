"""What a run logs to the console, what to its log file alone, and in which folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

from engine.config.load import TEST_FOLDER

if TYPE_CHECKING:
    from engine.training.runner import Runner

NOTHING = re.compile("$^")
TENSORBOARD_FOLDER = "tensorboard"
# Beginnings and parts of messages in which mmengine talks about itself, and of its dumps of many lines.
FILE_ONLY_PHRASES = (
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Distributed training is not used, all SyncBatchNorm",
    "Exp name: ",
    "\nSystem environment:\n",
    "Config:\n",
    "Hooks will be executed in the following order:\n",
)


@LOG_PROCESSORS.register_module()
class ScoreLogProcessor(LogProcessor):
    """mmengine's, but each validation shows its own scores, and steps on a GPU its utilisation.

    mmengine shows the mean over the last ten values of whatever has ``loss`` in its name: right for steps, but a
    ``val_loss`` would be that of ten validations. Configs that name mmengine's get this one.
    """

    mean_pattern: re.Pattern[str]

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Log of the steps since the line before, with the utilisation of the GPU (0..1) where the driver tells it."""
        if mode == "train" and (busy := gpu_utilisation()) is not None:
            runner.message_hub.update_scalar("train/gpu_utilisation", busy)
        return super().get_log_after_iter(runner, batch_idx, mode)

    def get_log_after_epoch(self, *args: Any, **kwargs: Any) -> tuple[dict, str]:
        """Log of a validation or a test."""
        smoothed, self.mean_pattern = self.mean_pattern, NOTHING
        try:
            return super().get_log_after_epoch(*args, **kwargs)
        finally:
            self.mean_pattern = smoothed


def gpu_utilisation() -> float | None:
    """Fraction of the last second or less in which the GPU of this process computed; ``None`` if it is not known."""
    if not torch.cuda.is_available():
        return None
    try:
        return torch.cuda.utilization() / 100
    except Exception:  # NVML has many reasons: no driver library, no permission, a part of a GPU (MIG)
        return None


class ConsoleFilter(logging.Filter):
    """Keeps mmengine's dumps and its messages about itself off the console; tables of any length are shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        message = record.getMessage()
        return not any(phrase in message for phrase in FILE_ONLY_PHRASES)


class TolerantFileHandler(logging.FileHandler):
    """A file handler for which a full disk is no error: the console shows the same lines."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record; the standard handler prints a stack trace for each."""


def set_up_handlers(logger: logging.Logger) -> None:
    """Filter what a new logger writes to the console, and let its files tolerate a full disk.

    Args:
        logger: Logger with the handlers of mmengine; its file handlers are replaced.
    """
    for handler in list(logger.handlers):
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(ConsoleFilter())
            continue
        tolerant = TolerantFileHandler(handler.baseFilename, handler.mode, "utf-8")  # names of classes in any script
        tolerant.setLevel(handler.level)
        tolerant.setFormatter(handler.formatter)
        for one in handler.filters:
            tolerant.addFilter(one)
        logger.removeHandler(handler)
        handler.close()
        logger.addHandler(tolerant)


class _RunConfig(Config):
    """Config of a run, whose text is laid out once: six places ask for it, and each time took half a second."""

    pretty_text = cached_property(Config.pretty_text.fget)


def run_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Work directory, visualizer and config of a runner, so that a test leaves a training's files as they are.

    A test has a folder of its own within the work directory, and no curves. TensorBoard gets one folder for all starts
    of a training. The config's text is written to several places, and is made once.

    Args:
        settings: Arguments of the runner.
    """
    folder, training = Path(settings["work_dir"]), settings.get("train_cfg") is not None
    visualizer, backends = settings.get("visualizer"), []
    for backend in (visualizer.get("vis_backends") or []) if isinstance(visualizer, dict) else []:
        if not isinstance(backend, dict) or "TensorboardVisBackend" not in str(backend.get("type")):
            backends.append(backend)
        elif training:
            backends.append({"save_dir": str(folder / TENSORBOARD_FOLDER), **backend})
    if isinstance(cfg := settings.get("cfg"), Config):
        state, cfg = cfg.__getstate__(), _RunConfig.__new__(_RunConfig)
        cfg.__setstate__(state)
    return {
        "cfg": cfg,
        "work_dir": str(folder if training else folder / TEST_FOLDER),
        "visualizer": {**visualizer, "vis_backends": backends} if isinstance(visualizer, dict) else visualizer,
    }
