"""Checkpoint files that are damaged, foreign or hostile: one line that names the file, nothing executed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from backbones import build_backbone
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import load_model_weights
from engine.checkpoint.store import last_good, write_checkpoint
from engine.config.load import load_config
from engine.config.world import Launch
from engine.run import test as run_test
from engine.run import train
from tests.bad_inputs.builders import CONFIG, contents, refused, tried


def sound() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"state_dict": nn.Linear(40, 30).state_dict(), "meta": {"iter": 7, "note": "a" * 50}}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.pth"
    write_checkpoint(sound(), path)
    return path.read_bytes()


PLACES = 16


@pytest.mark.parametrize("part", range(PLACES))
def test_a_file_that_ends_early(content: bytes, part: int, tmp_path: Path) -> None:
    path = tmp_path / "iter_9.pth"
    path.write_bytes(content[: len(content) * part // PLACES])
    with refused(path):
        read_checkpoint(str(path))
    with refused(path):
        last_good(tmp_path)


@pytest.mark.parametrize("part", range(PLACES))
def test_a_bit_that_changed(content: bytes, part: int, tmp_path: Path) -> None:
    """Told, or without effect: the archive has places that nobody reads."""
    path = tmp_path / "a.pth"
    for place in range(part, len(content), 97 * PLACES):
        changed = bytearray(content)
        changed[place] ^= 1 << part % 8
        path.write_bytes(changed)
        read, line = tried(read_checkpoint, str(path))
        assert str(path) in line if line else same(read, sound())


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return memory.getvalue()


def _saved(value: Any, **options: Any) -> bytes:
    memory = io.BytesIO()
    torch.save(value, memory, **options)
    return memory.getvalue()


def _tensors_file(header: Any, body: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


F32 = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
# What is in the file, by the place of a marker that nothing may make.
HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda marker: b"",
    "zeros": lambda marker: bytes(4096),
    "text": lambda marker: b"These are notes.\n",
    "a page": lambda marker: b"<!DOCTYPE html><html>404 Not Found</html>",
    "a pointer of git-lfs": lambda marker: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a pickle with a payload": lambda marker: pickle.dumps({"state_dict": Payload(marker)}),
    "a payload": lambda marker: _saved({"state_dict": {}, "meta": Payload(marker)}),
    "a payload in the old format": lambda marker: _saved([Payload(marker)], _use_new_zipfile_serialization=False),
    "a payload in a foreign archive": lambda marker: _archive({"archive/data.pkl": pickle.dumps(Payload(marker))}),
    "an archive of notes": lambda marker: _archive({"notes.txt": b"notes"}),
    "an archive that leads out": lambda marker: _archive({f"../../{marker.name}": b"x", "/tmp/x": b"x"}),
    "an archive that blows up": lambda marker: _archive({"a/data.pkl": bytes(10**7)}, zipfile.ZIP_DEFLATED),
    "an empty archive": lambda marker: _archive({}),
    "a list": lambda marker: _saved([torch.ones(3)]),
    "a number": lambda marker: _saved(3),
    "a model": lambda marker: _saved(nn.Linear(2, 2)),
    "a function": lambda marker: _saved({"state_dict": print}),
    "safetensors of a wrong length": lambda marker: _tensors_file({"a": F32}, length=10**15),
    "safetensors of a negative length": lambda marker: b"\xff" * 8 + b"{" + bytes(99),
    "safetensors without JSON": lambda marker: _tensors_file(b"{" * 40),
    "safetensors of no kind": lambda marker: _tensors_file({"a": {**F32, "dtype": "F33"}}),
    "safetensors beyond the end": lambda marker: _tensors_file({"a": {**F32, "data_offsets": [0, 6400]}}),
    "safetensors of another size": lambda marker: _tensors_file({"a": {**F32, "shape": [17]}}),
    "safetensors of negative size": lambda marker: _tensors_file({"a": {**F32, "shape": [-16]}}),
    "safetensors that overlap": lambda marker: _tensors_file({"a": F32, "b": F32}),
    "half of safetensors": lambda marker: safetensors.torch.save({"a": torch.ones(99)})[:-40],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_checkpoint(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    path = folder / "a.pth"
    path.write_bytes(HOSTILE[case](tmp_path / "marker"))
    before = contents(tmp_path)
    with refused(path):
        read_checkpoint(str(path))
    with refused(path):
        build_backbone("convnext_atto", weights=str(path))
    assert contents(tmp_path) == before


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("absent.pth", "link", "circle", ".", "a\nb.pth", "x" * 300, "a\0b"):
        with refused("checkpoint"):
            read_checkpoint(str(tmp_path / name))
    (tmp_path / "a\nb.pth").write_bytes(b"notes")
    with refused(r"a\nb.pth"):
        read_checkpoint(str(tmp_path / "a\nb.pth"))


def _changed(**changes: Tensor | None) -> dict[str, Any]:
    state = {name: value.clone() for name, value in nn.Linear(3, 2).state_dict().items()} | changes
    return {"state_dict": {name: value for name, value in state.items() if value is not None}}


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "a NaN": (_changed(bias=torch.tensor([0.0, float("nan")])), "bias"),
    "an infinity": (_changed(bias=torch.tensor([0.0, -float("inf")])), "bias"),
    "bytes": (_changed(bias=torch.ones(2, dtype=torch.uint8)), "bias"),
    "flags": (_changed(bias=torch.ones(2, dtype=torch.bool)), "bias"),
    "complex numbers": (_changed(bias=torch.ones(2, dtype=torch.complex64)), "bias"),
    "a sparse tensor": (_changed(weight=torch.ones(2, 3).to_sparse()), "weight"),
    "another shape": (_changed(bias=torch.ones(3)), "bias is (3,)"),
    "a number without shape": (_changed(bias=torch.tensor(1.0)), "bias is ()"),
    "no bias": (_changed(bias=None), "it lacks 1/2 tensors (bias)"),
    "one more": (_changed(scale=torch.ones(2)), "have no place here (scale)"),
    "another name": (_changed(bias=None, Bias=torch.ones(2)), "(bias)"),
    "an unprintable name": (_changed(**{"a\x1b[2Jb": torch.ones(2)}), "unprintable"),
    "no tensors": ({"state_dict": {}}, "it lacks 2/2"),
    "no weights": ({"meta": {"iter": 3}}, "it lacks 2/2"),
    "a number for weights": ({"state_dict": 3}, "it lacks 2/2"),
    "a tensor for weights": ({"state_dict": torch.ones(3)}, "state_dict"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit(case: str) -> None:
    checkpoint, word = MISFITS[case]
    model = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with refused("checkpoint 'a.pth'", word):
        load_model_weights(model, checkpoint, "a.pth")
    assert same(before, model.state_dict())


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a training of two epochs, and the checkpoint of its first one."""
    folder = tmp_path_factory.mktemp("run")
    options = {"data_root": str(digits / "imagenet"), "work_dir": str(folder), "batch.size": 20}
    options |= {"train_cfg.max_epochs": 1, "custom_hooks": [], "val_dataloader.num_workers": 0}
    options |= {"train_dataloader.num_workers": 0, "model.backbone.depths": (1, 1, 1, 1)}
    options["param_scheduler"] = [{"type": "ConstantLR", "factor": 0.5, "end": 5}]
    train(load_config(CONFIG["classifier"], options, Launch()), Launch(), resume=False)
    return options | {"train_cfg.max_epochs": 2}, read_checkpoint(str(folder / "epoch_1.pth"))


