"""The comparison with mmdet and pycocotools: everything is compared before it is timed. No time is asserted."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analysis.benchmark import detection, models
from analysis.benchmark.detection import compare_evaluation, compare_masks, compare_step
from analysis.benchmark.request import BenchmarkRequest
from analysis.benchmark.synthetic_detections import draw_scenes
from analysis.benchmark.timing import MismatchError, WorkComparison
from backbones import UserError

ROOT = Path(__file__).resolve().parents[3]
STEP = BenchmarkRequest(str(ROOT / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"), True, 1, (64, 96), rounds=1)


@pytest.fixture
def clock() -> Any:
    seconds = itertools.count()
    return lambda: float(next(seconds))


def test_evaluation(clock: Any) -> None:
    found = compare_evaluation(4, 1, clock)
    assert [*found.seconds] == ["ours", "mmdet's CocoMetric", "pycocotools alone"]
    assert all(len(taken) == 1 for taken in found.seconds.values())
    assert "24 numbers" in found.same


def test_evaluation_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    original = detection.FastCocoMetric.statistics

    def differ(*args: Any) -> Any:
        return {kind: numbers + 2e-6 for kind, numbers in original(*args).items()}

    monkeypatch.setattr(detection.FastCocoMetric, "statistics", differ)
    with pytest.raises(MismatchError, match=r"differs from pycocotools' by 2\.0e-06"):
        compare_evaluation(3, 1, clock)


def test_masks(clock: Any) -> None:
    pasted, coded = compare_masks((60, 80), 1, clock)
    assert [*pasted.seconds] == [*coded.seconds] == ["ours", "mmdet's"]


def test_masks_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    paste = detection.FastFCNMaskHead._predict_by_feat_single

    def differ(*args: Any, **kwargs: Any) -> Any:
        masks = paste(*args, **kwargs)
        masks[0, 0, 0] ^= True
        return masks

    monkeypatch.setattr(detection.FastFCNMaskHead, "_predict_by_feat_single", differ)
    with pytest.raises(MismatchError, match="1 pixels differ"):
        compare_masks((60, 80), 1, clock)


def test_step(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    models: list[Any] = []
    monkeypatch.setattr(detection, "model_step", lambda model, request: models.append(model) or (lambda: None))
    found = compare_step(STEP, clock)
    assert [*found.seconds] == ["ours", "stock model with timm's backbone, as it comes"]
    ours, stock = models
    assert not any(isinstance(one, type(ours.backbone)) for one in stock.modules())
    assert not any(type(one).__module__.startswith("backbones.convnext") for one in stock.modules())
    heads = dict(ours.named_parameters())
    for name, value in stock.named_parameters():
        if not name.startswith("backbone."):
            assert torch.equal(value, heads[name])
    rates = [one.drop_prob for one in stock.modules() if type(one).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4)  # the config's stochastic depth on both sides

    forward = detection.StockBackbone.forward
    monkeypatch.setattr(detection.StockBackbone, "forward", lambda self, x: [y * 1.01 for y in forward(self, x)])
    with pytest.raises(MismatchError, match="convnext_tiny: features differ from timm's"):
        compare_step(STEP, clock)


def test_inference_has_boxes_and_masks_to_work_on(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    found: list[tuple[Any, Any]] = []

    def recorded(model: Any, request: BenchmarkRequest) -> Any:
        step = models.model_step(model, request)
        return lambda: found.append((model, step())) or found[-1][1]

    monkeypatch.setattr(detection, "model_step", recorded)
    result = compare_step(replace(STEP, train=False), clock)
    assert result.work.startswith("inference of")
    (ours, [here]), (stock, [there]) = found[-2:]
    assert not any(isinstance(one, detection.FastFCNMaskHead) for one in stock.modules())
    assert any(isinstance(one, detection.FastFCNMaskHead) for one in ours.modules())
    assert abs(len(here.pred_instances) - len(there.pred_instances)) <= 2  # scores beside the threshold
    assert len(here.pred_instances) > 2
    assert here.pred_instances.masks.any()


def test_a_backbone_that_timm_does_not_have() -> None:
    with pytest.raises(UserError, match="--config: its backbone 'swin_tiny' is no ConvNeXt of timm's"):
        detection.StockBackbone("swin_tiny", nn.Identity(), 0.0)


def test_ratios_are_those_of_rounds() -> None:
    found = WorkComparison("work", "same", {"ours": (1.0, 2.0, 4.0), "other": (2.0, 6.0, 4.0)})
    assert found.as_dict()["sides"]["other"]["ours_is_times_faster"] == 2.0
    assert "2.00 (1.50-2.50)" in str(found)


def test_the_tool(tool: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    arguments = ["masks", "--shape", "40", "60", "--rounds", "1", "--threads", "1", "--json", str(data)]
    ended = tool("benchmark.py", "detection", *arguments)
    assert ended.code == 0, ended.err
    assert "pasting 100 masks in an image of 60 x 40" in ended.out
    assert [one["work"].split()[0] for one in json.loads(data.read_text())["comparisons"]] == ["pasting", "encoding"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The tool in this process, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "detection", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "benchmark.py"), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["picture"], "picture: choose from evaluation, masks, step, inference"),
        (["masks", "--images", "0"], "--images 0: a positive number is needed"),
        (["masks", "--threads", "0"], "--threads 0: a positive number is needed"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_mismatch_has_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def differ(*args: Any) -> Any:
        raise MismatchError("masks: 3 pixels differ")

    monkeypatch.setattr(detection, "compare_masks", differ)
    assert run(monkeypatch, "masks") == 1
    assert capsys.readouterr().err == "error: masks: 3 pixels differ\n"


def test_scenes_are_drawn_again_the_same() -> None:
    first, second = (draw_scenes(2, 5, 20, seed=3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert one.codes == other.codes
        assert len(one.codes) == 20
