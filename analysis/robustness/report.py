"""The one-page report of an evaluation of robustness; the page is self-contained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis.robustness.evaluation import SetResult
from analysis.robustness.expected import PAPER_COLUMNS, paper_rows
from analysis.robustness.planning import CLEAN, PlannedSuite
from analysis.robustness.summary import corrupted_values, is_performance, performance_rows, severity_rows, table_value
from backbones.files import atomic_write
from engine.report.calibration import reliability_plot
from engine.report.html import CurveLine, document, facts, figure, note, number, plot, table
from engine.report.run_dir import scaled
from engine.task import Score, TaskSpec

REPORT_NAME = "report.html"
LINE_COLOURS = ("trained", "scratch", "averaged")


def write_robustness_report(
    folder: Path,
    content: Mapping[str, Any],
    suites: Sequence[PlannedSuite],
    results: Mapping[str, SetResult],
    task: TaskSpec,
) -> Path:
    """Write the report of an evaluation to its folder.

    Args:
        folder: Folder of the evaluation, which holds its pictures.
        content: Content of ``robustness.json``.
        suites: Evaluated suites.
        results: Results by the names of the sets.
        task: The task.

    Returns:
        The page.
    """
    modes = [
        text for key, text in (("averaged", "averaged weights"), ("tta", "test-time augmentation")) if content[key]
    ]
    lead = f'<p class="lead">{escape(", ".join([str(content["checkpoint"]), *modes]))}</p>'
    sections = {"Scores": _scores(content)}
    sections["Beside the paper's networks"] = _bars(content, suites) if content["table"] else ""
    for suite in suites:
        if suite.corrupted:
            heading = f"{suite.title} ({suite.kind})"
            sections[heading] = _severities(heading, suite, results, task)
    sections["Other sizes of the input"] = _sizes(content)
    sections["Calibration"] = _calibration(content["suites"].get(CLEAN, {"scores": {}})["scores"])
    sections["Worst examples"] = _worst(folder, content["worst"], pairs=not task.robustness.error_of)
    sections["How it was measured"] = _measured(content)
    page = folder / REPORT_NAME
    with atomic_write(page) as part:
        part.write_text(document(f"Robustness of {content['network']}", lead, sections), encoding="utf-8")
    return page


def _scores(content: Mapping[str, Any]) -> str:
    parts = [table(content["table"][0], content["table"][1:])] if content["table"] else []
    for summary in content["suites"].values():
        if is_performance(summary):
            head, *rows = performance_rows(summary)
            parts += [f"<h3>{escape(summary['title'])} ({summary['kind']})</h3>", table(head, rows)]
    if any(summary["kind"] == "regenerated" for summary in content["suites"].values()):
        parts.append(note("*, regenerated: made here on the test data; not to be compared with released sets"))
    if content["table"]:
        parts.append(note("Errors in percent for corruptions, lower is better; accuracies for the others."))
    return "".join(parts)


def _bars(content: Mapping[str, Any], suites: Sequence[PlannedSuite]) -> str:
    """Bars of this network and of those of Table 2.8 for each suite of the table that has its number."""
    cards = []
    for suite in suites:
        value = table_value(suite, content["suites"][suite.name]["scores"])
        if suite.name not in PAPER_COLUMNS or suite.kind == "regenerated" or value is None or not content["published"]:
            continue
        rows = [("this checkpoint", value, "trained")]
        rows += [(row.label, row.values[suite.name], "scratch") for row in paper_rows() if suite.name in row.values]
        top = max(100.0, *(found for _, found, _ in rows))
        bars = "".join(
            f'<p class="label">{escape(label)}</p><div class="bar"><span><i class="{colour}" '
            f'style="width:{100 * found / top:.1f}%"></i></span><b>{number(found)}</b></div>'
            for label, found, colour in rows
        )
        cards.append(f'<div class="card"><h3>{escape(suite.title)}</h3>{bars}</div>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _severities(heading: str, suite: PlannedSuite, results: Mapping[str, SetResult], task: TaskSpec) -> str:
    """A plot for each corruption, from the clean images at severity 0 on, and a table of the first score."""
    clean, metric = results.get(CLEAN), task.robustness.error_of
    shown = [score for score in task.scores if score.metric in results[suite.sets[0].name].metrics]
    shown = [score for score in shown if score.metric == metric] if metric else shown
    lines = {score: corrupted_values(suite, results, score.metric, score.factor) for score in shown}
    if not lines:
        return ""
    plots = [
        plot(heading, name, _curves(name, lines, clean), "severity (0: clean)") for name in next(iter(lines.values()))
    ]
    first = shown[0]
    head, *rows = severity_rows(lines[first])
    details = f"<details><summary>{escape(first.label)} in numbers</summary>{table(head, rows)}</details>"
    return f'<div class="plots">{"".join(plots)}</div>{details}'


def _curves(
    name: str, lines: Mapping[Score, Mapping[str, Sequence[float]]], clean: SetResult | None
) -> dict[str, CurveLine]:
    curves = {}
    for colour, (score, values) in zip(LINE_COLOURS, lines.items(), strict=False):
        start = [] if clean is None else [(0, scaled(clean.metrics, score) or 0.0)]
        curves[score.label] = CurveLine(colour, [*start, *enumerate(values[name], start=1)])
    return curves


def _sizes(content: Mapping[str, Any]) -> str:
    sizes = content["suites"].get("resolution")
    if sizes is None:
        return ""
    return table(["side in pixels", *sizes["scores"]], [["accuracy", *map(number, sizes["scores"].values())]])


def _calibration(scores: Mapping[str, Any]) -> str:
    """The reliability plot of the clean images."""
    if not scores.get("calibration"):
        return ""
    return reliability_plot(scores["ece"], scores["calibration"])


def _worst(folder: Path, pictures: Sequence[Mapping[str, str]], pairs: bool) -> str:
    """Pictures of inputs, or the wider ones of truth and prediction side by side."""
    figures = "".join(f'<div class="card">{figure(folder / one["file"], one["caption"])}</div>' for one in pictures)
    chosen = "; ".join(dict.fromkeys(one["chosen"] for one in pictures))
    sides = " The truth is on the left, the prediction on the right." if pairs else ""
    words = f"Of each suite, of a corrupted one of its worst set: {chosen}.{sides}"
    return f'{note(words)}<div class="gallery{" pairs" if pairs else ""}">{figures}</div>' if figures else ""


def _measured(content: Mapping[str, Any]) -> str:
    rows = {}
    for name, one in content["suites"].items():
        what = f"{one['title']}, {one['kind']}, {one['images']:,} images"
        rows[name] = f"{what}; {one['protocol']}: {one['preprocessing']}"
        if one["problems"]:
            rows[name] += f"; incomplete: {one['problems'][0]}"
    rows |= {f"absent: {line.partition(':')[0]}": line.partition(": ")[2] for line in content["absent"]}
    return facts({**rows, "command": content["command"]}) + "".join(note(line) for line in content["notes"])
