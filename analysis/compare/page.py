"""The page that compares trainings, whose first lines are the answer and how sure it is; the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.compare.differences import NOT_STATED, find_circumstances, find_differences, folded, labelled
from analysis.compare.images import MIN_DIFFERENCE, ComparedImages, compare_images
from analysis.compare.runs import ComparedSetting, TrainingRun, group_by_setting, read_runs, task_of_runs
from analysis.compare.scores import (
    AVERAGED_PREFIX,
    BEST_VALIDATION,
    LAST_VALIDATION,
    VALIDATION,
    ComparedScore,
    behind,
    compare_scores,
    main_score,
    score_data,
)
from analysis.sweep.noise import CONFIDENCE, RankedSetting, estimate_mean
from analysis.sweep.report.findings import value_text
from engine.report.gallery import SCRIPT, gallery
from engine.report.html import (
    CURVE_COLOURS,
    NONE,
    CurveLine,
    bars,
    document,
    duration,
    memory,
    note,
    plot,
    table,
    thinned,
)
from engine.report.run_dir import Points, numbers_file, write_page
from engine.task import VALIDATION_LOSS, VALIDATION_LOSS_LABEL, Score, TaskSpec

MAX_VALUE = 300  # characters of a setting's value on the page; the JSON has all
INTERVAL_LEVEL = f"{100 * CONFIDENCE:g} %"
TRAINING_CURVES = {
    "train/loss": "training loss",
    f"{VALIDATION}{VALIDATION_LOSS}": VALIDATION_LOSS_LABEL,
    "train/lr": "learning rate (of the first group)",
    "train/grad_norm": "norm of the gradient",
}


@dataclass(frozen=True)
class ComparisonPage:
    """A page that was written.

    Attributes:
        page: File.
        data: The same as JSON.
        answer: First line of the page, as text.
        gaps: Limits of the comparison, a line each.
    """

    page: Path
    data: Path
    answer: str
    gaps: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """All that is known of the compared trainings.

    Attributes:
        task: Their task.
        settings: Trainings that differ in nothing but the seed, with labels.
        differences: Settings of the configs that differ, by dotted key, in the order of ``settings``.
        circumstances: Facts beside the settings that differ, likewise.
        scores: Scores.
        images: Images on which predictions differ.
        gaps: Limits of the comparison, a line each.
    """

    task: TaskSpec
    settings: Sequence[ComparedSetting]
    differences: Mapping[str, Sequence[Any]]
    circumstances: Mapping[str, Sequence[str]]
    scores: Sequence[ComparedScore]
    images: ComparedImages
    gaps: Sequence[str]


def compare_trainings(folders: Sequence[Path], out: Path | None = None) -> ComparisonPage:
    """Compare finished and running trainings, and write the page and the JSON beside it.

    Args:
        folders: Run folders.
        out: Page; by default ``compare.html`` beside the first folder.

    Raises:
        UserError: If the folders are no trainings of one task, or the page cannot be written.
    """
    page = folders[0].resolve().parent / "compare.html" if out is None else out
    data = numbers_file(page)
    found = compare(folders)
    write_page(page, render_comparison(found), comparison_data(found))
    return ComparisonPage(page, data, answer_lines(found)[0], found.gaps)


def compare(folders: Sequence[Path]) -> Comparison:
    """Read and compare trainings.

    Raises:
        UserError: If the folders are no trainings of one task.
    """
    runs = read_runs(folders)
    task, cfg, reasons = task_of_runs(runs)
    settings = group_by_setting(runs)
    differences = find_differences(settings)
    settings = labelled(settings, differences)
    same_classes = len({str(run.classes) for run in runs if run.config is not None}) < 2
    scores = compare_scores(settings, task, ranked=same_classes)
    images = compare_images(settings, task, cfg if same_classes else None)
    gaps = [*_gaps(settings, differences, same_classes), *reasons]
    if same_classes:
        gaps += images.gaps
    return Comparison(task, settings, differences, find_circumstances(settings), scores, images, gaps)


def _gaps(
    settings: Sequence[ComparedSetting], differences: Mapping[str, Sequence[Any]], same_classes: bool
) -> list[str]:
    """What limits the comparison, a line each."""
    lines = []
    for one in settings:
        for run in one.runs:
            if not run.is_finished:
                at = f"step {run.step} of {run.steps}" if run.step is not None else "no step yet"
                state = run.outcome or "no record of its end"
                lines.append(f"{run.name} is not finished ({state}, {at}): its scores are shown and not ranked")
            if run.problem:
                lines.append(f"{run.name}: {run.problem}: its settings are not compared")
            if not any(name.startswith(VALIDATION) for name in run.curves) and not run.tests:
                nothing = "has no number among its scores" if run.validated else "has no validation yet: no scores"
                lines.append(f"{run.name} {nothing}")
            if run.seed is None:
                lines.append(f"{run.name}: its seed is not known, it is not put together with others")
    if not same_classes:
        lines.append("the trainings have other classes: scores of other problems are not ranked, images not compared")
    data = [key for key in differences if key.startswith("val_dataloader.dataset.") and ".pipeline." not in key]
    data = [key for key in data if ".metainfo." not in key]
    if data and same_classes:
        lines.append(f"the validation data is stated differently ({data[0]}): scores may be of other images")
    for place, one in enumerate(settings):
        twins = [other for other in settings[:place] if _same_but_in_time(one, other)]
        if twins:
            lines.append(f"{one.letter} has the settings and a seed of {twins[0].letter}: compared as another setting")
    if len(settings) > len(CURVE_COLOURS):
        lines.append(f"curves of the first {len(CURVE_COLOURS)} settings are drawn, of {len(settings)}")
    return lines


def _same_but_in_time(one: ComparedSetting, other: ComparedSetting) -> bool:
    """Whether two settings are the same, and a seed is in both."""
    same = one.config is not None and find_differences([one, other]) == {}
    return same and bool({run.seed for run in one.runs} & {run.seed for run in other.runs})


def answer_lines(found: Comparison) -> list[str]:
    """The answer in words: which setting scores best, and how certain that is."""
    main = main_score(found.scores)
    if main is None:
        return ["No answer: there are no two settings with finished trainings whose scores can be ranked."]
    score, place = main
    ranking = score.rankings[place]
    label = {one.letter: one.label for one in found.settings}
    first, second = ranking.settings[0], ranking.settings[1]
    count = len(first.estimate.values)
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    lines = [f"{label[first.name]} scores best: {score.score.label} {_text(first.estimate.mean)} ({seeds}, {place})"]
    if ranking.resolved:
        lines.append(f"All others are behind it, {INTERVAL_LEVEL} certain; next is {_distance(second, score)}.")
    else:
        rivals = [one for one in ranking.settings[1:] if one.may_be_best]
        reason = rivals[0].behind.reason if rivals[0].behind else ""
        names = ", ".join(label[one.name] for one in rivals)
        lines.append(f"Not resolved: {names} may be as good ({reason}).")
        if ranking.more_seeds:
            lines.append(f"About {ranking.more_seeds} more seeds of the first two would tell them apart.")
    return lines


def _distance(one: RankedSetting, score: ComparedScore) -> str:
    """How far a setting is behind the best one, with the interval."""
    distance = behind(one, score.higher_is_better)
    if distance is None:
        return NONE
    value, limits = distance
    return f"{_text(value)} behind" + ("" if limits is None else f" ({_text(limits.low)} to {_text(limits.high)})")


def render_comparison(found: Comparison) -> str:
    """The page as self-contained HTML."""
    sections = {
        "The trainings": _trainings(found),
        "What to know": _list(found.gaps),
        "Settings that differ": _differences(found),
        "Scores": _scores(found),
        "Curves": _curves(found),
        "Speed and memory": _speeds(found),
        "One right, another wrong": _images(found),
    }
    first, *others = answer_lines(found)
    unsure = any(line.startswith("Not resolved") for line in others) or first.startswith("No answer")
    lead = f'<p class="lead"><b>{escape(first)}</b></p>'
    lead += "".join(f'<p class="state{" faint" * unsure}">{escape(line)}</p>' for line in others)
    return document(f"{found.task.name.capitalize()}: {_count(found)}", lead, sections)


def _count(found: Comparison) -> str:
    runs, settings = sum(len(one.runs) for one in found.settings), len(found.settings)
    return f"{runs} trainings in {settings} setting{'s' if settings > 1 else ''}"


def _trainings(found: Comparison) -> str:
    rows = [
        [one.label, run.name, _seed(run), run.outcome or NONE, f"{_steps(run.step)} of {_steps(run.steps)}"]
        for one in found.settings
        for run in one.runs
    ]
    return table(["setting", "run folder", "seed", "state", "steps"], rows)


def _differences(found: Comparison) -> str:
    head = ["setting", *(one.letter for one in found.settings)]
    rows = []
    for key, (others, values) in folded(found.differences).items():
        again = f" (and {len(others)} further key{'s' if len(others) > 1 else ''} of that name)" if others else ""
        rows.append([key + again, *(_value(value) for value in values)])
    rows += [[name, *values] for name, values in found.circumstances.items()]
    if not rows:
        return note("None: the trainings differ in the seed alone.")
    words = "Of the resolved configs. Code, processes, device and torch are those of the last start."
    return table(head, rows) + note(f"{words} The JSON has every key.")


def _value(value: Any) -> str:
    text = NOT_STATED if value == NOT_STATED else value_text(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


def _scores(found: Comparison) -> str:
    if not found.scores:
        return note("There was no validation yet.")
    stated = {score.metric for score in found.task.scores}
    main = [one for one in found.scores if one.metric.removeprefix(AVERAGED_PREFIX) in stated]
    others = [one for one in found.scores if one not in main]
    if not main:
        main, others = others, []
    parts = [_score_table(one, found) for one in main]
    parts.append(
        note(
            "Mean ± standard deviation of the sample over seeds. Intervals hold the mean with 95 % (Student's t); "
            "those of differences hold all at once with 95 % (Bonferroni), paired by seed where two seeds are common. "
            "Best: of each training the best validation, too good by the choice."
        )
    )
    if others:
        folded_away = "".join(_score_table(one, found) for one in others)
        parts.append(f"<details><summary>{len(others)} further metrics</summary>{folded_away}</details>")
    return "".join(parts)


def _score_table(one: ComparedScore, found: Comparison) -> str:
    """The settings at each place, those of a place below each other."""
    head = ["setting", "of", "score", f"{INTERVAL_LEVEL} of the mean", "behind the best", "certain"]
    tests = [place for place in one.values if place not in (LAST_VALIDATION, BEST_VALIDATION)]
    rows = [
        [setting.label, place, *_score_cells(one, place, setting)]
        for place in (LAST_VALIDATION, *tests, BEST_VALIDATION)
        for setting in found.settings
        if setting.letter in one.values.get(place, {})
    ]
    reasons = [
        f"{place}, {ranked.name}: {ranked.behind.reason}"
        for place, ranking in one.rankings.items()
        for ranked in ranking.settings
        if ranked.behind is not None and not ranked.behind.resolved
    ]
    words = f"Not resolved: {'; '.join(reasons)}." if reasons else ""
    return f"<h3>{escape(one.score.label)}</h3>" + table(head, rows) + (note(words) if words else "")


def _score_cells(one: ComparedScore, place: str, setting: ComparedSetting) -> list[str]:
    """Mean, interval, distance to the best and certainty of a setting."""
    scores = one.values[place][setting.letter]
    estimate = estimate_mean(list(scores.values()))
    spread = "" if estimate.std is None else f" ± {_text(estimate.std, 3)}"
    part = f" ({len(scores)} of {len(setting.runs)} seeds)" if len(scores) < len(setting.runs) else ""
    limits = estimate.t_interval
    cells = [_text(estimate.mean) + spread + part, f"{_text(limits.low)} to {_text(limits.high)}" if limits else NONE]
    ranked = one.ranked(place, setting.letter)
    if ranked is None:
        return [*cells, NONE, NONE if setting.is_finished else "not finished"]
    if ranked.behind is None:
        return [*cells, "best", NONE]
    return [*cells, _distance(ranked, one), "yes" if ranked.behind.resolved else "not resolved"]


def folded_curve(curves: Sequence[Points]) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """The mean of the curves of several seeds, and their lowest and highest value, at the steps that all have."""
    values: list[dict[float, float]] = [dict(points) for points in curves]
    steps = sorted(set.intersection(*(set(one) for one in values)))
    at = {step: [one[step] for one in values] for step in steps}
    band = [(step, min(found), max(found)) for step, found in at.items()] if len(curves) > 1 else []
    return [(step, fmean(found)) for step, found in at.items()], band


def _drawn_curves(found: Comparison) -> dict[str, Score]:
    """The curves of the page: their names, titles and scales."""
    names = {name for one in found.settings for run in one.runs for name in run.curves}
    drawn = {name: Score(title, name) for name, title in TRAINING_CURVES.items()}
    scores = {one.metric: one.score for one in found.scores}
    stated = [score.metric for score in found.task.scores] or [name for name in scores if "loss" not in name]
    for metric in stated:
        for name in (metric, AVERAGED_PREFIX + metric):
            if name in scores:
                label = f"{scores[name].label} on held-out data"
                drawn[VALIDATION + name] = Score(label, name, scores[name].factor)
    order = ["train/loss", *(name for name in drawn if name.startswith(VALIDATION)), "train/lr", "train/grad_norm"]
    return {name: drawn[name] for name in dict.fromkeys(order) if name in names}


def _curves(found: Comparison) -> str:
    plots = []
    for name, score in _drawn_curves(found).items():
        lines = {}
        for colour, one in zip(CURVE_COLOURS, found.settings):
            curves = [run.curves[name] for run in one.runs if run.curves.get(name)]
            if curves:
                points, band = folded_curve(curves)
                lines[one.label] = CurveLine(colour, points, score.factor, band)
        plots.append(plot("", score.label, lines))
    words = "Of a setting with several seeds, the mean; the band reaches from the lowest to the highest of them."
    several = any(len(one.runs) > 1 for one in found.settings)
    drawn = "".join(plots)
    return f'<div class="plots">{drawn}</div>' + note(words) * several if drawn else note("Nothing was logged yet.")


def _speeds(found: Comparison) -> str:
    rows = []
    for one in found.settings:
        for run in one.runs:
            speed = run.speed
            seconds, images, waiting = speed["step_seconds"], speed["images_per_second"], speed["data_wait"]
            rows.append(
                [
                    f"{one.letter}: {run.name}",
                    NONE if not seconds else f"{1 / seconds:.3g}",
                    NONE if not images else f"{images:.4g}",
                    NONE if waiting is None else f"{waiting:.0%}",
                    memory(int(speed["gpu_memory_bytes"] or 0)),
                    memory(int(speed["memory_bytes"] or 0)),
                    NONE if not speed["seconds"] else duration(speed["seconds"]),
                    run.circumstances["device"],
                ]
            )
    head = ["training", "steps/s", "images/s", "waiting for data", "GPU memory", "memory", "duration", "device"]
    words = (
        "From the logs: steps between validations, the median of what was logged; peak memory of the GPU's tensors and "
        "of the main process; duration of all starts. A machine that had other work says little about speed."
    )
    return table(head, rows) + note(words)


def _images(found: Comparison) -> str:
    parts = []
    labels = {one.letter: one.label for one in found.settings}
    for pair in found.images.pairs:
        parts.append(f"<h3>{escape(labels[pair.first])} against {escape(labels[pair.second])}</h3>")
        parts.append(bars([(what, count, f"{count:,}") for what, count in pair.counts.items()]))
        shown = (
            f"{len(pair.images):,} images of which one alone is right, or better by {MIN_DIFFERENCE} points; "
            f"{len(pair.cards):,} are shown, those with the largest difference of each kind."
        )
        parts.append((note(shown) if pair.images else note("No image differs.")) + gallery(pair.cards))
    if not parts:
        return ""
    words = (
        f"{found.images.words} With several seeds: right with all of them, or with none; the pictures are of the "
        f"first. Predictions of {', '.join(found.images.sources)}."
    )
    return note(words) + "".join(parts) + SCRIPT


def comparison_data(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON takes it."""
    letters = [one.letter for one in found.settings]
    return {
        "task": found.task.name,
        "answer": answer_lines(found),
        "gaps": list(found.gaps),
        "settings": {
            one.letter: {"label": one.label, "runs": [_run_data(run) for run in one.runs]} for one in found.settings
        },
        "differences": {key: dict(zip(letters, values, strict=True)) for key, values in found.differences.items()},
        "circumstances": {key: dict(zip(letters, values, strict=True)) for key, values in found.circumstances.items()},
        "scores": {one.metric: score_data(one) for one in found.scores},
        "curves": {name: _curve_data(name, found) for name in _drawn_curves(found)},
        "images": [
            {
                "first": pair.first,
                "second": pair.second,
                "counts": dict(pair.counts),
                "differ": [{"index": one.index, "kinds": dict(one.kinds)} for one in pair.images],
            }
            for pair in found.images.pairs
        ],
    }


def _run_data(run: TrainingRun) -> dict[str, Any]:
    stated = {"folder": str(run.folder), "seed": run.seed, "state": run.outcome, "step": run.step, "steps": run.steps}
    return {**stated, **run.speed, **run.circumstances}


def _curve_data(name: str, found: Comparison) -> dict[str, Any]:
    """The curves as drawn, on the scale of the log: mean, and lowest and highest of several seeds."""
    data = {}
    for one in found.settings:
        if curves := [run.curves[name] for run in one.runs if run.curves.get(name)]:
            points, band = folded_curve(curves)
            data[one.letter] = {"mean": thinned(points), "band": thinned(band)}
    return data


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _text(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


def _seed(run: TrainingRun) -> str:
    return NONE if run.seed is None else str(run.seed)


def _steps(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"
