"""The pipeline of the last epochs reaches the data set that reads files, and the workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset
from torch.utils.data import DataLoader

import detection  # noqa: F401
from detection.last_epochs import LastEpochsPipelineHook, replace_pipeline_switch
from engine.data.fault_tolerance import FaultTolerantDataset


class Numbers(BaseDataset):
    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"number": 1.0}, {"number": 2.0}]


def first(item: dict[str, Any]) -> dict[str, int]:
    return {"from": 1}


def last(item: dict[str, Any]) -> dict[str, int]:
    return {"from": 2}


@pytest.mark.parametrize("start, seen", [(0, [1, 1, 2, 2]), (3, [2])], ids=["from the start", "resumed"])
def test_the_last_epochs_have_their_pipeline(start: int, seen: list[int], tmp_path: Any) -> None:
    parts = [Numbers(pipeline=[first]) for _ in range(2)]
    loader = DataLoader(FaultTolerantDataset(ConcatDataset(parts), tmp_path), num_workers=1, persistent_workers=True)
    hook = LastEpochsPipelineHook(epochs=2, pipeline=[last])
    runner: Any = SimpleNamespace(max_epochs=4, train_dataloader=loader, logger=SimpleNamespace(info=lambda line: None))
    found = []
    for runner.epoch in range(start, 4):
        hook.before_train_epoch(runner)
        found.append({int(batch["from"]) for batch in loader})
    assert found == [{one} for one in seen]


@pytest.mark.parametrize(
    ("length", "left", "when"), [(10, 3, "the last 3 epochs"), (5, 0, "none of 5 epochs: it begins at 7")]
)
def test_the_library_s_switch_is_replaced(length: int, left: int, when: str) -> None:
    pipeline = [{"type": "LoadImageFromFile"}]
    switch = {"type": "mmdet.PipelineSwitchHook", "switch_epoch": 7, "switch_pipeline": pipeline}
    cfg = Config({"train_cfg": {"max_epochs": length}, "custom_hooks": [{"type": "EMAHook"}, switch]})
    notes: list[str] = []
    replace_pipeline_switch(cfg, notes)
    assert cfg.custom_hooks[1] == {"type": "LastEpochsPipelineHook", "epochs": left, "pipeline": pipeline}
    assert notes == [f"custom_hooks.1: PipelineSwitchHook -> LastEpochsPipelineHook, in {when}"]
    replace_pipeline_switch(cfg, notes)
    assert len(notes) == 1
