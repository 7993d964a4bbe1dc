"""How the best learning rate depends on the batch: the best rate of each batch, laws through them, the noise scale.

The laws, with B the global batch in images:

- ``constant``, lr(B) = a; ``sqrt``, lr(B) = a sqrt(B); ``linear``, lr(B) = a B;
- ``surge``, lr(B) = lr_max / [(sqrt(Bn/B) + sqrt(B/Bn)) / 2] (Li et al., "Surge phenomenon in optimal learning rate and
  batch size scaling", arXiv 2405.14578, for optimizers like Adam): the rate rises like sqrt(B), has its peak lr_max at
  B = Bn, and falls again.

All fits are least squares in the logarithm of the rate. Since (x + 1/x) / 2 = cosh(log x), the surge law is
log lr_max - log cosh(log(B/Bn) / 2) there. Intervals are by a parametric bootstrap (Efron & Tibshirani, 1993, section
6.5): noise as large as the data shows, itself uncertain as its degrees of freedom say, is added to the data, and
everything is estimated anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.sweep.noise import CONFIDENCE, Interval

DRAWS = 1000
PEAK_RANGE = 1000.0  # a peak is looked for in up to this many times the largest batch, and as far below the smallest
MIN_VARIANCE = 1e-24  # of points without noise
GRID_STEP = 0.05  # of the logarithm of the peak batch; a parabola refines the best place
PEAK_POINTS = 5  # rates around the best one through which the parabola is fitted
Side = Literal["", "low", "high"]

LAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": lambda log_batch: np.zeros_like(log_batch),
    "sqrt": lambda log_batch: log_batch / 2,
    "linear": lambda log_batch: log_batch,
}
SURGE = "surge"


@dataclass(frozen=True)
class BestRate:
    """The best learning rate at a batch.

    Attributes:
        rate: Estimated best rate: the vertex of a parabola in log rate near the peak, or, where the parabola has none
            between its rates, the rate of the grid with the best mean.
        interval: Interval of the rate; a limit is 0 or infinity where the best rate may lie beyond the grid; ``None``
            where the scores show no noise to judge it by.
        log_error: Standard deviation of log(rate) over the draws of the bootstrap; ``None`` without an interval.
        border: ``low`` or ``high`` if the best rate of the grid is its smallest or largest one: the best rate may lie
            beyond; else empty.
    """

    rate: float
    interval: Interval | None
    log_error: float | None
    border: Side


@dataclass(frozen=True)
class LawFit:
    """A law through the best rates.

    Attributes:
        law: Name of the law.
        scale: The law's factor a: rate at a batch of 1; for ``surge`` the peak rate lr_max.
        scale_interval: Its bootstrap interval; ``None`` without degrees of freedom.
        peak_batch: Bn of ``surge`` in images, else ``None``.
        peak_interval: Its bootstrap interval; a limit is 0 or infinity where the data does not bound it.
        residual: Root mean square of log(rate) minus the law.
        aicc: Akaike's criterion with the correction for few points (Hurvich & Tsai, 1989); infinite with too few. It
            prefers the simpler law where points are few: it tells which law to use, not which one is true.
        p_value: Share of data sets made by this law in which another law fits better by as much as here.
    """

    law: str
    scale: float
    scale_interval: Interval | None
    peak_batch: float | None
    peak_interval: Interval | None
    residual: float
    aicc: float
    p_value: float

    @property
    def excluded(self) -> bool:
        """Whether the points exclude this law."""
        return self.p_value < 1 - CONFIDENCE

    def rate(self, batch: float) -> float:
        """The best rate at a batch of so many images."""
        log_batch = np.array(math.log(batch))
        if self.peak_batch is None:
            return float(self.scale * np.exp(LAWS[self.law](log_batch)))
        return float(self.scale / np.cosh((log_batch - math.log(self.peak_batch)) / 2))


@dataclass(frozen=True)
class LawComparison:
    """The laws through the same points.

    Attributes:
        fits: Fit of each law by its name.
        preferred: Name of the only law that the points do not exclude; ``None`` if that is not resolved. It is ``sqrt``
            too where the surge law is not excluded, but has its peak beyond the largest batch and is the same up to it.
        reason: Reason why it is not resolved, or what remains open; else empty.
    """

    fits: Mapping[str, LawFit]
    preferred: str | None
    reason: str


@dataclass(frozen=True)
class NoiseScaleFit:
    """The noise scale from the steps and examples that trainings with several batches need for the same loss.

    Attributes:
        noise_scale: Bn in images.
        interval: Its bootstrap interval; a limit is 0 or infinity where the data does not bound it; ``None`` without
            degrees of freedom.
        min_steps: Smin, the steps that a huge batch would need.
    """

    noise_scale: float
    interval: Interval | None
    min_steps: float


def best_rate(scores: Mapping[float, Sequence[float]], greater_is_better: bool = True) -> BestRate:
    """Estimate the best rate of a grid from scores with noise.

    The deviation of the scores is pooled over the rates that have several seeds; without any, it is that of the scores
    around the parabola.

    Args:
        scores: Finite scores of each learning rate, one for each seed; at least three rates.
        greater_is_better: Whether a greater score is better.

    Raises:
        ValueError: With fewer than three rates, or a rate that is not positive or has no score.
    """
    rates = sorted(scores)
    if len(rates) < 3 or rates[0] <= 0 or not all(len(scores[rate]) for rate in rates):
        raise ValueError(f"at least three positive rates with scores are needed: {rates}")
    sign = 1.0 if greater_is_better else -1.0
    x = np.log(rates)
    counts = np.array([len(scores[rate]) for rate in rates])
    means = sign * np.array([np.mean(scores[rate]) for rate in rates])
    place, best = _vertices(x, means[None])
    border: Side = {0: "low", len(rates) - 1: "high"}.get(int(best[0]), "")  # type: ignore[assignment]
    freedom = int((counts - 1).sum())
    squares = sum(float(np.var(scores[rate])) * len(scores[rate]) for rate in rates)
    misfit, misfit_freedom = _parabola_misfit(x, means, counts, int(best[0]))
    if (
        misfit_freedom and misfit * freedom >= squares * misfit_freedom
    ):  # a curve that is no parabola widens the interval
        squares, freedom = misfit, misfit_freedom
    if not freedom or not squares:
        return BestRate(float(np.exp(place[0])), None, None, border)
    random = np.random.default_rng(0)
    deviations = np.sqrt(squares / random.chisquare(freedom, DRAWS))
    drawn = means + deviations[:, None] * random.standard_normal((DRAWS, len(x))) / np.sqrt(counts)
    places, bests = _vertices(x, drawn)
    interval = _quantiles(np.exp(places), bests == 0, bests == len(x) - 1)
    return BestRate(float(np.exp(place[0])), interval, float(np.std(places)), border)


def fit_laws(
    batches: Sequence[float], rates: Sequence[float], log_errors: Sequence[float] | None = None
) -> LawComparison:
    """Fit the laws to best rates and compare them.

    Args:
        batches: Global batch of each point, at least two different ones; a batch may occur several times.
        rates: Best learning rate of each point.
        log_errors: Standard deviation of log(rate) of each point; ``None`` if it is not known, then it is taken to be
            the same for all, and estimated from the residuals of each law.

    Raises:
        ValueError: With wrong numbers of points, or values that are not positive.
    """
    x, y = np.log(_positive(batches)), np.log(_positive(rates))
    if len(x) != len(y) or len(set(batches)) < 2:
        raise ValueError(f"as many rates as batches, and two different batches are needed: {batches}, {rates}")
    errors = None if log_errors is None else _positive(log_errors)
    p_values = _p_values(x, y, errors)
    fits = {name: _fit_law(name, x, y, errors, p_values[name]) for name in (*LAWS, SURGE)}
    kept = [name for name, fit in fits.items() if not fit.excluded]
    if len(kept) == 1:
        return LawComparison(fits, kept[0], "")
    peak = fits[SURGE].peak_interval
    if kept == ["sqrt", SURGE] and peak is not None and peak.low > max(batches):
        return LawComparison(fits, "sqrt", f"a peak beyond a batch of {max(batches):g} is not excluded")
    reason = f"{', '.join(kept)} are not told apart by these {len(x)} points" if kept else "none of the laws fits"
    return LawComparison(fits, None, reason)


def fit_noise_scale(steps: Sequence[float], examples: Sequence[float]) -> NoiseScaleFit:
    """Fit the noise scale to the steps S and examples E that trainings need for the same loss, each at its best rate.

    The relation 1/S = -Bn/E + 1/Smin of arXiv 2405.14578 (and of McCandlish et al., arXiv 1812.06162, with the batch
    B = E/S) is S = Smin (1 + Bn/B); it is fitted as log S = log Smin + log(1 + Bn/B), since S and E share their noise,
    which a line through (1/E, 1/S) would have on both axes.

    Args:
        steps: Optimizer steps to the loss, one for each training.
        examples: Images to the loss.

    Raises:
        ValueError: With fewer than two different batches, or values that are not positive.
    """
    log_steps, log_examples = np.log(_positive(steps)), np.log(_positive(examples))
    if len(log_steps) != len(log_examples) or len(set(np.round(log_examples - log_steps, 9))) < 2:
        raise ValueError(f"as many steps as examples, and two different batches are needed: {steps}, {examples}")
    x = log_examples - log_steps
    grid = _peak_grid(x)
    shapes = np.logaddexp(0.0, grid[:, None] - x)  # (G, N)
    ones = np.ones_like(x)
    places, scales, squares = _profile(log_steps[None], shapes, grid, ones)
    freedom = len(x) - 2
    interval = None
    if freedom > 0:
        drawn = _redraw(log_steps, float(squares[0]), freedom)
        interval = _open_quantiles(_profile(drawn, shapes, grid, ones)[0], grid)
    return NoiseScaleFit(float(np.exp(places[0])), interval, float(np.exp(scales[0])))


def _fit_law(name: str, x: np.ndarray, y: np.ndarray, errors: np.ndarray | None, p_value: float) -> LawFit:
    """Fit one law.

    Args:
        name: Name of the law.
        x: (N,) log of the batches.
        y: (N,) log of the rates.
        errors: (N,) standard deviations of ``y``, or ``None``.
        p_value: The fit's attribute.
    """
    grid, shapes = _shapes(name, x)
    parameters = 2 if name == SURGE else 1
    weights = np.ones_like(x) if errors is None else errors**-2
    places, scales, squares = _profile(y[None], shapes, grid, weights)
    count, freedom = len(x), len(x) - parameters
    k = parameters + (errors is None)  # the deviation is estimated too
    misfit = squares[0] if errors is not None else count * math.log(max(squares[0] / count, MIN_VARIANCE))
    aicc = misfit + 2 * k + 2 * k * (k + 1) / (count - k - 1) if count - k - 1 > 0 else math.inf
    scale_interval = peak_interval = None
    if freedom > 0:
        drawn = _redraw(y, float(squares[0]) if errors is None else errors, freedom)
        drawn_places, drawn_scales, _ = _profile(drawn, shapes, grid, weights)
        scale_interval = _quantiles(np.exp(drawn_scales))
        peak_interval = _open_quantiles(drawn_places, grid) if name == SURGE else None
    residual = y - scales[0] - _law_at(name, x, places[0])
    peak = float(np.exp(places[0])) if name == SURGE else None
    rms = float(np.sqrt(np.mean(residual**2)))
    return LawFit(name, float(np.exp(scales[0])), scale_interval, peak, peak_interval, rms, aicc, p_value)


def _p_values(x: np.ndarray, y: np.ndarray, errors: np.ndarray | None) -> dict[str, float]:
    """Test each law against the others: the likelihood ratio, with its distribution by simulation (Williams, 1970).

    Args:
        x: (N,) log of the batches.
        y: (N,) log of the rates.
        errors: (N,) standard deviations of ``y``, or ``None``.
    """
    weights = np.ones_like(x) if errors is None else errors**-2
    shapes = {name: _shapes(name, x) for name in (*LAWS, SURGE)}

    def deficits(data: np.ndarray) -> dict[str, np.ndarray]:
        """How much worse each law fits than the best one, by monotone functions of the likelihood ratio: (D,) each."""
        squares = {name: _profile(data, shape, grid, weights)[2] for name, (grid, shape) in shapes.items()}
        least = np.min(list(squares.values()), 0)
        if errors is not None:
            return {name: one - least for name, one in squares.items()}
        return {
            name: np.log(np.maximum(one, MIN_VARIANCE) / np.maximum(least, MIN_VARIANCE))
            for name, one in squares.items()
        }

    observed = deficits(y[None])
    found = {}
    for name, (grid, shape) in shapes.items():
        places, scales, squares = _profile(y[None], shape, grid, weights)
        freedom = len(x) - (2 if name == SURGE else 1)
        if freedom < 1:
            found[name] = 1.0
            continue
        fitted = scales[0] + _law_at(name, x, places[0])
        drawn = _redraw(fitted, float(squares[0]) if errors is None else errors, freedom)
        found[name] = float(np.mean(deficits(drawn)[name] >= observed[name] - 1e-12))
    return found


def _shapes(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the peak that are tried, (G,), and the law without its scale at each, (G, N)."""
    if name != SURGE:
        return np.zeros(1), LAWS[name](x)[None]
    grid = _peak_grid(x)
    return grid, -_log_cosh((x - grid[:, None]) / 2)


