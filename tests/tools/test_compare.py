"""Trainings compared from their run folders: page and numbers of each task, with saved predictions, and bad input."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope, init_default_scope

from engine.config.load import load_config
from engine.config.world import Launch
from engine.prediction.saved import SavedPredictions
from engine.task import task_of
from tests.compared_runs import write_run
from tests.engine.prediction.test_predictor import CONFIGS, TASKS, small_settings
from tests.pages import Page

WRONG = 3  # images, the first ones


def classified(sample: Any, right: bool) -> dict[str, Any]:
    label = int(sample["label"])
    scores = torch.full((10,), 0.02)
    scores[label if right else (label + 1) % 10] = 0.82
    return {"scores": scores, "pred_label": int(scores.argmax()), "gt_label": label}


def detected(sample: Any, right: bool) -> dict[str, Any]:
    boxes = torch.as_tensor(sample.gt_instances.bboxes.tensor, dtype=torch.float32)
    boxes = boxes / torch.tensor([*sample.scale_factor, *sample.scale_factor])
    kept = slice(None) if right else slice(0)
    masks = torch.zeros(len(boxes), *sample.ori_shape[:2], dtype=torch.bool)
    found = {"bboxes": boxes, "labels": sample.gt_instances.labels, "scores": torch.full((len(boxes),), 0.9)}
    return {"pred_instances": {name: value[kept] for name, value in {**found, "masks": masks}.items()}}


def segmented(sample: Any, right: bool) -> dict[str, Any]:
    labels = torch.as_tensor(sample.gt_sem_seg.data)
    return {"pred_sem_seg": {"data": labels if right else torch.full_like(labels, 3)}}


PREDICT: dict[str, Callable[[Any, bool], dict[str, Any]]] = {
    "classifier": classified,
    "detector": detected,
    "segmentor": segmented,
}


def save_predictions(cfg: Config, path: Path, task: str, wrong: int) -> None:
    """Save predictions of which the first ones are wrong."""
    init_default_scope(cfg.default_scope)
    dataset, saved = DATASETS.build(cfg.test_dataloader.dataset), SavedPredictions(cfg, path)
    for index in range(len(dataset)):
        item = dataset[index]
        sample = item.get("data_samples", item)
        fields = PREDICT[task](sample, index >= wrong)
        saved.process(None, [{**fields, "img_path": sample.get("img_path")}])
    saved.evaluate(len(dataset))
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope="module", params=TASKS)
def compared(request: pytest.FixtureRequest, digits: Path, tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task, the page and the numbers of four trainings, of which three have predictions."""
    name, data, _ = TASKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    options = {"data_root": str(digits / data), **small_settings()}
    cfg = load_config(CONFIGS / name, options, Launch()).cfg
    task = task_of(cfg)
    score = task.scores[0]
    rates = {"a": (1e-3, 0, 0.8), "b": (1e-3, 1, 0.81), "c": (3e-4, 0, 0.5), "d": (3e-4, 1, 0.6)}
    for run, (rate, seed, value) in rates.items():
        cfg.optim_wrapper.optimizer.lr = rate
        scores = (50 / score.factor, 100 * value / score.factor)
        state = {"outcome": "running", "of_steps": 9} if run == "d" else {}
        about = {"task": task.name, "seed": seed}
        write_run(folder / run, cfg.to_dict(), seed, scores, score.metric, about=about, **state)
    for run, wrong in (("a", 0), ("c", WRONG)):
        save_predictions(cfg, folder / run / "predictions.zip", request.param, wrong)
    shutil.copy(folder / "a/predictions.zip", folder / "b")
    done = tool("compare.py", *(folder / run for run in rates))
    assert done.code == 0, done.err
    return request.param, score, folder / "compare.html", json.loads((folder / "compare.json").read_text()), done.out


