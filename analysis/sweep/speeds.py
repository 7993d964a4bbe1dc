"""What each value of a dimension does to speed and memory: ratios between settings that differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from analysis.sweep.results import StudyResult, TrialResult

MAX_VALUES = 8  # of a dimension: of one that is sampled, hardly two settings share the others


@dataclass(frozen=True)
class SettingSpeed:
    """Speed and memory of a setting: means over its seeds, of memory the largest.

    Attributes:
        steps_per_second: Optimizer steps per second between validations; ``None`` if not logged.
        images_per_second: The same times the global batch.
        peak_memory_bytes: Peak memory in bytes, of the GPU where there is one; ``None`` if not noted.
        utilisation: Utilisation of the GPU, 0..1; ``None`` if not logged.
        data_wait: Fraction of the time in which steps waited for data, 0..1; ``None`` if not logged.
    """

    steps_per_second: float | None
    images_per_second: float | None
    peak_memory_bytes: int | None
    utilisation: float | None
    data_wait: float | None


@dataclass(frozen=True)
class ValueSpeed:
    """A value of a dimension against the first one of it.

    Attributes:
        value: The value.
        pairs: Number of settings that are there with both values and are equal in the other dimensions.
        speed: Images per second over those with the first value, geometric mean of the pairs; ``None`` without any.
        memory: Peak memory over that with the first value, geometric mean of the pairs; ``None`` without any.
    """

    value: Any
    pairs: int
    speed: float | None
    memory: float | None


def setting_speeds(study: StudyResult) -> dict[int, SettingSpeed]:
    """Speed and memory of each setting of which something was logged, by the number of its trial."""
    found = {}
    for number, runs in study.by_number().items():
        if any(run.images_per_second for run in runs):
            memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes]
            found[number] = SettingSpeed(
                _mean(runs, "steps_per_second"),
                _mean(runs, "images_per_second"),
                max(memory) if memory else None,
                _mean(runs, "utilisation"),
                _mean(runs, "data_wait"),
            )
    return found


def value_speeds(study: StudyResult, speeds: Mapping[int, SettingSpeed]) -> dict[str, list[ValueSpeed]]:
    """What the values of each dimension do to speed and memory.

    Args:
        study: The study.
        speeds: Result of :func:`setting_speeds`.

    Returns:
        Values of each dimension that has two to eight of them, by its name, in the order in which they first ran.
    """
    settings = {number: runs[0].settings for number, runs in study.by_number().items() if number in speeds}
    found = {}
    for name in study.space:
        groups: dict[str, dict[str, SettingSpeed]] = {}  # by the value, then by all other settings
        values: dict[str, Any] = {}
        for number, chosen in settings.items():
            if name in chosen:
                others = repr(sorted((key, repr(value)) for key, value in chosen.items() if key != name))
                values.setdefault(repr(chosen[name]), chosen[name])
                groups.setdefault(repr(chosen[name]), {}).setdefault(others, speeds[number])
        if 2 <= len(groups) <= MAX_VALUES:
            first = next(iter(groups.values()))
            found[name] = [_against(values[key], first, group) for key, group in groups.items()]
    return found


def _against(value: Any, first: Mapping[str, SettingSpeed], group: Mapping[str, SettingSpeed]) -> ValueSpeed:
    pairs = [(first[others], one) for others, one in group.items() if others in first]
    ratios = {
        name: [
            getattr(one, name) / getattr(base, name)
            for base, one in pairs
            if getattr(base, name) and getattr(one, name)
        ]
        for name in ("images_per_second", "peak_memory_bytes")
    }
    speed, memory = (geometric_mean(values) if values else None for values in ratios.values())
    return ValueSpeed(value, len(pairs), speed, memory)


def _mean(runs: Sequence[TrialResult], name: str) -> float | None:
    values = [value for run in runs if (value := getattr(run, name)) is not None]
    return fmean(values) if values else None
