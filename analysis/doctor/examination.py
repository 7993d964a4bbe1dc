"""Is this machine fit to train? Checks that each end in one line, whatever happens inside of them.

This module needs nothing but Python: what is broken in the installation is a finding too. The checks themselves are in
``analysis.doctor.software``, ``_hardware``, ``_network``, ``_data`` and ``_trial``; each takes what it looks at as
arguments.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "note", "bad"]
# Each has ``checks(request)``, which gives the checks in the order in which they are made.
GROUPS = ("software", "hardware", "network", "data", "trial")
GIB = 2**30
INSTALL = "make the environment again: remove .venv, then . tools/env.sh"


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        level: ``bad`` for what keeps a training from running or makes it wrong, ``note`` for what is worth knowing.
        what: That was looked at.
        found: In a few words.
        mend: What to do about it; empty where nothing needs to be done.
    """

    level: Level
    what: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5}{self.what:<18}{self.found}" + (f"; {self.mend}" if self.mend else "")


def ok(what: str, found: str) -> Result:
    """All is well."""
    return Result("ok", what, found)


def note(what: str, found: str, mend: str = "") -> Result:
    """Worth knowing; nothing fails of it."""
    return Result("note", what, found, mend)


def bad(what: str, found: str, mend: str) -> Result:
    """A training would fail, or be wrong."""
    return Result("bad", what, found, mend)


@dataclass(frozen=True)
class Request:
    """What to look at.

    Attributes:
        quick: Leave out the trial.
        config: A config file that is to be trained; ``None`` for none in particular.
    """

    quick: bool = False
    config: str | None = None


@dataclass(frozen=True)
class Check:
    """A check, not made yet.

    Attributes:
        what: Its name, should it fail itself.
        make: Makes it.
    """

    what: str
    make: Callable[[], Iterable[Result]]


def diagnose(request: Request, groups: Iterable[str] = GROUPS) -> Iterator[Result]:
    """Make all checks.

    Args:
        request: What to look at.
        groups: Names of groups of checks.

    Yields:
        The results as they come.
    """
    for group in groups:
        try:
            checks: list[Check] = importlib.import_module(f"analysis.doctor.{group}").checks(request)
        except (Exception, SystemExit) as error:
            yield bad(group, f"its checks cannot be loaded: {describe(error)}", INSTALL)
            continue
        for check in checks:
            yield from made(check)


def made(check: Check) -> Iterator[Result]:
    """Make one check; where it fails itself, that is what was found."""
    try:
        yield from check.make()
    except (Exception, SystemExit) as error:
        yield bad(check.what, f"the check itself failed: {describe(error)}", "this should not be: please report it")


def describe(error: BaseException) -> str:
    """An exception in one line."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


def write_results(results: Iterable[Result], file: Path) -> None:
    """Write the results as JSON: a list of mappings of the fields of :class:`Result`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"results": [asdict(result) for result in results]}
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
