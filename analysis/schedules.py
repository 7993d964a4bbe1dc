"""What the schedules of a learning rate come to in a training of some length, and what of them does not end with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.optim import ConstantParamScheduler, LinearParamScheduler, PolyLR, ReduceOnPlateauParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope

from engine.config.building import building, registered_class
from engine.optim.schedules import WARM_UP_SHARE, Placed, stated_schedules
from engine.planning.plan import Schedule

MAX_STEPS = 1_000_000  # that are gone through for the rates, in 5 s
MIN_EPOCH = 100  # steps of an epoch where they are not known; the rates of schedules in epochs hardly depend on them
FOLLOW = "leave T_max and end out, and it ends with the training"
LAST_CUT = 11 / 12  # of a training: OpenMMLab's schedules of COCO, such as 33 of 36 epochs


def review_schedules(cfg: Any, length: Schedule) -> tuple[list[str], list[str]]:
    """Rates of a training, and warnings of its schedules.

    Args:
        cfg: Resolved config.
        length: Length of its training, as far as it is known.

    Returns:
        A line with first, highest and last rate, unless that takes too long; what does not end with the training.

    Raises:
        ConfigError: If a scheduler does not build.
    """
    schedulers, peak = rate_schedulers(cfg), float(cfg.optim_wrapper.optimizer.lr)
    epoch, steps, note = length.steps_per_epoch, length.steps, ""
    facts = []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")), building(cfg, "param_scheduler"):
        if epoch is None:  # long enough for what is counted in steps
            by_step = (one for _, one in schedulers if not one.get("by_epoch", True))
            epoch = MIN_EPOCH + 2 * max((max(one.get("begin", 0), one.get("end", 0)) for one in by_step), default=0)
        if steps is None:
            assert length.epochs is not None
            steps, note = epoch * length.epochs, f" (if an epoch has {epoch:,} steps)"
        if steps <= MAX_STEPS:
            first, highest, last = learning_rates(schedulers, peak, length.epochs, steps, epoch)
            facts = [f"rates: {first:.3g} in the first step, {highest:.3g} at most, {last:.3g} in the last{note}"]
    return facts, schedule_warnings(schedulers, length.epochs, length.steps)


def rate_schedulers(cfg: Any) -> list[Placed]:
    """The schedulers of a resolved config that change the learning rate, with classes as types."""
    found: list[Placed] = []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for place, one in stated_schedules(cfg):
            kind = registered_class(PARAM_SCHEDULERS, one["type"]) or one["type"]
            if isinstance(kind, str) or _is_a(kind, LRSchedulerMixin) or one.get("param_name") == "lr":
                found.append((place, {**one, "type": kind}))
    return found


def build_schedules(
    schedulers: Sequence[Placed], optimizer: torch.optim.Optimizer, epochs: int | None, steps: int, epoch: int
) -> list[Any]:
    """Build schedulers as mmengine's runner does: one that states no end ends with the training.

    Args:
        schedulers: From :func:`rate_schedulers`.
        optimizer: Optimizer whose rates they change.
        epochs: Epochs of the training; ``None`` if it counts steps.
        steps: Steps of the training.
        epoch: Steps of an epoch.
    """
    ends, given = {True: epochs or 1, False: steps}, {"optimizer": optimizer, "epoch_length": epoch}
    settings = [{"end": ends[bool(one.get("by_epoch", True))], **one} for _, one in schedulers]
    return [PARAM_SCHEDULERS.build(one, default_args=given) for one in settings]


def learning_rates(
    schedulers: Sequence[Placed], peak: float, epochs: int | None, steps: int, epoch: int
) -> tuple[float, float, float]:
    """The rate of the first step, the highest, and that of the last, of the peak rate's group.

    The schedulers are stepped through the training: 5 us for each step of each. For the arguments see
    :func:`build_schedules`.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    (group,) = optimizer.param_groups
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on the order of steps; there are none of the optimizer here
        built = build_schedules(schedulers, optimizer, epochs, steps, epoch)
        first = highest = group["lr"]
        for _ in through_training(built, steps, epoch):
            highest = max(highest, group["lr"])
    return first, highest, group["lr"]


def through_training(built: Sequence[Any], steps: int, epoch: int) -> Iterator[int]:
    """Step schedules through a training: yields the number of each step, from 0, when its rates are set.

    Args:
        built: From :func:`build_schedules`; without any, the first step is the only one.
        steps: Steps of the training.
        epoch: Steps of an epoch.
    """
    yield 0
    for step in range(1, steps if built else 1):
        for one in built:
            if step % epoch == 0 if one.by_epoch else step < one.end:
                one.step()
        yield step