def _without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: [state.pop(key) for key in keys]


def _fewer_groups(state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"] = state["optimizer"]["param_groups"][:1]


RESUMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "of another model": (lambda state: state["state_dict"].pop("head.bias"), "it lacks 1/"),
    "with a NaN": (lambda state: state["state_dict"]["head.bias"].fill_(float("nan")), "head.bias"),
    "of weights alone": (_without("optimizer", "resume", "param_schedulers", "message_hub"), "--resume"),
    "without the optimizer": (_without("optimizer"), "--resume"),
    "without the schedules": (_without("param_schedulers"), "--resume"),
    "without its step": (lambda state: state["meta"].pop("iter"), "has no step in its meta"),
    "without meta": (_without("meta"), "has no step in its meta"),
    "of an optimizer of fewer groups": (_fewer_groups, "--resume"),
    "with a text for the optimizer": (lambda state: state.update(optimizer="adam"), "--resume"),
    "with a number for its state": (lambda state: state.update(resume=3), "--resume"),
    "with an empty state": (lambda state: state.update(resume={}), "--resume"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_cannot_go_on(run: Any, case: str, tmp_path: Path) -> None:
    options, state = run
    state = torch.load(io.BytesIO(_saved(state)), weights_only=False)
    change, word = RESUMED[case]
    change(state)
    write_checkpoint(state, tmp_path / "epoch_1.pth")
    before = (tmp_path / "epoch_1.pth").read_bytes()
    resolved = load_config(CONFIG["classifier"], {**options, "work_dir": str(tmp_path)}, Launch())
    with refused("epoch_1.pth", word):
        train(resolved, Launch(), resume=True, data_check=False)
    assert (tmp_path / "epoch_1.pth").read_bytes() == before


@pytest.mark.parametrize("name", ["file", "file/x", "link", "x" * 300], ids=["file", "below", "link", "long"])
def test_a_folder_that_cannot_be_written(run: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "where")
    options = {**run[0], "work_dir": str(tmp_path / name)}
    before = contents(tmp_path)
    with refused("work_dir", "cannot be written"):
        train(load_config(CONFIG["classifier"], options, Launch()), Launch(), False)
    with refused("work_dir", "cannot be written"):
        run_test(load_config(CONFIG["classifier"], options, Launch(), training=False), Launch(), str(tmp_path / "file"))
    assert contents(tmp_path) == before
