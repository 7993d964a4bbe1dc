"""Random states of checkpoints in which all processes have the same ones."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from engine.checkpoint import state
from engine.checkpoint.rng import RandomState, seed_process


def saved_by(seed: int) -> dict[str, Any]:
    seed_process(seed)
    return {"random": RandomState.capture().as_dict(), "buffers": {}}


@pytest.mark.parametrize("common", [True, False])
def test_common_random_numbers_of_an_old_checkpoint_become_each_process_s_own(
    common: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved = {"ranks": [saved_by(0), saved_by(0 if common else 1)]}
    run = SimpleNamespace(
        seed=0,
        model=nn.Linear(1, 1),
        logger=logging.getLogger("resumed"),
        train_loop=SimpleNamespace(iter=3, by_epoch=False),
        message_hub=SimpleNamespace(update_info=lambda key, value: None),
    )
    monkeypatch.setattr(state, "get_world_size", lambda: 2)
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(state, "get_rank", lambda rank=rank: rank)
        state.restore_random_state(run, saved)  # type: ignore[arg-type]
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] != drawn[1]
    expected = []
    for one in saved["ranks"]:
        RandomState.from_dict(one["random"]).restore()
        expected.append(torch.rand(4).tolist())
    assert drawn[0] == expected[0]
    assert (drawn[1] == expected[1]) is not common
    assert ("all processes drew the same random numbers" in caplog.text) is common
