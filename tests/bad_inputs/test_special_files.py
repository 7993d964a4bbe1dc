"""Pipes, devices, sockets and links in a circle where a file is expected: one line, never a wait."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.own_data.label_images import _lists
from analysis.sweep.results import DATABASE, read_study
from analysis.sweep.storage import storage_url
from analysis.sweep.study_file import read_study_file
from backbones.files import describe_special, locked, open_file, try_lock
from backbones.weights import read_checkpoint
from classification.class_lists import _read_rows
from classification.make_shards import SHARD_PLAN_FILE
from demo.dataset import STAMP, read_stamp
from detection.annotations import read_annotations
from engine.checkpoint.store import last_good
from engine.config.class_weights import _read_weights
from engine.config.load import load_config
from engine.data.image_files import inspect_image, read_image_bytes
from engine.data.mapped import mapped_arrays
from engine.data.preflight import check_data_paths
from engine.data.shards.headers import read_headers
from engine.data.shards.table import ShardTable, _read
from engine.data.stored_image import ShardState
from engine.launch.child import plain_lines
from engine.launch.keeper import ENDED, KEEPER, exit_code_of, tell_to_stop
from engine.report.environment import read_text
from engine.run import _check_weight_file
from tests.bad_inputs.builders import CONFIG, refused
from tests.programs import PATIENCE


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is limited to a hundred characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "back to itself": make_circle,
    "device": make_device,
    "socket": make_socket,
}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Whatever waits for a pipe ends."""

    def stop(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    KINDS[kind](path)
    assert kind in str(describe_special(path))
    with pytest.raises(OSError, match=f"it is a .*{kind}"):
        open_file(path)
    with refused(path, kind):
        read_checkpoint(str(path))
    with refused(path, kind):
        _check_weight_file("load_from", str(path))
    with refused("--resume: no checkpoint", path, kind):
        last_good(tmp_path)
    with refused(path, kind):
        load_config(path)
    with refused(path, kind):
        load_config(CONFIG["classifier"], {"classes": str(path)})
    with refused(path, kind):
        read_image_bytes(str(path))
    assert kind in str(inspect_image(str(path)).problem)
    for read in (lambda: read_annotations(path), lambda: _read_rows(path), lambda: _read_weights(str(path), "x")):
        with pytest.raises((OSError, ValueError), match=kind):
            read()
    assert read_text(path) == ""
    cfg = load_config(CONFIG["detector"], {"train_dataloader.dataset.ann_file": str(path)}).cfg
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    with refused("train data", path, kind):
        check_data_paths(cfg, ("train",))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_made_anew_where_no_file_is(kind: str, tmp_path: Path) -> None:
    """Caches, notes of sweeps and stamps, which a start asks for before it makes them."""
    place = tmp_path / "kept"
    KINDS[kind](place)
    arrays = mapped_arrays(place, [1], lambda: ("header", [np.arange(3)]))
    assert (arrays[0], arrays[1][0].tolist(), place.is_file()) == ("header", [0, 1, 2], not place.is_symlink())
    for name in (ENDED, KEEPER, STAMP, SHARD_PLAN_FILE, "headers.npz", "table", "list.txt"):
        KINDS[kind](tmp_path / name)
    assert exit_code_of(tmp_path) is None
    tell_to_stop(tmp_path)
    assert read_stamp(tmp_path) is None
    assert read_headers(tmp_path / "headers.npz") is None
    with pytest.raises(OSError, match=kind):
        ShardTable(tmp_path / "table")
    with refused("list.txt", kind):
        _lists(tmp_path, [str(tmp_path / "list.txt")])
    assert plain_lines(tmp_path / "list.txt") == []


@pytest.mark.parametrize("shards", ["tar", "zip", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_that_are_no_files(kind: str, shards: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "train")
    with refused("train", kind):
        _read((shards, ShardState(str(tmp_path / "train"), 0, ""), "train"))


def test_a_lock_that_is_a_pipe_is_one_all_the_same(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    lock.close()
    with locked(tmp_path / "lock"):
        assert try_lock(tmp_path / "lock") is None


def test_studies_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.py")
    (tmp_path / "study.py").write_text('_base_ = ["base.py"]\n')
    with refused("base.py", "pipe"):
        read_study_file(tmp_path / "study.py")
    database = tmp_path / DATABASE
    for content in (bytes(5000), b"[" * 100_000, b"{}"):
        database.write_bytes(content)
        with refused("study.db", "file is not a database"):
            read_study(tmp_path)
    database.unlink()
    database.symlink_to(DATABASE)
    assert storage_url(SimpleNamespace(storage=None), tmp_path).endswith(DATABASE)  # type: ignore[arg-type]


def test_what_is_nested_too_deeply_or_claims_too_much_is_none(tmp_path: Path) -> None:
    nested, array = tmp_path / "nested.json", tmp_path / "w.npy"
    nested.write_bytes(b"[" * 100_000)
    np.save(array, np.zeros(3))
    content = array.read_bytes()
    claiming = content.replace(b"'shape': (3,), }", b"'shape': (1099511627776,), }")[: len(content)]
    assert exit_code_of(tmp_path) is None
    with refused("nested.json"):
        _read_weights(str(nested), "x")
    for damaged in (claiming, b"", content[:20]):
        array.write_bytes(damaged)
        with refused("w.npy"):
            _read_weights(str(array), "x")
    with pytest.raises(ValueError, match="no header"):
        ShardTable(nested)
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as file:
        file.writestr("names.npy", claiming)
    assert read_headers(tmp_path / "h.npz") is None
    for name in (ENDED, STAMP):
        shutil.copy(nested, tmp_path / name)
    assert exit_code_of(tmp_path) is None
    assert read_stamp(tmp_path) is None


def test_a_base_of_a_config_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.py")
    (tmp_path / "config.py").write_text('_base_ = ["base.py"]\n')
    with refused("base.py", "pipe"):
        load_config(tmp_path / "config.py")


def test_files_folders_and_nothing_are_nothing_special(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("absent")
    assert not any(describe_special(tmp_path / name) for name in ("file", "link", "broken", ".", "a\0b"))
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"text"
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)


def test_a_damaged_name_of_a_run_beside_checkpoints(tmp_path: Path) -> None:
    torch.save({"meta": {"iter": 3}}, tmp_path / "iter_3.pth")
    (tmp_path / "run_id").write_bytes(b"\xff\xfe")
    assert last_good(tmp_path) == tmp_path / "iter_3.pth"
