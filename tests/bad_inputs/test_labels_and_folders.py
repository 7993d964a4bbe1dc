"""Label PNGs and folders of classes that are wrong: errors of the check, and one line where the check is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from engine.config.building import building
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.check import check_datasets
from tests.bad_inputs.builders import CONFIG, DAMAGED, contents, encoded, pixels, refused

HEIGHT, WIDTH = 36, 48
CLASSES = ("wall", "sky", "tree")


def labels(*values: int, height: int = HEIGHT, width: int = WIDTH, kind: Any = np.uint8) -> Image.Image:
    return Image.fromarray(np.resize(np.array(values, kind), (height, width)))


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    root = tmp_path / "rooms"
    for split in ("training", "validation"):
        for number in range(3):
            image, label = (root / part / split / f"{number}" for part in ("images", "annotations"))
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(HEIGHT, WIDTH, number + 10 * len(split))).save(f"{image}.jpg")
            labels(0, 1, 2, 3).save(f"{label}.png")
    return root


def judged(config: str, root: Path, classes: tuple[str, ...]) -> tuple[Any, list[tuple[str, str]]]:
    """The resolved config, and what the check finds in the training data; nothing on the disk is changed."""
    options = {"data_root": str(root), "classes": classes, "work_dir": str(root / "work")}
    if config == "segmentor":
        options |= {"model.decode_head.loss_decode.class_weight": None}
        options |= {"model.auxiliary_head.loss_decode.class_weight": None}
    cfg = load_config(CONFIG[config], options, Launch()).cfg
    before = contents(root)
    found = check_datasets(cfg, ("train", "val"))
    assert contents(root) == before
    assert all(len(line.splitlines()) == 1 for line in found.to_lines("data_check.json"))
    assert all(str(root) in item.file for item in found.findings)
    return cfg, [(item.level, item.kind) for item in found.findings]


def read_all(cfg: Any) -> None:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), building(cfg, "train_dataloader"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        for index in range(len(dataset)):
            dataset[index]


MAX_LABEL_FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "too wide": (lambda: encoded(labels(1, width=WIDTH + 1), "PNG"), "size of labels", "49 x 36"),
    "turned": (lambda: encoded(labels(1, height=WIDTH, width=HEIGHT), "PNG"), "size of labels", "36 x 48"),
    "one pixel": (lambda: encoded(labels(1, height=1, width=1), "PNG"), "size of labels", "1 x 1"),
    "RGB": (lambda: encoded(labels(1).convert("RGB"), "PNG"), "coloured labels", "one channel"),
    "RGBA": (lambda: encoded(labels(1).convert("RGBA"), "PNG"), "coloured labels", "one channel"),
    "grey with alpha": (lambda: encoded(labels(1).convert("LA"), "PNG"), "coloured labels", "one channel"),
    "value 4 of 3 classes": (lambda: encoded(labels(1, 4), "PNG"), "label value", "label value 4"),
    "value 254": (lambda: encoded(labels(1, 254), "PNG"), "label value", "label value 254"),
    "16 bits, value 300": (lambda: encoded(labels(1, 300, kind=np.uint16), "PNG"), "label value", "label value 300"),
    **{
        name: (DAMAGED[name][0], "", DAMAGED[name][1])
        for name in ("0 bytes.png", "half.png", "header alone.png", "page.png", "noise inside.png")
    },
}


@pytest.mark.parametrize("case", MAX_LABEL_FILES)
def test_labels(rooms: Path, case: str) -> None:
    make, kind, word = MAX_LABEL_FILES[case]
    path = rooms / "annotations/training/1.png"
    path.write_bytes(make())
    cfg, found = judged("segmentor", rooms, CLASSES)
    errors = [name for level, name in found if level == "error"]
    assert errors
    assert not kind or kind in errors
    with refused(path, word):
        read_all(cfg)


SOUND_LABELS: dict[str, Callable[[], bytes]] = {
    "a palette": lambda: encoded(_palette(), "PNG"),
    "16 bits": lambda: encoded(labels(0, 1, 2, 3, kind=np.uint16), "PNG"),
    "not labelled anywhere": lambda: encoded(labels(255), "PNG"),
    "two values": lambda: encoded(labels(0, 1, kind=bool), "PNG"),
}


def _palette() -> Image.Image:
    image = labels(0, 1, 2, 3)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


@pytest.mark.parametrize("case", SOUND_LABELS)
def test_labels_that_are_merely_unusual(rooms: Path, case: str) -> None:
    path = rooms / "annotations/training/1.png"
    path.write_bytes(SOUND_LABELS[case]())
    cfg, found = judged("segmentor", rooms, CLASSES)
    assert [item for item in found if item[0] == "error"] == []
    read_all(cfg)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "labels that are missing": (
        lambda root: (root / "annotations/training/1.png").unlink(),
        "image without labels",
        "has no labels",
    ),
    "an image that is missing": (
        lambda root: (root / "images/training/1.jpg").unlink(),
        "labels without image",
        "has no image",
    ),
    "no images": (lambda root: [path.unlink() for path in (root / "images/training").iterdir()], "no files", "no .jpg"),
    "labels behind a link to nowhere": (
        lambda root: ((root / "annotations/training/1.png").unlink(), _link(root / "annotations/training/1.png")),
        "",
        "",
    ),
}


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("case", FOLDERS)
def test_pairs(rooms: Path, case: str) -> None:
    act, kind, word = FOLDERS[case]
    act(rooms)
    cfg, found = judged("segmentor", rooms, CLASSES)
    errors = [name for level, name in found if level == "error"]
    assert errors
    assert not kind or kind in errors
    with refused(word):
        read_all(cfg)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for split in ("train", "val"):
        for seed, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(pixels(seed=number + 10 * seed + 100 * len(split)))
                image.save(root / split / name / f"{number}.png")
    return root


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


# What is done to the training folder; the kind of the error; a word of the data set's own error, if it has one.
CLASS_FOLDERS: dict[str, tuple[Callable[[Path], Any], str, str | None]] = {
    "an empty class": (lambda train: empty(train / "cat"), "empty class", "holds no image"),
    "a class that is missing": (lambda train: shutil.rmtree(train / "cat"), "classes", "no folder 'cat'"),
    "a class that is a file": (
        lambda train: (shutil.rmtree(train / "cat"), (train / "cat").touch()),
        "classes",
        "'cat'",
    ),
    "another class": (lambda train: (train / "newt").mkdir(), "classes", "folder 'newt' is not in classes"),
    "a class of another case": (lambda train: (train / "cat").rename(train / "Cat"), "classes", "no folder 'cat'"),
    "images that are notes": (
        lambda train: [path.rename(path.with_suffix(".txt")) for path in list((train / "cat").iterdir())],
        "empty class",
        "holds no image",
    ),
    "a class that is a link to nowhere": (
        lambda train: (shutil.rmtree(train / "cat"), (train / "cat").symlink_to("nowhere")),
        "classes",
        "no folder 'cat'",
    ),
    "a class that is a link to itself": (
        lambda train: (shutil.rmtree(train / "cat"), (train / "cat").symlink_to("cat")),
        "classes",
        "no folder 'cat'",
    ),
    "images one level too high": (
        lambda train: ([path.rename(train / path.name) for path in (train / "cat").iterdir()], (train / "cat").rmdir()),
        "classes",
        "no folder 'cat'",
    ),
    "one level too many": (
        lambda train: (
            (train.parent / "all").mkdir(),
            shutil.move(train / "cat", train.parent / "all"),
            shutil.move(train / "dog", train.parent / "all"),
            shutil.move(train.parent / "all", train),
        ),
        "classes",
        "no folder 'cat'",
    ),
}


@pytest.mark.parametrize("case", CLASS_FOLDERS)
def test_folders_of_classes(pets: Path, case: str) -> None:
    act, kind, word = CLASS_FOLDERS[case]
    act(pets / "train")
    cfg, found = judged("classifier", pets, ("cat", "dog"))
    assert ("error", kind) in found
    with refused(word, pets):
        read_all(cfg)


def test_links_that_go_round_are_not_followed(pets: Path) -> None:
    (pets / "train/cat/again").symlink_to(pets / "train")
    (pets / "train/cat/self").symlink_to("self")
    cfg, found = judged("classifier", pets, ("cat", "dog"))
    assert [item for item in found if item[0] == "error"] == []
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 6


def test_links_in_a_class_are_followed_once(pets: Path, tmp_path: Path) -> None:
    more = tmp_path / "more/2024"
    more.mkdir(parents=True)
    Image.fromarray(pixels(seed=77)).save(more / "new.png")
    (more / "back").symlink_to(tmp_path / "more")
    (pets / "train/cat/batch").symlink_to(tmp_path / "more")
    (pets / "train/cat/batch again").symlink_to(more)
    (pets / "train/cat/file.png").symlink_to(pets / "train/cat/0.png")
    cfg, found = judged("classifier", pets, ("cat", "dog"))
    assert [item for item in found if item[0] == "error"] == []
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    names = [Path(dataset.get_data_info(i)["img_path"]).name for i in range(len(dataset))]
    assert (len(names), names.count("new.png"), names.count("file.png")) == (8, 1, 1)


def test_pairs_behind_links_and_hidden_files(rooms: Path, tmp_path: Path) -> None:
    """mmseg's own search runs into circular links, and reads ``__MACOSX``."""
    for part in ("images", "annotations"):
        moved, folder = tmp_path / part, rooms / part / "training"
        folder.rename(moved)
        folder.mkdir()
        (folder / "a link").symlink_to(moved)
        (moved / "round").symlink_to(moved)
        (folder / "__MACOSX").mkdir()
        for name in ("__MACOSX/0.jpg", "._0.jpg", "._0.png"):
            (folder / name).write_bytes(b"")
    cfg, found = judged("segmentor", rooms, CLASSES)
    assert [item for item in found if item[0] == "error"] == []
    read_all(cfg)
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    places = [Path(dataset.get_data_info(i)["img_path"]).parent.name for i in range(len(dataset))]
    assert places == ["a link"] * 3


