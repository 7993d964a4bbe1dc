"""The table of methods: each tried in a process of its own, so that a crash or an endless loop is one line of it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from analysis.zoo.catalog import METHOD, Method, chosen_methods
from analysis.zoo.trial import Outcome, try_method
from backbones.errors import DataError
from engine.config.backbone_swap import our_levels
from engine.report.environment import machine

MAX_SECONDS = 600
MAX_BYTES = 16 << 30
WORKS = "works"


def _child(method: Method, backbone: str, results: Connection) -> None:
    """Try a method in silence and send the outcome."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES if hard < 0 else min(MAX_BYTES, hard), hard))
    results.send(try_method(method.config, method.folder, backbone, method.task))


def try_apart(method: Method, backbone: str, seconds: float = MAX_SECONDS) -> Outcome:
    """Try a method in a child process.

    Args:
        method: The method.
        backbone: Name of a registered backbone.
        seconds: Time after which the child is ended.
    """
    # Forked, so that the libraries are imported once; torch has computed nothing here, and so has no threads yet.
    context = multiprocessing.get_context("fork")
    results, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(method, backbone, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if not results.poll(seconds):
            return Outcome("process", f"not done after {seconds:g} s")
        outcome: Outcome = results.recv()
        return outcome
    except EOFError:
        child.join()
        return Outcome("process", f"ended with exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()


def tried(
    packages: Sequence[str], names: Sequence[str], backbone: str, report: Callable[[str], None]
) -> Iterator[tuple[Method, Outcome]]:
    """Try the methods of packages, one after the other.

    Args:
        packages: Names of packages.
        names: Names of methods; empty for all that are in scope. A named one is tried whatever its scope.
        backbone: Name of a registered backbone.
        report: Takes a line about each as soon as it is known.

    Raises:
        ConfigError: If there is no such backbone or method.
        MachineError: If a package's configs are not here.
    """
    our_levels(backbone)
    for method in chosen_methods(packages, names):
        if method.excluded and not names:
            continue
        began = time.monotonic()
        outcome = try_apart(method, backbone)
        report(
            f"{method.folder:22} {method.config.name}\n{'':22} {_result(outcome)} ({time.monotonic() - began:.0f} s)"
        )
        yield method, outcome


def _result(outcome: Outcome) -> str:
    return f"{outcome.step}: {outcome.reason}" if outcome.reason else WORKS


def _count(results: Sequence[tuple[Method, Outcome]]) -> str:
    works = sum(not outcome.reason for _, outcome in results)
    return f"{works} of the {len(results)}" + (f" ({works / len(results):.0%})" if results else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def sections(results: Sequence[tuple[Method, Outcome]], backbone: str) -> dict[str, str]:
    """The tables of all packages among the results, for the docs, by the name of the package.

    Args:
        results: Outcome of each method.
        backbone: Name of the backbone on which they were tried, now and on this machine.
    """
    packages = dict.fromkeys(method.package for method, _ in results)
    return {name: _markdown(name, [pair for pair in results if pair[0].package == name], backbone) for name in packages}


def _markdown(package: str, results: Sequence[tuple[Method, Outcome]], backbone: str) -> str:
    """The table of one package, with its count, and what is out of scope."""
    own = [pair for pair in results if pair[0].kind == METHOD]
    here = machine()
    lines = [
        f"{_count(results)} folders of {package} that are in scope work on `{backbone}`, and",
        f"{_count(own)} among them that hold a method of their own:",
        f"measured on {time.strftime('%Y-%m-%d')} on {here['cpu']}, {here['cores']} cores.",
        "",
        _row(("folder", "holds a", "config", "result")),
        "|---|---|---|---|",
    ]
    for method, outcome in results:
        why = f"{method.bound} ({_result(outcome)})" if method.bound and outcome.reason else _result(outcome)
        lines.append(_row((method.folder, method.kind, f"`{method.config.stem}`", why)))
    excluded = [method for method in chosen_methods([package], ()) if method.excluded]
    lines += ["", "Not tried:", "", _row(("folder", "reason")), "|---|---|"]
    lines += [_row((method.folder, method.excluded)) for method in excluded]
    return "\n".join(lines)


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what lies between ``<!-- name -->`` and ``<!-- end of name -->`` in a page.

    Args:
        page: The page, in Markdown.
        name: Name of the section.
        text: Its new contents.

    Raises:
        DataError: If the page has no such lines.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise DataError(
            f"{str(page)!r} has no lines {begin.strip()!r} and {end.strip()!r}: put them where the table goes"
        )
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")
