"""Charts of a study's report, each an SVG picture that loads nothing and fits a narrow screen."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
import optuna.visualization.matplotlib as optuna_plots
from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna import Study

from analysis.sweep.laws import SURGE
from analysis.sweep.report.findings import (
    RateAndBatch,
    StudyFindings,
    plain_study,
    trial_cost,
)
from analysis.sweep.results import StudyResult, mean_score

WIDTH, HEIGHT = 4.6, 3.2  # inches; a phone shows the picture at about this size
MAX_CONTOUR_DIMENSIONS = 4
MAX_NAMED_TRIALS = 8  # curves with an entry in the legend
LINES = {"linear": ":", "sqrt": "--", "constant": "-.", SURGE: "-"}


def study_charts(study: StudyResult, findings: StudyFindings) -> dict[str, list[str]]:
    """Draw all charts.

    Args:
        study: Study to draw.
        findings: Its evaluation.

    Returns:
        HTML of the charts of each section of the page by the section's name: ``curves``, ``settings``,
        ``rate_and_batch`` and ``cost``; charts for which there is not enough data are left out.
    """
    charts: dict[str, list[str]] = {"curves": [], "settings": [], "rate_and_batch": [], "cost": []}
    with _style():
        if any(trial.curve for trial in study.trials):
            charts["curves"].append(_drawn(lambda axes: _curves(axes, study, findings), "Curves of all trainings"))
        compared = study.compared()
        if len(compared) > 1:
            charts["settings"] = _optuna_charts(plain_study(study), study.objective.metric)
            for cost, label in (("gpu_hours", "GPU hours of a training"), ("parameters", "parameters of the model")):
                if len({trial_cost(runs, cost) for runs in compared.values()} - {None}) > 1:
                    draw = _pareto_drawer(study, findings, cost, label)
                    charts["cost"].append(_drawn(draw, f"{study.objective.metric} against {label}"))
        if (found := findings.rate_and_batch) is not None and found.grid:
            title = f"Mean {study.objective.metric} of each rate and batch, and the laws"
            charts["rate_and_batch"].append(_drawn(lambda axes: _rate_and_batch(axes, found, study), title))
    return charts


@contextmanager
def _style() -> Iterator[None]:
    """Plots of any size in the same letters; text stays text, and the picture does not change from call to call."""
    settings: Any = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "study", "figure.dpi": 100}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        yield


def _drawn(draw: Callable[[Axes], None], title: str) -> str:
    """A chart drawn by a function on axes of its own."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    draw(figure.subplots())
    return _picture(figure, title)


def _picture(figure: Figure, title: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    data = base64.b64encode(file.getvalue().encode()).decode()
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(title)}">{caption}</figure>'


def _curves(axes: Axes, study: StudyResult, findings: StudyFindings) -> None:
    """The validations of all trainings; those of the best settings in colour."""
    order = [int(one.name) for one in findings.ranking.settings] if findings.ranking else []
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    named = {number: colours[index] for index, number in enumerate(order[:MAX_NAMED_TRIALS])}
    for trial in sorted(study.trials, key=lambda trial: trial.number in named):
        if trial.curve:
            places, scores = zip(*trial.curve, strict=True)
            colour = named.get(trial.number, "0.75")
            axes.plot(places, scores, color=colour, linewidth=1, marker="." if len(places) < 30 else "")
    for number, colour in named.items():
        axes.plot([], [], color=colour, label=f"#{number}")
    axes.set(xlabel=f"{study.trials[0].unit}s", ylabel=study.objective.metric)
    if named:
        axes.legend(title="best settings", ncols=2, fontsize=7)


