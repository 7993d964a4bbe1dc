"""Images of rare classes are repeated, also where the data set is several in one."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import DATASETS

from backbones.errors import ConfigError
from engine.data.balance import BalancedDataset, classes_of


class Labelled(BaseDataset):
    """Images of given classes, without files."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels
        super().__init__()

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"label": label} for label in self.labels]

    def get_cat_ids(self, idx: int) -> list[int]:
        return [self.get_data_info(idx)["label"]]


class Silent(Labelled):
    """mmengine's own method, which tells that there is none."""

    get_cat_ids = BaseDataset.get_cat_ids


def test_the_classes_of_all_parts_are_balanced_together() -> None:
    parts = [Labelled([0, 0, 0]), dict(type="RepeatDataset", dataset=Labelled([0, 0]), times=2), Labelled([1])]
    whole = dict(type="ConcatDataset", datasets=parts)
    balanced = DATASETS.build(dict(type="BalancedDataset", dataset=whole, oversample_thr=0.5))
    assert isinstance(balanced, BalancedDataset)
    assert isinstance(balanced.dataset, ConcatDataset)
    assert [classes_of(balanced.dataset, index) for index in range(8)] == [[0]] * 7 + [[1]]
    assert balanced.repeat_indices == [0, 1, 2, 3, 4, 5, 6, 7, 7], "ceil(sqrt(0.5 / 0.125)) times the last one"
    assert classes_of(balanced, 8) == [1]


@pytest.mark.parametrize("silent", [Silent([0]), range(3)])
def test_a_data_set_that_does_not_tell_its_classes_is_one_line(silent: Any) -> None:
    with pytest.raises(
        ConfigError, match="does not tell the classes of an image: give it a method get_cat_ids"
    ) as info:
        classes_of(silent, 0)
    assert len(str(info.value).splitlines()) == 1


def test_a_single_data_set_is_balanced_as_by_mmengine() -> None:
    assert BalancedDataset(Labelled([0, 0, 0, 1]), 1.0).repeat_indices == [0, 0, 1, 1, 2, 2, 3, 3]
