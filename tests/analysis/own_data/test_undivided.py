"""Data that is not divided: a part is held out, and lists beside the config say which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS

from analysis.own_data import Request, new_config
from analysis.own_data.splits import hold_out, list_text
from backbones.errors import UserError
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.check import check_datasets
from tests.own_data import labels, objects, photographs, picture


def written(task: str, data: Path, name: str = "mein", **stated: Any) -> tuple[Config, list[str]]:
    out = data.parent / "Meine Sachen" / f"{name}.py"
    said = new_config(task, out, Request(data, **stated))
    assert max(map(len, out.read_text(encoding="utf-8").splitlines())) <= 120
    return load_config(out, None, Launch()).cfg, said


def images_of(cfg: Config) -> dict[str, set[str]]:
    """Paths of the images that each split reads, relative to the data."""
    found = {}
    for split in ("train", "val"):
        dataset = build(DATASETS, cfg[f"{split}_dataloader"].dataset, split, cfg.get("default_scope"))
        paths = [Path(dataset.get_data_info(index)["img_path"]) for index in range(len(dataset))]
        found[split] = {path.relative_to(cfg.data_root).as_posix() for path in paths}
        assert len(found[split]) == len(paths)
    assert not found["train"] & found["val"]
    return found


def leaks(cfg: Config) -> list[str]:
    """Findings about images that are in training and validation, and all errors."""
    findings = check_datasets(cfg, ("train", "val")).findings
    return [str(one) for one in findings if one.level == "error" or one.kind.endswith("in train")]


def undivided(root: Path, images: int = 7) -> Path:
    """Two classes of photographs with a copy, and a class of one."""
    photographs(root, (".",), images)
    picture(root / "once/1.jpg", 999)
    shutil.copy(root / "ant hill/Bild 3.JPG", root / "ant hill/copy of 3.JPG")
    return root


def test_folders_of_classes(tmp_path: Path) -> None:
    data = undivided(tmp_path / "Meine Fotos")
    before = sorted(data.rglob("*"))
    cfg, said = written("classification", data)
    found = images_of(cfg)
    assert cfg.classes == ("Käfer groß", "ant hill", "once")
    counts = {
        split: [sum(path.startswith(f"{one}/") for path in paths) for one in cfg.classes]
        for split, paths in found.items()
    }
    copies = ("ant hill/Bild 3.JPG", "ant hill/copy of 3.JPG")
    together = sum(path in found["val"] for path in copies)
    assert together in (0, 2)
    assert counts == {"train": [6, 7 - together // 2, 1], "val": [1, 1 + together // 2, 0]}
    numbers = {split: f"{sum(numbers)} images of 3 classes" for split, numbers in counts.items()}
    assert said[:2] == [
        f"train: '.', {numbers['train']} (the fewest: once 1, Käfer groß 6, ant hill {counts['train'][1]})",
        f"val: '.', {numbers['val']} (the fewest: once 0, Käfer groß 1, ant hill {counts['val'][1]})",
    ]
    assert said[2].startswith("no validation data: 20% of the images are held out; ")
    assert sorted(data.rglob("*")) == before
    assert leaks(cfg) == []
    assert images_of(written("classification", data, "again")[0]) == found
    half = images_of(written("classification", data, "half", validation_split=0.5)[0])
    assert len(half["val"]) > len(found["val"])


def test_folders_of_classes_within_others_and_beside_a_test(tmp_path: Path) -> None:
    photographs(tmp_path / "a/download/flowers", (".",))
    cfg, _ = written("classification", tmp_path / "a")
    assert {str(Path(path).parent) for path in images_of(cfg)["val"]} == {
        "download/flowers/Käfer groß",
        "download/flowers/ant hill",
    }
    photographs(tmp_path / "b", ("train", "test"))
    cfg, _ = written("classification", tmp_path / "b", "b", validation_split=0.25)
    assert len(images_of(cfg)["val"]) == 2
    assert (cfg.test_dataloader.dataset.split, cfg.test_dataloader.dataset.ann_file) == ("test", "")


def test_one_annotation_file(tmp_path: Path) -> None:
    data = objects(tmp_path / "Tiere", splits=("Alle",))
    file = data / "Alle (final).json"
    content = json.loads(file.read_text(encoding="utf-8"))
    names = [f"leer {number}.png" for number in range(3)]
    for number, name in enumerate(names):
        picture(data / "Bilder Alle" / name, 50 + number)
        content["images"].append({"id": 10 + number, "file_name": name, "width": 96, "height": 72})
    content["info"] = {"year": 2026}
    file.write_text(json.dumps(content), encoding="utf-8")
    cfg, said = written("detection", data)
    parts = {
        split: json.loads((tmp_path / f"Meine Sachen/mein_{split}.json").read_text(encoding="utf-8"))
        for split in ("train", "val")
    }
    for key in ("images", "annotations"):
        assert sorted([*parts["train"][key], *parts["val"][key]], key=lambda one: one["id"]) == content[key]
    for part in parts.values():
        ids = {one["id"] for one in part["images"]}
        assert {one["image_id"] for one in part["annotations"]} <= ids
        assert (part["categories"], part["info"]) == (content["categories"], content["info"])
    assert sum(one["file_name"] in names for one in parts["val"]["images"]) == 1  # with and without objects
    assert len(parts["val"]["images"]) == 2
    assert "val: objects of the classes: Füchse 1, red kite 1" in said
    images_of(cfg)
    assert leaks(cfg) == []


def test_an_image_with_two_entries_is_in_one_part(tmp_path: Path) -> None:
    data = objects(tmp_path / "Tiere", splits=("Alle",))
    file = data / "Alle (final).json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["images"] += [{**one, "id": one["id"] + 10} for one in content["images"]]
    content["annotations"] += [
        {**one, "id": one["id"] + 100, "image_id": one["image_id"] + 10} for one in content["annotations"]
    ]
    file.write_text(json.dumps(content), encoding="utf-8")
    cfg, _ = written("detection", data, validation_split=0.5)
    assert leaks(cfg) == []


def test_one_folder_of_images_and_one_of_labels(tmp_path: Path) -> None:
    for image in range(10):
        picture(tmp_path / f"data/Fotos/Straße {image}.JPG", image)
        labels(tmp_path / f"data/Masken/Straße {image}_m.png", 0, 1)
    picture(tmp_path / "data/Fotos/Allee.JPG", 99)
    cfg, said = written("segmentation", tmp_path / "data", classes=("a", "b"))
    found = images_of(cfg)
    assert (len(found["train"]), len(found["val"])) == (8, 2)
    assert said[:3] == [
        "train: 8 images in 'Fotos', labels in 'Masken'",
        "val: 2 images in 'Fotos', labels in 'Masken'",
        "not used: 1 files without partner in 'Fotos' and 'Masken'",
    ]
    assert leaks(cfg) == []


def test_what_cannot_be_held_out(tmp_path: Path) -> None:
    def refused(task: str, data: Path, message: str, **stated: Any) -> None:
        with pytest.raises(UserError, match=message) as raised:
            new_config(task, tmp_path / "own.py", Request(data, **stated))
        assert "\n" not in str(raised.value)
        assert not list(tmp_path.glob("own*"))

    data = photographs(tmp_path / "a", ("train", "val"))
    refused("classification", data, r"--validation-split: the data has 'val' for validation", validation_split=0.2)
    stated = {"validation_split": 0.2, "splits": {"train": "train", "val": "val"}}
    refused("classification", data, r"--validation-split: the data has 'val' for validation", **stated)
    photographs(tmp_path / "b", (".",), images=1)
    refused("classification", tmp_path / "b", r"2 images: too few to hold out a part")
    flat = undivided(tmp_path / "c")
    refused("classification", flat, r"convnext_tinny", settings={"_network": "convnext_tinny"})
    (tmp_path / "there_val.txt").touch()
    with pytest.raises(UserError, match=r"there_val\.txt' exists: name another file"):
        new_config("classification", tmp_path / "there.py", Request(flat))
    for name in (" a", "a\x85b"):
        with pytest.raises(UserError, match=r"cannot stand in a list of names: rename it"):
            list_text([name])


def test_series_are_noted(tmp_path: Path) -> None:
    names = [f"clip{letter}_{number:04}.jpg" for letter in "abc" for number in range(5)]
    facts: list[str] = []
    held = hold_out([names], None, facts)
    assert (len(held), len(facts)) == (3, 1)
    assert facts[0].startswith("note: if 'clip")
    facts.clear()
    hold_out([[f"IMG_{number:04}.jpg" for number in range(15)], ["x.jpg", "y.jpg", "z.jpg"]], None, facts)
    assert facts == []
