"""Damaged training images are replaced, counted and reported; too many end the run, and wrong labels always do."""

from __future__ import annotations

import json
import logging
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

from backbones import UserError
from engine.data.fault_tolerance import (
    REPLACED_IMAGES_FILE,
    FaultTolerantDataset,
    ReplacedImagesHook,
    max_replaced_images,
)
from engine.data.image_files import DamagedImageError
from engine.data.sampling import SeededIndex


class Numbers(BaseDataset):
    """Sample ``i`` gives ``i`` and random numbers; some raise."""

    def __init__(self, count: int = 50, errors: dict[int, Exception] | None = None, none: tuple[int, ...] = ()) -> None:
        self.count, self.errors, self.none = count, errors or {}, none
        super().__init__(serialize_data=False)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"img_path": f"{i}.jpg"} for i in range(self.count)]

    def prepare_data(self, index: int) -> dict[str, Any] | None:
        if index in self.errors:
            raise self.errors[index]
        if index in self.none:
            return None
        noise = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return {"index": index, "noise": noise}


def damaged(*indices: int) -> dict[int, Exception]:
    return {i: DamagedImageError.of(f"{i}.jpg", "is empty (0 bytes)") for i in indices}


def entries(folder: Path, name: str = REPLACED_IMAGES_FILE) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_fault_tolerant_dataset_samples_depend_on_their_index_alone(tmp_path: Path) -> None:
    samples = FaultTolerantDataset(Numbers(none=(4,)), tmp_path)
    first = [samples[SeededIndex(3, 11)], samples[SeededIndex(4, 11)]]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    torch.rand(7)
    assert [samples[SeededIndex(3, 11)], samples[SeededIndex(4, 11)]] == first
    assert samples[SeededIndex(3, 12)]["noise"] != first[0]["noise"]
    assert first[1]["index"] != 4


def test_fault_tolerant_dataset_restores_the_random_state(tmp_path: Path) -> None:
    samples = FaultTolerantDataset(Numbers(errors=damaged(3)), tmp_path)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert samples[SeededIndex(3, 11)]["index"] != 3
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_fault_tolerant_dataset_gives_a_batch_as_single_samples(tmp_path: Path) -> None:
    samples = FaultTolerantDataset(Numbers(errors=damaged(3)), tmp_path)
    indices = [SeededIndex(index, seed) for index, seed in ((3, 11), (4, 11), (4, 12))]
    single = [samples[index] for index in indices]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert samples.__getitems__(indices) == single
    assert samples[indices[0]] == single[0]  # keeps the state again for a single one
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    torch.manual_seed(5)
    plain = samples.__getitems__([4, 4])
    torch.manual_seed(5)
    assert plain[0] != plain[1]
    assert plain[0]["noise"][2] == float(torch.rand(()))  # without a seed it goes on with the process's numbers


def test_fault_tolerant_dataset_replaces_a_damaged_image_reproducibly(tmp_path: Path) -> None:
    samples = FaultTolerantDataset(Numbers(errors=damaged(3, 7)), tmp_path)
    sample = samples[SeededIndex(3, 11)]
    assert sample["index"] not in (3, 7)
    assert samples[SeededIndex(3, 11)] == sample
    assert {samples[SeededIndex(3, seed)]["index"] for seed in range(20)} != {sample["index"]}
    assert entries(tmp_path)[0] == {"file": "3.jpg", "reason": "is empty (0 bytes)"}
    assert samples[3]["index"] not in (3, 7)  # without a seed too


@pytest.mark.parametrize("error", [OSError("broken data stream"), FileNotFoundError(2, "No such file", "3.jpg")])
def test_fault_tolerant_dataset_replaces_after_errors_of_other_loaders(tmp_path: Path, error: Exception) -> None:
    assert FaultTolerantDataset(Numbers(errors={3: error}), tmp_path)[SeededIndex(3, 1)]["index"] != 3
    assert entries(tmp_path)[0]["file"] == "3.jpg"


@pytest.mark.parametrize(
    "error", [UserError("label value 9 stands for no class"), KeyError("mask"), OSError(24, "Too many open files")]
)
def test_fault_tolerant_dataset_raises_errors_that_are_no_damage(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])):
        FaultTolerantDataset(Numbers(errors={3: error}), tmp_path)[SeededIndex(3, 1)]
    assert not (tmp_path / REPLACED_IMAGES_FILE).exists()


def test_fault_tolerant_dataset_raises_when_the_disk_is_lost(tmp_path: Path) -> None:
    samples = FaultTolerantDataset(Numbers(errors=damaged(*range(50))), tmp_path)
    with pytest.raises(UserError, match=r"20 images in a row cannot be read, the last is \d+\.jpg: is empty"):
        samples[SeededIndex(3, 1)]


