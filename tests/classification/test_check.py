"""What a person gets wrong with a folder of class folders, each in its line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

import classification  # noqa: F401
from backbones.errors import DataError
from classification import check
from classification.data import FolderDataset
from engine.data.check import check_datasets
from engine.data.findings import DataCheckResult


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 255, (16, 20, 3), np.uint8)).save(tmp_path / f"train/{name}/{i}.png")
    return tmp_path


def checked(root: Path, classes: tuple[str, ...] = ("cat", "dog"), **more: Any) -> DataCheckResult:
    dataset = dict(type="FolderDataset", data_root=str(root), split="train", metainfo=dict(classes=classes), **more)
    return check_datasets(Config(dict(default_scope="mmengine", train_dataloader=dict(dataset=dataset))), ("train",))


def kinds(found: DataCheckResult) -> list[tuple[str, str]]:
    return [(item.level, item.kind) for item in found.findings]


def test_folder_checker_of_sound_folders(pets: Path) -> None:
    found = checked(pets, ("dog", "cat"))
    assert found.findings == []
    assert found.inspected == {"train images": (8, 8)}
    assert checked(pets, every=2).inspected == {"train images": (4, 4)}


def test_folder_checker_says_which_list_the_class_folders_are(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "describe_classes", lambda names: f"the list {', '.join(names)}")
    assert (
        f"the train data: the class folders of {str(pets / 'train')!r} are the list dog, cat"
        in checked(pets, ("dog", "cat")).notes
    )
    assert any(note.endswith("are the list cat, dog") for note in checked(pets, ("dog", "cow")).notes)


def test_folder_checker_of_a_list(pets: Path) -> None:
    (pets / "some.txt").write_text("cat/0.png\ncat/1.png\ndog/2.png\ndog/9.png\n")
    found = checked(pets, ann_file="some.txt")
    assert found.inspected == {"train images": (3, 3)}
    assert kinds(found) == [("error", "listed image"), ("warning", "small class")]
    assert found.findings[0].problem.startswith("names 'dog/9.png', which is no image of a class in ")
    assert kinds(checked(pets, ann_file="none.txt")) == [("error", "list")]


def test_folder_checker_compares_classes_with_folders(pets: Path) -> None:
    found = checked(pets, ("cat", "dgo"))
    assert [item.problem for item in found.findings] == [
        "2 class folders, 2 classes in the config; no folder 'dgo'",
        "class 'dgo' has no folder; nearest: 'dog'",
        "folder 'dog' is no class; nearest: 'dgo'",
    ]
    assert len(found.errors) == 3


def copy_of_a_cat(path: Path) -> None:
    shutil.copy(path.parents[1] / "cat/0.png", path)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "name, harm, expected",
    [
        ("cat/1.png", link_to_nothing, ("error", "missing image")),
        ("cat/1.png", lambda path: path.write_bytes(b""), ("error", "empty image")),
        ("cat/1.png", lambda path: path.write_bytes(path.read_bytes()[:-9]), ("error", "truncated image")),
        ("cat/1.png", lambda path: path.write_text("finder"), ("error", "no image")),
        ("cat/notes.txt", lambda path: path.write_text("notes"), ("warning", "no image by its name")),
        ("notes.txt", lambda path: path.write_text("notes"), ("warning", "loose file")),
        ("dog/copy.png", copy_of_a_cat, ("warning", "one image in two classes")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_folder_checker_finds_a_single_fault(
    pets: Path, name: str, harm: Callable[[Path], Any], expected: tuple[str, str]
) -> None:
    harm(pets / "train" / name)
    found = checked(pets)
    assert kinds(found) == [expected]
    assert name.rpartition("/")[2] in found.findings[0].file or "copy.png" in found.findings[0].problem


def test_folder_checker_skips_and_counts_hidden_files_and_folders(pets: Path) -> None:
    for name in ("._1.png", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/cat/1.png", "@eaDir/1.png", "Thumbs.db"):
        for place in (pets / "train", pets / "train/cat"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"no image")
    found = checked(pets)
    assert found.findings == []
    assert found.inspected == {"train images": (8, 8)}
    assert found.notes == (
        "10 hidden files and folders of the train data are skipped (._1.png, .ipynb_checkpoints, @eaDir)",
    )
    (pets / "train/.wild").mkdir()
    shutil.copy(pets / "train/cat/0.png", pets / "train/.wild")
    assert checked(pets, ("cat", "dog", ".wild")).inspected == {"train images": (9, 9)}


def test_folder_checker_accepts_a_copy_within_a_class(pets: Path) -> None:
    shutil.copy(pets / "train/cat/0.png", pets / "train/cat/copy.png")
    assert checked(pets).findings == []


def test_folder_checker_refuses_a_single_class(pets: Path) -> None:
    shutil.rmtree(pets / "train/dog")
    assert kinds(checked(pets, ("cat",))) == [("error", "one class")]


def test_folder_checker_of_a_class_with_no_image_or_one(pets: Path) -> None:
    for i in range(3):
        (pets / f"train/cat/{i}.png").unlink()
    assert kinds(checked(pets)) == [("warning", "small class")]
    (pets / "train/cat/3.png").unlink()
    assert kinds(checked(pets)) == [("error", "empty class")]


def test_folder_checker_reports_that_most_images_are_not_read(pets: Path) -> None:
    for i in range(9):
        (pets / f"train/cat/{i}.heic").write_bytes(b"heic")
    found = checked(pets)
    assert found.errors[0].problem == "9 files with .heic are not read, 8 images are"
    assert kinds(found).count(("warning", "no image by its name")) == 9


def test_folder_checker_of_an_unreadable_folder(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read any folder, so the refusal is simulated."""

    def refused(folder: Path, others: list[str], unreadable: list[OSError], *more: Any) -> list[str]:
        unreadable.append(PermissionError(13, "Permission denied", str(folder / "deep")))
        return list_images(folder, others, unreadable, *more)

    list_images = check.list_images
    monkeypatch.setattr(check, "list_images", refused)
    found = checked(pets)
    assert kinds(found) == [("error", "unreadable folder")] * 2
    assert found.findings[0].problem == "cannot be read: Permission denied"


