"""Image files of every kind, damaged and merely unusual, in the training, the test and the predictions of each task."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from backbones.errors import ConfigError
from classification.visualizer import ClassificationVisualizer
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.check import check_datasets
from engine.data.checker import build_checkers
from engine.data.fault_tolerance import REPLACED_IMAGES_FILE, FaultTolerantDataset
from engine.data.image_files import DamagedImageError
from engine.data.sampling import SeededIndex
from engine.prediction.folder import Output, SkippedImagesError, predict_images
from engine.prediction.images import find_images, name_images, unread_images
from tests.bad_inputs.builders import (
    CONFIG,
    DAMAGED,
    FORMAT,
    TASKS,
    UNUSUAL,
    contents,
    encoded,
    pixels,
    refused,
)


def predicted(cfg: Any, given: list[Path], out: Path, drawer: Any = None, form: str | None = None, **more: Any) -> Any:
    """What is drawn for images by a network that a test has replaced."""
    images = name_images(find_images(given), given)
    return list(predict_images(cfg, nn.Identity(), drawer, images, Output(out, form), **more))


class Task:
    """The data sets of a task on a copy of the digits."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        options = {"data_root": str(root), "work_dir": str(root / "work")}
        self.cfg = load_config(CONFIG[name], options, Launch()).cfg
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            self.train = DATASETS.build(self.cfg.train_dataloader.dataset)
            self.test = DATASETS.build(self.cfg.test_dataloader.dataset)

    def read(self, dataset: Any, index: int) -> Any:
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            return dataset[index]


