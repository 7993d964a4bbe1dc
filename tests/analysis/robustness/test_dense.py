"""Detectors and segmentors under corruption: their own metrics, mPC and rPC, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import detection  # noqa: F401
import segmentation  # noqa: F401
from analysis.robustness.evaluation import Progress, SetEvaluator, SetResult
from analysis.robustness.examples import draw_worst
from analysis.robustness.planning import make_evaluation_plan
from analysis.robustness.report import write_robustness_report
from analysis.robustness.summary import is_performance, performance_rows, summarize_suites
from engine.config.load import load_config
from engine.config.world import Launch
from engine.prediction.visualize import load_predictor
from engine.task import task_of

ROOT = Path(__file__).resolve().parents[3]
CASES = {
    "detection/mask_rcnn_digits.py": ("coco", ("box AP", "mask AP")),
    "segmentation/upernet_digits.py": ("ade", ("mIoU", "mean class accuracy")),
}


@pytest.mark.parametrize("config", CASES)
def test_a_dense_model_is_evaluated_under_corruption(config: str, digits: Path, tmp_path: Path) -> None:
    folder, labels = CASES[config]
    options = {"data_root": str(digits / folder), "work_dir": str(tmp_path), "val_dataloader.num_workers": 0}
    options |= {"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 16, 24, 32]}
    cfg = load_config(ROOT / "configs" / config, options, Launch(), training=False).cfg
    task = task_of(cfg)
    plan = make_evaluation_plan(cfg, ("c",), tmp_path, ())
    clean, corrupted = plan.suites
    corrupted = replace(corrupted, sets=tuple(one for one in corrupted.sets if one.name.startswith("c/snow")))
    suites = (clean, corrupted)
    torch.manual_seed(0)
    model, visualizer = _predictor(cfg, tmp_path)
    evaluator = SetEvaluator(cfg, model, tmp_path / "robustness", {})
    sets = [one for suite in suites for one in suite.sets]
    results: dict[str, SetResult] = evaluator.evaluate_all(sets, Progress(len(sets)), lambda result: "")
    assert len(results) == 6
    summaries = summarize_suites(suites, results, task, same_classes=False)
    assert not is_performance(summaries["clean"])
    assert is_performance(summaries["c"])
    assert tuple(summaries["c"]["scores"]) == labels
    assert [row[0] for row in performance_rows(summaries["c"])] == ["", *labels]
    pictures = draw_worst(evaluator, visualizer, suites, results, task)
    assert pictures
    listed = results[min(results, key=lambda name: name == "clean")].details["worst"]
    assert len(listed) == len(pictures) <= 4
    content: dict[str, Any] = {
        **{"checkpoint": "x", "network": "x", "averaged": False, "tta": False, "suites": summaries, "worst": pictures},
        **{"published": [], "absent": [], "notes": list(plan.notes), "table": [], "command": "x"},
    }
    page = write_robustness_report(tmp_path / "robustness", content, suites, results, task).read_text()
    for words in ("mPC", "rPC", "regenerated", "severity (0: clean)", "<figure>", "The truth is on the left, "):
        assert words in page


def test_test_time_augmentation_gives_the_scores_of_the_test_program(digits: Path, tmp_path: Path, tool: Any) -> None:
    config = ROOT / "configs/segmentation/upernet_digits.py"
    options = {"data_root": str(digits / "ade"), "val_dataloader.num_workers": 0, "val_dataloader.dataset.indices": 2}
    options |= {"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 16, 24, 32]}
    cfg = load_config(config, {**options, "work_dir": str(tmp_path)}, Launch(), training=False).cfg
    torch.manual_seed(0)
    _predictor(cfg, tmp_path)
    settings = [f"{key}={value}".replace(" ", "") for key, value in options.items()]
    common = (config, tmp_path / "a.pth", "--tta", "--work-dir", tmp_path, "--no-data-check")
    done = tool("robustness.py", *common, "--suites", "clean", "--cfg-options", *settings)
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "robustness_tta/robustness.json").read_text())
    done = tool("test.py", *common, "--cfg-options", *settings)
    assert done.code == 0, done.err
    (file,) = tmp_path.rglob("test*.json")
    tested = json.loads(file.read_text())
    assert content["suites"]["clean"]["scores"]["mIoU"] == pytest.approx(tested["metrics"]["mIoU"])
    assert content["worst"]
    assert all("IoU" in one["caption"] for one in content["worst"])


def _predictor(cfg: Any, folder: Path) -> tuple[Any, Any]:
    """The model with its initial weights, by way of a file."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    torch.save({"state_dict": model.state_dict()}, folder / "a.pth")
    return load_predictor(cfg, str(folder / "a.pth"), False, "cpu")


def test_mpc_is_the_mean_over_all_sets_and_rpc_relative_to_clean() -> None:
    cfg = load_config(ROOT / "configs/detection/mask_rcnn_digits.py", None, Launch(), training=False).cfg
    plan = make_evaluation_plan(cfg, ("c",), Path("nowhere"), ())

    def result(name: str, box: float, mask: float) -> SetResult:
        return SetResult(name, "", {"bbox_mAP": box, "segm_mAP": mask}, {}, 1, 0.0)

    results = {one.name: result(one.name, 0.1 * int(one.name[-1]), 0.05) for one in plan.suites[1].sets}
    results["clean"] = result("clean", 0.6, 0.2)
    scores = summarize_suites(plan.suites, results, task_of(cfg), same_classes=False)["c"]["scores"]
    assert scores["box AP"]["mpc"] == pytest.approx(30)
    assert scores["box AP"]["rpc"] == pytest.approx(50)
    assert (scores["mask AP"]["mpc"], scores["mask AP"]["rpc"]) == (pytest.approx(5), pytest.approx(25))
    assert scores["box AP"]["values"]["fog"] == pytest.approx([10, 20, 30, 40, 50])
