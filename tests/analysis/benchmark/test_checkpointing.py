"""The study of gradient checkpointing: shares of blocks, settings, what it prints and draws. No time is asserted."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from analysis.benchmark import checkpointing
from analysis.benchmark.checkpointing import (
    CheckpointingPoint,
    CheckpointingResult,
    CheckpointingSetting,
    measure_checkpointing,
)
from analysis.benchmark.memory import step_memory
from analysis.benchmark.request import BenchmarkRequest
from backbones import UserError, build_backbone

MIB = 2**20
TINY = BenchmarkRequest("convnext_atto", True, 2, (32, 32), rounds=2)
WHERE = {"device": "a CPU", "precision": "fp32", "date": "today"}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_a_share_takes_the_first_blocks(share: float, count: int) -> None:
    with torch.device("meta"):
        network = build_backbone("convnext_atto", grad_checkpointing=share)
    first = list(network.block_stages())[:count]
    assert network.recomputed_blocks() == {network.get_submodule(name) for name in first}


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(UserError, match=r"grad_checkpointing=.*: give True, stages .* or a fraction of the blocks"):
        build_backbone("convnext_atto", grad_checkpointing=share)
    with pytest.raises(UserError, match=r"--shares .*: between 0 and 1"):
        measure_checkpointing(TINY, [0, share], ["eager"])


def test_a_share_gives_the_same_gradients() -> None:
    found = []
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        network = build_backbone("convnext_atto", grad_checkpointing=share).train()
        network(torch.randn(2, 3, 64, 64)).square().sum().backward()
        found.append([one.grad for one in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_every_setting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "_memory_apart", lambda request, setting: int(MIB * (2 - setting.share)))
    seconds = itertools.count()
    points = measure_checkpointing(TINY, [0, 0.5], ["eager", "plain"], clock=lambda: float(next(seconds))).points
    assert [(one.setting.mode, one.setting.share, one.blocks) for one in points] == [
        ("eager", 0.0, 0),
        ("eager", 0.5, 6),
        ("plain", 0.0, 0),
        ("plain", 0.5, 6),
    ]
    assert all(len(one.seconds) == 2 for one in points)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak memory")
def test_memory_grows_with_the_images() -> None:
    def measured(batch: int) -> int:
        request = BenchmarkRequest("convnext_atto", True, batch, (96, 96), rounds=1)
        build = partial(checkpointing._built_step, request, CheckpointingSetting(0.0, "plain"))
        return step_memory(build, "cpu", torch.get_num_threads())

    few, many = measured(2), measured(16)
    assert many > few + 8 * MIB


def test_text_and_chart(tmp_path: Path) -> None:
    points = tuple(
        CheckpointingPoint(CheckpointingSetting(share, mode), blocks, (2 + share, 4.0), int(8 * MIB * (1 - share / 2)))
        for mode in ("eager", "compiled")
        for share, blocks in ((0.0, 0), (1.0, 12))
    )
    result = CheckpointingResult(TINY, WHERE, points)
    text = result.as_text()
    assert "100% recomputed, compiled       12" in text
    assert text.splitlines()[-1].split()[-2:] == ["4", "50%"]
    assert result.as_dict()["points"][1]["setting"] == {"share": 1.0, "mode": "eager"}
    figure = result.plot()
    time, memory = figure.axes
    assert [line.get_label() for line in time.lines] == ["eager", "compiled"]
    assert list(memory.lines[0].get_ydata()) == [8, 4]
    figure.savefig(tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").stat().st_size < 100_000