@pytest.fixture(scope="module")
def tasks(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("tasks")
    for name in TASKS:
        shutil.copytree(digits / FORMAT[name], folder / name)
    return {name: Task(name, folder / name) for name in TASKS}


@pytest.fixture
def broken() -> Iterator[Callable[[Any, int, Callable[[Path], Any]], str]]:
    """``broken(dataset, 2, harm)`` harms the file of an image, until the test is over."""
    before: list[tuple[Path, bytes]] = []

    def do(dataset: Any, index: int, harm: Callable[[Path], Any]) -> str:
        path = Path(dataset.get_data_info(index)["img_path"])
        before.append((path, path.read_bytes()))
        path.unlink()
        harm(path)
        return str(path)

    yield do
    for path, content in before:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(content)


def by_content(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "is missing"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a symbolic link that leads back to itself"),
    "nothing": (lambda path: None, "is missing"),
}
HARM = {name: (by_content(make()), word) for name, (make, word) in DAMAGED.items()} | NO_FILES


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("harm", HARM)
def test_training_replaces_and_counts_it(tasks: Any, broken: Any, task: str, harm: str, tmp_path: Path) -> None:
    data, (act, word) = tasks[task], HARM[harm]
    path = broken(data.train, 1, act)
    samples = FaultTolerantDataset(data.train, tmp_path)
    with DefaultScope.overwrite_default_scope(data.cfg.default_scope):
        assert "inputs" in samples[SeededIndex(1, 7)]
    (entry,) = [json.loads(line) for line in (tmp_path / REPLACED_IMAGES_FILE).read_text().splitlines()]
    assert entry["file"] == path
    assert word in entry["reason"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("harm", HARM)
def test_testing_names_it(tasks: Any, broken: Any, task: str, harm: str) -> None:
    data, (act, word) = tasks[task], HARM[harm]
    path = broken(data.test, 0, act)
    with refused(f"{path}: ", word):
        data.read(data.test, 0)


@pytest.mark.parametrize("harm", HARM)
def test_predicting_names_it(tasks: Any, harm: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "image.jpg"
    path.parent.mkdir()
    HARM[harm][0](path)
    with refused(path.parent if harm != "nothing" else path):
        predicted(tasks["classifier"].cfg, [path], tmp_path / "out")


@pytest.mark.parametrize("task", TASKS)
def test_predicting_goes_on_after_any_image(tasks: Any, task: str, tmp_path: Path, monkeypatch: Any) -> None:
    """After damage, a size that the reader of the task refuses, and an error of the network at this image's size."""
    cfg, folder = tasks[task].cfg, tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(encoded(Image.fromarray(pixels(40, 64)), "PNG"))
    (folder / "b.png").write_bytes(DAMAGED["noise inside.png"][0]())

    def fails(model: Any, items: Any, collate: Any) -> Any:
        raise RuntimeError("Kernel size can't be greater than actual input size\nsecond line")

    monkeypatch.setattr("engine.prediction.folder.predict_batch", fails)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), pytest.raises(SkippedImagesError) as caught:
        predicted(cfg, [folder], tmp_path / "out")
    assert [path.name for path in caught.value.skipped] == ["a.png", "b.png", "c.png"]
    assert caught.value.skipped[folder / "b.png"].startswith("cannot be decoded")
    assert caught.value.skipped[folder / "c.png"] == (
        "cannot be predicted: RuntimeError: Kernel size can't be greater than actual input size"
    )


def test_pictures_of_formats_that_are_not_read_are_listed(tasks: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.gif", "c.HEIC", "d.svg", "e.avif", "._f.gif", "notes.txt", "labels.json"):
        (folder / name).write_bytes(b"x")
    with refused(folder, "neither an image nor a folder with images", "it has 1 .gif, 1 .HEIC, 1 .svg, 1 .avif"):
        find_images([folder])
    (folder / "a.png").write_bytes(DAMAGED["noise inside.png"][0]())
    unread = unread_images([folder, folder / "a.png"])
    assert [path.name for path in unread] == ["b.gif", "c.HEIC", "d.svg", "e.avif"]
    cfg, images = tasks["classifier"].cfg, find_images([folder])
    with pytest.raises(SkippedImagesError, match=r"^5 of 5 images were skipped, the first is ") as caught:
        predicted(cfg, [folder], tmp_path / "out", unread=unread)
    assert list(caught.value.skipped) == [*unread, *images]
    assert caught.value.skipped[folder / "c.HEIC"].startswith("is not read, as .HEIC is none of .jpg, .jpeg, .png")


def test_images_of_subfolders_are_found_and_what_was_written_is_not(tmp_path: Path) -> None:
    for name in ("b.png", "a/1.png", "a/c/1.jpg", "out/b.png", "a/film.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images = find_images([tmp_path], left_out=tmp_path / "out")
    assert images == [tmp_path / name for name in ("b.png", "a/1.png", "a/c/1.jpg")]
    assert [one.name for one in name_images(images, [tmp_path])] == ["b", "a/1", "a/c/1"]
    (film,) = unread_images([tmp_path], left_out=tmp_path / "out").items()
    assert film == (tmp_path / "a/film.mp4", "is a video in a folder of images, and not read: name the file itself")


def test_frames_of_a_video_have_other_names_than_the_images_in_a_folder_of_its_name() -> None:
    films = [Path("x/film.mp4"), Path("x/film/000001.jpg"), Path("x/other.mp4"), Path("x/film.avi")]
    assert [one.name for one in name_images(films)] == ["film.mp4", "film/000001", "other", "film.avi"]
    assert [one.name for one in name_images(films[:3])] == ["film.mp4", "film/000001", "other"]


def test_a_picture_of_a_narrow_image_stays_small(tmp_path: Path) -> None:
    sample = BaseDataElement(gt_label=0, scores=torch.tensor([0.9, 0.1]))
    drawer = ClassificationVisualizer()
    drawer.dataset_meta = {"classes": ("a", "b")}
    drawn = drawer.add_datasample("1", np.zeros((2, 3000, 3), np.uint8), sample)
    assert max(drawn.shape) <= 4096


def test_large_images_have_the_limits_of_the_check(tasks: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """200 megapixels: OpenCV reads them for a detector, Pillow refuses them for a classifier."""
    path = tmp_path / "large.png"
    Image.new("L", (20_000, 10_000)).save(path, compress_level=1)
    found = {}
    for task in TASKS:
        (checker,) = build_checkers(tasks[task].cfg, ("test",))
        found[task] = [finding.problem for finding in checker.image_errors(str(path))]
    assert found == {"classifier": ["has 200 megapixels, which are refused"], "detector": [], "segmentor": []}


def test_a_large_image_is_drawn_at_a_smaller_size(tasks: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The detector's answers come out at that size, and for files at that of the image."""
    path, cfg = tmp_path / "large.png", tasks["detector"].cfg
    Image.new("L", (60, 40)).save(path)
    monkeypatch.setattr("engine.prediction.visualize.MAX_PICTURE_PIXELS", 600)
    asked, drawn, written = [], [], []

    def answer(model: Any, items: Any, collate: Any) -> Any:
        for item in items:
            asked.append((item["inputs"].shape[1:], item["data_samples"].ori_shape, item["data_samples"].scale_factor))
        return [item["data_samples"] for item in items]

    def draw(name: str, image: Any, sample: Any, out_file: str, **_: Any) -> None:
        Path(out_file).touch()
        drawn.append((image.shape, sample.ori_shape))

    made = dict(write=lambda sample, _: written.append(sample["ori_shape"]), finish=list, needs_image_files=False)
    writer = SimpleNamespace(**made)
    monkeypatch.setattr("engine.prediction.folder.predict_batch", answer)
    monkeypatch.setattr("engine.prediction.folder.result_writer", lambda *_: writer)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for name in (None, "coco"):
            assert len(predicted(cfg, [path], tmp_path / "out", SimpleNamespace(add_datasample=draw), name)) == 1
    (shape, size, scale), *others = asked
    assert size == (20, 30)
    assert scale == pytest.approx((shape[1] / 30, shape[0] / 20), abs=0.1)
    assert others == [(shape, (40, 60), pytest.approx((shape[1] / 60, shape[0] / 40), abs=0.1)), asked[0]]
    assert [one for _, one in drawn] == [size, size]
    assert all(picture[0] * 3 == picture[1] * 2 for picture, _ in drawn)
    assert written == [(40, 60)]


@pytest.mark.parametrize("error", [ConfigError("a setting"), OSError(28, "No space left on device"), TypeError("code")])
def test_errors_that_are_not_the_image_s_end_it(tasks: Any, tmp_path: Path, monkeypatch: Any, error: Exception) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded(Image.fromarray(pixels()), "PNG"))

    def fails(model: Any, items: Any, collate: Any) -> Any:
        raise error

    monkeypatch.setattr("engine.prediction.folder.predict_batch", fails)
    with pytest.raises(type(error)) as caught:
        predicted(tasks["classifier"].cfg, [tmp_path / "in"], tmp_path / "out")
    assert caught.value is error


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_file_is_read(tasks: Any, broken: Any, task: str, name: str) -> None:
    """Three channels of 8 bits, nothing but the picture turned upright where that is the rule of the task."""
    data = tasks[task]
    path = Path(broken(data.test, 0, by_content(UNUSUAL[name]())))
    if task == "segmentor":
        labels = Path(data.test.get_data_info(0)["seg_map_path"])
        sound = labels.read_bytes()
        with Image.open(path) as image:
            size = image.size[::-1] if name == "turned.jpg" else image.size
        Image.new("L", size, 1).save(labels)
    try:
        inputs = data.read(data.test, 0)["inputs"]
    finally:
        if task == "segmentor":
            labels.write_bytes(sound)
    assert inputs.dtype == torch.uint8
    assert inputs.shape[0] == 3
    if task == "segmentor":
        assert tuple(inputs.shape[1:]) == size[::-1]
    elif task == "detector":
        assert max(inputs.shape[1:]) == 160
    else:
        assert tuple(inputs.shape[1:]) == (48, 48)


@pytest.mark.parametrize("name", ["16 bit grey.png", "16 bit colours.png", "16 bit colours.tif"])
@pytest.mark.parametrize("task", ["classifier", "segmentor"])
def test_16_bits_become_the_same_picture(tasks: Any, broken: Any, task: str, name: str, tmp_path: Path) -> None:
    """Each value is the byte of the 8-bit picture twice: neither cut off at 255 nor scaled otherwise."""
    from classification.data import read_rgb
    from engine.data.image_files import LoadCheckedImage

    (tmp_path / name).write_bytes(UNUSUAL[name]())
    path = str(tmp_path / name)
    array = np.asarray(read_rgb(path)) if task == "classifier" else LoadCheckedImage()({"img_path": path})["img"]
    expected = np.repeat(pixels()[..., :1], 3, 2) if "grey" in name else pixels()
    if task == "classifier" and "grey" not in name:
        expected = expected[..., ::-1]  # OpenCV wrote the file, blue first
    assert np.array_equal(array, expected)


@pytest.mark.parametrize(
    "name", ["a new\nline.jpg", "blanks and ünïcode ☃.jpg", "'quotes' \"too\".jpg", "$(touch x).jpg"]
)
def test_any_name_of_a_file(name: str, tmp_path: Path) -> None:
    """In a folder of classes: read where it is sound, named in one line where it is not."""
    for split in ("train", "val"):
        for number, label in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / label
            folder.mkdir(parents=True)
            (folder / name).write_bytes(encoded(Image.fromarray(pixels(seed=number + 2 * len(split))), "JPEG"))
    options = {"data_root": str(tmp_path / "pets"), "classes": ("cat", "dog"), "work_dir": str(tmp_path / "work")}
    cfg = load_config(CONFIG["classifier"], options, Launch()).cfg
    assert check_datasets(cfg, ("train", "val")).errors == []
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset[0]["inputs"].shape == (3, 48, 48)
    (tmp_path / "pets/train/cat" / name).write_bytes(b"")
    with refused("is empty (0 bytes)", "cat/"):
        dataset[0]
    found = check_datasets(cfg, ("train", "val"))
    assert [item.kind for item in found.errors] == ["empty image"]
    assert all(len(line.splitlines()) == 1 for line in found.to_lines("data_check.json"))
    before = contents(tmp_path)
    samples = FaultTolerantDataset(dataset, tmp_path / "pets")
    samples[SeededIndex(0, 1)]
    assert contents(tmp_path).keys() - before.keys() == {f"pets/{REPLACED_IMAGES_FILE}"}


def test_a_file_without_permission(tasks: Any, broken: Any) -> None:
    data = tasks["classifier"]
    path = broken(data.test, 0, by_content(UNUSUAL["grey.jpg"]()))
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("permissions do not hold for this user")
    with refused(path, "Permission denied"):
        data.read(data.test, 0)


def test_the_error_knows_its_file_apart() -> None:
    error = DamagedImageError.of("a\nb.jpg", "is empty")
    assert (str(error), error.path) == (r"'a\nb.jpg': is empty", "a\nb.jpg")


def test_hidden_files_are_not_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.JPG").write_bytes(encoded(Image.fromarray(pixels()), "JPEG"))
    (tmp_path / "._a.JPG").write_bytes(b"finder")
    assert find_images([tmp_path]) == [tmp_path / "a.JPG"]
    assert "1 hidden files and folders" in capsys.readouterr().out
    assert find_images([tmp_path / "._a.JPG"]) == [tmp_path / "._a.JPG"]
