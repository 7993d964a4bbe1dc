"""Made-up data sets of any size are opened as others are, and their costs are counted in all processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.benchmark import large_data
from analysis.benchmark.memory import process_memory
from backbones import UserError
from classification.data import FolderDataset
from engine.checkpoint.rng import seeded


@pytest.mark.parametrize(("kind", "sides"), [("shards", [2, 2, 2, 2, 2, 2]), ("annotations", [3, 3])])
def test_time_and_memory_of_processes_with_workers(
    monkeypatch: pytest.MonkeyPatch, kind: str, sides: list[int]
) -> None:
    monkeypatch.setattr(large_data, "START_METHOD", "fork")  # without imports
    monkeypatch.setattr(large_data, "SMALL_IMAGES", 100)
    found = large_data.measure_large_data(kind, 150, 1, 2, 1)
    assert (found.large.images, found.small.images) == (150, 100)
    assert 0 < found.large.pss < found.large.rss  # three processes share what they have
    assert [len(one.seconds) for one in found.comparisons] == sides
    assert "150 images: RSS" in found.as_text()
    assert found.as_dict()["comparisons"][0]["sides"]["first use"]["seconds"]
    if kind == "shards":  # a small annotation file has no mapped table
        assert 0 < found.large.table_pss < found.large.table_rss


def test_made_annotations_are_read_as_by_mmdet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data = large_data.made_data("annotations", 50, tmp_path / "data")
    ours, theirs = large_data.open_data(data), large_data.open_by_mmdet(data)
    assert len(ours) == len(theirs) > 0
    assert len(ours.annotations.annotations) == 364
    assert all(ours.get_data_info(index) == theirs.get_data_info(index) for index in range(len(ours)))


def test_made_shards_are_images_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_data, "IMAGES_OF_A_SHARD", 20)
    data = large_data.made_data("shards", 50, tmp_path / "data")
    opened = large_data.open_data(data)
    assert isinstance(opened, FolderDataset)
    assert [len(opened), len(opened.shards.paths)] == [50, 3]
    assert (opened.get_data_info(49)["gt_label"], opened.get_data_info(0)["gt_label"]) == (49, 0)
    with seeded(0):
        assert opened[49]["inputs"].shape == (3, 224, 224)
    resumed = large_data.train_loader(data, large_data.TouchedData, batch_size=1, num_workers=0)
    assert len(list(resumed)) == 5
    assert len(list(Path(data.folder).glob(".shards-*.table"))) == 1
    large_data.forget_tables(data)
    assert not list(Path(data.folder).glob(".shards-*.table"))


def test_memory_of_mapped_files_alone(tmp_path: Path) -> None:
    content = np.full(2**20, 1, np.uint8)
    for name in ("a.table", "a.other"):
        content.tofile(tmp_path / name)
    before = process_memory(os.getpid(), ".table")
    table = np.memmap(tmp_path / "a.table", mode="r")
    assert process_memory(os.getpid(), "a.table") == (0, 0)  # nothing of it was read
    assert int(table.sum()) == 2**20
    assert process_memory(os.getpid(), "a.table") == (2**20, 2**20)
    other = np.memmap(tmp_path / "a.other", mode="r")
    assert int(other.sum()) == 2**20
    assert process_memory(os.getpid(), ".table") == tuple(size + 2**20 for size in before)
    assert process_memory(os.getpid())[0] >= 2**21


def test_each_process_reads_all_of_the_tables_once() -> None:
    asked: list[int] = []

    class Data(list[int]):
        def get_data_info(self, index: int) -> None:
            asked.append(index)

    data = large_data.TouchedData(Data(range(250)))
    assert [data[7], data[8], len(data)] == [7, 8, 250]
    assert asked == [0, 100, 200]


def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_data, "START_METHOD", "fork")  # without imports
    with pytest.raises(UserError, match="a process that measured has ended"), large_data.MeasuringProcess(fail) as one:
        one.told()


def fail(connection: Any) -> None:
    """Send nothing."""