def test_images_at_any_depth_and_other_files(pets: Path) -> None:
    (pets / "train/cat/2024/may").mkdir(parents=True)
    (pets / "train/cat/0.png").rename(pets / "train/cat/2024/may/0.png")
    (pets / "train/cat/notes.db").touch()
    (pets / "train/README").touch()
    cfg, found = judged("classifier", pets, ("cat", "dog"))
    assert sorted(found) == [("warning", "loose file"), ("warning", "no image by its name")]
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 6


def test_one_class(pets: Path) -> None:
    shutil.rmtree(pets / "train/dog")
    shutil.rmtree(pets / "val/dog")
    _, found = judged("classifier", pets, ("cat",))
    assert ("error", "one class") in found


@pytest.mark.parametrize("part", ["../val/dog", "/etc", ".."])
def test_classes_that_lead_out_of_the_data(pets: Path, part: str) -> None:
    cfg, found = judged("classifier", pets, ("cat", "dog", part))
    assert ("error", "classes") in found
    with refused(f"no folder {part!r}"):
        read_all(cfg)


def test_a_list_of_labels_that_leads_out(rooms: Path) -> None:
    """``ann_file`` of a segmentor's data names stems."""
    for stem in ("../validation/0", "/etc/hostname"):
        (rooms / "list.txt").write_text(f"0\n{stem}\n")
        options = {"data_root": str(rooms), "classes": CLASSES, "train_dataloader.dataset.ann_file": "list.txt"}
        cfg = load_config(CONFIG["segmentor"], options, Launch()).cfg
        assert "path" in [item.kind for item in check_datasets(cfg, ("train",)).errors]
        with refused(stem, "leads out of"):
            read_all(cfg)
