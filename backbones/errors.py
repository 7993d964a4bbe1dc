"""The exceptions that mean: the input is wrong, the code is not."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that a person can fix; the message is one line that names the thing and the fix.

    Raise one of the subclasses where one applies. Every tool prints the message without a traceback and exits with code
    2 (see ``engine.cli``).
    """


class ConfigError(UserError):
    """A setting, an option or an argument is wrong: of a config, a command line or a function's caller."""


class CheckpointError(UserError):
    """A file of weights or a checkpoint is damaged, of another layout, or does not fit the model."""


class DataError(UserError):
    """Images, labels or annotations are missing, damaged or contradict the config."""


class MachineError(UserError):
    """The machine lacks what was asked for: a GPU, memory, disk space, a package, a port, another process."""


def printable(name: object) -> str:
    """A name from outside as it may stand in a message of one line: a line break in it, or the like, is spelt out."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def first_line(error: object, most: int | None = None) -> str:
    """The first line of what an exception says, or its kind if it says nothing; at most so many characters."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:most]


def described(error: BaseException, most: int | None = None) -> str:
    """The kind of an exception and the first line of what it says."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error, most)}" if str(error).strip() else kind
