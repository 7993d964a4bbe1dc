"""Scores of each class: collected, laid out, in the log and in the report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.evaluator import Evaluator

import classification  # noqa: F401  (the packages register their tasks)
import detection  # noqa: F401
import segmentation  # noqa: F401
from engine.report.class_scores import CLASS_SCORES, class_lines, class_table, collect_class_scores, score_of
from engine.report.run_dir import write_json
from engine.report.training import write_training_report
from engine.task import TASK_SPECS
from tests.pages import Page

DETECTION = (TASK_SPECS["detection"],)
FEW: dict[str, dict[str, Any]] = {
    "cat": {"bbox_mAP": 0.5, "bbox_mAP_50": 0.75, "objects": 1200},
    "黑色的狗": {"bbox_mAP": None, "bbox_mAP_50": None, "objects": 0},
    "<b>": {"bbox_mAP": 0.0, "bbox_mAP_50": 0.125, "objects": 3},
}


def test_scores_of_several_metrics_are_merged_and_a_metric_may_have_none() -> None:
    metrics = [
        SimpleNamespace(class_scores={"a": {"x": 1.0}, "b": {"x": 2.0}}),
        SimpleNamespace(),
        SimpleNamespace(class_scores={"b": {"y": 3.0}}),
    ]
    evaluator = Evaluator([])
    evaluator.metrics = metrics
    assert collect_class_scores(evaluator) == {"a": {"x": 1.0}, "b": {"x": 2.0, "y": 3.0}}


def test_metrics_have_names_that_can_be_read() -> None:
    names = {"val_loss": "loss on held-out data", "bbox_mAP_50": "box AP50", "bbox_mAP": "box AP", "other": "other"}
    assert {name: score_of(name, DETECTION).label for name in names} == names
    for task, name, label in (
        ("segmentation", "aAcc", "pixel accuracy"),
        ("segmentation", "Acc", "accuracy"),
        ("panoptic", "SQ_th", "SQ of things"),
        ("panoptic", "PQ_st", "PQ of stuff"),
    ):
        assert score_of(name, (TASK_SPECS[task],)).label == label
    assert score_of("bbox_mAP_50", DETECTION).factor == 100


def test_few_classes_are_all_listed_in_their_order() -> None:
    head, rows, remark = class_table({"": FEW}, DETECTION)
    assert head == ["class", "box AP", "box AP50", "objects"]
    assert rows == [["cat", "50.0", "75.0", "1,200"], ["黑色的狗", "–", "–", "0"], ["<b>", "0.0", "12.5", "3"]]
    assert remark == ""


def test_of_many_classes_the_best_and_the_worst_are_listed() -> None:
    many = {f"c{i}": {"IoU": float(i) if i % 2 else None} for i in range(100)}
    _, rows, remark = class_table({"": many}, ())
    assert [name for name, _ in rows[:2]] == ["c99", "c97"]
    assert [name for name, _ in rows[-2:]] == ["c3", "c1"]
    assert len(rows) == 20
    assert remark == "the 10 best and the 10 worst of 50 classes; nothing to score of 50"
    most_empty = {f"c{i}": {"IoU": 1.0 if i < 5 else None} for i in range(100)}
    _, rows, remark = class_table({"": most_empty}, ())
    assert [name for name, _ in rows] == [f"c{i}" for i in range(5)]
    assert remark == "5 classes of 100: there was nothing to score of the others"


def test_the_lines_of_the_log_are_aligned_in_a_terminal() -> None:
    lines = class_lines("scores of the classes", FEW, DETECTION).splitlines()
    assert lines[0] == "scores of the classes:"
    assert lines[1] == "  class     bbox_mAP  bbox_mAP_50  objects"  # as in the line of the mean scores, in fractions
    assert lines[2] == "  cat          0.500        0.750    1,200"
    assert lines[3] == "  黑色的狗         –            –        0"  # four signs of two columns
    assert class_lines("nothing", {}, DETECTION) == ""


def test_the_report_shows_the_last_validation_and_then_the_tests(tmp_path: Path) -> None:
    assert "Scores of the classes" not in Page(write_training_report(tmp_path).read_text(encoding="utf-8")).words
    raw, averaged = {"cat": {"top1": 50.0, "images": 4}}, {"cat": {"top1": 75.0, "images": 4}}
    write_json(tmp_path / CLASS_SCORES, {"step": 12, "scores": {"": raw, "EMA": averaged}})
    page = Page(write_training_report(tmp_path).read_text(encoding="utf-8"))
    assert "In the validation after step 12." in page.words
    assert "<th>top-1</th><th>images</th><th>top-1, EMA</th><th>images, EMA</th>" in page.text
    assert '<th scope="row">cat</th><td>50.0</td><td>4</td><td>75.0</td><td>4</td>' in page.text
    write_json(
        tmp_path / "test.json", {"metrics": {"top1": 25.0}, "class_scores": {"<i>": {"top1": 25.0, "images": 8}}}
    )
    page = Page(write_training_report(tmp_path).read_text(encoding="utf-8"))
    assert '<th scope="row">&lt;i&gt;</th><td>25.0</td><td>8</td>' in page.text
    assert "In the test." in page.words
