"""Files that hold no weights and no image, told by what they are; checkpoints as other programs write them."""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones import UserError, build_backbone
from backbones.file_kinds import describe_content
from backbones.weights import network_tensors, read_checkpoint
from engine.checkpoint.model_weights import load_model_weights

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
FOREIGN = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>Virus scan warning</html>", r"web page \(HTML\)"),
    "refusal": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
    "onnx": (b"\x08\x08\x12\x07pytorch" + bytes(600), "ONNX model"),
    "onnx of tf2onnx": (b"\x08\x07\x12\x06tf2onnx", "ONNX model"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5 file"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(600), "TensorFlow Lite"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(600), "compressed file: unpack it"),
    "npy": (b"\x93NUMPY\x01\0", r"NumPy array"),
    "tar": (bytes(257) + b"ustar\0" + bytes(600), "tar archive"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(600), "HEIC or AVIF"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(600), r"video \(MP4"),
    "dicom": (bytes(128) + b"DICM" + bytes(600), "DICOM"),
}


def archive(*names: str) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return memory.getvalue()


ARCHIVES = {
    "npz": (archive("a.npy", "b.npy"), r"archive of NumPy arrays \(\.npz\)"),
    "keras 3": (archive("config.json", "model.weights.h5"), "Keras model"),
    "zipped": (archive("notes.txt", "model.pth"), r"archive of files \(model\.pth\): unpack it"),
}


@pytest.mark.parametrize("kind", [*FOREIGN, *ARCHIVES])
def test_a_file_of_another_kind_is_named(kind: str, tmp_path: Path) -> None:
    content, message = {**FOREIGN, **ARCHIVES}[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    for trust in (False, True):
        with pytest.raises(UserError, match=message) as caught:
            read_checkpoint(str(path), trust)
        assert str(path) in str(caught.value)


def test_weights_and_notes_are_of_no_foreign_kind() -> None:
    memory = io.BytesIO()
    torch.save({"a": torch.ones(3)}, memory)
    old = io.BytesIO()
    torch.save({"a": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    for content in (memory.getvalue(), old.getvalue(), b"These are notes.\n", b"", bytes(600), b"\x80\x02}q\0."):
        assert describe_content(content[:512]) is None


class Net(nn.Sequential):
    """A class that other programs cannot import."""


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def assert_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_model_is_read_with_trust(wrapped: bool, tmp_path: Path) -> None:
    model = Net(nn.Linear(3, 2), nn.BatchNorm1d(2))
    path = saved({"epoch": 3, "model": model} if wrapped else model, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"a whole pickled model \(.*Net\), not its weights: save model\.state_dict"):
        read_checkpoint(path)
    assert_tensors(network_tensors(read_checkpoint(path, trust=True), path), model.state_dict())


def test_a_whole_model_whose_code_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Net(nn.Linear(3, 2)), tmp_path / "whole.pt")
    monkeypatch.delattr(sys.modules[__name__], "Net")
    with pytest.raises(UserError, match=r"needs code: .*Net.*; read it where that code is, and save the state_dict"):
        read_checkpoint(path, trust=True)


def test_a_torchscript_program_is_read_with_trust(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(3, 2)), str(tmp_path / "scripted.pt")
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3)), path)
    with pytest.raises(UserError, match="a TorchScript program; if you know who made it, --trust-checkpoint"):
        read_checkpoint(path)
    assert_tensors(read_checkpoint(path, trust=True), model.state_dict())


def test_wrappers_anywhere_in_the_names(tmp_path: Path) -> None:
    network = build_backbone("convnext_atto", **SMALL)
    own = network.state_dict()
    for prefix in ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "_fsdp_wrapped_module."):
        path = saved({"state_dict": {prefix + name: value for name, value in own.items()}}, tmp_path / "a.pth")
        assert network.load_weights(read_checkpoint(path), path).loaded == len(own)
    inner = {name.replace("stages.1.", "stages.1._checkpoint_wrapped_module."): value for name, value in own.items()}
    assert network.load_weights(inner, "inner.pth").loaded == len(own)
    with pytest.raises(UserError, match="with and without a wrapper"):
        network_tensors({"a.weight": torch.ones(2), "_orig_mod.a.weight": torch.ones(2)}, "both.pth")


def test_student_and_teacher() -> None:
    network = build_backbone("convnext_atto", **SMALL)
    own = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    head = {"dino_head.mlp.0.weight": torch.zeros(3, 3)}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "named": {"exp_avg": torch.zeros(3)}}
    alone = {"teacher": own | head, "epoch": 3, "optimizer": optimizer, "scale": torch.tensor(2.0)}
    assert network.load_weights(alone, "dino.pth").loaded == len(own)
    with pytest.raises(UserError, match=r"under several keys, 'teacher', 'student': save one .*\(FILE\)\['teacher'\]"):
        network.load_weights({**alone, "student": own}, "dino.pth")
    flat = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in own.items()}
    with pytest.raises(UserError, match=r"several ConvNeXts: .*'student\.backbone' and .*'teacher\.backbone'; save"):
        network.load_weights(flat, "dino.pth")


def test_arguments_with_paths_are_data(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=0.1, data=Path("/data"))
    path = saved({"state_dict": {"a": torch.ones(3)}, "args": args, "metric": np.float64(71.2)}, tmp_path / "a.pth")
    assert read_checkpoint(path)["args"].data == Path("/data")


def test_a_whole_model_below_any_prefix() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for prefix in ("", "module.", "model.", "net.module."):
        content = {"state_dict": {prefix + name: value for name, value in model.state_dict().items()}}
        assert load_model_weights(model, content, "a.pth").loaded == len(model.state_dict())
