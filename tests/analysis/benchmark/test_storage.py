"""Storage that is compared: the same images on every side, in whole batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from analysis.benchmark import loading, storage
from backbones import UserError
from classification.data import FolderDataset
from tests.shards import class_folders_of_noise

CLASSES = ("cat", "dog")


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    root = class_folders_of_noise(tmp_path / "data", CLASSES)
    pipeline = [dict(type="ClassificationTransform", training=True, size=16)]
    settings = dict(data_root=str(root), split="train", metainfo=dict(classes=CLASSES), pipeline=pipeline)
    return Config(dict(train_dataloader=dict(dataset=dict(type="FolderDataset", **settings))))


def test_shards_hold_the_images_of_the_folders(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = FolderDataset(**{key: value for key, value in cfg.train_dataloader.dataset.items() if key != "type"})
    found = storage.storage_data(cfg, tmp_path)
    assert "ours, tar" in found
    for data in (*found.values(), storage.image_folder(cfg, lambda image: image)):
        assert len(data) == len(folders) == 8
    tar = found["ours, tar"]
    images = [tar.get_data_info(index)["img_path"].read() for index in range(8)]
    assert images == [Path(folders.get_data_info(index)["img_path"]).read_bytes() for index in range(8)]
    files = loading.side_files(folders, tmp_path, ["ours", "ours, tar"])
    assert [len(files["ours"]), {Path(one).parent.name for one in files["ours, tar"]}] == [8, {"wds"}]
    storage.forget(files["ours"])
    monkeypatch.setattr(storage, "DROP_CACHES", tmp_path)  # as for a user who may not
    assert not storage.forget_names()
    monkeypatch.setattr(storage, "DROP_CACHES", tmp_path / "drop_caches")
    taken = loading.cold_turns({"ours": lambda: tar[0], "ours, tar": lambda: tar[1]}, files, 2)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"ours": 2, "ours, tar": 2}
    assert storage.DROP_CACHES.read_text() == "2"
    assert storage.forget_names()


def test_what_is_not_in_class_folders_is_refused(cfg: Config, tmp_path: Path) -> None:
    cfg.train_dataloader.dataset.data_root = str(tmp_path / "absent")
    with pytest.raises(UserError, match=r"storage is compared on images in class folders"):
        storage.storage_data(cfg, tmp_path)


def test_batches_are_whole_and_images_are_rgb(tmp_path: Path) -> None:
    assert list(storage.batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5]]
    path = tmp_path / "a.png"
    Image.new("L", (2, 3)).save(path)
    stored = storage.read_stored((str(path), 1))
    assert stored == {"image": path.read_bytes(), "label": 1}


def test_a_package_that_cannot_be_imported_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "litdata.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(storage, "STORAGE_PEERS", ("litdata", "webdataset_of_nobody"))
    absent = storage.absent_peers()
    assert "cannot be imported (ModuleNotFoundError: No module named 'a_package_that_nobody_has')" in absent["litdata"]
    assert absent["webdataset_of_nobody"] == "is not installed"
