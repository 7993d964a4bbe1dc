"""Class balance over wrapped data sets."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS

from backbones.errors import ConfigError


def classes_of(dataset: Any, index: int) -> list[int]:
    """Class indices of an image of a data set, or of one inside of wrappers.

    Args:
        dataset: Data set, loaded.
        index: Index of the image in it.

    Raises:
        ConfigError: If a data set does not tell them.
    """
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        return classes_of(dataset.datasets[part], index - dataset.cumulative_sizes[part - 1] if part else index)
    if isinstance(dataset, RepeatDataset):
        return classes_of(dataset.dataset, index % len(dataset.dataset))
    if isinstance(dataset, ClassBalancedDataset):
        return classes_of(dataset.dataset, dataset.repeat_indices[index])
    if hasattr(dataset, "get_cat_ids"):
        try:
            return list(dataset.get_cat_ids(index))
        except NotImplementedError as error:
            raise _tells_none(dataset) from error
    if not hasattr(dataset, "dataset"):
        raise _tells_none(dataset)
    return classes_of(dataset.dataset, index)  # MultiImageMixDataset of mmdet and mmseg: as many images


def _tells_none(dataset: Any) -> ConfigError:
    return ConfigError(
        f"ClassBalancedDataset: {type(dataset).__name__} does not tell the classes of an image: give it a method "
        "get_cat_ids, or balance the other data sets alone"
    )


class _Labelled:
    """A data set with ``get_cat_ids``, as far as the repeat factors need it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def get_cat_ids(self, index: int) -> list[int]:
        """Class indices of an image."""
        return classes_of(self.dataset, index)


@DATASETS.register_module()
class BalancedDataset(ClassBalancedDataset):
    """mmengine's ``ClassBalancedDataset`` that reaches into ``ConcatDataset`` and other wrappers.

    Takes the arguments of ``ClassBalancedDataset``, in whose place it is used where a config names that.
    """

    def _get_repeat_factors(self, dataset: Any, repeat_thr: float) -> list[float]:
        """Repeat factor of each image."""
        labelled = _Labelled(dataset)
        self.dataset: Any = labelled  # which mmengine asks, not its argument
        try:
            factors: list[float] = super()._get_repeat_factors(labelled, repeat_thr)
        finally:
            self.dataset = dataset
        return factors
