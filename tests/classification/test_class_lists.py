"""The lists of ImageNet's classes, and rows of heads by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbones import UserError
from classification.class_lists import CLASS_LISTS, checked_rows, class_list, describe_classes, rows_of_imagenet_1k

TEDDY_NAME = "n04399382"


@pytest.mark.parametrize(
    "count, lacking",
    [(1000, 0), (21841, 1), (21842, 0), (21843, 1), (11221, 9), (11821, 7)],
)
def test_rows_of_imagenet_1k_in_each_list(count: int, lacking: int) -> None:
    names, rows = class_list(count), rows_of_imagenet_1k(count)
    assert len(names) == len(set(names)) == count
    assert rows.count(None) == lacking
    for name, row in zip(class_list(1000), rows, strict=True):
        assert row is None or names[row] == name
    assert (rows[850] is None) == (TEDDY_NAME not in names) == (lacking > 0)
    assert set(CLASS_LISTS) >= {count}


def test_how_the_lists_differ() -> None:
    usual = set(class_list(21841))
    assert set(class_list(21843)) - usual == {"n03931044", "n09859684"}
    assert set(class_list(21842)) - usual == {TEDDY_NAME}
    assert class_list(21842)[:1000] == class_list(1000)
    assert rows_of_imagenet_1k(21842) == list(range(1000))


def test_a_list_is_recognised() -> None:
    assert describe_classes(class_list(21841)) == (
        "ImageNet-22K, 21,841 classes, without 1 of the 1,000 classes (n04399382)"
    )
    assert describe_classes(class_list(1000)[::-1]) == (
        "ImageNet-1K, 1,000 classes, in another order than the usual one"
    )
    winter = describe_classes(class_list(21843)[:19167])
    assert winter is not None
    assert winter.startswith("ImageNet-21K of winter 2021, 19,167 classes, without ")
    assert describe_classes(("cat", "dog")) is None
    assert describe_classes([f"class {i}" for i in range(1000)]) is None


def test_the_widespread_map_with_a_row_twice_gets_a_new_row() -> None:
    rows: list[Any] = rows_of_imagenet_1k(21841)
    rows[850] = rows[849]
    assert checked_rows(rows, 1000, 21841) == rows_of_imagenet_1k(21841)
    rows[3] = rows[2]
    with pytest.raises(UserError, match=rf"row {rows[2]} stands twice, .*; new \(null in JSON\) stands for a new row"):
        checked_rows(rows, 1000, 21841)


def test_new_rows_in_files(tmp_path: Path) -> None:
    for text in ("[3, null, 0]", "3\nnew\n0\n"):
        (tmp_path / "rows").write_text(text)
        assert checked_rows(tmp_path / "rows", 3, 5) == [3, None, 0]


def test_by_wordnet_id() -> None:
    assert checked_rows("wordnet", 1000, 21841) == rows_of_imagenet_1k(21841)
    with pytest.raises(UserError, match=r"'wordnet' is for the 1,000 classes of ImageNet-1K, not for 10"):
        checked_rows("wordnet", 10, 21841)
    with pytest.raises(UserError, match=r"no list of 19,167 classes of ImageNet is known"):
        checked_rows("wordnet", 1000, 19167)


def test_by_a_list_of_wordnet_ids_as_of_winter_2021(tmp_path: Path) -> None:
    listed = list(reversed(class_list(21843)))[:19167]
    file = tmp_path / "winter21.txt"
    file.write_text("\n".join(listed))
    rows = checked_rows(file, 1000, 19167)
    assert len(rows) == 1000
    for name, row in zip(class_list(1000), rows, strict=True):
        assert (row is None) == (name not in listed)
        assert row is None or listed[row] == name
    file.write_text("\n".join([*listed[:-1], listed[0]]))
    with pytest.raises(
        UserError, match=r"19,167 WordNet ids, 19,166 different ones: one for each of the head's 19,167"
    ):
        checked_rows(file, 1000, 19167)
    file.write_text("\n".join([*listed[:-1], "3"]))
    with pytest.raises(UserError, match=r"head_mapping: 'n\d{8}' is no row number"):
        checked_rows(file, 1000, 19167)
    file.write_text("\n".join(listed))
    with pytest.raises(UserError, match=r"is for the 1,000 classes of ImageNet-1K, not for 10"):
        checked_rows(file, 10, 19167)
