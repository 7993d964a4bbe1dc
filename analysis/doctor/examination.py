"""Runs the checks of the doctor, each of which ends in results of one line, whatever happens inside of it.

This module needs nothing but Python: a broken installation is a result too. The checks are in the modules
``software``, ``hardware``, ``network``, ``data`` and ``trial`` beside it; each takes the facts that it judges as
arguments.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

ResultLevel = Literal["ok", "note", "bad"]
# Module ``NAME`` has ``NAME_checks(options)``, which returns its checks.
GROUPS = ("software", "hardware", "network", "data", "trial")
INSTALL = "make the environment again: remove .venv, then . tools/env.sh"


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        level: ``bad`` for what keeps a training from running or makes it wrong, ``note`` for what is worth knowing.
        name: Name of the checked thing.
        found: Its state in a few words.
        fix: Remedy in a few words; empty if none is needed.
    """

    level: ResultLevel
    name: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5}{self.name:<18}{self.found}" + (f"; {self.fix}" if self.fix else "")


ok, notice, bad = partial(CheckResult, "ok"), partial(CheckResult, "note"), partial(CheckResult, "bad")
# The checks of a group by name, in the order in which they run; the name is in the result if the check itself fails.
Checks = dict[str, Callable[[], Iterable[CheckResult]]]


@dataclass(frozen=True)
class DoctorOptions:
    """Extent of the examination.

    Attributes:
        quick: Whether to skip the trial.
        config: Config file that is to be trained; ``None`` for no particular one.
    """

    quick: bool = False
    config: str | None = None


def diagnose(options: DoctorOptions, groups: Iterable[str] = GROUPS) -> Iterator[CheckResult]:
    """Run all checks of the groups; yield their results one by one."""
    for group in groups:
        try:
            checks: Checks = getattr(importlib.import_module(f"analysis.doctor.{group}"), f"{group}_checks")(options)
        except (Exception, SystemExit) as error:
            yield bad(group, f"its checks cannot be loaded: {describe_failure(error)}", INSTALL)
            continue
        for name, check in checks.items():
            yield from run_check(name, check)


def run_check(name: str, check: Callable[[], Iterable[CheckResult]]) -> Iterator[CheckResult]:
    """Run one check; an error in the check itself is a result of level ``bad``."""
    try:
        yield from check()
    except (Exception, SystemExit) as error:
        yield bad(name, f"the check itself failed: {describe_failure(error)}", "this should not be: please report it")


def describe_failure(error: BaseException) -> str:
    """Class and first line of the message of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def write_results(results: Iterable[CheckResult], file: Path) -> None:
    """Write the results as JSON: a list of mappings with ``level``, ``what``, ``found`` and ``fix``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"level": one.level, "what": one.name, "found": one.found, "fix": one.fix} for one in results]
    file.write_text(json.dumps({"results": entries}, indent=2), encoding="utf-8")
