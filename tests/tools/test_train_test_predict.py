"""The three tools over the three tasks: train a classifier, plug it into a detector and a segmentor, test, draw."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backbones.weights import read_checkpoint
from engine.checkpoint.store import content_mark
from engine.config.load import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ONE_EPOCH = ("train_cfg.max_epochs=1", "param_scheduler.1.begin=0", "batch.size=8")
TASKS = ("classifier", "detector", "segmentor")
FORMATS = {"detector": "coco", "segmentor": "png"}
METRICS = {
    "classifier": {"top1", "top5", "val_loss"},
    "detector": {f"{kind}_mAP{size}" for kind in ("bbox", "segm") for size in ("", "_50", "_75", "_s", "_m", "_l")},
    "segmentor": {"aAcc", "mIoU", "mAcc"},
}


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    config: Path
    data: Path
    folder: Path
    checkpoint: Path
    out: str
    err: str

    def options(self, *more: str) -> list[str]:
        return ["--work-dir", str(self.folder), "--cfg-options", f"data_root={self.data}", *more]

    def scalars(self) -> list[dict[str, Any]]:
        (path,) = self.folder.glob("*/vis_data/scalars.json")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def validation(self) -> dict[str, float]:
        """The last line of the curves that is not about training."""
        return [line for line in self.scalars() if "lr" not in line][-1]


def trained(run: Callable[..., Any], config: Path, data: Path, folder: Path, last: str, *options: str) -> Trained:
    settings = [f"data_root={data}", "default_hooks.logger.interval=1", *options]
    ended = run("train.py", config, "--work-dir", folder, "--cfg-options", *settings)
    assert ended.code == 0, ended.err
    return Trained(config, data, folder, folder / last, ended.out, ended.err)


@pytest.fixture(scope="module")
def classifier(program: Callable[..., Any], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config, folder = CONFIGS / "classification/digits.py", tmp_path_factory.mktemp("classifier")
    return trained(program, config, digits / "imagenet", folder, "epoch_1.pth", *ONE_EPOCH)


@pytest.fixture(scope="module")
def detector(
    program: Callable[..., Any], classifier: Trained, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    config, folder = CONFIGS / "detection/mask_rcnn_digits.py", tmp_path_factory.mktemp("detector")
    more = (
        "train_cfg.max_epochs=1",
        "batch.size=8",
        "batch.per_gpu=4",
        f"model.backbone.weights={classifier.checkpoint}",
    )
    return trained(program, config, digits / "coco", folder, "epoch_1.pth", *more)


@pytest.fixture(scope="module")
def segmentor(tool: Any, classifier: Trained, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config, folder = CONFIGS / "segmentation/upernet_digits.py", tmp_path_factory.mktemp("segmentor")
    length = ("train_cfg.max_iters=3", "train_cfg.val_interval=3", "default_hooks.checkpoint.interval=3")
    more = ("batch.size=8", "batch.per_gpu=4", f"model.backbone.weights={classifier.checkpoint}")
    return trained(tool, config, digits / "ade", folder, "iter_3.pth", *length, *more)


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Trained:
    return request.getfixturevalue(request.param)


def assert_drawn(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) >= 48
    assert pixels.std() > 1, f"{path} is blank"


def test_a_training_leaves_a_config_checkpoints_and_curves(classifier: Trained) -> None:
    folder = classifier.folder
    dumped = load_config(folder / "digits.py").cfg
    assert (dumped.batch.size, dumped.train_cfg.max_epochs) == (8, 1)
    assert dumped.test_dataloader.dataset.data_root == str(classifier.data)
    checkpoint = read_checkpoint(str(classifier.checkpoint))
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]) == (1, 5)
    assert set(checkpoint) >= {"state_dict", "ema_state_dict", "optimizer", "param_schedulers"}
    assert Path((folder / "last_checkpoint").read_text()) == classifier.checkpoint
    assert [line["step"] for line in classifier.scalars() if "lr" in line] == [1, 2, 3, 4, 5]
    metrics = METRICS["classifier"]
    assert set(classifier.validation()) >= metrics | {f"ema/{name}" for name in metrics}
    (events,) = folder.glob("tensorboard/events.out.tfevents.*")
    curves = EventAccumulator(str(events)).Reload()
    assert set(curves.Tags()["scalars"]) >= {"loss", "lr", "top1", "ema/top1"}
    assert [point.step for point in curves.Scalars("lr")] == [1, 2, 3, 4, 5]


def test_without_a_terminal_the_log_is_plain_lines(classifier: Trained) -> None:
    assert classifier.err == ""
    assert not re.search(r"[\r\x1b]|it/s", classifier.out)
    steps = re.findall(r"Epoch\(train\) \[1\]\[(\d)/5\] .* eta: \S+ .* loss: \d", classifier.out)
    assert steps == ["1", "2", "3", "4", "5"]


def test_resumed_on_a_terminal_it_goes_on_where_it_was_and_shows_a_bar(
    terminal: Callable[..., Any], classifier: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(classifier.folder, folder)
    settings = [f"data_root={classifier.data}", *ONE_EPOCH, "train_cfg.max_epochs=2", "default_hooks.logger.interval=1"]
    ended = terminal("train.py", classifier.config, "--resume", "--work-dir", folder, "--cfg-options", *settings)
    assert ended.code == 0, ended.out
    assert re.findall(r"Epoch\(train\) \[(\d)\]\[(\d)/5\]", ended.out) == [("2", str(step)) for step in range(1, 6)]
    checkpoint = read_checkpoint(str(folder / "epoch_2.pth"))
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]) == (2, 10)
    assert int(checkpoint["ema_state_dict"]["steps"]) == 10
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {10}
    bar = r"\rtrain: +\d+%\|[^\r]*\| +(\d+)/10 \[\d\d:\d\d<(\d\d:\d\d|\?), +([\d.]+|\?)(it/s|s/it)(, loss \d\.\d{3})?\]"
    shown = [(int(match[1]), match[5]) for match in re.finditer(bar, ended.out)]
    assert shown[0][0] == 5
    assert shown[-1][0] == 10
    assert shown[-1][1].startswith(", loss")


@pytest.mark.parametrize("task", ["detector", "segmentor"], indirect=True)
def test_the_classifier_plugs_into_a_dense_task(task: Trained, classifier: Trained) -> None:
    line = next(line for line in task.out.splitlines() if "backbone tensors loaded" in line)
    match = re.search(r"(\d+)/(\d+) backbone tensors loaded from (\S+) \(.*?\), (.*)", line)
    assert match is not None
    loaded, total, source, rest = match.groups()
    own = read_checkpoint(str(classifier.checkpoint))["state_dict"]
    backbone = [name for name in own if name.startswith("backbone.") and not name.startswith("backbone.norm.")]
    assert (int(loaded), int(total)) == (len(backbone), len(backbone) + 8)
    assert (source, rest) == (
        str(classifier.checkpoint),
        "new: norm0, norm1, norm2, norm3 (weight 1, bias 0), skipped: backbone.norm, head",
    )
    assert task.err == ""


@pytest.mark.parametrize("task", ["detector", "segmentor"], indirect=True)
def test_accumulation_is_one_step(task: Trained) -> None:
    assert "1 process x 4 images x 2 accumulation = global batch 8" in task.out
    steps = 1 if "detection" in str(task.config) else 3
    assert [line["step"] for line in task.scalars() if "lr" in line] == list(range(1, steps + 1))
    assert read_checkpoint(str(task.checkpoint))["meta"]["iter"] == steps


def test_the_log_counts_as_the_loop_does(segmentor: Trained) -> None:
    assert re.findall(r"Iter\(train\) \[(\d/\d)\]", segmentor.out) == ["1/3", "2/3", "3/3"]
    assert "Epoch(" not in segmentor.out
    assert segmentor.validation()["step"] == 3


@pytest.mark.parametrize("task", TASKS, indirect=True)
def test_testing_finds_what_the_training_found(task: Trained, request: pytest.FixtureRequest, tool: Any) -> None:
    form = FORMATS.get(request.node.callspec.params["task"])
    ended = tool("test.py", task.config, task.checkpoint, *(("--format", form) if form else ()), *task.options())
    assert (ended.code, ended.err) == (0, ""), ended.err
    result = json.loads((task.folder / "test.json").read_text())
    assert result["checkpoint"] == str(task.checkpoint)
    assert set(result["metrics"]) == METRICS[request.node.callspec.params["task"]]
    for name, value in result["metrics"].items():
        assert value == pytest.approx(task.validation()[name], abs=1e-4)
        assert ended.out.count(f"\n{name}: ") == 1
    assert not list(task.folder.glob("test/**/events.out.tfevents.*"))
    pictures = sorted((task.folder / "pictures").iterdir())
    assert [path.suffix for path in pictures] == [".png"] * (8 if "classification" in str(task.config) else 7)
    images = {path.stem for path in task.data.rglob("*") if path.suffix in (".jpg", ".png")}
    for picture in pictures:
        assert_drawn(picture)
        assert picture.stem.partition("_")[2] in images
    classes = load_config(task.folder / f"{task.config.stem}.py", training=False).cfg.classes
    assert list(result["class_scores"]) == list(classes)
    assert "scores of the classes:\n  class " in ended.out
    logged = [path.read_text() for path in task.folder.glob("*/*.log")]
    assert any("scores of the classes:\n  class " in text for text in logged)
    assert list(json.loads((task.folder / "class_scores.json").read_text())["scores"][""]) == list(classes)
    written = sorted(path.name for path in (task.folder / "results").glob("*"))
    labels = sorted(path.name for path in (task.data / "annotations/validation").glob("*.png"))
    assert written == {"coco": ["bbox.json", "segm.json"], "png": labels, None: []}[form]


@pytest.mark.parametrize("task", TASKS, indirect=True)
def test_any_image_is_drawn(
    task: Trained, tool: Any, digits: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    images, out = tmp_path / "images", tmp_path / "drawn"
    images.mkdir()
    (images / "notes.txt").write_text("not an image")
    scene = Image.open(sorted((digits / "coco/val2017").glob("*.jpg"))[0])
    scene.convert("RGB").resize((200, 133)).save(images / "scene.jpg")
    scene.convert("L").save(images / "scene.png")
    scene.convert("L").save(images / "scene.jpg.bmp")  # its name without the suffix is another image's
    scene.convert("RGBA").save(images / "Transparent.PNG")
    form = FORMATS.get(request.node.callspec.params["task"])
    more = ("--format", form) if form else ()
    ended = tool("predict.py", task.config, task.checkpoint, images, "--out", out, *more, *task.options()[2:])
    assert (ended.code, ended.err) == (0, ""), ended.err
    results = sorted(path.name for path in (out / "results").glob("*"))
    labels = ["Transparent.png", "scene.jpg.bmp.png", "scene.jpg.png", "scene.png.png"]
    assert results == {"coco": ["bbox.json", "images.json", "segm.json"], "png": labels, None: []}[form]
    drawn = sorted(out.glob("*.png"))
    assert [path.name for path in drawn] == labels
    said = ended.out.splitlines()[1:]
    assert said[len(drawn) :] == ([f"--format {form}: in {out / 'results'}"] if form else [])
    assert sorted(said[: len(drawn)]) == sorted(map(str, drawn))
    for picture in drawn:
        assert_drawn(picture)


def test_one_image_is_drawn_under_the_work_directory(classifier: Trained, tool: Any, tmp_path: Path) -> None:
    image = sorted((classifier.data / "val").glob("*/*.png"))[0]
    where = classifier.options(f"work_dir={tmp_path / 'work'}")[2:]
    ended = tool("predict.py", classifier.config, classifier.checkpoint, image, *where)
    assert ended.code == 0, ended.err
    assert_drawn(tmp_path / "work/predictions" / image.name)


def test_images_of_one_name_in_several_folders_have_drawings_of_their_own(
    classifier: Trained, tool: Any, tmp_path: Path
) -> None:
    given = sorted((classifier.data / "val").glob("*/*.png"))[0]
    images = [tmp_path / name for name in ("in/a/0.png", "in/b/0.png", "in/1.png", "a_0.png", "b/0.jpg")]
    for image in images:
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(given.read_bytes())
    drawn = tmp_path / "drawn"
    where = [*(tmp_path / "in/a", *images), "--out", drawn, "--format", "csv", *classifier.options()[2:]]
    ended = tool("predict.py", classifier.config, classifier.checkpoint, *where)
    assert ended.code == 0, ended.err
    names = ["a_0.png", "b/0.png", "in/1.png", "in/a/0.png", "in/b/0.png"]
    assert sorted(file.relative_to(drawn).as_posix() for file in drawn.rglob("*.png")) == names
    (table,) = (drawn / "results").glob("*.csv")
    assert len(table.read_text().splitlines()) == 1 + len(images)


def test_the_averaged_weights_are_tested_on_request(classifier: Trained, tool: Any) -> None:
    ended = tool("test.py", classifier.config, classifier.checkpoint, "--ema", *classifier.options())
    assert ended.code == 0, ended.err
    metrics = json.loads((classifier.folder / "test_ema.json").read_text())["metrics"]
    seen = classifier.validation()
    assert metrics == {name: pytest.approx(seen[f"ema/{name}"], rel=1e-4) for name in METRICS["classifier"]}
    assert metrics["val_loss"] != pytest.approx(seen["val_loss"], rel=1e-4)


def test_saved_predictions_name_their_checkpoint_and_have_its_scores(
    classifier: Trained, tool: Any, tmp_path: Path
) -> None:
    saved, renamed = tmp_path / "saved.zip", tmp_path / "mine.pth"
    renamed.symlink_to(classifier.checkpoint)
    ended = tool("test.py", classifier.config, renamed, "--save-predictions", saved, *classifier.options())
    assert ended.code == 0, ended.err
    with zipfile.ZipFile(saved) as file:
        about = json.loads(file.read("about.json"))
    assert about["checkpoint"] == {"name": "mine.pth", "mark": content_mark(classifier.checkpoint)}
    assert about["checkpoint"]["mark"]
    again = tool("test.py", classifier.config, "--from-predictions", saved, *classifier.options())
    assert (again.code, again.err) == (0, "")
    assert "prefix" not in again.out
    for name in METRICS["classifier"]:
        (line,) = (line for line in again.out.splitlines() if line.startswith(f"{name}: "))
        assert line in ended.out.splitlines()


def test_several_scales_and_flips(segmentor: Trained, tool: Any, tmp_path: Path) -> None:
    # Three steps of training answer one class everywhere; a random classifier answers many, and scale changes them.
    state = read_checkpoint(str(segmentor.checkpoint))["state_dict"]
    state["decode_head.conv_seg.weight"].normal_(generator=torch.Generator().manual_seed(0))
    checkpoint = tmp_path / "random.pth"
    torch.save({"state_dict": state}, checkpoint)
    metrics = []
    for options, name in (((), "test.json"), (("--tta",), "test_tta.json")):
        ended = tool("test.py", segmentor.config, checkpoint, *options, *segmentor.options())
        assert (ended.code, ended.err) == (0, ""), ended.err
        metrics.append(json.loads((segmentor.folder / name).read_text())["metrics"])
    assert set(metrics[0]) == set(metrics[1]) == METRICS["segmentor"]
    assert metrics[0]["aAcc"] != metrics[1]["aAcc"]


def test_a_format_of_another_task_is_an_error(classifier: Trained, tool: Any) -> None:
    ended = tool("test.py", classifier.config, classifier.checkpoint, "--format", "coco", *classifier.options())
    assert (ended.code, ended.err) == (2, "error: --format coco: classification has csv, json\n")
