"""What a run logs to the console, and what to its log file alone."""

from __future__ import annotations

import logging
import re
from typing import Any

from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

MAX_CONSOLE_LINES = 8
NOTHING = re.compile("$^")
# Beginnings and parts of messages in which mmengine talks about itself.
FILE_ONLY_PHRASES = (
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Distributed training is not used, all SyncBatchNorm",
    "Exp name: ",
)


@LOG_PROCESSORS.register_module()
class ScoreLogProcessor(LogProcessor):
    """mmengine's, but each validation shows its own scores.

    mmengine shows the mean over the last ten values of whatever has ``loss`` in its name: right for steps, but a
    ``val_loss`` would be that of ten validations. Configs that name mmengine's get this one.
    """

    mean_pattern: re.Pattern[str]

    def get_log_after_epoch(self, *args: Any, **kwargs: Any) -> tuple[dict, str]:
        """Log of a validation or a test."""
        smoothed, self.mean_pattern = self.mean_pattern, NOTHING
        try:
            return super().get_log_after_epoch(*args, **kwargs)
        finally:
            self.mean_pattern = smoothed


class ConsoleFilter(logging.Filter):
    """Keeps dumps of many lines and mmengine's messages about itself off the console."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        message = record.getMessage()
        if any(phrase in message for phrase in FILE_ONLY_PHRASES):
            return False
        return record.levelno >= logging.WARNING or message.count("\n") < MAX_CONSOLE_LINES


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