def _profile(
    y: np.ndarray, shapes: np.ndarray, grid: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of y = scale + shape, over all shapes of a grid.

    Args:
        y: (D, N) data of each draw.
        shapes: (G, N) shape at each place of the grid.
        grid: (G,) places, evenly spaced.
        weights: (N,) weights of the points.

    Returns:
        (D,) best place, refined by a parabola; (D,) scale there; (D,) weighted sum of squares.
    """
    shares = weights / weights.sum()
    centred_y = y - (y @ shares)[:, None]
    centred = shapes - (shapes @ shares)[:, None]
    squares = (  # (D, G)
        ((centred_y**2) @ weights)[:, None] - 2 * (centred_y * weights) @ centred.T + (centred**2) @ weights
    )
    best = squares.argmin(1)
    rows = np.arange(len(y))
    inner = np.clip(best, 1, max(1, len(grid) - 2))
    offset: np.ndarray = np.zeros(len(y))
    if len(grid) > 2:
        left, middle, right = (squares[rows, inner + k] for k in (-1, 0, 1))
        bend = left - 2 * middle + right
        moved = (left - right) / (2 * np.where(bend > 0, bend, np.inf))
        offset = np.where(best == inner, np.clip(moved, -0.5, 0.5), 0.0)
    step = grid[1] - grid[0] if len(grid) > 1 else 0.0
    # The shape between two places of the grid, linearly.
    other = np.clip(best + np.where(offset < 0, -1, 1), 0, len(grid) - 1)
    shape = shapes[best] + np.abs(offset)[:, None] * (shapes[other] - shapes[best])
    scales = (y - shape) @ shares
    residual = y - scales[:, None] - shape
    return grid[best] + offset * step, scales, (residual**2) @ weights


def _redraw(y: np.ndarray, noise: np.ndarray | float, freedom: int) -> np.ndarray:
    """Data with new noise, (D, N).

    Args:
        y: (N,) data.
        noise: (N,) known standard deviations of the points; or the sum of squares of a fit, from which the deviation of
            each draw is as uncertain as the degrees of freedom say.
        freedom: Degrees of freedom of that sum.
    """
    random = np.random.default_rng(0)
    if isinstance(noise, np.ndarray):
        return y + noise * random.standard_normal((DRAWS, len(y)))
    deviations = np.sqrt(noise / random.chisquare(freedom, DRAWS))
    return y + deviations[:, None] * random.standard_normal((DRAWS, len(y)))


def _vertices(x: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the peaks of curves.

    Args:
        x: (R,) log rates, ascending.
        means: (D, R) values of each curve, greater ones being better.

    Returns:
        (D,) log rate of the peak; (D,) index of the best rate of the grid.
    """
    best = means.argmax(1)
    places = x[best].copy()
    for index in np.unique(best):
        low = int(np.clip(index - PEAK_POINTS // 2, 0, max(0, len(x) - PEAK_POINTS)))
        near = slice(low, low + PEAK_POINTS)
        rows = np.flatnonzero(best == index)
        a, b, _ = np.polyfit(x[near] - x[index], means[rows][:, near].T, 2)
        vertex = x[index] - b / (2 * np.where(a < 0, a, -np.inf))
        inside = (a < 0) & (vertex >= x[near][0]) & (vertex <= x[near][-1])
        places[rows] = np.where(inside, vertex, x[index])
    return places, best


def _parabola_misfit(x: np.ndarray, means: np.ndarray, counts: np.ndarray, best: int) -> tuple[float, int]:
    """Sum of squares of mean scores around their parabola near the peak, in units of one score; degrees of freedom."""
    low = int(np.clip(best - PEAK_POINTS // 2, 0, max(0, len(x) - PEAK_POINTS)))
    near = slice(low, low + PEAK_POINTS)
    residual = means[near] - np.polyval(np.polyfit(x[near], means[near], 2), x[near])
    return float((residual**2 * counts[near]).sum()), len(x[near]) - 3


def _law_at(name: str, x: np.ndarray, place: float) -> np.ndarray:
    return -_log_cosh((x - place) / 2) if name == SURGE else LAWS[name](x)


def _log_cosh(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, -x) - math.log(2)  # without overflow


def _peak_grid(x: np.ndarray) -> np.ndarray:
    reach = math.log(PEAK_RANGE)
    return np.arange(x.min() - reach, x.max() + reach + GRID_STEP, GRID_STEP)


def _quantiles(values: np.ndarray, lowest: np.ndarray | None = None, highest: np.ndarray | None = None) -> Interval:
    """Percentile interval of positive values.

    Args:
        values: (D,) values.
        lowest: (D,) whether a value lies at the lower end of what was looked at, so that it may be any smaller one.
        highest: The same at the upper end.
    """
    lower = values if lowest is None else np.where(lowest, 0.0, values)
    upper = values if highest is None else np.where(highest, np.inf, values)
    low = np.quantile(lower, (1 - CONFIDENCE) / 2, method="inverted_cdf")
    return Interval(float(low), float(np.quantile(upper, (1 + CONFIDENCE) / 2, method="inverted_cdf")))


def _open_quantiles(places: np.ndarray, grid: np.ndarray) -> Interval:
    """Interval of the exponential of places on a grid; what lies at an end of the grid is not bounded by the data."""
    return _quantiles(np.exp(places), places <= grid[1], places >= grid[-2])


def _positive(values: Sequence[float]) -> np.ndarray:
    array = np.array(values, dtype=float)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"positive numbers are needed: {array.tolist()}")
    return array
