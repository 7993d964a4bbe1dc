"""Pipes, devices, sockets and links in a circle where a file is expected: one line, never a wait."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.files import describe_special, open_file
from backbones.weights import read_checkpoint
from classification.class_lists import _read_rows
from detection.annotations import read_annotations
from engine.checkpoint.store import last_good
from engine.config.class_weights import _read_weights
from engine.config.load import load_config
from engine.data.image_files import inspect_image, read_image_bytes
from engine.data.preflight import check_data_paths
from engine.report.environment import read_text
from engine.run import _check_weight_file
from tests.bad_inputs.builders import CONFIG, refused


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
    signal.alarm(100)
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