def _optuna_charts(made: Study, metric: str) -> list[str]:
    """Optuna's own: importance is in the page as a table; here parallel coordinates, slices and contours."""
    names = sorted({name for trial in made.trials for name in trial.params})
    varied = [name for name in names if len({trial.params.get(name) for trial in made.trials}) > 1]
    if not varied:
        return []
    plots: dict[str, Callable[[], Any]] = {
        "Slices: scores over each setting": lambda: optuna_plots.plot_slice(made, params=varied, target_name=metric)
    }
    if len(varied) > 1:
        plots["Parallel coordinates: a line is a setting"] = lambda: optuna_plots.plot_parallel_coordinate(
            made, params=varied, target_name=metric
        )
        chosen = varied[:MAX_CONTOUR_DIMENSIONS]
        plots["Contours between each two settings"] = lambda: optuna_plots.plot_contour(
            made, params=chosen, target_name=metric
        )
    return [_from_optuna(draw, title) for title, draw in plots.items()]


def _from_optuna(draw: Callable[[], Any], title: str) -> str:
    """A chart of Optuna, which draws with pyplot and returns one axes or an array of them."""
    before = set(pyplot.get_fignums())
    with matplotlib.rc_context():  # Optuna chooses a style of its own
        axes = np.atleast_1d(np.asarray(draw(), dtype=object)).ravel()
        figure: Figure = axes[0].figure
        for one in axes:
            one.set_title("")
        figure.set_size_inches(WIDTH, HEIGHT if len(axes) < 4 else 1.3 * WIDTH)
        picture = _picture(figure, title)
    for number in set(pyplot.get_fignums()) - before:
        pyplot.close(number)
    return picture


def _pareto_drawer(study: StudyResult, findings: StudyFindings, cost: str, label: str) -> Callable[[Axes], None]:
    compared = study.compared()
    costs = {number: trial_cost(runs, cost) for number, runs in compared.items()}
    points = {number: (value, mean_score(compared[number])) for number, value in costs.items() if value is not None}
    front = findings.pareto[cost]

    def draw(axes: Axes) -> None:
        costs, scores = zip(*points.values(), strict=True)
        axes.plot(costs, scores, "o", color="0.6", markersize=4)
        if front:
            costs, scores = zip(*(points[number] for number in front), strict=True)
            axes.plot(costs, scores, "o-", color="tab:blue", markersize=4)
        for number in front:
            axes.annotate(f"#{number}", points[number], textcoords="offset points", xytext=(3, 4))
        axes.set(xlabel=label, ylabel=study.objective.metric)

    return draw


def _rate_and_batch(axes: Axes, found: RateAndBatch, study: StudyResult) -> None:
    """Scores as coloured points over batch and rate, best rates with their intervals, and the laws through them."""
    batches, rates = zip(*found.grid, strict=True)
    shown = _clipped(list(found.grid.values()), study.objective.direction == "maximize")
    image = axes.scatter(batches, rates, c=shown, s=90, marker="s", cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label=study.objective.metric)
    for batch, best in found.best.items():
        bounds = best.interval or (best.rate, best.rate)
        low, high = max(bounds[0], min(rates)), min(bounds[1], max(rates))
        axes.plot([batch, batch], [low, high], color="red", linewidth=1.2)
        axes.plot([batch], [best.rate], {"low": "v", "high": "^"}.get(best.border, "x"), color="red")
    if found.laws is not None:
        line = np.geomspace(min(batches), max(batches), 60)
        for name, fit in found.laws.fits.items():
            colour = "black" if name == found.laws.preferred else "0.5"
            axes.plot(line, [fit.rate(batch) for batch in line], LINES[name], color=colour, linewidth=1, label=name)
        axes.legend(fontsize=7, ncols=len(LINES), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.set(xscale="log", yscale="log", xlabel="global batch, images", ylabel="learning rate")
    axes.set_ylim(min(rates) / 1.6, max(rates) * 1.6)
    axes.set_xticks(sorted(set(batches)), [f"{batch:g}" for batch in sorted(set(batches))])
    axes.minorticks_off()


def _clipped(values: Sequence[float], greater_is_better: bool) -> list[float]:
    """Scores for a colour scale: those of the worse half do not take up the colours of the better one."""
    middle = float(np.median(values))
    best = max(values) if greater_is_better else min(values)
    limit = middle - 2 * (best - middle)
    clip = max if greater_is_better else min
    return [clip(value, limit) for value in values] if math.isfinite(limit) else list(values)
