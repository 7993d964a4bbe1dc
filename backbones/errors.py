"""Errors in the input, as opposed to errors in the code."""

from __future__ import annotations

import ast
import difflib
import linecache
import traceback
from collections.abc import Iterable
from contextlib import suppress


class UserError(ValueError):
    """Base class of errors that a user can fix; the message is one line that names the thing and the fix.

    Code raises one of the subclasses. Every tool prints the message without a traceback and exits with code 2 or
    that of the subclass (see :mod:`engine.cli`).
    """

    exit_code = 2  # engine.launch.exit_codes.EXIT_BAD_INPUT


class ConfigError(UserError):
    """A setting of a config, an option of a command or an argument of a function is wrong."""


class CheckpointError(UserError):
    """A checkpoint or file of weights is absent, damaged, of another layout, or does not fit the model."""


class DataError(UserError):
    """Images, labels or annotations are missing, damaged or contradict the config."""


class MachineError(UserError):
    """The machine lacks what was asked for: a GPU, memory, disk space, a package, a port, another process."""


def printable(name: object) -> str:
    """A name for a message of one line: names with control characters, such as line breaks, are escaped."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def first_line(error: object, max_length: int | None = None) -> str:
    """The first line of an exception's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:max_length]


def describe_error(error: BaseException, max_length: int | None = None) -> str:
    """The class of an exception and the first line of its message, of an assertion without one what does not hold."""
    kind = type(error).__name__
    said = first_line(error, max_length) if str(error).strip() else _failed_condition(error)[:max_length]
    return f"{kind}: {said}" if said else kind


def _failed_condition(error: BaseException) -> str:
    """The condition of an ``assert`` that failed, in one line; nothing for another error, or without its source."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not isinstance(error, AssertionError) or not frames:
        return ""
    frame, line = frames[-1]
    with suppress(SyntaxError):
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
        asserts = (node for node in ast.walk(tree) if isinstance(node, ast.Assert))
        failed = next((one for one in asserts if one.lineno <= line <= (one.end_lineno or line)), None)
        return f"{ast.unparse(failed.test)} is needed" if failed else ""
    return ""


def nearest(name: str, known: Iterable[str], count: int = 2, quoted: bool = False) -> str:
    """The end of a message about an unknown name: ``; nearest: X, Y``, or nothing if no known name is like it."""
    by_lower = {one.lower(): one for one in known}
    found = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=count)]
    near = [repr(one) if quoted else one for one in found]
    return f"; nearest: {', '.join(near)}" if near else ""