def schedule_warnings(schedulers: Sequence[Placed], epochs: int | None, steps: int | None) -> list[str]:
    """What does not end with the training, leaves a gap or overlaps, with the numbers and what to change.

    Args:
        schedulers: From :func:`rate_schedulers`.
        epochs: Epochs of the training; ``None`` if it counts steps.
        steps: Steps of the training; ``None`` if they are not known yet.
    """
    lengths, found = {True: epochs, False: steps}, []
    spans = [
        _span(place, one, lengths[bool(one.get("by_epoch", True))])
        for place, one in schedulers
        if not _is_a(one["type"], ReduceOnPlateauParamScheduler)
    ]
    for index, span in enumerate(spans):
        others = [one for one in spans if one is not span and one.unit == span.unit]
        earlier = [
            one for one in others if one.begin < span.begin or (one in spans[:index] and one.begin == span.begin)
        ]
        if text := _unlike_training(span, others) or _unlike_others(span, earlier):
            found.append(f"{span.place}: {text}")
    return found


class _Span(NamedTuple):
    """A scheduler in the training: where it begins, ceases to act, and has its last value or cut, in its unit."""

    place: str
    unit: str
    length: float | None
    begin: float
    end: float
    last: float
    slack: int
    rises: bool
    cuts: Sequence[float]


def _span(place: str, one: Mapping[str, Any], length: float | None) -> _Span:
    kind, begin, end = one["type"], one.get("begin", 0), one.get("end", length)
    end = float("inf") if end is None else end
    cuts = [begin + cut for cut in one.get("milestones", ())]
    own = one.get("T_max") or one.get("total_steps") or sum(one.get("periods", ()))
    last = max(cuts) if cuts else begin + own if own else end
    warm_up = _is_a(kind, LinearParamScheduler) and one.get("start_factor", 1 / 3) < one.get("end_factor", 1)
    foreign = not kind.__module__.startswith(("mmengine.", "engine."))  # its curve is not known
    return _Span(
        place=place,
        unit="epoch" if one.get("by_epoch", True) else "step",
        length=length,
        begin=begin,
        end=end,
        last=last,
        slack=int(_is_a(kind, LinearParamScheduler, PolyLR)),  # the last value lies a step before the end
        rises=warm_up or foreign or _is_a(kind, ConstantParamScheduler),
        cuts=cuts,
    )


def _unlike_training(span: _Span, others: Sequence[_Span]) -> str:
    """How a scheduler does not end with the training; empty if it does."""
    unit, length, stop = span.unit, span.length, min(span.last, span.end)
    if length is None:
        return ""
    if span.cuts:
        missed, most = span.last >= min(span.end, length), LAST_CUT * length / max(span.last, 1)
        if not missed and span.last >= length / 2:
            return ""
        places = {int(cut * most + 1e-6) - int(span.begin) for cut in span.cuts} - {0}
        better = sorted((places or {int(LAST_CUT * length)}) - {0})
        fix = f"--cfg-options {span.place}.milestones={better}".replace(", ", ",")
        where = f"is not before the end of the training at {length:,}" if missed else f"is early in {length:,} {unit}s"
        return f"its cut of the rate at {unit} {span.last:,} {where}: {fix} follows its length"
    if span.last > length + span.slack:
        what = "it rises" if span.rises else "it falls"
        shorter = int(span.begin + max(1, (length - span.begin) // WARM_UP_SHARE))
        fix = f"--cfg-options {span.place}.end={shorter} shortens it" if span.rises else FOLLOW
        return f"{what} until {unit} {span.last:,}, and the training ends at {length:,}: {fix}"
    if span.rises or stop >= length or any(abs(one.begin - stop) <= 1 for one in others):
        return ""
    after = "rises again" if stop < span.end else "stays"
    return f"it falls until {unit} {stop:,} and {after} until the training ends at {length:,}: {FOLLOW}"


def _unlike_others(span: _Span, earlier: Sequence[_Span]) -> str:
    """How a scheduler does not go on where another ends; a decay from the start may have a warm-up over it."""
    if not earlier or (span.begin == 0 and (span.rises or all(one.rises for one in earlier))):
        return ""
    near = min(earlier, key=lambda one: abs(one.end - span.begin))
    if abs(near.end - span.begin) <= 1:
        return ""
    what = "a gap" if near.end < span.begin else "an overlap"
    return f"it begins at {span.unit} {span.begin:,}, {near.place} ends at {near.end:,}: {what}; state one for both"


def _is_a(kind: Any, *classes: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, classes)
