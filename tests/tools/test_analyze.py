"""Errors of each task from saved predictions and from a checkpoint: numbers, page, and the page in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope, init_default_scope

from engine.config.building import build
from engine.config.load import load_config
from engine.prediction.saved import SavedPredictions
from engine.prediction.visualize import predict_batch
from tests.engine.prediction.test_predictor import CONFIGS, SMALL, TASKS, small_settings
from tests.pages import Page

CHROMIUM = shutil.which("chromium")
ANALYSED = {**TASKS, "autoencoder": ("pretraining/fcmae_digits.py", "imagenet", "")}


@pytest.fixture(scope="module", params=ANALYSED)
def saved(request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task, the file of a random model's predictions, its scores, and the folder."""
    name, data, _ = ANALYSED[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    cfg = load_config(
        CONFIGS / name, {"data_root": str(digits / data), "work_dir": str(folder), **small_settings()}
    ).cfg
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model, dataset = build(MODELS, cfg.model, "model"), DATASETS.build(cfg.test_dataloader.dataset)
    collate = FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])
    torch.save({"state_dict": model.state_dict()}, folder / "model.pth")
    evaluator = Evaluator([cfg.test_evaluator, SavedPredictions(cfg, folder / "saved.zip")])
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        evaluator.process(data_samples=predict_batch(model, [dataset[index]], collate), data_batch=None)
    scores = evaluator.evaluate(len(dataset))
    DefaultScope._instance_dict.clear()
    return request.param, folder, scores, (f"data_root={digits / data}", f"work_dir={folder}", *SMALL)


@pytest.fixture(scope="module")
def analysed(saved: Any, tool: Any) -> Any:
    """The task, its scores, the page and the numbers."""
    task, folder, scores, options = saved
    command = (CONFIGS / ANALYSED[task][0], "--from-predictions", folder / "saved.zip", "--cfg-options", *options)
    done = tool("analyze.py", *command)
    assert done.code == 0, done.err
    assert "errors.html: " in done.out
    assert "prefix is not set" not in done.out + done.err
    numbers = json.loads((folder / "analysis/errors.json").read_text())
    return task, scores, folder / "analysis/errors.html", numbers


def test_scores_are_those_of_the_test(analysed: Any) -> None:
    task, scores, _, numbers = analysed
    assert numbers["metrics"] == pytest.approx({name: float(value) for name, value in scores.items()})
    errors = numbers["errors"]
    if task == "detector":
        for kind in ("bbox", "segm"):
            assert errors[kind]["AP"] == pytest.approx(100 * numbers["metrics"][f"{kind}_mAP"], abs=0.01)
            assert errors[kind]["by_iou"]["0.75"] == pytest.approx(100 * numbers["metrics"][f"{kind}_mAP_75"], abs=0.01)
            assert sum(one["count"] for one in errors[kind]["tide"]["errors"].values()) > 0
    elif task == "segmentor":
        means = {"mIoU": errors["mean"]["IoU"], "mAcc": errors["mean"]["Acc"]}
        assert means == pytest.approx({name: numbers["metrics"][name] for name in means}, abs=0.011)
        assert 0 < errors["mean"]["boundary IoU"] < 100
    elif task == "autoencoder":
        loss = numbers["metrics"]["reconstruction_loss"]
        assert errors["predictors"]["the network"]["loss"] == pytest.approx(loss, rel=1e-3)
        assert (errors["image_count"], errors["hidden_units"]) == (21, 21 * 6)
    else:
        assert errors["accuracy"] == pytest.approx(numbers["metrics"]["top1"], abs=0.01)
        assert sum(map(sum, errors["confusion"]["matrix"])) == 21
        assert errors["in_training_data_note"] == "21 images compared with all 40 training images"


