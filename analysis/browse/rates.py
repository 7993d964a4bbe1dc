"""Learning rate and weight decay of each parameter group over the whole length of a training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope

from analysis.schedules import MAX_STEPS, build_schedules, through_training
from analysis.start_check import silence
from engine.config.building import building
from engine.optim.schedules import own_shares, stated_schedules
from engine.planning.plan import Schedule, build_on_meta
from engine.report.html import CURVE_COLOURS, MAX_POINTS, CurveLine, note, plot

MAX_LINES = 6  # of a chart
GROUPING = ("optimizer", "constructor", "paramwise_cfg")
NOT_KNOWN = "The length of the training is not known: these curves are drawn when it is."


def rate_charts(cfg: Any, length: Schedule) -> str:
    """HTML of the curves of rate and weight decay of each parameter group.

    Args:
        cfg: Resolved config of a training.
        length: Length of the training.

    Raises:
        ConfigError: If a group or a schedule does not build.
    """
    if length.steps is None or length.steps > MAX_STEPS:
        return note(NOT_KNOWN if length.steps is None else f"{length.steps:,} steps are too many to be gone through.")
    curves = _group_curves(cfg, length.epochs, length.steps, length.steps_per_epoch or length.steps)
    charts = []
    for key, title in (("lr", "learning rate"), ("weight_decay", "weight decay")):
        distinct: dict[tuple[float, ...], list[str]] = {}
        for name, values in curves[key].items():
            distinct.setdefault(tuple(values), []).append(name)
        shown = _spread(sorted(distinct, key=max, reverse=True))
        lines = {
            _label(distinct[values]): CurveLine(colour, list(zip(curves["steps"], values, strict=True)))
            for values, colour in zip(shown, CURVE_COLOURS, strict=False)
        }
        more = f", {len(shown)} of {len(distinct)} different ones" if len(distinct) > len(shown) else ""
        charts.append(plot("parameter groups", title + more, lines))
    remark = "Layer 0 is the stem, the highest one the head; tools/print_groups.py lists all groups."
    return f'<div class="plots">{"".join(charts)}</div>{note(remark)}'


def _group_curves(cfg: Any, epochs: int | None, steps: int, epoch: int) -> dict[str, Any]:
    """Steps, and for ``lr`` and ``weight_decay`` the values at them of each group by its name."""
    scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope"))
    with (
        scope,
        silence(),
    ):  # torch's advice on the order of steps is about those of the optimizer, of which none is here
        settings = {key: copy.deepcopy(cfg.optim_wrapper[key]) for key in GROUPING if key in cfg.optim_wrapper}
        with building(cfg, "optim_wrapper"):
            wrapper: OptimWrapper = build_optim_wrapper(build_on_meta(cfg), {**settings, "type": "OptimWrapper"})
        groups = _different(wrapper.optimizer.param_groups)
        wrapper.optimizer.param_groups[:] = groups.values()
        with building(cfg, "param_scheduler"):
            placed = [("", one) for one in own_shares([one for _, one in stated_schedules(cfg)], wrapper)]
            built = build_schedules(placed, wrapper, epochs, steps, epoch)
        every = max(1, -(-steps // MAX_POINTS))
        found: dict[str, Any] = {"steps": [], "lr": {}, "weight_decay": {}}
        for step in through_training(built, steps, epoch):
            if step % every and step != steps - 1:
                continue
            found["steps"].append(step)
            for name, group in groups.items():
                for key in ("lr", "weight_decay"):
                    found[key].setdefault(name, []).append(float(group.get(key, 0.0)))
    if not built:  # the first step stands for all
        found = {
            "steps": [0, steps - 1],
            **{k: {n: 2 * v for n, v in found[k].items()} for k in ("lr", "weight_decay")},
        }
    return found


def _different(groups: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One group of each rate and weight decay, by a name."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in groups:
        found.setdefault((group["lr"], group.get("weight_decay"), group.get("layer_id")), group)
    return {_name(key, number): group for number, (key, group) in enumerate(found.items())}


def _name(key: tuple[Any, ...], number: int) -> str:
    _, decay, layer = key
    place = f"layer {layer}" if layer is not None else f"group {number}"
    return place if decay is None else f"{place}, {'decayed' if decay else 'not decayed'}"


def _label(names: Sequence[str]) -> str:
    """A name for groups whose values are the same."""
    places = list(dict.fromkeys(name.partition(",")[0] for name in names))
    kinds = {name.partition(", ")[2] for name in names}
    if len(places) == 1:
        return places[0] if len(names) > 1 else names[0]
    return f"{len(names)} groups" if len(kinds) > 1 else f"{len(names)} groups, {kinds.pop()}".removesuffix(", ")


def _spread(values: Sequence[Any]) -> list[Any]:
    """At most as many as a chart has lines, the first and the last among them."""
    if len(values) <= MAX_LINES:
        return list(values)
    return [values[round(index * (len(values) - 1) / (MAX_LINES - 1))] for index in range(MAX_LINES)]
