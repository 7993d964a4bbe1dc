"""The report of a training, from made-up folders, and the parts of pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import classification.pretraining  # noqa: F401  (the packages register their tasks)
import detection  # noqa: F401
import segmentation  # noqa: F401
from engine.report.html import COLOURS, CurveLine, plot, thinned
from engine.report.run_dir import best_point, read_curves, read_starts, write_json
from engine.report.training import read_run, render_training_report, state_line, write_training_report
from tests.pages import Page

EVIL = "<script>alert('7 & 1')</script>"
LOAD_REPORT = {"part": "backbone", "line": "124/132 backbone tensors loaded from a<b>.pth"}


def log(folder: Path, start: str, *entries: dict[str, Any], cut: str = "") -> None:
    path = folder / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + cut)


def step(number: int, loss: float) -> dict[str, Any]:
    return {"lr": 0.1, "loss": loss, "grad_norm": 1.0, "step": number, "time": 0.5, "data_time": 0.0, "memory": 1024}


def a_start(folder: str, begin: int, end: int | None, outcome: str, **more: Any) -> dict[str, Any]:
    plan = {"batch": {"global_batch": 8}, "lines": ["batch: 8 in all", "rate: peak 0.1"], "notes": ["SyncBN -> BN"]}
    config = {
        "file": "configs/a.py",
        "text": f'"""{EVIL}"""',
        "changed": {"batch.size": [64, 8], "work_dir": ["a", "b"]},
    }
    about = {"task": "classification", "model": "ImageClassifier", "backbone": "convnext_atto", "data": "data/digits"}
    machine = {"cpu": "Some CPU", "cores": 2, "memory_bytes": 2**34, "system": "Linux", "kernel": "6", "gpus": []}
    code = {"commit": "0123456789abcdef", "branch": "main", "dirty": True}
    made = {"versions": {"torch": "2.11.0"}, "machine": machine, "variables": {"OMP_NUM_THREADS": "2"}, "code": code}
    start = {"folder": folder, "outcome": outcome, "began": "2026-01-01T00:00:00+00:00", "seconds": 61.0}
    start |= {"from_step": begin, "to_step": end, "of_steps": 40, "command": "python tools/train.py a.py"}
    start |= {"go_on": "python tools/train.py a.py --resume", "processes": 1, "plan": plan, "config": config}
    start |= {"about": about | {"classes": 2, "optimizer": {"type": "AdamW", "lr": 0.1}, "ema": 0.99, "seed": 7}}
    return start | {"environment": made, "weights": [LOAD_REPORT], "resumed": begin > 0, "memory_bytes": 2**30} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that failed, went on from step 20 and was asked to stop."""
    place = tmp_path / "run"
    first = a_start("20260101_000000", 0, 30, "failed", reason=f"RuntimeError: {EVIL}")
    again = [LOAD_REPORT, {"part": "model", "line": "all of epoch_2.pth"}]
    second = a_start("20260101_000100", 20, 36, "stopped", reason="Ctrl-C", weights=again)
    write_json(place / "starts.json", {"starts": [first, second]})
    write_json(place / "plan.json", {"schedule": {"epochs": 4, "steps_per_epoch": 10}})
    scores = ({"top1": 50.0, "val_loss": 2.0, "ema/top1": 40.0, "step": 1}, {"top1": 80.0, "val_loss": 1.5, "step": 2})
    log(place, first["folder"], step(10, 5.0), scores[0], step(20, 4.0), scores[1], step(30, 99.0))
    log(
        place, second["folder"], step(30, 3.0), {"top1": 70.0, "val_loss": 1.0, "ema/top1": 75.5, "step": 3}, cut='{"lr'
    )
    write_json(place / "test.json", {"metrics": {"top1": 71.25}, "receipts": [{"line": "all of epoch_3.pth"}]})
    write_json(place / "confusion.json", {"classes": [EVIL, "two"], "matrix": [[95, 5], [0, 100]]})
    write_json(place / "weights.json", {"receipts": again})
    (place / "epoch_2.pth").touch()
    (place / "replaced_images.jsonl").write_text('{"file": "a.jpg"}\n{"file": "b.jpg"}\n')
    write_json(place / "data_check.json", {"summary": "1 error, 0 warnings", "findings": [finding("error")]})
    write_json(place / "nonfinite/step_27/report.json", {"step": 27, "place": "neck.0", "hint": "lower the rate"})
    (place / "pictures").mkdir()
    Image.new("RGB", (32, 16), "red").save(place / "pictures" / "3.png")
    return place