def test_fault_tolerant_dataset_has_the_attributes_of_its_dataset(tmp_path: Path) -> None:
    samples = FaultTolerantDataset(Numbers(9), tmp_path)
    assert len(samples) == 9
    assert samples.get_data_info(4)["img_path"] == "4.jpg"
    assert samples.metainfo == {}
    copy = pickle.loads(pickle.dumps(samples))
    assert copy[SeededIndex(2, 3)] == samples[SeededIndex(2, 3)]
    with pytest.raises(AttributeError):
        samples.no_such_thing  # noqa: B018


class Counting:
    """A ``ReplacedImagesHook`` with the parts of a runner that it needs."""

    def __init__(self, samples: FaultTolerantDataset, caplog: Any) -> None:
        loader = SimpleNamespace(dataset=samples)
        self.runner = SimpleNamespace(train_dataloader=loader, logger=logging.getLogger("counting"), is_resuming=True)
        self.hook, self._caplog = ReplacedImagesHook(), caplog
        self.hook.before_train(self.runner)

    def step(self) -> list[str]:
        self._caplog.clear()
        self.hook.after_train_iter(self.runner, 0)
        return self._caplog.messages


@pytest.mark.parametrize("start", ["fork", None])
def test_replaced_images_hook_reads_reports_of_workers(tmp_path: Path, caplog: Any, start: str | None) -> None:
    samples = FaultTolerantDataset(Numbers(12, damaged(3, 7)), tmp_path)
    counting = Counting(samples, caplog)
    loader = DataLoader(
        samples,
        batch_sampler=[[SeededIndex(i, 5) for i in range(at, at + 3)] for at in (0, 3, 6, 9)],
        num_workers=2 if start else 0,
        multiprocessing_context=start,
        collate_fn=list,
    )
    assert sum(len(batch) for batch in loader) == 12
    messages = sorted(message.replace("2 so far", "1 so far") for message in counting.step())
    assert messages == [f"{i}.jpg is empty (0 bytes): another image takes its place (1 so far)" for i in (3, 7)]
    assert counting.step() == []


def test_replaced_images_hook_logs_each_file_once_and_no_old_ones(tmp_path: Path, caplog: Any) -> None:
    samples = FaultTolerantDataset(Numbers(50, damaged(3)), tmp_path)
    counting = Counting(samples, caplog)
    assert counting.step() == []
    samples[SeededIndex(3, 1)]
    assert len(counting.step()) == 1
    samples[SeededIndex(3, 2)]
    assert counting.step() == []
    again = Counting(samples, caplog)
    assert again.step() == []
    samples[SeededIndex(3, 3)]
    assert len(again.step()) == 1


def test_replaced_images_hook_ends_the_run_after_too_many(tmp_path: Path, caplog: Any) -> None:
    samples = FaultTolerantDataset(Numbers(1500, damaged(*range(0, 32, 2))), tmp_path)
    counting = Counting(samples, caplog)
    assert max_replaced_images(1500) == 15
    assert max_replaced_images(40) == 10
    assert max_replaced_images(10) == 5
    for i in range(0, 30, 2):
        samples[SeededIndex(i, 1)]
    assert len(counting.step()) == 15
    samples[SeededIndex(30, 1)]
    message = rf"16 of 1,500 training images cannot be read, listed in .*{REPLACED_IMAGES_FILE}"
    with pytest.raises(UserError, match=message):
        counting.step()


def test_a_new_training_begins_a_new_list_and_a_resumed_one_goes_on(tmp_path: Path, caplog: Any) -> None:
    samples = FaultTolerantDataset(Numbers(errors=damaged(3)), tmp_path)
    samples[SeededIndex(3, 1)]
    counting = Counting(samples, caplog)
    assert len(entries(tmp_path)) == 1
    counting.runner.is_resuming, counting.hook = False, ReplacedImagesHook()
    counting.hook.before_train(counting.runner)
    assert not (tmp_path / REPLACED_IMAGES_FILE).exists()
    samples[SeededIndex(3, 1)]
    assert len(counting.step()) == 1


def test_replaced_images_hook_ignores_other_datasets(tmp_path: Path, caplog: Any) -> None:
    assert Counting(Numbers(5), caplog).step() == []


def test_fault_tolerant_dataset_survives_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / REPLACED_IMAGES_FILE).mkdir()  # nothing can be appended to a folder
    assert FaultTolerantDataset(Numbers(errors=damaged(3)), tmp_path)[SeededIndex(3, 1)]["index"] != 3


def test_fault_tolerant_dataset_writes_a_list_for_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.data.fault_tolerance.get_rank", lambda: 3)
    FaultTolerantDataset(Numbers(errors=damaged(3)), tmp_path)[SeededIndex(3, 1)]
    assert len(entries(tmp_path, "replaced_images_rank3.jsonl")) == 1
