"""Scores of robustness: corruption errors, performance under corruption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backbones.errors import ConfigError, nearest

SEVERITIES = (1, 2, 3, 4, 5)
# Mean top-1 error of AlexNet over the five severities of each corruption of ImageNet-C, as a fraction:
# google-research/augmix, imagenet.py (ALEXNET_ERR).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Mean corruption error (mCE) of ImageNet-C: each corruption's mean error relative to AlexNet's, averaged.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
    2019), section 4.2; column C of Table 2.8 of the paper.

    Args:
        errors: Top-1 errors as fractions in [0, 1], one for each severity from 1 to 5, by the names of the 15
            corruptions.

    Returns:
        The mCE in percent: 100 is AlexNet's.

    Raises:
        ConfigError: If a name is missing or unknown, a corruption has not five errors, or one is not in [0, 1].
    """
    means = corruption_means(errors, ALEXNET_ERRORS)
    return 100 * float(np.mean([means[name] / error for name, error in ALEXNET_ERRORS.items()]))


def mean_error(errors: Mapping[str, Sequence[float]], names: Iterable[str]) -> float:
    """Mean top-1 error over corruptions and severities, in percent, as printed for ImageNet-C-bar (not normalised).

    Mintun et al., "On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness" (NeurIPS
    2021), section 3.

    Args:
        errors: Five top-1 errors in [0, 1] by the name of the corruption.
        names: The corruptions, each of which has to be in ``errors``.

    Raises:
        ConfigError: As for :func:`mean_corruption_error`.
    """
    return 100 * float(np.mean(list(corruption_means(errors, names).values())))


def corruption_means(values: Mapping[str, Sequence[float]], names: Iterable[str]) -> dict[str, float]:
    """Mean over the five severities of each corruption, of values in [0, 1].

    Args:
        values: Five values by the name of the corruption.
        names: The corruptions that there have to be.

    Raises:
        ConfigError: If a name is missing or unknown, a corruption has not five values, or one is not in [0, 1].
    """
    known = tuple(names)
    if unknown := [name for name in values if name not in known]:
        near = nearest(str(unknown[0]), known)
        raise ConfigError(f"corruption {unknown[0]!r} is unknown: {len(known)} names are expected{near}")
    if missing := [name for name in known if name not in values]:
        rest = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ConfigError(f"corruption {missing[0]!r}{rest} missing: the mean is over {len(known)}")
    for name in known:
        if not hasattr(values[name], "__len__"):
            raise ConfigError(f"corruption {name!r}: {values[name]!r} in place of five values, one for each severity")
        if len(values[name]) != len(SEVERITIES):
            raise ConfigError(f"corruption {name!r} has {len(values[name])} values: one for each severity 1 to 5")
        for severity, value in zip(SEVERITIES, values[name], strict=True):
            if not _is_fraction(value):
                raise ConfigError(f"corruption {name!r}, severity {severity}: {value!r} is no fraction from 0 to 1")
    return {name: float(np.mean(values[name])) for name in known}


def _is_fraction(value: object) -> bool:
    try:
        return not isinstance(value, bool | str) and 0 <= float(value) <= 1  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class CorruptedPerformance:
    """Performance under corruption.

    Attributes:
        mean: Mean over all corrupted sets, on the scale of the values (mPC).
        relative: ``mean`` as percentage of the clean value (rPC); ``None`` where that is 0.
    """

    mean: float
    relative: float | None


def performance_under_corruption(values: Mapping[str, Sequence[float]], clean: float) -> CorruptedPerformance:
    """Mean performance under corruption (mPC) and its ratio to the clean performance (rPC).

    Michaelis et al., "Benchmarking Robustness in Object Detection" (arXiv:1907.07484), section 2.3.

    Args:
        values: A score for each severity by the name of the corruption; noises may have fewer severities, as in the
            practice of segmentation.
        clean: The same score on the images without corruption.

    Raises:
        ConfigError: If there is no corruption, or one without values.
    """
    empty = [name for name, scores in values.items() if not len(scores)]
    if empty or not values:
        raise ConfigError(f"corruption {empty[0]!r} has no score" if empty else "no corruption has a score")
    # Over all sets alike: with five severities each this is the mean of the means.
    mean = float(np.mean([score for scores in values.values() for score in scores]))
    return CorruptedPerformance(mean, 100 * mean / clean if clean else None)