def finding(level: str) -> dict[str, str]:
    return {"level": level, "file": "c.jpg", "what": f"{level} in it", "fix": "copy it again"}


def read_page(folder: Path) -> Page:
    return Page(write_training_report(folder).read_text(encoding="utf-8"))


def row(page: Page, name: str) -> list[str]:
    """The cells of the row that begins with a name."""
    match = re.search(rf'<tr><th scope="row">{re.escape(name)}</th>(.*?)</tr>', page.text)
    assert match, name
    return re.findall(r"<td>(.*?)</td>", match[1])


def test_curves_join_over_starts_and_what_was_done_again_counts(folder: Path) -> None:
    curves = read_curves(folder)
    assert curves["train/loss"] == [(10, 5.0), (20, 4.0), (30, 3.0)]
    assert curves["train/lr"] == [(10, 0.1), (20, 0.1), (30, 0.1)]
    assert curves["val/top1"] == [(10, 50.0), (20, 80.0), (30, 70.0)]
    assert curves["val/ema/top1"] == [(10, 40.0), (30, 75.5)]


def test_a_start_that_goes_on_earlier_forgets_what_came_after(folder: Path) -> None:
    starts = json.loads((folder / "starts.json").read_text())
    starts["starts"][1]["from_step"] = 10
    write_json(folder / "starts.json", starts)
    curves = read_curves(folder)
    assert curves["train/loss"] == [(10, 5.0), (30, 3.0)]
    assert curves["val/top1"] == [(10, 50.0), (30, 70.0)]


def test_curves_of_a_folder_without_record(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", step(10, 5.0), {"mIoU": 1.0, "loss": 9.0, "step": 0}, step(20, 99.0))
    log(tmp_path, "20260101_000100", step(20, float("nan")), {"mIoU": 2.0, "step": 0}, cut='{"lr": 1, "lo')
    curves = read_curves(tmp_path)
    assert curves["train/loss"] == [(10, 5.0), (20, 99.0)]
    assert (curves["val/mIoU"], curves["val/loss"]) == ([(10, 1.0), (20, 2.0)], [(10, 9.0)])


def test_validations_of_a_run_in_steps_are_where_they_say(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"schedule": {"epochs": None, "steps": 40, "steps_per_epoch": None}})
    log(tmp_path, "20260101_000000", step(10, 5.0), {"mIoU": 1.0, "step": 16})
    assert read_curves(tmp_path)["val/mIoU"] == [(16, 1.0)]


def test_the_best_is_the_highest_and_of_a_loss_the_lowest() -> None:
    points = [(1, 2.0), (2, 3.0), (3, 3.0), (4, 1.0)]
    assert best_point("top1", points) == (2, 3.0)
    assert best_point("ema/val_loss", points) == (4, 1.0)


def test_scores(folder: Path) -> None:
    page = read_page(folder)
    assert row(page, "top-1") == ["70.0", "80.0 (20)", "75.5", "75.5 (30)", "71.2"]
    assert row(page, "loss on held-out data") == ["1", "1 (30)", "–", "–", "–"]


def test_scores_come_in_the_order_of_their_task(tmp_path: Path) -> None:
    about = {"about": {"task": "segmentation"}}
    write_json(tmp_path / "starts.json", {"starts": [{**a_start("20260101_000000", 0, 2, "finished"), **about}]})
    log(tmp_path, "20260101_000000", {"aAcc": 3.0, "mAcc": 2.0, "mIoU": 1.0, "val_loss": 4.0, "step": 1})
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>', read_page(tmp_path).text)
    assert rows[:4] == ["mIoU", "mean class accuracy", "pixel accuracy", "loss on held-out data"]