def test_seeds_are_one_setting_and_what_differs_is_found(compared: Any) -> None:
    _, score, page, numbers, out = compared
    runs = {letter: [Path(run["folder"]).name for run in one["runs"]] for letter, one in numbers["settings"].items()}
    assert runs == {"A": ["a", "b"], "B": ["c"], "C": ["d"]}
    assert numbers["differences"] == {"optim_wrapper.optimizer.lr": {"A": 1e-3, "B": 3e-4, "C": 3e-4}}
    last = numbers["scores"][score.metric]["places"]["last validation"]
    assert last["A"]["mean"] == pytest.approx(80.5)
    assert last["B"]["behind"] == pytest.approx(30.5)
    assert last["B"]["reason"] == "at least two seeds of each are needed"
    assert "may_be_best" not in last["C"]
    assert out.splitlines()[:2] == [
        f"A: lr=0.001 scores best: {score.label} 80.5 (mean of 2 seeds, last validation)",
        "note: d is not finished (running, step 3 of 9): its scores are shown and not ranked",
    ]
    assert out.splitlines()[-1] == f"page: {page}, numbers: {page.with_suffix('.json')}"
    assert numbers["answer"][1] == (
        "Not resolved: B: lr=0.0003 (c) may be as good (at least two seeds of each are needed)."
    )


def test_images_of_which_one_is_right_are_shown(compared: Any) -> None:
    _, _, path, numbers, _ = compared
    (pair,) = numbers["images"]
    right = sum(pair["counts"].values()) - WRONG
    assert pair["counts"] == {"both right": right, "only A right": WRONG, "only B right": 0, "both wrong": 0}
    assert right > 0
    assert sorted(one["index"] for one in pair["differ"]) == [0, 1, 2]
    page = Page(path.read_text())
    kinds = [json.loads(html.unescape(one)) for one in re.findall(r'data-kinds="(.*?)"', page.text)]
    assert [list(one) for one in kinds] == [["only A right"]] * WRONG
    pictures = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 2 * WRONG == len(page.sources)
    assert "images of d are not compared: no saved predictions, which are made by python tools/test.py" in page.words
    assert len(re.findall('class="band"', page.text)) == 3  # of the loss, the score and the rate
    assert str(path.parent) not in page.words


def test_predictions_of_other_data_are_a_gap(compared: Any, tool: Any, tmp_path: Path) -> None:
    task, _, page, _, _ = compared
    if task != "classifier":
        pytest.skip("the way is the same for all tasks")
    (tmp_path / "c").symlink_to(page.parent / "c")
    other = tmp_path / "other"
    config = Config.fromfile(page.parent / "a/20261130_120000/vis_data/config.py").to_dict()
    write_run(other, {**config, "classes": config["classes"][::-1]}, 5, (60.0,))
    done = tool("compare.py", page.parent / "a", other, "--out", tmp_path / "out/page.html")
    assert done.code == 0, done.err
    assert "note: the trainings have other classes: scores of other problems are not ranked" in done.out
    assert done.out.startswith("No answer: ")
    write_run(tmp_path / "third", config, 7, (60.0,))
    (tmp_path / "third/predictions.zip").write_text("no zip")
    done = tool("compare.py", tmp_path / "c", tmp_path / "third", "--out", tmp_path / "out/page.html")
    line = "images of third are not compared: {0}/third/predictions.zip: is no file of tools/test.py --save-predictions"
    assert f"note: {line.format(tmp_path)}" in done.out
    done = tool("compare.py", tmp_path / "c", tmp_path / "third", "--out", tmp_path / "third/predictions.zip/a.html")
    line = "{0}/third/predictions.zip/a.html cannot be written (File exists): choose another file with --out"
    assert (done.code, done.err.strip()) == (2, f"error: {line.format(tmp_path)}")


def test_bad_input_is_one_line(tool: Any, tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", about={"task": "detection"})
    for arguments, line in (
        ((one,), "one training has nothing to be compared with: name two run folders or more"),
        (
            (one, other),
            "{0}/a is a training of classification, {0}/b of detection: name trainings of one task",
        ),
        (
            (one, tmp_path / "nowhere"),
            "{0}/nowhere: there is no such folder: name the folders of trainings, as in work_dirs",
        ),
    ):
        done = tool("compare.py", *arguments)
        assert done.code != 0
        assert done.err.strip() == f"error: {line.format(tmp_path)}"
