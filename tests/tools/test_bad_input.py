"""Whatever a person gets wrong is answered by one line on stderr that names it, and by exit code 2: never a stack."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from engine.config.load import load_config
from tests.bad_inputs.builders import CONFIG, FORMAT, TASKS

FULL_DISK = """
_base_ = {config!r}
def _register():
    from mmengine.registry import VISBACKENDS
    from mmengine.visualization import LocalVisBackend

    if "FullDisk" in VISBACKENDS:
        return

    @VISBACKENDS.register_module()
    class FullDisk(LocalVisBackend):
        def add_scalars(self, *_, **settings):
            raise OSError(28, "No space left on device", "scalars.json")

_register()
visualizer = dict(vis_backends=[dict(type="FullDisk")])
default_hooks = dict(logger=dict(interval=1))
"""
WRONG_FILES = {
    "absent": "does not exist",
    "truncated": "cannot be read: it is damaged, or no checkpoint",
    "text": "damaged, or it holds more than data",
    "list": "holds a list, not a mapping",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound checkpoint of a classifier, and damaged ones."""
    folder = tmp_path_factory.mktemp("weights")
    files = {name: folder / f"{name}.pth" for name in ("sound", "foreign", *WRONG_FILES)}
    cfg = load_config(CONFIG["classifier"]).cfg
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, files["sound"])
    files["truncated"].write_bytes(files["sound"].read_bytes()[:200_000])
    files["text"].write_text("These are notes about a training, not its weights.\n")
    torch.save([1, 2], files["list"])
    torch.save({"state_dict": {"encoder.weight": torch.zeros(3)}}, files["foreign"])
    return files


