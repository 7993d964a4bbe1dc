"""The page of a study, whose first lines are the answer and how sure it is; the same as JSON, and a table as CSV."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from analysis.sweep.laws import LawComparison
from analysis.sweep.noise import Interval, RankedSetting
from analysis.sweep.report.charts import study_charts
from analysis.sweep.report.findings import (
    RateAndBatch,
    StudyFindings,
    find_answers,
    short_names,
    trial_cost,
    value_text,
)
from analysis.sweep.results import StudyResult, TrialResult
from analysis.sweep.speeds import setting_speeds, value_speeds
from backbones.files import atomic_write
from engine.report.html import NONE, document, duration, memory, note, table
from engine.report.run_dir import write_json

STUDY_PAGE, STUDY_DATA, TRIAL_TABLE = "study.html", "study.json", "trials.csv"
MAX_TABLE_ROWS = 30  # of a table; the CSV has all
MAX_COMMANDS = 3
CERTAINTY = "95 %"


def write_study_report(study: StudyResult, folder: Path) -> Path:
    """Write the report of a study, which may be running.

    Args:
        study: Study to report.
        folder: Folder of the files; it is made where it is absent.

    Returns:
        Path of the page, beside which ``study.json`` and ``trials.csv`` lie.
    """
    findings = find_answers(study)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STUDY_DATA, study_data(study, findings))
    for name, text in ((TRIAL_TABLE, trial_table(study)), (STUDY_PAGE, render_study(study, findings))):
        with atomic_write(folder / name) as place:
            place.write_text(text, encoding="utf-8")
    return folder / STUDY_PAGE


def study_data(study: StudyResult, findings: StudyFindings) -> dict[str, Any]:
    """The study and its findings as plain data; numbers that are not finite are ``None``."""
    found = asdict(findings)
    if findings.rate_and_batch is not None:
        grid = findings.rate_and_batch.grid
        found["rate_and_batch"]["grid"] = [{"batch": b, "lr": r, "score": score} for (b, r), score in grid.items()]
    return {"study": _plain(asdict(study)), "findings": _plain(found)}


def trial_table(study: StudyResult) -> str:
    """All trainings as CSV, one in each line."""
    names = list(study.space)
    facts = ["state", "score", "rung", "hours", "gpu_hours", "steps_per_second", "images_per_second"]
    facts += ["peak_memory_bytes", "utilisation", "data_wait", "parameters", "work_dir", "command", "reason"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "seed", *names, *facts])
    for run in study.trials:
        settings = [run.settings.get(name, "") for name in names]
        values = ("" if (value := getattr(run, fact)) is None else value for fact in facts)
        writer.writerow([run.number, run.seed, *settings, *values])
    return file.getvalue()


def render_study(study: StudyResult, findings: StudyFindings) -> str:
    """The page as self-contained HTML."""
    charts = study_charts(study, findings)
    sections = {
        "Best settings": _best(study, findings),
        "What is not resolved": _list(findings.open_questions),
        "Rate and batch": _law_section(findings.rate_and_batch, charts["rate_and_batch"]),
        "What each setting is worth": _importances(findings) + _gallery(charts["settings"]),
        "Curves": _gallery(charts["curves"]),
        "Score and cost": _gallery(charts["cost"]) + _costs(study, findings),
        "Speed and memory": _speeds(study, findings),
        "Failures": _failures(study),
        "The study": _about(study),
    }
    return document(study.title or study.name, _answer(study, findings), sections)


def _answer(study: StudyResult, findings: StudyFindings) -> str:
    """The answer in words, with its certainty: what a phone shows first."""
    ranking, metric = findings.ranking, study.objective.metric
    states = [run.state for run in study.trials]
    done = sum(state in ("finished", "pruned", "failed") for state in states)
    progress = f"{done} of {len(states)} trainings ended"
    progress += "".join(f", {states.count(one)} {one}" for one in ("pruned", "failed") if one in states)
    if ranking is None:
        return f'<p class="state faint">No answer yet: {escape(progress)}.</p>'
    first = ranking.settings[0]
    label, estimate = findings.labels[int(first.name)], first.estimate
    seeds = f"{len(estimate.values)} seed{'s' if len(estimate.values) > 1 else ''}"
    between = f", {CERTAINTY} interval {_range(estimate.t_interval)}" if estimate.t_interval else ""
    parts = [
        f'<p class="big">{escape(_text(estimate.mean))} <small>{escape(metric)}</small></p>',
        f'<p class="lead"><b>{escape(label)}</b> scores best: mean of {escape(seeds + between)}.</p>',
        f'<p class="state{"" if ranking.resolved else " wrong"}">{escape(_certainty(study, findings))}</p>',
    ]
    if (found := findings.rate_and_batch) is not None and found.laws is not None:
        parts.append(f'<p class="lead">{escape(_law_words(found.laws))}</p>')
    return "".join(parts) + note(f"{progress} · written {datetime.now().astimezone():%Y-%m-%d %H:%M}")


def _certainty(study: StudyResult, findings: StudyFindings) -> str:
    """How sure it is that the first setting is the best, in a sentence or two."""
    assert findings.ranking is not None
    ranking = findings.ranking
    if len(ranking.settings) == 1:
        return "It is the only setting that is finished at full length: there is nothing to compare it with."
    second = ranking.settings[1]
    behind = second.behind
    assert behind is not None
    gap = f"{_text(abs(behind.mean))} better than the next one ({findings.labels[int(second.name)]})"
    if behind.t_interval is not None:
        gap += f", interval of the difference {_range(_ordered(behind.t_interval))}"
    if ranking.resolved:
        return f"Resolved: {gap}; all others are excluded at {CERTAINTY}."
    rivals = sum(one.may_be_best for one in ranking.settings[1:])
    words = f"Not resolved: {rivals} other setting{'s' if rivals > 1 else ''} may be the best. It is {gap}"
    if behind.t_interval is None:
        return f"{words}: {behind.reason}."
    if not ranking.more_seeds:
        return f"{words}."
    return f"{words}. About {ranking.more_seeds} more seeds of both (--more-seeds) would tell the two apart."


def _best(study: StudyResult, findings: StudyFindings) -> str:
    if findings.ranking is None:
        return note("No setting is finished with all of its seeds.")
    rows = [_ranked_row(one, findings) for one in findings.ranking.settings[:MAX_TABLE_ROWS]]
    head = ["setting", study.objective.metric, "by t", "bootstrap", "seeds", "behind the best", "may be the best"]
    text = table(head, rows)
    words = "Mean over seeds with its 95 % intervals; the difference to the best is paired by seed, its interval "
    words += "holds for all comparisons together. The settings that may be the best hold the true best one with 95 %."
    if len(findings.ranking.settings) > MAX_TABLE_ROWS:
        words += f" The first {MAX_TABLE_ROWS} of {len(findings.ranking.settings)}; {STUDY_DATA} has all."
    text += note(words)
    compared = study.compared()
    for one in findings.ranking.settings[:MAX_COMMANDS]:
        run = compared[int(one.name)][0]
        text += f"<h3>{escape(findings.labels[run.number])}</h3><pre>{escape(ready_command(study, run))}</pre>"
    return text


def _ranked_row(one: RankedSetting, findings: StudyFindings) -> list[str]:
    estimate, behind = one.estimate, one.behind
    gap = NONE
    if behind is not None:
        gap = _text(abs(behind.mean))
        gap += f" ({_range(_ordered(behind.t_interval))})" if behind.t_interval else ""
    return [
        f"#{one.name}: {findings.labels[int(one.name)]}",
        _text(estimate.mean),
        _range(estimate.t_interval),
        _range(estimate.bootstrap_interval),
        str(len(estimate.values)),
        gap,
        "yes" if one.may_be_best else "no",
    ]


def ready_command(study: StudyResult, run: TrialResult) -> str:
    """The command that trains with the settings of a training again, into a folder of its own."""
    words = shlex.split(run.command)
    folder = f"work_dirs/{study.name}_{run.number:04d}"
    for index, word in enumerate(words[:-1]):
        if word == "--work-dir":
            words[index + 1] = folder
    words = [word for word in words if word != "--resume"]
    return shlex.join(words)


def _law_section(found: RateAndBatch | None, charts: Sequence[str]) -> str:
    if found is None:
        return ""
    parts = [_gallery(charts)]
    if found.best:
        rows = []
        for batch, best in found.best.items():
            side = {"low": "or below the rates tried", "high": "or above the rates tried"}.get(best.border, "")
            rows.append([f"{batch:g}", _text(best.rate), _range(best.interval), side])
        parts.append(table(["batch", "best rate", f"{CERTAINTY} interval", ""], rows))
    if found.laws is not None:
        rows = [
            [
                name,
                _text(fit.rate(min(found.best))),
                NONE if fit.peak_batch is None else f"{_text(fit.peak_batch)} ({_range(fit.peak_interval)})",
                _text(fit.aicc),
                f"{fit.p_value:.3f}",
                "no" if fit.excluded else "yes",
            ]
            for name, fit in found.laws.fits.items()
        ]
        first = f"rate at batch {min(found.best):g}"
        parts.append(table(["law", first, "peak batch (interval)", "AICc", "p", "possible"], rows))
        parts.append(f"<p>{escape(_law_words(found.laws))}</p>")
    if (scale := found.noise_scale) is not None:
        between = f" (interval {_range(scale.interval)})" if scale.interval else ""
        parts.append(f"<p>Noise scale from the time to the same score: {_text(scale.noise_scale)} images{between}.</p>")
    if found.measured:
        low, high = min(found.measured), max(found.measured)
        parts.append(f"<p>Noise scale of the gradients at the end: {_text(low)} to {_text(high)} images.</p>")
    return "".join(parts) + "".join(map(note, found.notes))


def _law_words(laws: LawComparison) -> str:
    if laws.preferred is None:
        return f"How the best rate follows the batch is not resolved: {laws.reason}."
    fit = laws.fits[laws.preferred]
    words = f"The best rate follows the {laws.preferred} law: {laws.reason or 'the others are excluded'}"
    if fit.peak_batch is not None:
        words += f"; its peak is {_text(fit.scale)} at a batch of {_text(fit.peak_batch)} ({_range(fit.peak_interval)})"
    return f"{words}."


def _importances(findings: StudyFindings) -> str:
    if not findings.importances:
        return ""
    names = sorted({name for of_method in findings.importances.values() for name in of_method})
    rows = [[name, *(f"{of_method.get(name, 0):.0%}" for of_method in findings.importances.values())] for name in names]
    return table(["share of the differences in score", *findings.importances], rows)


def _costs(study: StudyResult, findings: StudyFindings) -> str:
    compared = study.compared()
    if not findings.times or findings.ranking is None:
        return ""
    order = [int(one.name) for one in findings.ranking.settings[:MAX_TABLE_ROWS]]
    rows = []
    for number in order:
        time, runs = findings.times[number], compared[number]
        reached = f"{time.reached} of {time.seeds}"
        longest = max((run.curve[-1][0] for run in runs if run.curve), default=0)
        at = f"not in {longest:g}" if time.at is None else f"{time.at:.4g}"
        hours = [_duration(time.hours), _duration(time.gpu_hours), _duration(trial_cost(runs, "gpu_hours"))]
        rows.append([f"#{number}: {findings.labels[number]}", reached, at, *hours])
    unit = f"{study.trials[0].unit}s"
    head = ["setting", "seeds that reach it", unit, "time", "GPU time", "whole GPU time"]
    target = f"{study.objective.metric} {_text(findings.target or 0)}"
    words = "Medians over seeds; known where more than half of the seeds reach it. Without GPUs, process time."
    return f"<h3>{escape(f'Time to {target}')}</h3>" + table(head, rows) + note(words)


def _speeds(study: StudyResult, findings: StudyFindings) -> str:
    speeds = setting_speeds(study)
    if not speeds:
        return ""
    parts = []
    for name, values in value_speeds(study, speeds).items():
        if any(one.pairs and one.speed is not None for one in values[1:]):
            rows = [[value_text(one.value), _times(one.speed), _times(one.memory), str(one.pairs)] for one in values]
            parts.append(table([short_names(list(study.space))[name], "images/s", "peak memory", "settings"], rows))
    if parts:
        parts.append(note("Against the first value, between settings that differ in nothing else."))
    rows = [
        [
            f"#{number}: {findings.labels[number]}",
            NONE if one.images_per_second is None else _text(one.images_per_second),
            NONE if one.steps_per_second is None else _text(one.steps_per_second),
            NONE if one.peak_memory_bytes is None else memory(one.peak_memory_bytes),
            NONE if one.utilisation is None else f"{one.utilisation:.0%}",
            NONE if one.data_wait is None else f"{one.data_wait:.0%}",
        ]
        for number, one in list(speeds.items())[:MAX_TABLE_ROWS]
    ]
    head = ["setting", "images/s", "steps/s", "peak memory", "GPU utilisation", "waiting for data"]
    return "".join(parts) + table(head, rows)


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x"


def _failures(study: StudyResult) -> str:
    lines = [
        f"#{run.number}, seed {run.seed}: {run.state}: {run.reason or 'no reason is known'}"
        for run in study.trials
        if run.state in ("failed", "interrupted")
    ]
    return _list(lines)


def _about(study: StudyResult) -> str:
    rows = [[name, str(declared)] for name, declared in study.space.items()]
    lines = [table(["dimension", "values"], rows)] if rows else []
    lines.append(note(f"{study.config}; seeds {', '.join(map(str, study.seeds))}; {len(study.trials)} trainings"))
    # Optuna's own viewer is a package apart.
    lines.append(f"<pre>optuna-dashboard {escape(shlex.quote(study.storage))}</pre>")
    return "".join(lines)


def _gallery(charts: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(charts)}</div>' if charts else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "∞"


def _range(interval: Interval | None) -> str:
    return NONE if interval is None else f"{_text(interval.low)} to {_text(interval.high)}"


def _ordered(interval: Interval) -> Interval:
    """The interval of a difference as how much better the first is, whichever direction is better."""
    if interval.low + interval.high < 0:
        return Interval(-interval.high, -interval.low)
    return interval


def _duration(hours: float | None) -> str:
    return NONE if hours is None else duration(3600 * hours)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
