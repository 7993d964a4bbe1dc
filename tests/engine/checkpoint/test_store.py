"""Checkpoints: whole or not at all, verified, the last good one found; a full disk and a killed writer harm nothing."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import HistoryBuffer

from backbones.errors import UserError
from backbones.files import atomic_write, remove_partial_files
from backbones.weights import read_checkpoint
from engine.checkpoint import store as module
from engine.checkpoint.store import CheckpointWriter, begin_run, cpu_copy, last_good, write_checkpoint
from tests.programs import PATIENCE


def state(step: int) -> dict[str, Any]:
    return {"meta": {"iter": step}, "state_dict": {"weight": torch.full((300, 300), float(step))}}


def flip(file: Path) -> None:
    """Change one bit in the middle of the tensor."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with three checkpoints of two kinds, whose names say nothing about their order."""
    for name, step in (("epoch_2", 20), ("iter_25", 25), ("epoch_1", 10)):
        write_checkpoint(state(step), tmp_path / f"{name}.pth")
    write_checkpoint(state(99), tmp_path / "best_top1.pth")
    return tmp_path


def test_the_one_with_the_most_steps_is_found(folder: Path) -> None:
    assert last_good(folder) == folder / "iter_25.pth"


def damage_bit(file: Path) -> None:
    flip(file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100_000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other(file: Path) -> None:
    torch.save({"state_dict": {}}, file)


@pytest.mark.parametrize("damage", [damage_bit, cut, empty, other], ids=lambda one: one.__name__)
def test_a_damaged_one_is_passed_over_and_named(folder: Path, damage: Any) -> None:
    damage(folder / "iter_25.pth")
    said: list[str] = []
    assert last_good(folder, said.append) == folder / "epoch_2.pth"
    assert len(said) == 1
    assert str(folder / "iter_25.pth") in said[0]
    assert said[0].endswith(": skipped")
    assert "\n" not in said[0]


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert last_good(tmp_path) is None
    (tmp_path / "iter_5.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"^--resume: no checkpoint in .* is valid; checkpoint .*iter_5.pth"):
        last_good(tmp_path)


def test_what_an_earlier_training_left_is_nothing_to_go_on_from(folder: Path) -> None:
    """Even if it came further."""
    begin_run(folder, "second")
    assert last_good(folder) == folder / "iter_25.pth"  # nobody knows whose these are
    for name, step, run in (("iter_25", 25, "first"), ("epoch_2", 20, "first"), ("epoch_1", 10, "second")):
        content = state(step)
        content["meta"]["run"] = run
        write_checkpoint(content, folder / f"{name}.pth")
    said: list[str] = []
    assert last_good(folder, said.append) == folder / "epoch_1.pth"
    assert len(said) == 1
    assert said[0].startswith("epoch_2.pth, iter_25.pth in ")
    begin_run(folder, "third")
    assert last_good(folder) is None


def test_a_changed_bit_is_noticed_when_a_file_is_read(folder: Path) -> None:
    """torch itself would load it without a word."""
    file = folder / "epoch_1.pth"
    flip(file)
    assert not torch.equal(torch.load(file)["state_dict"]["weight"], state(10)["state_dict"]["weight"])
    with pytest.raises(UserError, match=r"is damaged: '.*data/0' in it is not what was written"):
        read_checkpoint(str(file))


def test_a_file_without_checksums_is_no_damaged_one(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(1), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert zipfile.ZipFile(tmp_path / "a.pth").testzip() is not None
    assert read_checkpoint(str(tmp_path / "a.pth"))["meta"] == {"iter": 1}


def test_a_disk_that_fills_up(folder: Path) -> None:
    """The system itself refuses to write on, as it does on a full disk; 100,000 bytes are not enough for a file."""
    before = (folder / "epoch_2.pth").read_bytes()
    limit, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError) as caught:
            write_checkpoint(state(30), folder / "epoch_2.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    line = str(caught.value)
    assert "\n" not in line
    for needle in ("epoch_2.pth", "cannot be written", "MiB free", "--resume", "earlier checkpoints are unchanged"):
        assert needle in line
    assert (folder / "epoch_2.pth").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["best_top1.pth", "epoch_1.pth", "epoch_2.pth", "iter_25.pth"]


def test_a_file_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watched_sync(number: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        sync(number)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    with atomic_write(tmp_path / "a.txt") as place:
        place.write_text("whole")
    assert events == [f"sync {place.name}", "rename", f"sync {tmp_path.name}"]


def test_a_path_without_a_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError), atomic_write(Path("")):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_sync_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, cannot = errno.EINVAL, tmp_path

    def sync(opened: int) -> None:
        if os.path.sameopenfile(opened, os.open(cannot, os.O_RDONLY)):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", sync)
    write_checkpoint(state(1), tmp_path / "iter_1.pth")
    assert last_good(tmp_path) == tmp_path / "iter_1.pth"
    number = errno.EIO  # a folder that is not safe is another matter
    with pytest.raises(UserError, match="cannot be written: Input/output error"):
        write_checkpoint(state(2), tmp_path / "iter_2.pth")


def test_what_a_killed_process_left_goes_away(tmp_path: Path) -> None:
    for name in (".epoch_3.pth.123.part", "epoch_3.pth", "notes.part"):
        (tmp_path / name).write_text("x")
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["epoch_3.pth", "notes.part"]


def test_training_goes_on_while_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has the state of the call, although writing begins later."""
    may_write, write = threading.Event(), module.write_checkpoint
    monkeypatch.setattr(module, "write_checkpoint", lambda *args: may_write.wait(PATIENCE) and write(*args))
    history = HistoryBuffer([1.0], [1])
    content, written, writer = state(1) | {"history": history}, [], CheckpointWriter()
    writer.write(content, tmp_path / "iter_1.pth", lambda: written.append(1))
    content["state_dict"]["weight"].zero_()
    history.update(2.0)
    assert written == []
    may_write.set()
    writer.wait()
    assert written == [1]
    saved = read_checkpoint(str(tmp_path / "iter_1.pth"))
    assert torch.equal(saved["state_dict"]["weight"], state(1)["state_dict"]["weight"])
    assert saved["history"].data[0].tolist() == [1.0]


def test_an_error_in_the_background_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    writer = CheckpointWriter()
    writer.write(state(1), tmp_path / "iter_1.pth", lambda: pytest.fail("nothing was written"))
    with pytest.raises(UserError, match=r"No space left on device .*make room"):
        writer.wait()
    monkeypatch.undo()
    writer.write(state(2), tmp_path / "iter_2.pth", lambda: None)
    writer.wait()
    assert os.listdir(tmp_path) == ["iter_2.pth"]


def test_an_error_after_the_file_is_told_in_a_line(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter()
    writer.write(state(1), tmp_path / "iter_1.pth", full)
    with pytest.raises(UserError, match=r"No space left on device .*make room"):
        writer.wait()


def test_a_copy_is_of_the_same_kind() -> None:
    """Counters are the milestones of a schedule."""
    lists: Any = defaultdict(list, a=[torch.ones(2)])
    for tree in (Counter([8, 11, 11]), OrderedDict(b=1, a=2)):
        assert cpu_copy(tree) == tree
        assert type(cpu_copy(tree)) is type(tree)
    copy = cpu_copy({"deep": lists})["deep"]
    lists["a"][0].zero_()
    assert torch.equal(copy["a"][0], torch.ones(2))
    assert copy["new"] == []


def test_what_shares_memory_is_copied_once() -> None:
    weight = torch.ones(3)
    tree = {"state_dict": {"a": weight, "b": weight[:]}, "rest": [(weight[1:], 1)]}
    copy = cpu_copy(tree)
    assert copy["state_dict"]["a"] is copy["state_dict"]["b"]
    assert copy["state_dict"]["a"].data_ptr() != weight.data_ptr()
    assert copy["rest"][0][1] == 1