def test_the_losses_of_training_and_validation_are_in_one_chart(tmp_path: Path) -> None:
    for name, metric in (("detection", "val_loss"), ("pretraining", "reconstruction_loss"), ("classification", "loss")):
        place = tmp_path / name
        images = {"loss_images": 1500} if name == "detection" else {}
        start = {**a_start("20260101_000000", 0, 2, "finished"), "about": {"task": name}, **images}
        write_json(place / "starts.json", {"starts": [start]})
        log(place, "20260101_000000", step(1, 5.0), {metric: 4.0, f"ema/{metric}": 3.0, "step": 1})
        text = read_page(place).text
        chart = next(part for part in text.split("<svg")[1:] if "loss</text>" in part)
        together = [f">{label}</text>" in chart for label in ("held-out data", "held-out data, averaged (EMA)")]
        assert together == [metric != "loss"] * 2
        assert ("it may lie below that of the training" in text) == (metric != "loss")
        assert ("and of 1,500 images, spread evenly over them." in text) == (name == "detection")
        assert "loss on hidden units on held-out data" not in text


def test_scores_that_are_no_numbers_are_not_taken_for_no_validation(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", step(10, 5.0))
    assert "There was no validation yet." in read_page(tmp_path).words
    log(tmp_path, "20260101_000000", step(10, 5.0), {"top1": float("nan"), "step": 1})
    assert "No score of the validations is a number." in read_page(tmp_path).words


@pytest.mark.parametrize(
    ("task", "classes", "words"),
    [("pretraining", 1, ""), ("detection", 1, ", 1 class"), ("detection", 2, ", 2 classes")],
)
def test_the_lead_counts_classes_where_there_are_some(tmp_path: Path, task: str, classes: int, words: str) -> None:
    about = {"task": task, "model": "Some", "classes": classes, "data": "data/mine"}
    start = {**a_start("20260101_000000", 0, 2, "finished"), "about": about}
    write_json(tmp_path / "starts.json", {"starts": [start]})
    assert f"{task.capitalize()}: Some{words}, trained on data/mine" in read_page(tmp_path).words


def test_scores_of_detection_are_out_of_100(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", {"bbox_mAP": 0.5, "bbox_mAP_50": 0.75, "bbox_mAP_l": -1.0, "step": 1})
    page = read_page(tmp_path)
    assert row(page, "box AP") == ["50.0", "50.0 (1)"]
    assert row(page, "box AP50") == ["75.0", "75.0 (1)"]
    assert row(page, "box APl") == ["–", "–"]


def test_the_page_tells_all_there_is(folder: Path) -> None:
    page = read_page(folder)
    for words in (
        "Stopped at step 36 of 40: Ctrl-C. Go on with: python tools/train.py a.py --resume",
        "Classification: ImageClassifier with convnext_atto, 2 classes, trained on data/digits",
        "CPU: Some CPU, 2 cores · 2:02 in all",
        "2 images could not be read and were replaced: replaced_images.jsonl",
        "not finite at step 27; first in neck.0; lower the rate",
        "data check: 1 error, 0 warnings; all of it in data_check.json",
        "c.jpg: error in it; copy it again",
        f"began with: {LOAD_REPORT['line']}",
        "went on at step 20 with: all of epoch_2.pth",
        "test with: all of epoch_3.pth",
        "configs/a.py: what it says beyond its bases",
        "OMP_NUM_THREADS=2",
    ):
        assert words in page.words
    assert row(page, "batch.size") == ["64", "8"]
    assert 'scope="row">work_dir<' not in page.text
    assert row(page, "batch") == ["8 in all"]
    assert row(page, "note") == ["SyncBN -&gt; BN"]
    assert row(page, "optimizer") == ["AdamW, lr 0.1"]
    assert row(page, "time of a step") == ["0.5 s, 16 images/s"]
    assert row(page, "peak GPU memory") == ["1.00 GiB"]
    assert row(page, "packages") == ["torch 2.11.0"]
    assert row(page, "code") == ["0123456789ab on main with changes"]
    assert re.findall(r"<td>(\d+ to \d+)</td><td>1:01</td><td>(\w+)", page.text) == [
        ("0 to 30", "failed"),
        ("20 to 36", "stopped"),
    ]
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 1


def test_everything_is_escaped_and_inside(folder: Path) -> None:
    page = read_page(folder)
    assert "script" not in page.tags
    assert page.words.count(EVIL) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not re.search(r"@import|url\(", page.text)


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    page = read_page(tmp_path)
    assert "No starts.json tells how this training stands." in page.words
    assert "There was no validation yet." in page.words
    assert "Nothing was logged yet." in page.words


@pytest.mark.parametrize("content", ["", "[1", "[]", '{"starts": 1}', '{"starts": [1, {}]}', "\x00"])
@pytest.mark.parametrize("name", ["starts.json", "plan.json", "test.json", "data_check.json", "weights.json"])
def test_damaged_files_do_not_stop_the_report(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    (folder / "pictures" / "3.png").write_bytes(b"no picture")
    assert "top-1" in read_page(folder).words


@pytest.mark.parametrize(
    ("outcome", "checkpoints", "expected"),
    [
        ("finished", ["a.pth"], "Finished at step 9 of 1,000."),
        ("running", ["a.pth"], "Running, or ended without a word: last heard of at step 9 of 1,000."),
        ("failed", [], "Failed at step 9 of 1,000: no reason is known. Nothing was saved yet; start again with: train"),
        ("stopped", ["a.pth"], "Stopped at step 9 of 1,000: no reason is known. Go on with: train --resume"),
    ],
)
def test_how_a_training_stands(outcome: str, checkpoints: list[str], expected: str) -> None:
    start = {"outcome": outcome, "to_step": 9, "of_steps": 1000, "command": "train", "go_on": "train --resume"}
    assert state_line(start, checkpoints) == expected


def test_many_classes_and_many_pictures_fit_a_page(folder: Path) -> None:
    write_json(folder / "confusion.json", {"classes": list(range(1000)), "matrix": []})
    for index in range(20):
        Image.new("RGB", (32, 16)).save(folder / "pictures" / f"{index}.png")
    page = read_page(folder)
    assert "1,000 classes are too many for a page: see confusion.json" in page.words
    assert page.tags.count("img") == 8


def test_losses_of_training_and_validation_share_a_plot(folder: Path) -> None:
    page = read_page(folder)
    assert "held-out data" in page.words.split("top-1 on held-out data")[0].split("Curves")[1]
    assert "held-out data, averaged (EMA)" not in page.words
    for start in json.loads((folder / "starts.json").read_text())["starts"]:
        scalars = folder / start["folder"] / "vis_data/scalars.json"
        scalars.write_text(scalars.read_text().replace("val_loss", "other"))
    assert "training loss" in read_page(folder).words


def test_confused_classes_say_which_weights_they_are_of(folder: Path) -> None:
    scores = {"": {"one": {"top1": 50.0}}, "EMA": {"one": {"top1": 40.0}}}
    write_json(folder / "class_scores.json", {"step": 30, "scores": scores})
    assert "In the validation after step 30, averaged weights (EMA)." in read_page(folder).words
    write_json(folder / "class_scores.json", {"step": 30, "scores": {"": scores[""]}})
    assert "In the validation after step 30, raw weights." in read_page(folder).words


def test_a_start_that_does_not_resume_is_a_new_training(folder: Path) -> None:
    starts = json.loads((folder / "starts.json").read_text())["starts"]
    write_json(folder / "starts.json", {"starts": [*starts, a_start("20260101_000200", 0, 5, "finished")]})
    assert [start["folder"] for start in read_starts(folder)] == ["20260101_000200"]
    log(folder, "20260101_000200", step(5, 2.5))
    assert read_curves(folder) == {
        "train/loss": [(5, 2.5)],
        "train/lr": [(5, 0.1)],
        "train/grad_norm": [(5, 1.0)],
    }
    assert render_training_report(read_run(folder), folder).count("<td>finished</td>") == 1


def test_a_start_that_failed_before_its_first_step_hides_nothing(folder: Path) -> None:
    before = read_curves(folder)
    starts = json.loads((folder / "starts.json").read_text())["starts"]
    failed = a_start("20260101_000200", 0, 0, "failed", reason="epoch_2.pth is of another model", weights=[])
    del failed["from_step"], failed["resumed"]
    failed["about"]["backbone"] = "swin_tiny"
    failed["go_on"] = "python tools/train.py a.py --resume --cfg-options model.backbone.type=swin_tiny"
    write_json(folder / "starts.json", {"starts": [*starts, failed]})
    assert read_curves(folder) == before
    page = read_page(folder)
    assert "ImageClassifier with convnext_atto" in page.words
    assert "Failed before its first step: epoch_2.pth is of another model. Go on with:" in page.words
    assert "model.backbone.type=swin_tiny" not in page.words.partition("Go on with:")[2].partition("Scores")[0]
    assert "<td>none</td>" in page.text
    assert page.text.count("went on at step") == 1


def test_a_plot_has_its_points_where_they_belong() -> None:
    svg = plot("A", "b", {"c": CurveLine("trained", [(0, 0.0), (50, 0.5), (100, 1.0)], 100)})
    points = re.search(r'points="([^"]+)"', svg)
    assert points
    assert points[1] == "54.0,246.0 249.0,145.0 444.0,44.0"
    assert re.findall(r'end">([^<]+)<', svg) == ["0", "20", "40", "60", "80", "100"]
    assert "var(--trained)" in svg
    assert not any(colour in svg for pair in COLOURS.values() for colour in pair)
    assert plot("A", "b", {"c": CurveLine("trained", None), "d": CurveLine("trained", [])}) == ""


@pytest.mark.parametrize("values", [[0.0], [5.0], [-1.0, 1.0], [1e-9, 2e-9], [1e12], [0.1] * 40, [-3.0]])
def test_a_plot_of_any_values_stays_inside(values: list[float]) -> None:
    svg = plot("A", "b", {"c": CurveLine("trained", list(enumerate(values)))})
    numbers = re.search(r'points="([^"]+)"', svg)
    assert numbers
    for pair in numbers[1].split():
        x, y = map(float, pair.split(","))
        assert 54 <= x <= 444
        assert 44 <= y <= 246


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(index, float(index)) for index in range(10_001)]
    kept = thinned(points, 100)
    assert (len(kept), kept[0], kept[-1]) == (100, points[0], points[-1])
    assert thinned(points[:100], 100) == points[:100]


def test_what_the_data_check_warned_of_is_on_the_page(folder: Path) -> None:
    crowds = {**finding("warning"), "kind": "crowds", "split": "train", "what": "6 of 12 objects are crowds"}
    many = [{**finding("warning"), "kind": "tiny image", "split": "val", "what": f"is {i} x 1"} for i in range(30)]
    notes = ["objects of the train data that are trained on: 6 of 12; not these: 6 crowds (iscrowd 1)"]
    check = {"summary": "1 error, 31 warnings", "notes": notes, "findings": [crowds, *many, finding("error")]}
    write_json(folder / "data_check.json", check)
    words = read_page(folder).words
    assert notes[0] in words
    assert "warning: c.jpg: 6 of 12 objects are crowds; copy it again" in words
    assert "warning (30 in val): c.jpg: is 0 x 1; copy it again" in words
    assert words.index("error: c.jpg") < words.index("warning: c.jpg") < words.index("is 0 x 1")
    assert "is 1 x 1" not in words


def test_names_that_pictures_cannot_show_have_a_legend(folder: Path) -> None:
    (folder / "pictures/class_names.json").write_text('{"class 0": "<猫>", "[dog face]": "🐶"}', encoding="utf-8")
    page = read_page(folder)
    assert "in the pictures 'class 0' is '<猫>', '[dog face]' is '🐶'" in page.words
    assert "猫" not in page.tags


def test_the_page_says_what_took_the_time(folder: Path) -> None:
    spent = {"starting": 500, "waiting for data": 30, "training": 50, "validation": 10, "saving": 10}
    starts = [
        a_start("20260101_000000", 0, 30, "failed", spent=spent),
        a_start("20260101_000100", 30, 40, "finished", spent={"training": 99.6, "waiting for data": "none"}),
        a_start("20260101_000200", 40, 40, "finished", spent=None),
    ]
    write_json(folder / "starts.json", {"starts": starts})
    words = read_page(folder).words
    assert "waiting for data 15%, training 75%, validation 5%, saving 5%" in words
    assert "15% of the time went to waiting for data: more train_dataloader.num_workers" in words
    assert "of the time went to saving" not in words
    write_json(folder / "starts.json", {"starts": starts[2:]})
    assert "time went to" not in read_page(folder).words
