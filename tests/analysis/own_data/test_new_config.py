"""What is found in a folder, what is asked, and what is written into the example."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from analysis.own_data import Request, new_config
from analysis.own_data.config_file import EXAMPLES, fill_in
from analysis.own_data.splits import choose_splits, split_of
from backbones.errors import UserError
from engine.config.load import load_config
from engine.config.world import Launch
from segmentation.data import LabelPngDataset
from tests.own_data import labels, objects, photographs, picture, scenes


def written(task: str, data: Path, **stated: Any) -> tuple[Config, list[str], str]:
    """The resolved config for a folder, the lines that were said, and its text."""
    out = data.parent / "Meine Sachen/mein.py"
    said = new_config(task, out, Request(data, **stated))
    return load_config(out, None, Launch()).cfg, said, out.read_text(encoding="utf-8")


def refused(task: str, data: Path, message: str, **stated: Any) -> None:
    out = data.parent / "own.py"
    with pytest.raises(UserError, match=message) as raised:
        new_config(task, out, Request(data, **stated))
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_splits_are_told_by_the_words_of_names() -> None:
    names = (
        "images/train2017",
        "trainannot",
        "Validierung",
        "a/dev",
        "x_Test.json",
        "Constraint",
        "train/val",
        "Übung",
    )
    expected = ["train", "train", "val", "val", "test", None, "val", None]
    assert [split_of(name) for name in names] == expected


@pytest.mark.parametrize(
    "names, stated, expected",
    [
        (("train", "valid", "test"), {}, "train valid test"),
        (("train", "test"), {}, "train test -"),
        (("train", "held out"), {}, "train held_out -"),
        (("a", "b"), {"train": "b"}, "b a -"),
        (("a", "b", "c"), {"train": "b", "val": "c"}, "b c -"),
        (("x/a", "x/b"), {"train": "b"}, "x/b x/a -"),
        (("train", "val", "test1", "test2"), {}, "train val -"),
        (("train",), {}, "train - -"),
        (("all",), {}, "all - -"),
        (("b", "test"), {"test": "test"}, "b - test"),
    ],
)
def test_choice_of_splits(names: tuple[str, ...], stated: dict[str, str], expected: str) -> None:
    chosen = choose_splits(names, Request(Path("data"), stated))
    assert [chosen.get(split, "-").replace(" ", "_") for split in ("train", "val", "test")] == expected.split()


@pytest.mark.parametrize(
    "names, stated, message",
    [
        (("a", "b", "c"), {}, r"Which is for training: 'a', 'b', 'c'\? Say it by --train"),
        (("train", "a", "b"), {}, r"Which is for validation: 'a', 'b'\? Say it by --val"),
        (("val",), {}, r"no data for training among 'val': name it by --train"),
        (("a", "b"), {"train": "d"}, r"--train d: the data has 'a', 'b'; name one of them"),
    ],
)
def test_what_cannot_be_told_is_one_line(names: tuple[str, ...], stated: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_splits(names, Request(Path("data"), stated))


def test_on_a_terminal_it_is_asked() -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return " b "

    assert choose_splits(("a", "b"), Request(Path("data"), ask=ask)) == {"train": "b", "val": "a"}
    assert asked == ["Which is for training: 'a', 'b'? "]
    with pytest.raises(UserError, match=r"training: 'a', 'b'\? Say it by --train"):
        choose_splits(("a", "b"), Request(Path("data"), ask=lambda question: ""))
    with pytest.raises(UserError, match="'b' is none of 'c', 'd'"):
        choose_splits(("c", "d"), Request(Path("data"), ask=ask))


def test_class_folders_of_any_names(tmp_path: Path) -> None:
    data = photographs(tmp_path / "Meine Fotos")
    picture(data / "Prüfung/.thumbs/1.jpg", 0)
    cfg, said, text = written("classification", data, splits={"train": "Übung"})
    assert cfg.classes == ("Käfer groß", "ant hill")
    assert (cfg.train_dataloader.dataset.split, cfg.val_dataloader.dataset.split) == ("Übung", "Prüfung")
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    assert (cfg.train_pipeline[0]["size"], cfg.batch.size) == (96, 8)
    assert cfg.optim_wrapper.optimizer.lr == 1e-3 / 4
    assert "train: 'Übung', 8 images of 2 classes (the fewest: Käfer groß 4, ant hill 4)" in said
    assert "it begins with no weights" in said[-5]
    config = tmp_path / "Meine Sachen/mein.py"
    assert said[-1] == f"    python tools/train.py '{config}'"
    assert f"    python tools/train.py {config}" in text


def test_images_that_are_not_used_are_said(tmp_path: Path) -> None:
    data = photographs(tmp_path / "data", ("train", "val", "rest"))
    for number in range(3):
        picture(data / f"unsorted/{number}.jpg", number)
    (data / "notes").mkdir()
    _, said, _ = written("classification", data)
    assert [line for line in said if line.startswith("not used")] == [
        "not used: 'rest', 8 images: --test 'rest' tests on them",
        "not used: 'unsorted', 3 images: tools/predict.py predicts them",
    ]


def test_a_set_within_folders_and_with_a_test(tmp_path: Path) -> None:
    photographs(tmp_path / "data/download/Set 1", ("Train", "valid", "TEST"))
    cfg, _, _ = written("classification", tmp_path / "data", classes=("ant hill", "Käfer groß"))
    splits = [cfg[f"{split}_dataloader"].dataset.split for split in ("train", "val", "test")]
    assert splits == [f"download/Set 1/{name}" for name in ("Train", "valid", "TEST")]
    assert cfg.classes == ("ant hill", "Käfer groß")


def test_class_folders_that_are_not_there(tmp_path: Path) -> None:
    picture(tmp_path / "loose/1.jpg", 0)
    refused("classification", tmp_path / "loose", r"has no images in folders of classes, such as cat/1\.jpg")
    refused("classification", tmp_path / "nowhere", r"--data .*nowhere' is no folder")
    refused("classification", photographs(tmp_path / "two"), r"Which is for training: 'Prüfung', 'Übung'\?")


@pytest.mark.parametrize("masks", [True, False])
def test_annotation_files_of_any_names(masks: bool, tmp_path: Path) -> None:
    data = objects(tmp_path / "Meine Tiere", masks)
    (data / "notes.json").write_text("[]")
    (data / "broken.json").write_text("{")
    for name, categories in (("a", [{"name": "x"}]), ("b", [3])):
        content = {"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}], "categories": categories}
        (data / f"{name}.json").write_text(json.dumps(content), encoding="utf-8-sig")
    cfg, said, _ = written("detection", data, splits={"train": "Lehre (final).json"})
    assert cfg.classes == ("red kite", "Füchse")  # by their ids
    assert cfg.train_dataloader.dataset.data_prefix.img == "Bilder Lehre"
    assert cfg.val_dataloader.dataset.ann_file == "Probe (final).json"
    assert cfg.val_evaluator.metric == (("bbox", "segm") if masks else ("bbox",))
    assert (cfg.model.roi_head.mask_head is None) is not masks
    assert cfg.test_pipeline[1]["scale"] == (427, 320)
    kind = "with masks" if masks else "boxes alone"
    assert f"train: 'Lehre (final).json', 4 images in 'Bilder Lehre', 8 objects in 4 of them ({kind})" in said


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_annotation_files_beside_their_images(tmp_path: Path) -> None:
    """As Roboflow exports them: one category holds the others."""
    for source, split in (("Lehre", "train"), ("Probe", "valid")):
        data = objects(tmp_path / "data" / split, splits=(source,))
        for image in (data / f"Bilder {source}").iterdir():
            image.rename(data / image.name)
        file = (data / f"{source} (final).json").rename(data / "_annotations.coco.json")

        def nest(content: dict[str, Any]) -> None:
            for one in content["categories"]:
                one["supercategory"] = "animals"
            content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})

        change(file, nest)
    cfg, said, _ = written("detection", tmp_path / "data")
    assert cfg.classes == ("red kite", "Füchse")
    assert cfg.train_dataloader.dataset.ann_file == "train/_annotations.coco.json"
    assert cfg.val_dataloader.dataset.data_prefix.img == "valid"
    assert "category 'animals' has no objects and others below it: left out" in said


def test_annotations_that_are_not_usable(tmp_path: Path) -> None:
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/labels/1.txt").write_text("0 0.5 0.5 1 1")
    refused(
        "detection", tmp_path / "yolo", r"no \.json file with images, .*; there are 1 \.txt \(YOLO\?\): convert them"
    )
    data = objects(tmp_path / "moved")
    for image in (data / "Bilder Lehre").iterdir():
        image.rename(image.with_name(f"x{image.name}"))
    stated = {"splits": {"train": "Lehre (final).json"}}
    refused("detection", data, r"its images are not in the folder, such as 'Foto 0 0\.PNG'", **stated)
    change(data / "Lehre (final).json", lambda content: content["images"].clear())
    refused("detection", data, r"its images are not in the folder", **stated)


def test_some_objects_without_a_mask_make_a_box_detector(tmp_path: Path) -> None:
    data = objects(tmp_path / "data")
    change(data / "Lehre (final).json", lambda content: content["annotations"][0].pop("segmentation"))
    cfg, said, _ = written("detection", data, splits={"train": "Lehre (final).json"})
    assert cfg.val_evaluator.metric == ("bbox",)
    assert any("(1 without mask)" in line for line in said)


def label_settings(cfg: Config) -> tuple[Any, ...]:
    step = next(one for one in cfg.train_pipeline if one["type"] == "LoadLabels")
    return cfg.train_dataloader.dataset.reduce_zero_label, step.get("unlabelled"), step.get("label_values")


@pytest.mark.parametrize(
    "values, classes, unlabelled, expected",
    [
        ((0, 1, 2), "a b c", None, (False, None, None)),
        ((0, 1, 2, 255), "a b c", None, (False, None, None)),
        ((0, 1, 2), "a b c d", None, (False, None, None)),
        ((0, 1, 2, 3), "a b c", 3, (False, 3, None)),
        ((0, 1, 2, 3), "a b c", 0, (True, None, None)),
        ((0, 1, 2, 3), "void a b c", None, (True, None, None)),
        ((0, 1, 2, 3), "a b c Unlabelled", None, (False, 3, None)),
        ((1, 2, 3), "a b c", None, (True, None, None)),
        ((0, 255), "a b", None, (False, None, (0, 255))),
        ((0, 38, 75), "a b c", None, (False, None, (0, 38, 75))),
        ((0, 38, 75), "a b", 0, (False, 0, (38, 75))),
    ],
)
def test_the_numbers_in_labels(
    values: tuple[int, ...], classes: str, unlabelled: int | None, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    data = scenes(tmp_path / "Meine Straßen", values)
    cfg, said, _ = written("segmentation", data, classes=tuple(classes.split()), unlabelled=unlabelled)
    assert label_settings(cfg) == expected
    assert cfg.classes == tuple(name for name in classes.split() if name.lower() not in ("void", "unlabelled"))
    assert any(line.startswith("values in 8 of 8 labels: ") for line in said)


def test_labels_and_images_of_any_names(tmp_path: Path) -> None:
    data = scenes(tmp_path / "Meine Straßen")
    (data / "classes.txt").write_text("Straße\nHaus\n\nHimmel blau\n", encoding="utf-8")
    cfg, _, text = written("segmentation", data)
    assert cfg.classes == ("Straße", "Haus", "Himmel blau")
    dataset = cfg.val_dataloader.dataset
    assert (dataset.img_suffix, dataset.seg_map_suffix) == (".JPG", "_Maske.png")
    assert dataset.data_prefix == dict(img_path="val set/Fotos", seg_map_path="val set/Masken")
    assert (cfg.model.data_preprocessor.size, cfg.test_pipeline[1]["scale"]) == ((256, 256), (341, 256))
    assert "unlabelled = None" in text


def test_folders_below_the_splits(tmp_path: Path) -> None:
    """As Cityscapes has them: a folder for each city, suffixes for both."""
    for split in ("train", "val"):
        for city in ("Köln", "Ulm"):
            for image in range(2):
                picture(tmp_path / f"data/left/{split}/{city}/{city}_{image}_left8.png", image)
                labels(tmp_path / f"data/fine/{split}/{city}/{city}_{image}_ids.png", 0, 1)
    cfg, said, _ = written("segmentation", tmp_path / "data", classes=("a", "b"))
    dataset = cfg.train_dataloader.dataset
    assert dataset.data_prefix == dict(img_path="left/train", seg_map_path="fine/train")
    assert (dataset.img_suffix, dataset.seg_map_suffix) == ("_left8.png", "_ids.png")
    assert said[0] == "train: 4 images in 'left/train', labels in 'fine/train'"


def test_folders_of_splits_of_other_names(tmp_path: Path) -> None:
    for split in ("Lehre", "Probe"):
        for image in range(3):
            picture(tmp_path / f"data/Bilder/{split}/{image}.jpg", image)
            labels(tmp_path / f"data/Masken/{split}/{image}.png", 0, 1)
    cfg, _, _ = written("segmentation", tmp_path / "data", classes=("a", "b"), splits={"train": "Lehre"})
    assert cfg.val_dataloader.dataset.data_prefix == dict(img_path="Bilder/Probe", seg_map_path="Masken/Probe")


def test_labels_that_are_not_usable(tmp_path: Path) -> None:
    refused("segmentation", scenes(tmp_path / "unnamed"), r"Which classes are the values 0, 1, 2 .*Say it by --classes")
    few = {"classes": ("a", "b")}
    refused(
        "segmentation", scenes(tmp_path / "few"), r"2 names for 3 values: which number means 'not labelled'\?", **few
    )
    one = {"classes": ("cell",)}
    refused(
        "segmentation", scenes(tmp_path / "one", (0, 1)), r"1 class names for 2 values in the labels \(0, 1\)", **one
    )
    coloured = scenes(tmp_path / "coloured")
    for path in coloured.rglob("*_Maske.png"):
        Image.open(path).convert("RGB").save(path)
    refused("segmentation", coloured, r"no folder of images with one of label images: one channel", classes=("a", "b"))


def test_a_few_files_without_partner_are_counted(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data")
    picture(data / "train set/Fotos/Allee.JPG", 0)
    _, said, _ = written("segmentation", data, classes=("a", "b", "c"))
    assert said[0].endswith("labels in 'train set/Masken', files without partner: 1 (check_data names them)")


def test_images_of_several_suffixes(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data")
    (data / "train set/Fotos/Straße 0.JPG").rename(data / "train set/Fotos/Straße 0.jpg")
    picture(data / "train set/Fotos/Straße 3.bmp", 3)  # a second picture of the same labels, as of a viewer
    for image in (0, 1, 2):
        picture(data / f"val set/Fotos/Straße {image}.png", image)
        (data / f"val set/Fotos/Straße {image}.JPG").unlink()
    cfg, said, _ = written("segmentation", data, classes=("a", "b", "c"))
    assert tuple(cfg.train_dataloader.dataset.img_suffix) == (".JPG", ".jpg", ".png")
    assert said[0] == "train: 4 images in 'train set/Fotos', labels in 'train set/Masken'"
    assert said[1] == "val: 4 images in 'val set/Fotos', labels in 'val set/Masken'"
    assert [pairs(cfg, split) for split in ("train", "val")] == [4, 4]


def pairs(cfg: Config, split: str) -> int:
    """Number of pairs that a split of a resolved config has."""
    settings = {key: value for key, value in cfg[f"{split}_dataloader"].dataset.items() if key != "type"}
    return len(LabelPngDataset(**{**settings, "pipeline": []}))


def test_lists_of_images(tmp_path: Path) -> None:
    """As in Pascal VOC: all images in a folder, labels of some, and a text file for each split."""
    for image in range(12):
        picture(tmp_path / f"VOC 7/JPEGImages/{image}.jpg", image)
    for image in range(4):
        labels(tmp_path / f"VOC 7/SegmentationClass/{image}.png", 0, 1, 255)
    stems = {"Main/train": range(12), "Seg/train": range(3), "Seg/val": range(3, 4), "Seg/trainval": range(4)}
    for name, images in stems.items():
        place = tmp_path / f"VOC 7/ImageSets/{name}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{image}\n" for image in images))
    cfg, said, _ = written("segmentation", tmp_path / "VOC 7", classes=("background", "cat"))
    for split, count in (("train", 3), ("val", 1)):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.ann_file == f"ImageSets/Seg/{split}.txt"
        assert dataset.data_prefix == dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
        assert pairs(cfg, split) == count
    listed = "3 images in 'JPEGImages' that 'ImageSets/Seg/train.txt' names"
    assert said[0] == f"train: {listed}, labels in 'SegmentationClass'"


def test_what_is_stated_and_cannot_be(tmp_path: Path) -> None:
    data, other = photographs(tmp_path / "photos", ("train", "val")), ("ant hil", "Käfer groß")
    refused("classification", data, r"--classes: .* no folder 'ant hil' \('train' has 'Käfer", classes=other)
    refused("classification", data, r"--classes: .* folder 'ant hill' is not in classes", classes=("Käfer groß",))
    twice = {"train": "train", "val": "train"}
    refused("classification", data, r"--val train: is the training data", splits=twice)
    picture(tmp_path / "flat/alle/1.jpg", 1)
    refused("classification", tmp_path / "flat", r"has images in one folder, 'alle': sort them")


def test_annotations_of_another_machine(tmp_path: Path) -> None:
    data = objects(tmp_path / "data")

    def move(content: dict[str, Any]) -> None:
        content["images"] = [{**content["images"][0], "file_name": r"C:\\x\Foto 0 0.PNG"}]

    change(data / "Lehre (final).json", move)
    message = r"such as .*: the folder has 'Bilder Lehre/Foto 0 0\.PNG': write file_name 'Foto 0 0\.PNG'"
    refused("detection", data, message, splits={"train": "Lehre (final).json"})


def test_images_without_objects_make_no_steps(tmp_path: Path) -> None:
    data = objects(tmp_path / "data")

    def crowds(content: dict[str, Any]) -> None:
        for one in content["annotations"][2:]:
            one["iscrowd"] = 1

    change(data / "Lehre (final).json", crowds)
    stated = {"splits": {"train": "Lehre (final).json"}, "settings": {"_batch": 1, "_epochs": 2}}
    _, said, _ = written("detection", data, **stated)
    assert any("2 epochs of 1 steps, batch 1" in line for line in said)


def test_numbers_and_names_that_cannot_be_read(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data")
    (data / "classes.txt").write_bytes("Straße\na\nb".encode("latin-1"))
    refused("segmentation", data, r"classes\.txt")
    for path in data.rglob("*_Maske.png"):
        Image.fromarray(np.full((72, 96), 1000, np.uint16)).save(path)
    refused("segmentation", data, r"labels hold the number 1000: those of classes are at most 254", classes=("a", "b"))


def test_names_and_numbers_are_asked_on_a_terminal(tmp_path: Path) -> None:
    answers = iter(["road, tree", "2"])
    cfg, _, _ = written("segmentation", scenes(tmp_path / "data"), ask=lambda question: next(answers))
    assert cfg.classes == ("road", "tree")
    assert label_settings(cfg) == (False, 2, None)


def test_what_is_stated_goes_before_what_is_found(tmp_path: Path) -> None:
    settings = {"_network": "convnext_atto", "_batch": 2, "_epochs": 1, "_weights": "convnext_atto.d2_in1k"}
    cfg, said, _ = written("classification", photographs(tmp_path / "data", ("train", "val")), settings=settings)
    assert cfg.model.backbone.type == "convnext_atto"
    assert (cfg.batch.size, cfg.train_cfg.max_epochs) == (2, 1)
    assert cfg.optim_wrapper.optimizer.lr == 2e-4 / 16
    assert not any("no weights" in line for line in said)


@pytest.mark.parametrize("network", ["convnext_atto", "convnextv2_atto", "resnet50"])
def test_any_network_takes_the_place_of_the_example_s(network: str, tmp_path: Path) -> None:
    """Layer scale is V1's: V2's released weights have none, and other networks refuse it."""
    splits, root = ("train", "val"), tmp_path / "data"
    for task, data, stated in (
        ("classification", photographs(root / "a/data", splits), {}),
        ("detection", objects(root / "b/data", splits=splits), {}),
        ("segmentation", scenes(root / "c/data"), {"classes": ("a", "b", "c")}),
    ):
        cfg, _, _ = written(task, data, settings={"_network": network}, **stated)
        scale = 1.0 if network == "convnext_atto" else None
        assert (cfg.model.backbone.type, cfg.model.backbone.get("layer_scale_init_value")) == (network, scale)


def test_a_config_that_is_wrong_or_there_is_not_written(tmp_path: Path) -> None:
    data = photographs(tmp_path / "data", ("train", "val"))
    for settings, message in (
        ({"_network": "convnext_tinny"}, r"convnext_tinny"),
        ({"_epochs": 0}, r"max_epochs=0"),
        ({"_weights": "/no/such.pth"}, r"--weights '/no/such\.pth' does not exist"),
        ({"_weights": "convnext_tinny.fb_in1k"}, r"does not exist; nearest: convnext_tiny\.fb_in1k"),
    ):
        refused("classification", data, message, settings=settings)
    (tmp_path / "there.py").touch()
    for out, message in (("there.py", "exists: name another file"), ("mine.yaml", r"a config is a \.py file")):
        with pytest.raises(UserError, match=message):
            new_config("classification", tmp_path / out, Request(data))


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_the_example_filled_in_with_its_own_values_is_the_example(task: str) -> None:
    text = (EXAMPLES / f"{task}_own_data.py").read_text(encoding="utf-8")
    assert fill_in(text, {}) == text
    names = tuple(f"a class of the name {index}" for index in range(40))
    filled = fill_in(text, {"classes": names, "data_root": 'a "quoted" \\ näme', "_weights": "x.pth"})
    folders = {"data_prefix": {key: f"a folder of a rather long name/{key}" for key in ("img_path", "seg_map_path")}}
    filled = fill_in(filled, {"_train": {"ann_file": "a list of names.txt", **folders}})
    assigned = [node for node in ast.parse(filled).body if isinstance(node, ast.Assign)]
    values = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    assert ast.literal_eval(values["classes"]) == names
    assert ast.literal_eval(values["data_root"]) == 'a "quoted" \\ näme'
    assert max(map(len, filled.splitlines())) <= 120
    assert filled.count("#") == text.count("#")
