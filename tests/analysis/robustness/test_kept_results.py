"""When the result of a set is taken from its file, and when it is made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

import classification  # noqa: F401
from analysis.robustness.evaluation import Progress, SetEvaluator, SetResult
from backbones.errors import DataError
from engine.task import ImageSet


class Model(nn.Module):
    """Says class 0 of every image, and counts the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.batches = 0

    def test_step(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        self.batches += 1
        scores = torch.softmax(self.weight * torch.tensor([1.0, 0.0]), 0)
        labels = zip(batch["img_path"], batch["label"], strict=True)
        return [{"img_path": path, "gt_label": int(label), "scores": scores} for path, label in labels]


class Case:
    """Two classes of an image each, and the settings of an evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.settings = folder, Model(), {"averaged": False}
        for name in ("a", "b"):
            self.picture(name, 0)
        dataset = {
            **{"type": "FolderDataset", "data_root": str(folder), "split": "val", "metainfo": {"classes": ("a", "b")}},
            **{"pipeline": [{"type": "ClassificationTransform", "size": 8, "crop_ratio": 1.0}], "test_mode": True},
        }
        self.cfg = Config(
            {
                "model": {"type": "ImageClassifier"},
                "test_dataloader": {
                    **{"dataset": dataset, "batch_size": 2, "num_workers": 0},
                    **{"sampler": {"type": "DefaultSampler", "shuffle": False}},
                    "collate_fn": {"type": "default_collate"},
                },
                "test_evaluator": {"type": "RobustnessMetric"},
                "test_cfg": {},
            }
        )

    def picture(self, name: str, level: int, file: str = "0.png") -> None:
        (self.folder / "val" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8 + level, 3), level, np.uint8)).save(self.folder / "val" / name / file)

    def evaluate(self) -> tuple[bool, SetResult]:
        """Whether the model was asked, and the result."""
        self.model.batches = 0
        evaluator = SetEvaluator(self.cfg, self.model, self.folder / "robustness", self.settings)
        sets = [ImageSet("c/fog/1", self.cfg.test_dataloader.dataset.to_dict())]
        results = evaluator.evaluate_all(sets, Progress(1), lambda result: "")
        return self.model.batches > 0, results["c/fog/1"]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_result_is_kept_as_long_as_nothing_changes(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    asked, first = case.evaluate()
    assert asked
    assert (first.metrics["top1"], first.images) == (50, 2)
    assert case.evaluate() == (False, first)
    assert "kept from before" in capsys.readouterr().out


CHANGES: dict[str, Callable[[Case], object]] = {
    "weights": lambda case: case.model.weight.data.mul_(2),
    "the model's settings": lambda case: case.cfg.model.update(num_classes=2),
    "averaged weights": lambda case: case.settings.update(averaged=True),
    "half precision": lambda case: case.cfg.test_cfg.update(fp16=True),
    "the metric": lambda case: case.cfg.test_evaluator.update(keep_confidences=True),
    "the pipeline": lambda case: case.cfg.test_dataloader.dataset.pipeline[0].update(crop_ratio=0.875),
    "an image of the same name": lambda case: case.picture("a", 1),
    "an image more": lambda case: case.picture("b", 0, "1.png"),
    "an image less": lambda case: (case.folder / "val/b/0.png").rename(case.folder / "val/a/1.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_result_of_something_else_is_made_again(change: str, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.evaluate()
    CHANGES[change](case)
    assert case.evaluate()[0]
    assert "c/fog/1: the result that is there is of other weights, data or settings" in capsys.readouterr().out
    assert not case.evaluate()[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"digest": null}'])
def test_a_damaged_file_is_made_again(content: str, case: Case) -> None:
    _, first = case.evaluate()
    file = case.folder / "robustness/sets/c/fog/1.json"
    file.write_text(content)
    asked, again = case.evaluate()
    assert asked
    assert again.metrics == first.metrics
    assert json.loads(file.read_text())["digest"] == first.digest


def test_a_file_without_one_of_its_entries_is_made_again(case: Case) -> None:
    case.evaluate()
    file = case.folder / "robustness/sets/c/fog/1.json"
    content = json.loads(file.read_text())
    del content["details"]
    file.write_text(json.dumps(content))
    assert case.evaluate()[0]


def test_images_that_are_gone_are_no_reason_to_keep_a_result(case: Case) -> None:
    case.evaluate()
    for name in ("a", "b"):
        (case.folder / "val" / name / "0.png").unlink()
    with pytest.raises(DataError):
        case.evaluate()


def test_what_is_left_counts_the_evaluated_sets_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter((0.0, 60.0, 120.0))
    monkeypatch.setattr("analysis.robustness.evaluation.time.monotonic", lambda: next(clock))
    progress = Progress(5)
    progress.finish("clean", reused=True)
    progress.finish("a", reused=False)
    progress.finish("r", reused=False)
    monkeypatch.undo()
    assert capsys.readouterr().out.splitlines() == [
        "[1/5] clean",
        "[2/5] a, about 3:00 left",
        "[3/5] r, about 2:00 left",
    ]
