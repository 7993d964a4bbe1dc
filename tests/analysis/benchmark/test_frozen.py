"""The benchmark of frozen backbones: what is frozen, what is stored, and its ratios. No time is asserted."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from analysis.benchmark import frozen
from analysis.benchmark.frozen import FROZEN, TUNED, measure_frozen
from analysis.benchmark.request import BenchmarkRequest

CONFIG = Path(__file__).resolve().parents[3] / "configs/segmentation/upernet_digits.py"
TINY = BenchmarkRequest(str(CONFIG), True, 2, (64, 64), rounds=2)


def test_a_step_and_the_features_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([3 * 2**20, 4 * 2**20])
    monkeypatch.setattr(frozen, "memory_apart", lambda build, device: next(peaks))
    forgotten: list[str] = []
    monkeypatch.setattr(frozen, "forget", forgotten.extend)
    seconds = itertools.count()
    steps, features = measure_frozen(TINY, clock=lambda: float(next(seconds)))
    assert list(steps.seconds) == [FROZEN, TUNED]
    assert steps.same == "peak memory beyond the weights: frozen 3 MiB, tuned 4 MiB, ratio 0.75"
    assert list(features.seconds) == ["backbone", "reading, from disk", "reading, from the page cache"]
    assert features.same.startswith("0.04 MiB of float16 per image")  # 19,200 numbers
    assert len(set(forgotten)) > 1
    assert str(steps).splitlines()[2].endswith("frozen is x faster")


@pytest.mark.parametrize(("side", "trained"), [(FROZEN, False), (TUNED, True)])
def test_only_a_tuned_backbone_gets_gradients(side: str, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    monkeypatch.setattr(frozen, "model_step", lambda model, request: models.append(model))
    frozen.frozen_step(TINY, side)
    (model,) = models
    assert any(param.requires_grad for param in model.backbone.stages.parameters()) == trained
    assert all(param.requires_grad for param in model.decode_head.parameters())