def test_the_page_is_whole_and_needs_nothing_else(analysed: Any) -> None:
    _, _, path, numbers = analysed
    page = Page(path.read_text())
    assert path.stat().st_size < 15e6
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    cards = re.findall(r'data-kinds="(.*?)"', page.text)
    shown = [json.loads(html.unescape(one)) for one in cards]
    assert 0 < len(shown) <= len(numbers["errors"]["images"])
    assert shown[0] == numbers["errors"]["images"][0]["kinds"]  # the worst one first
    assert str(path.parent) not in page.words


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_filters_the_pictures(analysed: Any, tmp_path: Path) -> None:
    _, _, path, numbers = analysed
    kind = next(iter(numbers["errors"]["images"][0]["kinds"]))
    act = f"""<script>
      const select = document.querySelector("[data-by=kind]"), text = document.querySelector("[data-by=text]");
      const act = (control, value) => {{
        control.value = value;
        control.dispatchEvent(new Event("input", {{bubbles: true}}));
      }};
      const seen = () => document.querySelectorAll(".card:not([hidden])").length;
      const before = seen();
      if (select) act(select, {json.dumps(kind)});
      const chosen = seen();
      act(text, "no image has this name");
      const none = seen();
      document.querySelector(".sortable th").click();
      document.title = JSON.stringify([before, chosen, none, document.querySelector("output").textContent]);
    </script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text(path.read_text().replace("</body>", act))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", f"file://{copy}"], capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    before, chosen, none, words = json.loads(html.unescape(title[1]))
    cards = [json.loads(html.unescape(one)) for one in re.findall(r'data-kinds="(.*?)"', path.read_text())]
    of_kind = sum(kind in one for one in cards)
    several = len({name for one in cards for name in one}) > 1
    assert (before, chosen, none) == (len(cards), of_kind if several else len(cards), 0)
    assert words == f"0 of {len(cards)} pictures"


def test_two_processes_test_a_checkpoint_first_and_full_shows_all(
    saved: Any, tool: Any, program: Any, tmp_path: Path
) -> None:
    task, folder, scores, options = saved
    if task != "classifier":
        pytest.skip("the way is the same for all tasks")
    command = (CONFIGS / ANALYSED[task][0], folder / "model.pth", "--work-dir", tmp_path, "--full", "--no-data-check")
    launched = ("--processes", 2, "tools/analyze.py")
    done = program("launch.py", *launched, *command, "--cfg-options", *options)
    assert done.code == 0, done.err
    numbers = json.loads((tmp_path / "analysis/errors.json").read_text())
    assert numbers["metrics"] == pytest.approx({name: float(value) for name, value in scores.items()})
    shown = re.findall(r'data-kinds="(.*?)"', (tmp_path / "analysis/errors.html").read_text())
    assert len(shown) == len(numbers["errors"]["images"])
    again = tool(
        "analyze.py", command[0], "--from-predictions", tmp_path / "analysis", "--cfg-options", *options
    )  # the folder of the first analysis has the predictions
    assert again.code == 0, again.err


def test_bad_input_is_one_line(tool: Any, digits: Path, tmp_path: Path) -> None:
    config, options = CONFIGS / "classification/digits.py", ("--cfg-options", f"data_root={digits / 'imagenet'}")
    (tmp_path / "other.zip").write_text("no zip")
    for arguments, line in (
        ((), "one of CHECKPOINT and --from-predictions FILE says what is analysed"),
        (
            ("a.pth", "--from-predictions", "b.zip"),
            "one of CHECKPOINT and --from-predictions FILE says what is analysed",
        ),
        (
            ("--from-predictions", "b.zip", "--ema"),
            "--ema and --tta say how a checkpoint is tested: saved predictions are what they are",
        ),
        (("--from-predictions", tmp_path / "b.zip"), "--from-predictions {0}/b.zip: there is no file {0}/b.zip"),
        (("--from-predictions", tmp_path), "--from-predictions {0}: there is no file {0}/predictions.zip"),
        (
            ("--from-predictions", tmp_path / "other.zip"),
            "{0}/other.zip: is no file of tools/test.py --save-predictions",
        ),
        (("nowhere.pth",), "checkpoint 'nowhere.pth' does not exist"),
    ):
        done = tool("analyze.py", config, *arguments, "--work-dir", tmp_path / "work", *options)
        assert (done.code, done.err.strip()) == (2, f"error: {line.format(tmp_path)}")
