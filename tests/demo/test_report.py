"""The demo's report, from made-up folders."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.report import collect_report, headline, render_demo_report, score_table, write_demo_report
from engine.report.html import COLOURS, GIB, duration, memory, number
from tests.pages import Page

METRICS = {
    "classifier": {"top1": 96.25, "top5": 99.8, "val_loss": 0.1},
    "detector": {"bbox_mAP": 0.5, "segm_mAP": 0.4, "bbox_mAP_s": -1.0},
    "detector_scratch": {"bbox_mAP": 0.125, "segm_mAP": 0.45},
    "segmentor": {"mIoU": 70.0, "mAcc": float("nan")},
    "segmentor_scratch": {"mIoU": 30.0, "mAcc": 40.0},
}
TITLES = {name: f"Train <{name}> & test" for name in METRICS}
LOAD_REPORT = "124/132 backbone tensors loaded from a<b>.pth, skipped: head"
EVIL = "<script>alert('7 & 1')</script>"


def make_run(folder: Path, metrics: dict[str, float], metric: str) -> None:
    """What a finished training leaves."""
    scalars = folder / "20260101_000000" / "vis_data" / "scalars.json"
    scalars.parent.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"lr": 0.1, "loss": 3.0 - step / 100, "step": step} for step in (10, 20)]
    lines.append({metric: metrics[metric] / 2, "val_loss": 2.0, "step": 1, "time": 0.1, "data_time": 0.0})
    scalars.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "pictures").mkdir()
    Image.new("RGB", (32, 16), "red").save(folder / "pictures" / "000003.png")
    command = {"command": f"python tools/train.py {EVIL}", "seconds": 61.0, "memory_bytes": GIB}
    record = {"commands": [command], "seconds": 61.0, "memory_bytes": GIB, "starts": 2, "metrics": metrics}
    (folder / "done.json").write_text(json.dumps(record))
    trained = {"part": "backbone", "line": LOAD_REPORT, "loaded": 124, "total": 132, "source": "a<b>.pth"}
    (folder / "weights.json").write_text(json.dumps({"receipts": [] if "scratch" in folder.name else [trained]}))
    (folder / "test.json").write_text(json.dumps({"metrics": metrics, "receipts": [{"line": f"all of {folder.name}"}]}))


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    for name, metrics in METRICS.items():
        make_run(tmp_path / name, metrics, next(iter(metrics)))
    confusion = {"classes": [EVIL, "two"], "matrix": [[95, 5], [0, 100]]}
    (tmp_path / "classifier/test").mkdir()
    (tmp_path / "classifier/test/confusion.json").write_text(json.dumps(confusion))
    return tmp_path


def test_the_time_of_all_counts_two_steps_at_the_same_time_once(work_dir: Path) -> None:
    file = work_dir / "detector_scratch" / "done.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beside_former": True, "seconds": 71.0}))
    assert collect_report(work_dir, TITLES, seed=5)["seconds"] == 61 + 71 + 61 + 61


def page_of(work_dir: Path) -> tuple[Page, str]:
    text = render_demo_report(collect_report(work_dir, TITLES, seed=5), work_dir)
    return Page(text), text


def test_scores_and_margins(work_dir: Path) -> None:
    report = collect_report(work_dir, TITLES, seed=5)
    rows = {row["label"]: (row["trained"], row["scratch"], row["margin"]) for row in report["scores"]}
    assert rows["top-1"] == (96.25, None, None)
    assert rows["box AP"] == (50.0, 12.5, 37.5)
    assert rows["mask AP"] == pytest.approx((40.0, 45.0, -5.0))
    assert rows["mIoU"] == (70.0, 30.0, 40.0)
    assert rows["mean class accuracy"] == (None, 40.0, None)
    lines = score_table(report)
    assert re.search(r"box AP +50\.0 +12\.5 +\+37\.5$", lines[3])
    assert re.search(r"mask AP +40\.0 +45\.0 +−5\.0$", lines[4])
    assert lines[-1].split() == ["total", "5:05"]
    assert len({len(line) for line in lines if line.startswith(("Class", "Det", "Seg"))}) == 1


def test_the_page_shows_the_figures_and_the_json_holds_them(work_dir: Path) -> None:
    page, data = write_demo_report(collect_report(work_dir, TITLES, seed=5), work_dir)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    report = json.loads(data.read_text(), parse_constant=refuse)
    assert report["seed"] == 5
    assert report["versions"]["torch"]
    assert [one["line"] for one in report["steps"][1]["receipts"]["training"]] == [LOAD_REPORT]
    assert [step["receipts"]["training"] == [] for step in report["steps"]] == [False, False, True, False, True]
    assert report["steps"][1]["curves"]["val/bbox_mAP"] == [[20, 0.25]]
    words = "".join(Page(page.read_text()).lines)
    for text in (
        "96.2",
        "37.5 points ahead of scratch",
        "seed 5",
        "1:01 (2 starts)",
        "1.00 GiB",
        "5:05",
        report["machine"]["cpu"],
    ):
        assert text in words
    for text in (
        f"classifier began with: {LOAD_REPORT}. Tested with: all of classifier.",
        f"segmentor began with: {LOAD_REPORT}. Tested with: all of segmentor.",
        "detector_scratch began with: random weights, nothing loaded. Tested with: all of detector_scratch.",
    ):
        assert text in words
    for text in (f"python tools/train.py {EVIL}", TITLES["segmentor"]):
        assert text in words


def test_everything_is_escaped_and_inside(work_dir: Path) -> None:
    page, text = page_of(work_dir)
    assert "script" not in page.tags
    assert EVIL in page.lines
    assert len([source for source in page.sources if source.startswith("data:image/jpeg;base64,")]) == 5
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_plots_take_their_colours_from_the_page(work_dir: Path) -> None:
    page, text = page_of(work_dir)
    assert page.tags.count("svg") == 6
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert all("var(--trained)" in plot for plot in plots)
    assert sum("var(--scratch)" in plot for plot in plots) == 4
    assert not any(light in plot for plot in plots for light, _ in COLOURS.values())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path)
    words = "".join(page.lines)
    for name in TITLES:
        assert re.search(rf"Not finished: .*\b{name}\b", words)
    assert "There is no classifier/test/confusion.json." in words
    assert "There are no pictures in classifier/pictures." in words
    assert "There are no pictures in detector/pictures and detector_scratch/pictures." in words
    assert "No curves in the folder of segmentor." in words
    assert words.count("began with: no record. Tested with: no record.") == 5
    assert "no comparison with from scratch yet" in words
    assert "svg" not in page.tags


def test_damaged_files_do_not_stop_the_report(work_dir: Path) -> None:
    (work_dir / "detector" / "pictures" / "000003.png").write_bytes(b"not a picture")
    (work_dir / "segmentor" / "pictures" / "000003.png").unlink()
    (work_dir / "classifier/test/confusion.json").write_text("[1")
    (work_dir / "segmentor" / "done.json").write_text("{")
    (work_dir / "segmentor" / "weights.json").write_text('{"receipts": [1, {"line": "one"}, {"line": "two"}]}')
    (work_dir / "detector" / "weights.json").write_text('{"receipts": {}}')
    (work_dir / "classifier" / "weights.json").write_text("[")
    page, _ = page_of(work_dir)
    words = "".join(page.lines)
    assert words.count("from the trained backbone: no picture") == 2
    assert "There is no classifier/test/confusion.json." in words
    assert "Not finished: segmentor." in words
    for text in (
        "segmentor began with: one; then two.",
        "detector began with: no record.",
        "classifier began with: no",
    ):
        assert text in words


def test_gpu_and_its_memory_come_from_the_logs(work_dir: Path) -> None:
    log = work_dir / "detector" / "20260101_000000" / "20260101_000000.log"
    log.write_text("System environment:\n    CUDA available: True\n    GPU 0,1: Some GPU\n")
    scalars = log.parent / "vis_data" / "scalars.json"
    scalars.write_text(scalars.read_text() + '{"lr": 1, "loss": 1.0, "step": 30, "memory": 2048}\n')
    report = collect_report(work_dir, TITLES, seed=0)
    assert report["machine"]["gpu"] == "Some GPU"
    assert [step["gpu_memory_bytes"] for step in report["steps"]] == [0, 2 * GIB, 0, 0, 0]
    words = "".join(Page(render_demo_report(report, work_dir)).lines)
    assert "peak GPU memory" in words
    assert "2.00 GiB" in words


def test_averaged_weights_are_labelled(work_dir: Path) -> None:
    path = next(work_dir.glob("classifier/*/vis_data/scalars.json"))
    path.write_text(path.read_text() + '{"top1": 90.0, "ema/top1": 91.5, "step": 2}\n')
    words = "".join(page_of(work_dir)[0].lines)
    assert "top-1 of the averaged weights (EMA): 91.5" in words
    assert words.count("averaged weights (EMA)") == 2


def test_numbers_for_people() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]
    assert [memory(count) for count in (None, 0, 3 * GIB // 2)] == ["–", "–", "1.50 GiB"]
    assert [number(None), number(-1.25, True), number(1.25, True), number(99.96)] == ["–", "−1.2", "+1.2", "100.0"]
    assert headline("detector", {"bbox_mAP": 0.5}) == "box AP 50.0, mask AP –"
    assert headline("data", {}) == ""


def test_pictures_are_shrunk_to_jpeg(work_dir: Path) -> None:
    page, _ = page_of(work_dir)
    picture = Image.open(io.BytesIO(base64.b64decode(page.sources[-1].partition(",")[2])))
    assert picture.format == "JPEG"
    assert picture.size == (32, 16)