@pytest.fixture
def settings(digits: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """``settings("detector", "a=b")``: arguments after the positional ones, for a quick run on the digits."""

    def make(task: str, *options: str, work_dir: Path | None = None) -> list[str]:
        where = [f"work_dir={work_dir or tmp_path / 'work'}", f"data_root={digits / FORMAT[task]}", "batch.size=4"]
        return ["--cfg-options", *where, *options]

    return make


def assert_one_line(ended: Any, *needles: object) -> None:
    assert ended.code == 2, ended.err
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    for needle in needles:
        assert str(needle) in lines[0]
    assert "Traceback" not in ended.out + ended.err


def test_an_unknown_network_in_a_process_of_its_own(program: Any, settings: Any) -> None:
    options = settings("classifier", "model.backbone.type=convnext_tinny")
    assert_one_line(program("train.py", CONFIG["classifier"], *options), "'convnext_tinny'; nearest: convnext_tiny")


def test_a_damaged_checkpoint_in_a_process_of_its_own(program: Any, settings: Any, weights: Any) -> None:
    ended = program("test.py", CONFIG["segmentor"], weights["truncated"], *settings("segmentor"))
    assert_one_line(ended, weights["truncated"], WRONG_FILES["truncated"])


def test_an_absent_image_in_a_process_of_its_own(program: Any, settings: Any, weights: Any, tmp_path: Path) -> None:
    arguments = CONFIG["classifier"], weights["sound"], tmp_path / "absent.jpg"
    assert_one_line(program("predict.py", *arguments, *settings("classifier")), "absent.jpg", "neither an image nor")


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_network(tool: Any, settings: Any, task: str, weights: Any) -> None:
    wrong = settings(task, "model.backbone.type=convnext_atom")
    for arguments in (("train.py", CONFIG[task]), ("test.py", CONFIG[task], weights["sound"])):
        assert_one_line(tool(*arguments, *wrong), "unknown backbone 'convnext_atom'; nearest: convnext_atto")


@pytest.mark.parametrize("task", TASKS)
def test_absent_data(tool: Any, settings: Any, task: str, weights: Any, tmp_path: Path) -> None:
    wrong = settings(task, f"data_root={tmp_path / 'no data'}")
    for arguments in (("train.py", CONFIG[task]), ("test.py", CONFIG[task], weights["sound"])):
        assert_one_line(tool(*arguments, *wrong), tmp_path / "no data", "looked from", "'Bring your data' in README.md")


def test_data_that_lacks_a_part(tool: Any, settings: Any, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "coco", tmp_path / "coco")
    (tmp_path / "coco/annotations/instances_val2017.json").unlink()
    ended = tool("train.py", CONFIG["detector"], *settings("detector", f"data_root={tmp_path / 'coco'}"))
    assert_one_line(ended, "val data", "annotations/instances_val2017.json")


@pytest.mark.parametrize(
    "task, classes, needle",
    [
        ("classifier", "[zero,one]", "10 class folders, 2 classes in the config; folder 'eight' is not in classes"),
        ("detector", "[zero,unicorn]", "classes: 1 of 2 are no category of the annotation file ('unicorn'...)"),
        ("segmentor", "[background,zero]", "stands for no class (2 classes, reduce_zero_label=True)"),
    ],
)
def test_classes_that_are_not_those_of_the_data(tool: Any, settings: Any, task: str, classes: str, needle: str) -> None:
    """The labels of the segmentor are read, and refused, in a worker of the data loader."""
    assert_one_line(tool("train.py", CONFIG[task], *settings(task, f"classes={classes}")), needle)


def test_a_wrong_label_in_a_process_of_its_own(program: Any, settings: Any, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "ade", tmp_path / "ade")
    for path in (tmp_path / "ade/annotations/training").iterdir():
        labels = np.asarray(Image.open(path)).copy()
        labels[0, 0] = 77
        Image.fromarray(labels).save(path)
    options = settings("segmentor", f"data_root={tmp_path / 'ade'}", "train_dataloader.num_workers=1")
    ended = program("train.py", CONFIG["segmentor"], *options)
    assert_one_line(ended, f"error: {tmp_path / 'ade/annotations/training'}", "label value 77 stands for no class")


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_weights_to_begin_with_that_cannot_be_read(tool: Any, settings: Any, weights: Any, wrong: str) -> None:
    options = settings("segmentor", f"model.backbone.weights={weights[wrong]}")
    assert_one_line(tool("train.py", CONFIG["segmentor"], *options), weights[wrong], WRONG_FILES[wrong])


def test_weights_to_begin_with_of_something_else(tool: Any, settings: Any, weights: Any) -> None:
    options = settings("detector", f"model.backbone.weights={weights['foreign']}")
    assert_one_line(tool("train.py", CONFIG["detector"], *options), "holds no ConvNeXt", "encoder.weight")
    options = settings("detector", f"model.backbone.weights={weights['sound']}", "model.backbone.type=convnext_femto")
    assert_one_line(tool("train.py", CONFIG["detector"], *options), "is of another network")


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_checkpoints_that_cannot_be_read(tool: Any, settings: Any, weights: Any, wrong: str, digits: Path) -> None:
    options = settings("classifier")
    ended = tool("test.py", CONFIG["classifier"], weights[wrong], *options)
    assert_one_line(ended, weights[wrong], WRONG_FILES[wrong])
    ended = tool("predict.py", CONFIG["classifier"], weights[wrong], digits / "coco/val2017", *options)
    assert_one_line(ended, weights[wrong], WRONG_FILES[wrong])


def test_checkpoints_of_another_task(tool: Any, settings: Any, weights: Any, digits: Path) -> None:
    ended = tool("test.py", CONFIG["detector"], weights["sound"], *settings("detector"))
    assert_one_line(ended, weights["sound"], "is of another model: it lacks")
    image = next((digits / "coco/val2017").iterdir())
    ended = tool("predict.py", CONFIG["segmentor"], weights["sound"], image, *settings("segmentor"))
    assert_one_line(ended, weights["sound"], "is of another model: it lacks")


def test_a_checkpoint_of_other_classes(tool: Any, settings: Any, weights: Any, digits: Path) -> None:
    image = next((digits / "coco/val2017").iterdir())
    options = settings("classifier", "classes=[cat,dog]")
    ended = tool("predict.py", CONFIG["classifier"], weights["sound"], image, *options)
    assert_one_line(ended, "does not fit: head.weight is (10, 320), the config wants (2, 320)")


def test_averaged_weights_that_are_not_there(tool: Any, settings: Any, weights: Any, digits: Path) -> None:
    options = ("--ema", *settings("classifier"))
    assert_one_line(tool("test.py", CONFIG["classifier"], weights["sound"], *options), "no averaged weights")
    image = next((digits / "coco/val2017").iterdir())
    assert_one_line(tool("predict.py", CONFIG["classifier"], weights["sound"], image, *options), "no averaged weights")


def test_augmented_testing_that_the_config_does_not_describe(tool: Any, settings: Any, weights: Any) -> None:
    ended = tool("test.py", CONFIG["classifier"], weights["sound"], "--tta", *settings("classifier"))
    assert_one_line(ended, "--tta: the config has no tta_pipeline")


@pytest.mark.parametrize(
    "options, needle",
    [
        (["clases=[a]"], "unknown top-level key 'clases'; did you mean 'classes'?"),
        (["zzz=1"], "unknown top-level key 'zzz'"),
        (
            ["modle.backbone.type=convnext_tiny"],
            "--cfg-options modle.backbone.type: the config has no 'modle.backbone'",
        ),
        (["batch.size"], "--cfg-options 'batch.size': write key=value"),
        (["batch.size=0"], "batch.size=0"),
        (["batch.size=many"], "batch.size='many': a whole number is needed"),
        (["batch=8"], "batch=8 names no setting: give its size, such as batch.size=64"),
        (["batch.sizes=8"], "batch has no setting sizes"),
        (["batch.size=8", "batch.lr_rule=cubic"], "batch.lr_rule='cubic'"),
        (["batch.size=64"], "40 training images are not enough for one step"),
        (["model.backbone.colour=red"], "'colour'"),
        (["optim_wrapper.optimizer.type=AdamWW"], "optim_wrapper.optimizer: AdamWW is not in the"),
        (["train_pipeline.0.type=Blur"], "train_pipeline.0: Blur is not in the"),
        (["train_cfg.max_epochs=1"], "param_scheduler.1: a schedule begins when training is over"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_settings(tool: Any, settings: Any, options: list[str], needle: str) -> None:
    assert_one_line(tool("train.py", CONFIG["classifier"], *settings("classifier", *options)), needle)


@pytest.mark.parametrize("name", ["train.py", "test.py", "predict.py", "print_config.py"])
def test_every_tool_checks_its_options_and_its_config(tool: Any, weights: Any, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "image.png")
    more = {"test.py": [weights["sound"]], "predict.py": [weights["sound"], tmp_path / "image.png"]}.get(name, [])
    wrong = ["--cfg-options", "model.bakbone.type=x"]
    assert_one_line(tool(name, CONFIG["classifier"], *more, *wrong), "the config has no 'model.bakbone'")
    ended = tool(name, "configs/classification/digit.py", *more)
    assert_one_line(ended, "does not exist; did you mean configs/classification/digits.py?")


def test_a_batch_that_does_not_divide(tool: Any, settings: Any) -> None:
    ended = tool("train.py", CONFIG["detector"], *settings("detector", "batch.size=8"), WORLD_SIZE="3")
    assert_one_line(ended, "global batch 8 does not divide among 3 processes", "batch.size=9")


def test_images_that_are_none(tool: Any, settings: Any, weights: Any, tmp_path: Path) -> None:
    text, empty, cut = tmp_path / "notes.jpg", tmp_path / "empty", tmp_path / "cut.png"
    text.write_text("These are notes.\n")
    empty.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:6000])
    arguments = ("predict.py", CONFIG["classifier"], weights["sound"])
    for path, needle in (
        (text, "is no image"),
        (cut, "is cut off after 6,000 bytes"),
        (empty, "nor a folder with images (.jpg"),
    ):
        assert_one_line(tool(*arguments, path, *settings("classifier")), path, needle)


def test_test_images_without_class_folders(tool: Any, settings: Any, weights: Any, tmp_path: Path) -> None:
    """They have no scores; the error says how to predict on them."""
    (tmp_path / "data/val").mkdir(parents=True)
    Image.new("RGB", (50, 50)).save(tmp_path / "data/val/1.png")
    options = settings("classifier", f"data_root={tmp_path / 'data'}")
    needle = f"tools/predict.py CONFIG CHECKPOINT {tmp_path / 'data/val'} --format csv"
    for more in ((), ("--no-data-check",)):
        ended = tool("test.py", CONFIG["classifier"], weights["sound"], *more, *options)
        assert_one_line(ended, "0 class folders, 10 classes", needle)


def test_a_folder_in_which_some_images_are_none(tool: Any, settings: Any, weights: Any, tmp_path: Path) -> None:
    """The others are drawn; those that were skipped are listed at the end, and the exit code says so."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "d.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:6000])
    (folder / "c.jpg").write_text("These are notes.\n")
    arguments = ("predict.py", CONFIG["classifier"], weights["sound"], folder, "--out", out, "--format", "csv")
    ended = tool(*arguments, *settings("classifier"))
    assert ended.code == 2
    assert sorted(path.name for path in out.glob("*.png")) == ["a.png", "d.png"]
    rows = [line.split(",") for line in (out / "results/predictions.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["image", str(folder / "a.png"), str(folder / "d.png")]
    assert [line.partition(": ")[0] for line in ended.err.splitlines()] == ["skipped", "skipped", "error"]
    assert f"skipped: {folder / 'b.png'}: is cut off after 6,000 bytes" in ended.err
    assert f"error: 2 of 4 images were skipped, the first is '{folder / 'b.png'}'" in ended.err


def test_folders_that_cannot_be_written(tool: Any, settings: Any, weights: Any, digits: Path, tmp_path: Path) -> None:
    """Below a file nobody can make a folder, root included."""
    (tmp_path / "file").touch()
    below = tmp_path / "file/work"
    options = settings("classifier", work_dir=below)
    assert_one_line(tool("train.py", CONFIG["classifier"], *options), below, "choose another with --work-dir")
    ended = tool("test.py", CONFIG["classifier"], weights["sound"], *options)
    assert_one_line(ended, below, "choose another with --work-dir")
    arguments = ("predict.py", CONFIG["classifier"], weights["sound"], digits / "coco/val2017")
    assert_one_line(tool(*arguments, "--out", below, *options), below, "--out")


def test_drawings_never_replace_the_images(tool: Any, settings: Any, weights: Any, tmp_path: Path) -> None:
    image = tmp_path / "in/image.png"
    image.parent.mkdir()
    Image.new("RGB", (50, 50)).save(image)
    before = image.read_bytes()
    # With a sub-folder of the output folder among others, the drawing of an image would have its own path.
    for given, folder, out in (
        ([image], image.parent, image.parent),
        ([image, tmp_path], image.parent, tmp_path),
        ([tmp_path], tmp_path, tmp_path),
        ([image.parent], image.parent, tmp_path),
    ):
        arguments = ("predict.py", CONFIG["classifier"], weights["sound"], *given, "--out", out)
        assert_one_line(tool(*arguments, *settings("classifier")), f"among the images in {str(folder)!r}", "--out")
    assert image.read_bytes() == before


def test_a_full_disk_wherever_it_is_noticed(tool: Any, settings: Any, tmp_path: Path) -> None:
    """Curves and logs are written more often than checkpoints."""
    config = tmp_path / "full.py"
    config.write_text(FULL_DISK.format(config=str(CONFIG["classifier"])), encoding="utf-8")
    ended = tool("train.py", config, "--no-data-check", *settings("classifier"))
    assert_one_line(ended, "No space left on device for 'scalars.json': make room and start again")
