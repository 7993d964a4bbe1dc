"""Shards of class folders: the same images, the same bytes, gone on with after a stop."""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backbones import UserError
from classification import make_shards as module
from classification.data import FolderDataset
from classification.make_shards import ShardSettings, make_shards
from classification.stored import stored_names
from engine.data.image_files import read_image_bytes
from engine.data.shards import find_shards
from engine.data.stores.cache import parse_size
from tests.shards import class_folders_of_noise

CLASSES = ("cat", "dog", "newt")
SMALL = ShardSettings(size=10_000)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = class_folders_of_noise(tmp_path / "folders", CLASSES, 8)
    Image.new("RGB", (40, 30)).save(root / "train/cat/cat_0.png")  # the key of another image
    Image.new("RGB", (40, 30)).save(root / "train/dog/a.b.c.jpg")
    return class_folders_of_noise(root, CLASSES[:2], 2, "val")


def listed(root: Path, split: str = "train") -> list[tuple[int, bytes]]:
    data = FolderDataset(str(root), split, dict(classes=CLASSES), [dict(type="ClassificationTransform", size=8)])
    found = [data.get_data_info(index) for index in range(len(data))]
    return [(one["gt_label"], read_image_bytes(one["img_path"])) for one in found]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("to", ["wds", "parquet"])
def test_shards_hold_the_images_of_the_folders(folders: Path, tmp_path: Path, to: str) -> None:
    settings = ShardSettings(to, 10_000)
    made = make_shards(folders, tmp_path / "a", settings, workers=1)
    assert (made["train"].images, made["train"].classes, made["val"].images) == (26, 3, 4)
    assert made["train"].shards > 1
    assert sorted(listed(tmp_path / "a")) == sorted(listed(folders))
    shards = find_shards(str(tmp_path / "a"), "train")
    assert shards is not None
    assert stored_names(shards) == list(CLASSES)
    make_shards(folders, tmp_path / "b", settings, workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_order_is_that_of_the_folders(tmp_path: Path) -> None:
    root = class_folders_of_noise(tmp_path / "folders", CLASSES, 12)
    make_shards(root, tmp_path / "made", SMALL, workers=1)
    assert listed(tmp_path / "made") == listed(root)


def test_a_call_that_was_stopped_is_gone_on_with(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(folders, tmp_path / "whole", SMALL, workers=1)
    verify, calls = module._verify, []

    def fail(part: Path, *others: Any) -> None:
        calls.append(part)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        verify(part, *others)

    monkeypatch.setattr(module, "_verify", fail)
    with pytest.raises(UserError, match=r"No space left on device\): make room and call it again, it goes on"):
        make_shards(folders, tmp_path / "made", SMALL, workers=1)
    assert len(content(tmp_path / "made")) == 3  # two shards, and what is to be made
    (tmp_path / "made" / ".train-0002.tar.0123456789abcdef.part").write_bytes(b"half")  # as after SIGKILL
    calls.clear()
    monkeypatch.setattr(module, "_verify", lambda *all_of_it: (calls.append(0), verify(*all_of_it)))
    made = make_shards(folders, tmp_path / "made", SMALL, workers=1)
    assert len(calls) == sum(one.shards for one in made.values()) - 2
    assert content(tmp_path / "made") == content(tmp_path / "whole")
    assert not list((tmp_path / "made").glob("*.part")) + list((tmp_path / "made").glob(".*.part"))


def test_after_a_kill_a_second_call_gives_the_same_bytes(folders: Path, tmp_path: Path) -> None:
    make_shards(folders, tmp_path / "whole", SMALL, workers=1)
    made = tmp_path / "made"
    child = get_context("fork").Process(target=make_shards, args=(folders, made, SMALL, 2))
    child.start()
    while not any(made.glob("*.tar")):
        time.sleep(0.001)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    make_shards(folders, made, SMALL, workers=2)
    assert content(made) == content(tmp_path / "whole")
    assert not list(made.glob(".*.part"))


def test_what_was_written_is_read_again(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_digest", lambda content, seen=[]: seen.append(0) or len(seen).to_bytes(4, "big"))
    with pytest.raises(UserError, match=r"train-0000\.tar: was written, but other bytes are read"):
        make_shards(folders, tmp_path / "made", ShardSettings(size=10**6), workers=1)


def test_images_are_shrunk(folders: Path, tmp_path: Path) -> None:
    make_shards(folders, tmp_path / "made", ShardSettings(resize_short=26, quality=90), workers=1)
    images = [Image.open(io.BytesIO(data)) for _, data in listed(tmp_path / "made")]
    assert len(images) == 26
    assert {min(image.size) for image in images} == {24, 25, 26}
    assert {image.format for image in images} == {"JPEG", "PNG"}


@pytest.mark.parametrize("text, size", [("256MB", 256 * 10**6), ("1.5 gb", 15 * 10**8), ("20000", 20000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--size") == size


def test_bad_input_is_one_line(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    (tmp_path / "empty").mkdir()
    cases = [
        (folders, tmp_path / "full", r"holds something else: give an empty folder"),
        (folders, folders / "train" / "made", r"lies in .*: give a folder outside"),
        (tmp_path / "none", tmp_path / "made", r"is no folder of class folders"),
        (tmp_path / "empty", tmp_path / "made", r"holds no class folder with images"),
    ]
    for source, target, message in cases:
        with pytest.raises(UserError, match=message):
            make_shards(source, target, SMALL, workers=1)
    make_shards(folders, tmp_path / "made", SMALL, workers=1)
    with pytest.raises(UserError, match="holds shards of other images or settings"):
        make_shards(folders, tmp_path / "made", ShardSettings(size=20_000), workers=1)
    for settings, message in [
        ({"size": 5}, "--size 5"),
        ({"resize_short": 0}, "--resize-short"),
        ({"quality": 0}, "1 to"),
    ]:
        with pytest.raises(UserError, match=message):
            ShardSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a number with a unit"):
        parse_size("many", "--size")
    (folders / "train/cat/cat_1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat_1\.jpg: is empty"):
        make_shards(folders, tmp_path / "again", SMALL, workers=1)
