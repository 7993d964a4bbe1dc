"""Classification from shards: the samples of class folders, and one line for what is wrong with shards."""

from __future__ import annotations

import errno
import gc
import gzip
import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from backbones import UserError
from classification.data import FolderDataset
from classification.stored import StoredSamples, stored_names
from engine.data.check import check_datasets
from engine.data.fault_tolerance import FaultTolerantDataset
from engine.data.image_files import inspect_image, read_image_bytes
from engine.data.sampling import SeededIndex, build_train_loader
from engine.data.shards import find_shards
from engine.data.shards import table as table_module
from engine.data.stored_image import Coding
from tests.programs import PATIENCE
from tests.shards import class_folders_of_noise, samples, to_shards, write_parquet, write_tar

CLASSES = ("n01440764", "n01443537", "n01484850")
KINDS = ("cls", "json", "folders", "zip", "parquet")
PACK: list[dict[str, Any]] = [dict(type="ClassificationTransform", size=16)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders_of_noise(tmp_path_factory.mktemp("folders"), CLASSES)


def dataset(root: Any, split: str = "train", classes: tuple[str, ...] = CLASSES, **settings: Any) -> FolderDataset:
    return FolderDataset(root if isinstance(root, list) else str(root), split, dict(classes=classes), PACK, **settings)


def listed(data: FolderDataset) -> list[tuple[str, int, bytes]]:
    found = [data.get_data_info(i) for i in range(len(data))]
    return [(Path(one["img_path"]).name, one["gt_label"], read_image_bytes(one["img_path"])) for one in found]


@pytest.mark.parametrize("kind", KINDS)
def test_shards_give_the_samples_of_class_folders(folders: Path, tmp_path: Path, kind: str) -> None:
    root = to_shards(kind, folders, tmp_path / "shards")
    root = root / "set.zip" if kind == "zip" else root
    ours, theirs = dataset(root), dataset(folders)
    assert listed(ours) == listed(theirs)
    assert listed(dataset(root, every=3)) == listed(dataset(folders, every=3))
    turned = tuple(reversed(CLASSES))
    if kind != "cls":
        assert [one[1] for one in listed(dataset(root, classes=turned))] == [0] * 4 + [1] * 4 + [2] * 4
    assert ours.get_cat_ids(11) == [2]
    shards = find_shards(str(root), "train")
    assert shards is not None
    assert stored_names(shards) == list(CLASSES)
    info = inspect_image(ours.get_data_info(5)["img_path"])
    assert (info.problem, info.digest) == (None, inspect_image(theirs.get_data_info(5)["img_path"]).digest)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_batches_of_a_training_are_those_of_folders(folders: Path, tmp_path: Path, workers: int) -> None:
    root = to_shards("parquet", folders, tmp_path)
    step = dict(type="ClassificationTransform", size=16, training=True, rand_augment="rand-m9-mstd0.5-inc1")

    def batches(place: Path, count: int) -> list[Any]:
        settings = dict(type="FolderDataset", data_root=str(place), split="train", pipeline=[step])
        loader = dict(batch_size=4, num_workers=count, sampler=dict(type="DefaultSampler", shuffle=True))
        loader |= dict(dataset=settings | dict(metainfo=dict(classes=CLASSES)), collate_fn=dict(type="default_collate"))
        built = build_train_loader(loader, 3, True, lambda data: FaultTolerantDataset(data, tmp_path))
        return [(batch["inputs"], batch["label"].tolist()) for batch in built]

    for one, two in zip(batches(root, workers), batches(folders, 0), strict=True):
        assert torch.equal(one[0], two[0])
        assert one[1] == two[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_read_ahead_where_its_images_lie(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, _: asked.append(os.pread(file, size, start)))
    data = dataset(to_shards(kind, folders, tmp_path / "shards"))
    indices = [7, 2, 5]
    batch = FaultTolerantDataset(data, tmp_path).__getitems__([SeededIndex(one, 3) for one in indices])
    assert [one["img_path"] for one in batch] == [data.get_data_info(one)["img_path"] for one in indices]
    assert len(asked) == 3
    for one in batch:
        path, content = one["img_path"], read_image_bytes(one["img_path"])
        if path.coding == Coding.PAGE:  # compressed, but noise is not
            content = content[-200:-20]
        if path.coding == Coding.DEFLATED:
            content = os.pread(os.open(path.shard.path, os.O_RDONLY), path.size, path.offset)
        assert any(content in part for part in asked)


def test_what_cannot_be_read_ahead_is_no_error_yet(folders: Path, tmp_path: Path) -> None:
    data = dataset(to_shards("cls", folders, tmp_path / "shards"))
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    data.read_ahead(range(len(data)))
    dataset(folders).read_ahead([0])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_shards(folders: Path, tmp_path: Path, start: str) -> None:
    data = dataset(to_shards("json", folders, tmp_path))
    expected = [data[i] for i in range(len(data))]
    loaded = [
        one for batch in DataLoader(data, 5, num_workers=2, multiprocessing_context=start) for one in split(batch)
    ]
    for one, two in zip(loaded, expected, strict=True):
        assert torch.equal(one[0], two["inputs"])
        assert (one[1], one[2]) == (two["label"], two["img_path"])
    assert len(pickle.dumps(data)) < 5000


def split(batch: dict[str, Any]) -> list[tuple[Any, int, str]]:
    return list(zip(batch["inputs"], batch["label"].tolist(), batch["img_path"], strict=True))


def test_numbers_follow_the_names_of_images_and_else_the_order_of_the_classes(folders: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "train-0.tar", samples(folders, "cls"))
    turned = (CLASSES[2], CLASSES[0], CLASSES[1])
    names = [
        one["img_path"].rpartition("/")[2] for one in map(dataset(tmp_path / "a", classes=turned).get_data_info, (0, 4))
    ]
    assert names == ["n01484850_0.jpg", "n01440764_0.jpg"]
    plain = dataset(tmp_path / "a", classes=("fish", "gold", "shark"))
    assert plain.get_data_info(0) | {"sample_idx": 0} == plain.get_data_info(0)
    assert plain.get_data_info(8)["img_path"].endswith("n01484850_0.jpg")


def test_validation_shards_beside_those_of_training(folders: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "set-train-0.tar", samples(folders, "json"))
    write_tar(tmp_path / "set-validation-0.tar", samples(folders, "json")[:4])
    assert len(dataset(tmp_path)) == 12
    assert len(dataset(tmp_path, "val", test_mode=True)) == 2
    assert len(dataset([str(tmp_path / "set-train-0.tar"), str(tmp_path / "set-validation-0.tar")])) == 12
    with pytest.raises(UserError, match=r"none of its 2 shards is of the split 'test' \(set-train-0\.tar\.\.\.\)"):
        dataset(tmp_path, "test", test_mode=True)
    for number in range(2):
        write_tar(tmp_path / "unnamed" / f"{number}.tar", samples(folders, "json")[6 * number :][:6])
    assert len(dataset(tmp_path / "unnamed", test_mode=True)) == 12 // 2
    with pytest.raises(UserError, match=r"none of its 2 shards is of the split 'val' \(0\.tar\.\.\.\)"):
        dataset(tmp_path / "unnamed", "val", test_mode=True)
    for split, count in (("train", 12), ("validation", 4)):
        write_tar(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.tar", samples(folders, "json")[:count])
    assert [len(dataset(tmp_path / "hub", split, test_mode=True)) for split in ("train", "val")] == [6, 2]
    for told, splits in (("test, val", ("test", "val")), ("val", ("val",))):
        for split in splits:
            shutil.copytree(folders / "train", tmp_path / told / split)
        shutil.make_archive(str(tmp_path / told), "zip", tmp_path / told)
        assert len(dataset(tmp_path / f"{told}.zip", "val")) == 12
        with pytest.raises(UserError, match=rf"has the folders {told}, none for the split 'train'"):
            dataset(tmp_path / f"{told}.zip")
    write_tar(tmp_path / "alone" / "0.tar", samples(folders, "json"))
    assert len(dataset(tmp_path / "alone", "val")) == 12  # with no other to be told from
    (tmp_path / "list.txt").write_text("no shard")
    assert find_shards(str(tmp_path / "list.txt"), "train") is None


def test_a_tar_of_each_class_as_imagenet_is_downloaded(folders: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        files = sorted((folders / "train" / name).iterdir())
        write_tar(tmp_path / "train" / f"{name}.tar", [(file.name, file.read_bytes()) for file in files])
    assert listed(dataset(tmp_path)) == listed(dataset(folders))


def test_class_folders_beside_an_archive_are_class_folders(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    write_tar(tmp_path / "train" / "all.tar", samples(folders, "cls"))
    assert find_shards(str(tmp_path), "train") is None


def half(root: Path, folders: Path) -> None:
    path = write_tar(root / "train-0.tar", samples(folders, "cls"))
    path.write_bytes(path.read_bytes()[:9000])


def between_members(root: Path, folders: Path) -> None:
    path = write_tar(root / "train-0.tar", samples(folders, "cls")[:2])
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(4096, b"\0")[:4096].rstrip(b"\0"))
    content = path.read_bytes()
    path.write_bytes(content.ljust(-(-len(content) // 512) * 512, b"\0"))


def compressed(root: Path, folders: Path) -> None:
    path = write_tar(root / "train-0.tar", samples(folders, "cls"))
    path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def bad_name(name: str) -> Callable[[Path, Path], None]:
    return lambda root, folders: void(write_tar(root / "train-0.tar", [*samples(folders, "cls"), (name, b"x")]))


def void(_: object) -> None:
    pass


def one_key_twice(root: Path, folders: Path) -> None:
    write_tar(root / "train-0.tar", samples(folders, "cls")[:4])
    write_tar(root / "train-1.tar", samples(folders, "cls"))


def two_kinds(root: Path, folders: Path) -> None:
    write_tar(root / "train-0.tar", samples(folders, "cls"))
    shutil.make_archive(str(root / "train-1"), "zip", folders)


def other_columns(root: Path, folders: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"img": [b"x"], "label": [0]}), root / "train-0.parquet")


def parquet_of(image: Any, label: Any) -> Callable[[Path, Path], None]:
    """A parquet file with a row of some form; an image is given by the function of pyarrow that makes its column."""

    def make(root: Path, folders: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({"image": image(pyarrow) if callable(image) else image, "label": label})
        parquet.write_table(table, root / "train-0.parquet")

    return make


def half_parquet(root: Path, folders: Path) -> None:
    write_parquet(root / "train-0.parquet", folders)
    (root / "train-0.parquet").write_bytes((root / "train-0.parquet").read_bytes()[:3000])


def half_zip(root: Path, folders: Path) -> None:
    to_shards("zip", folders, root)
    (root / "set.zip").write_bytes((root / "set.zip").read_bytes()[:-300])


def extra(*members: tuple[str, bytes]) -> Callable[[Path, Path], None]:
    return lambda root, folders: void(write_tar(root / "train-0.tar", [*samples(folders, "cls"), *members]))


def sparse(root: Path, folders: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "9",
        "GNU.sparse.map": "0,9",
    }
    content = b"1\n0\n9\n".ljust(512, b"\0") + b"123456789"
    info.size = len(content)
    with tarfile.open(root / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))


def two_in_one(root: Path, folders: Path) -> None:
    parts = [write_tar(root / name, samples(folders, "cls")[place::2]) for place, name in enumerate("ab")]
    (root / "train-0.tar").write_bytes(b"".join(part.read_bytes() for part in parts))


def broken_link(root: Path, folders: Path) -> None:
    write_tar(root / "train-0.tar", samples(folders, "cls"))
    (root / "train-1.tar").symlink_to(root / "gone.tar")


BAD = {
    "sparse": (sparse, r"train-0\.tar: member 'x\.jpg' is a sparse file: pack it without -S"),
    "two in one": (two_in_one, r"train-0\.tar: has more behind its end, as tars put together by cat: use tar -A"),
    "broken link": (broken_link, r"train-1\.tar: cannot be read: No such file or directory"),
    "5,000 digits": (extra(("x.jpg", b"x"), ("x.cls", b"9" * 5000)), r"'x\.cls' holds no label \(a number or a name"),
    "too large": (extra(("x.jpg", b"x"), ("x.cls", b"%d" % 2**70)), r"'x\.cls' holds no label \(a number or a name"),
    "too large in json": (
        extra(("x.jpg", b"x"), ("x.json", b'{"label": 99999999999999999999}')),
        r"'x\.json' holds no label \(a mapping with label",
    ),
    "deep json": (extra(("x.jpg", b"x"), ("x.json", b"[" * 99_999)), r"'x\.json' holds no label \(a mapping"),
    "half a character": (
        extra(("x.jpg", b"x"), ("x.json", b'{"label": "\\ud800"}')),
        r"'x\.json' holds no label \(a mapping",
    ),
    "long name": (
        extra((f"{'x' * 252}.jpg", b"x"), (f"{'x' * 252}.cls", b"0")),
        r"train-0\.tar: image 'x{60}' has a name of 256 bytes, which is too much",
    ),
    "no image": (
        lambda root, folders: void(write_tar(root / "train-0.tar", [("classes.txt", b"a")])),
        r"train-0\.tar: holds no image with a label, nor does another of the shards",
    ),
    "half a label": (extra(("x.jpg", b"x"), ("x.json", b'{"label": 0.5}')), r"'x\.json' holds no label \(a mapping"),
    "two signs": (extra(("x.jpg", b"x"), ("x.cls", b"--3")), r"some labels are numbers, others are names"),
    "half": (half, r"train-0\.tar: is damaged or cut off: no whole tar in its 9,000 bytes"),
    "between members": (between_members, r"train-0\.tar: is damaged or cut off"),
    "compressed": (compressed, r"train-0\.tar\.gz: is a compressed file: unpack it"),
    "absolute": (bad_name("/etc/passwd.jpg"), r"train-0\.tar: member '/etc/passwd\.jpg' leads out of the archive"),
    "outside": (bad_name("a/../../b.jpg"), r"train-0\.tar: member 'a/\.\./\.\./b\.jpg' leads out of the archive"),
    "one key twice": (one_key_twice, r"train-0\.tar and \S*train-1\.tar: two samples with the key 'n01\d+_\d\.jpg'"),
    "two kinds": (two_kinds, r"holds shards of 2 kinds \(train-0\.tar and train-1\.zip\): give each a folder"),
    "other columns": (
        other_columns,
        r"columns image\.bytes and label are needed, it has img \(binary\), label \(int64\)",
    ),
    "image as bytes": (parquet_of([b"x"], [0]), r"are needed, it has image \(binary\), label \(int64\)"),
    "images in lists": (parquet_of([[{"bytes": b"x"}]], [0]), r"are needed, it has image \(list<element: struct<"),
    "bytes of one length": (
        parquet_of(lambda pa: pa.array([{"bytes": b"x"}], pa.struct([("bytes", pa.binary(1))])), [0]),
        r"column image\.bytes has no bytes, or all of one length: write it as binary",
    ),
    "no label in a row": (
        parquet_of([{"bytes": b"x"}] * 3, [0, 1, None]),
        r"train-0\.parquet: row 2 has no label: a class is needed",
    ),
    "label of a half": (
        parquet_of([{"bytes": b"x"}], [0.5]),
        r"column label has double, such as 0\.5: whole numbers or names of classes are needed",
    ),
    "label of bytes": (parquet_of([{"bytes": b"x"}], [b"cat"]), r"column label has binary, such as b'cat': whole"),
    "half parquet": (half_parquet, r"train-0\.parquet: is damaged or cut off"),
    "half zip": (half_zip, r"set\.zip: is damaged or cut off: no whole zip file"),
    "label outside": (
        extra(("x.jpg", b"x"), ("x.cls", b"3")),
        r"4 classes in the shards, 3 in the config; label '3' is",
    ),
    "no label": (extra(("x.jpg", b"x")), r"sample 'x' has no label: neither cls nor json"),
    "label of text": (extra(("x.jpg", b"x"), ("x.json", b"[]")), r"'x\.json' holds no label \(a mapping with label"),
    "negative": (extra(("x.jpg", b"x"), ("x.cls", b"-1")), r"label -1 is no number of a class: they begin with 0"),
    "mixed labels": (extra(("x.jpg", b"x"), ("x.cls", b"cat")), r"some labels are numbers, others are names"),
    "two images": (extra(("x.jpg", b"x"), ("x.png", b"x")), r"two samples with the key 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_shards_is_one_line(folders: Path, tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data", folders)
    root = tmp_path / "data" / "set.zip" if case == "half zip" else tmp_path / "data"
    with pytest.raises(UserError, match=message) as caught:
        dataset(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BAD)
def test_the_data_check_says_what_is_wrong_with_shards(folders: Path, tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data", folders)
    root = tmp_path / "data" / "set.zip" if case == "half zip" else tmp_path / "data"
    settings = dict(type="FolderDataset", data_root=str(root), split="train", metainfo=dict(classes=CLASSES))
    loader = dict(batch_size=2, dataset=settings)
    found = check_datasets(Config(dict(default_scope="mmengine", train_dataloader=loader)), ("train",), workers=1)
    assert [str(one) for one in found.errors if re.search(message, str(one))]
    assert not list(tmp_path.rglob("passwd*"))
    assert not (tmp_path / "b.jpg").exists()


def test_a_part_is_held_out_for_validation(folders: Path, tmp_path: Path) -> None:
    many = class_folders_of_noise(tmp_path / "many", CLASSES, 20)
    root = to_shards("cls", many, tmp_path / "shards")
    whole = listed(dataset(many))
    kept, held = (listed(dataset(many, hold_out=6, held_out=one)) for one in (False, True))
    assert sorted(kept + held) == sorted(whole)
    assert 9 <= len(held) <= 12  # 3 or 4 of each class
    assert held != whole[::6]
    for one, expected in ((False, kept), (True, held)):
        assert listed(dataset(root, hold_out=6, held_out=one)) == expected
        assert listed(dataset(root, hold_out=6, held_out=one, every=2)) == listed(
            dataset(many, hold_out=6, held_out=one, every=2)
        )
    assert listed(dataset(many, hold_out=6, held_out=True, hold_out_seed=1)) != held
    for settings, message in (
        (dict(hold_out=1), r"dataset\.hold_out=1: 30 holds out one in thirty"),
        (dict(held_out=True), r"dataset\.hold_out=0: 30 holds out one in thirty"),
        (dict(hold_out=3, hold_out_seed=-1), r"dataset\.hold_out_seed=-1: a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            dataset(many, **settings)
    for place in (many, root):
        settings = dict(type="FolderDataset", data_root=str(place), split="train", metainfo=dict(classes=CLASSES))
        loader = dict(batch_size=2, dataset=settings | dict(hold_out=6, held_out=True))
        found = check_datasets(Config(dict(default_scope="mmengine", train_dataloader=loader)), ("train",), workers=1)
        assert found.inspected == {"train images": (len(held), len(held))}


def test_names_of_classes_in_json(folders: Path, tmp_path: Path) -> None:
    members = []
    for name, content in samples(folders, "json"):
        named = {"label": CLASSES[json.loads(content)["label"]]} if name.endswith("json") else None
        members.append((name, content if named is None else json.dumps(named).encode()))
    write_tar(tmp_path / "train-0.tar", members)
    assert listed(dataset(tmp_path)) == listed(dataset(folders))


def test_a_changed_shard_is_listed_again_or_ends_a_training(folders: Path, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples(folders, "cls")[:-2])
    data = dataset(tmp_path, test_mode=True)
    image = data.get_data_info(0)["img_path"]
    assert len(data) == 11
    write_tar(path, samples(folders, "cls"))
    assert len(dataset(tmp_path)) == 12
    with pytest.raises(UserError, match=r"train-0\.tar: has changed since its images were listed: start again"):
        read_image_bytes(image)
    path.unlink()
    with pytest.raises(UserError, match=r"train-0\.tar/n01440764_0\.jpg: is missing"):
        read_image_bytes(image)


def test_the_table_is_in_the_cache_where_shards_lie_in_several_folders(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    half = len(samples(folders, "cls")) // 2
    parts = [samples(folders, "cls")[:half], samples(folders, "cls")[half:]]
    paths = [write_tar(tmp_path / name / "train-0.tar", part) for name, part in zip("ab", parts, strict=True)]
    assert listed(dataset(list(map(str, paths)))) == listed(dataset(folders))
    (table,) = tmp_path.rglob("*.table")
    assert table.parent == tmp_path / "cache/convnext-dense/shards"
    table.write_bytes(table.read_bytes()[:-9])  # as after a fault of the disk: made anew
    assert len(dataset(list(map(str, paths)))) == 12


def test_without_pyarrow(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train-0.parquet", folders)
    monkeypatch.setattr("engine.data.shards.parquet.is_absent", lambda package: True)
    with pytest.raises(UserError, match=r"train-0\.parquet: package 'pyarrow' .*pip install -e '\.\[shards\]'"):
        dataset(tmp_path)


def test_a_damaged_image_of_a_shard_is_replaced_and_named(folders: Path, tmp_path: Path) -> None:
    members = [
        (name, content[:300] if name == "n01440764_1.jpg" else content) for name, content in samples(folders, "cls")
    ]
    write_tar(tmp_path / "train-0.tar", members)
    data = FaultTolerantDataset(dataset(tmp_path), tmp_path)
    assert data[1]["img_path"] != data.get_data_info(1)["img_path"]
    (line,) = (tmp_path / "replaced_images.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == f"{tmp_path}/train-0.tar/n01440764_1.jpg"


def test_hidden_files_of_a_mac_in_a_tar_are_no_images(folders: Path, tmp_path: Path) -> None:
    files = [path for name in CLASSES for path in sorted((folders / "train" / name).iterdir())]
    members = [(f"./{path.parent.name}/{path.name}", path.read_bytes()) for path in files]
    hidden = [(f"{place}a.jpg", b"x") for place in ("._cat/", "./n01440764/._", "__MACOSX/n01440764/")]
    write_tar(tmp_path / "train-0.tar", [*hidden, *members])
    assert listed(dataset(tmp_path)) == listed(dataset(folders))


def test_classes_take_no_objects_of_a_process(tmp_path: Path) -> None:
    """Forked workers share arrays and the mapped table; of objects of Python each would have its own."""
    classes = tuple(f"n{number:08d}" for number in range(3000))
    members = [(f"{name}/{number}.jpg", b"x") for name in classes for number in range(2)]
    shard = write_tar(tmp_path / "train.tar", members)
    dataset(shard, classes=classes).full_init()  # which makes the table
    tracemalloc.start()
    try:
        data = dataset(shard, classes=classes)
        data.full_init()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert data.get_data_info(4001)["img_path"] == f"{shard}/1.jpg"
    assert taken < 100 * len(classes)


def test_classes_in_another_encoding(folders: Path, tmp_path: Path) -> None:
    """Names that are not UTF-8 are those of folders, as Python reads them."""
    image = next((folders / "train" / CLASSES[0]).iterdir()).read_bytes()
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name in ("a/\udcfc.jpg", "\udcfc/1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(image)
            archive.addfile(info, io.BytesIO(image))
    data = dataset(tmp_path, classes=("a", "\udcfc"))
    assert [one[:2] for one in listed(data)] == [("\udcfc.jpg", 0), ("1.jpg", 1)]


@pytest.mark.parametrize("kind", ["cls", "zip", "parquet"])
def test_the_data_check_names_damaged_images_of_shards(folders: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(folders, tmp_path / "bad")
    cut = tmp_path / "bad/train/n01440764/n01440764_1.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "bad/train/n01443537/n01443537_2.jpg").write_bytes(b"")
    root = to_shards(kind, tmp_path / "bad", tmp_path / "shards")
    (shard,) = root.glob("*.zip") if kind == "zip" else [root]
    settings = dict(type="FolderDataset", data_root=str(shard), split="train", metainfo=dict(classes=CLASSES))
    loader = dict(batch_size=2, dataset=settings)
    found = check_datasets(Config(dict(default_scope="mmengine", train_dataloader=loader)), ("train",), workers=1)
    told = sorted(str(one).rpartition("/")[2] for one in found.errors)
    assert told == [
        "n01440764_1.jpg: is cut off after 300 bytes: the end marker of a JPEG is absent; copy it again, or remove it",
        "n01443537_2.jpg: is empty (0 bytes); copy it again, or remove it",
    ]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSPC, errno.EROFS])
def test_a_table_that_cannot_lie_beside_the_shards_is_in_the_cache(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As on a network disk without locks, or a full one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, refused = to_shards("cls", folders, tmp_path / "shards"), [tmp_path / "shards"]
    original, read = table_module.locked, table_module._read_all
    calls: list[int] = []

    def locked(file: Path) -> Any:
        if file.parent in refused:
            raise OSError(number, os.strerror(number))
        return original(file)

    monkeypatch.setattr(table_module, "locked", locked)
    monkeypatch.setattr(table_module, "_read_all", lambda *args: calls.append(0) or read(*args))
    assert listed(dataset(root)) == listed(dataset(folders))
    (table,) = tmp_path.rglob("*.table")
    assert table.parent == tmp_path / "cache/convnext-dense/shards"
    assert len(dataset(root)) == 12
    assert len(calls) == 1
    table.unlink()
    refused.append(table.parent)
    fix = "make room" if number == errno.ENOSPC else "set XDG_CACHE_HOME to your own folder"
    with pytest.raises(UserError, match=rf"\.table': the table of the shards cannot be written \(.+\): {fix}"):
        dataset(root)


def test_two_programs_that_use_shards_first_read_the_headers_once(folders: Path, tmp_path: Path) -> None:
    """The second waits for the first: it has the table of the first, not another that has replaced it."""
    root = to_shards("json", folders, tmp_path / "shards")
    context = multiprocessing.get_context("fork")
    begin, told = context.Barrier(2), context.Queue()
    programs = [context.Process(target=open_first, args=(root, begin, told)) for _ in range(2)]
    for program in programs:
        program.start()
    found = [told.get(timeout=PATIENCE) for _ in programs]
    for program in programs:
        program.join()
    assert sorted(reads for reads, _ in found) == [0, 1]
    assert found[0][1] == found[1][1] == listed(dataset(folders))


def open_first(root: Path, begin: Any, told: Any) -> None:
    read, reads = table_module._read_all, []
    table_module._read_all = lambda *args: reads.append(0) or read(*args)
    begin.wait()
    samples_of = listed(dataset(root))
    told.put((len(reads), samples_of))


def test_a_shard_without_images_is_none_of_the_others(folders: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [("classes.txt", b"a list")])
    write_tar(tmp_path / "train-1.tar", samples(folders, "cls"))
    longest = "n01440764_" + "x" * 241 + ".jpg"
    write_tar(tmp_path / "train-2.tar", [(longest, b"x"), (f"{longest[:-4]}.cls", b"0")])
    assert len(longest) == 255
    data = dataset(tmp_path)
    assert len(data) == 13
    assert data.get_data_info(4)["img_path"] == f"{tmp_path}/train-2.tar/{longest}"


def test_no_classes_are_no_samples() -> None:
    table = SimpleNamespace(shards=[], shard_numbers=lambda rows: np.empty(0, np.uint16)[rows])
    none = StoredSamples(table, [], [])  # type: ignore[arg-type]
    assert (len(none), len(none.labels()), len(none.layout().numbers)) == (0, 0, 0)