def test_folder_checker_of_a_missing_folder(pets: Path) -> None:
    assert kinds(checked(pets / "elsewhere")) == [("error", "folder")]


@pytest.mark.parametrize("absent", ["folder", "images"])
def test_folder_checker_and_data_set_allow_a_class_without_test_images(pets: Path, absent: str) -> None:
    shutil.rmtree(pets / "train/dog")
    if absent == "images":
        (pets / "train/dog").mkdir()
    found = checked(pets, test_mode=True)
    assert kinds(found) == [("warning", "class without images")]
    assert "there is no train image of class 'dog': it is not scored" in str(found.findings[0])
    dataset = FolderDataset(str(pets), "train", dict(classes=("dog", "cat")), [], test_mode=True)
    assert {dataset.get_data_info(i)["gt_label"] for i in range(len(dataset))} == {1}
    assert checked(pets).errors
    (pets / "train/newt").mkdir()
    assert "folder 'newt' is not in classes" in str(checked(pets, test_mode=True).errors[0])
    with pytest.raises(DataError, match="folder 'newt' is not in classes"):
        FolderDataset(str(pets), "train", dict(classes=("dog", "cat")), [], test_mode=True)


def test_test_data_without_any_image_is_refused(pets: Path) -> None:
    for folder in ("cat", "dog"):
        shutil.rmtree(pets / "train" / folder)
    assert checked(pets, test_mode=True).errors
    (pets / "train/cat").mkdir()
    assert checked(pets, test_mode=True).errors
    with pytest.raises(DataError, match="holds no image of any class"):
        FolderDataset(str(pets), "train", dict(classes=("cat", "dog")), [], test_mode=True)
