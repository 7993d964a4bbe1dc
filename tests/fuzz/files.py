"""Damaged and hostile files at every place where one is read: each reading ends well, or in one line.

Each trial is a forked process that reads one damaged copy by what the tools call.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import detection  # noqa: F401  (imported once, not in each forked process)
import segmentation  # noqa: F401
from analysis.replay import replay_step
from backbones.errors import UserError
from backbones.kernels.autotune import Autotuner
from backbones.registry import build_backbone
from backbones.weights import load_backbone_weights, read_checkpoint
from classification.class_lists import _read_rows
from engine.checkpoint.store import last_checkpoint, last_good
from engine.config.load import load_config
from engine.data.check import check_datasets
from engine.data.worker_watch import _progress
from engine.launch.heartbeat import read_error_report, read_frames, read_position
from engine.launch.leftovers import process_state
from engine.report.training import write_training_report
from tests.bad_inputs.builders import CONFIG, FORMAT

MAX_SECONDS = 60  # of computing
MAX_WAIT_SECONDS = 60  # without computing: a busy machine may take longer for less
MAX_EXTRA_BYTES = 2**30  # beside four times the size of the file
EXECUTED = "executed"


def limit(size: int) -> None:
    """In a forked process: what would fill memory or disk, or compute for ever, is ended by the kernel.

    Address space is more than memory: how much of it is used is judged at the end.

    Args:
        size: Bytes of the damaged file.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + 4 * size + 2 * MAX_EXTRA_BYTES
    for what, most in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_CPU, MAX_SECONDS),
        (resource.RLIMIT_FSIZE, MAX_EXTRA_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (int(most), int(most)))


class Command:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


class Damager:
    """Damages files and has them read.

    Args:
        folder: Folder for the files.
        digits: Folder of the digits.
        seed: Seed of places and damages.

    Attributes:
        counts: Trials by place, and their ends.
        failures: A line for each trial that executed something, crashed, hung, took too much memory or showed a stack.
    """

    def __init__(self, folder: Path, digits: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._folder, self._digits, self._random = folder, digits, random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        self._marker = folder / EXECUTED
        self._places = {**self._weights(), **self._data(), **self._lists(), **self._run_files()}

    def run(self, count: int, minutes: float = math.inf) -> None:
        """Damage so many files, each place in turn, or as many as the time allows."""
        names, until = sorted(self._places), time.monotonic() + 60 * minutes
        for number in range(count):
            if time.monotonic() > until:
                return
            name = names[number % len(names)]
            source, read = self._places[name]
            place = self._folder / "trial"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            target = place / source.name
            damage = self._random.choice(DAMAGES)
            damage(self, source.read_bytes(), target)
            self.counts[f"files: {name}"] += 1
            size = target.stat().st_size if target.is_file() else 0
            self._try(f"{name}, {damage.__name__}, trial {number}", lambda: read(target), size)  # noqa: B023

    def _try(self, name: str, read: Callable[[], Any], size: int) -> None:
        """Read in a forked process and judge how it ends."""
        log = self._folder / "log"
        sys.stdout.flush()
        child = os.fork()
        if not child:
            limit(size)
            self._read(read, log)
        began = since = time.monotonic()
        progress: tuple[int, int] | None = None
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            now = time.monotonic()
            with suppress(OSError, StopIteration):  # it has just ended
                if process_state(child) == "R" or progress != (progress := _progress(child)):
                    since = now
            if now - since > MAX_WAIT_SECONDS or now - began > 10 * MAX_WAIT_SECONDS:
                os.kill(child, signal.SIGKILL)
                os.wait4(child, 0)
                return self._fail(name, f"hangs, {now - began:.0f} s after it began")
            time.sleep(0.005)
        code, before = os.waitstatus_to_exitcode(ended[1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._marker.exists():
            self._marker.unlink()
            self._fail(name, "something was executed")
        if (extra := 1024 * (ended[2].ru_maxrss - before)) > 4 * size + MAX_EXTRA_BYTES:
            self._fail(name, f"takes {extra:,} bytes for {size:,}")
        if code:
            self._fail(name, f"exit code {code}: {log.read_text(errors='replace')[-1500:]}")
        self.counts[f"ends: {log.read_text(errors='replace').split(':')[0] if not code else 'failure'}"] += 1

    def _read(self, read: Callable[[], Any], log: Path) -> None:
        """In the forked process: what it says goes to the log."""
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        faulthandler.disable()  # pytest has it write to the stderr of before
        code = 0
        with open(log, "w", encoding="utf-8", errors="replace") as file:
            try:
                read()
                file.write("read")
            except UserError as error:
                file.write(f"refused: {error}")
                code = 3 if len(str(error).splitlines()) != 1 else 0
            except BaseException:
                traceback.print_exc(file=file)
                code = 1
        os._exit(code)

    def _fail(self, name: str, what: str) -> None:
        self.failures.append(f"{name}: {what}")
        self.counts["failures"] += 1
        print(self.failures[-1], flush=True)

    def _weights(self) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
        """Checkpoints in three formats, read as weights and to resume from."""
        network = build_backbone("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))
        content = {"state_dict": network.state_dict(), "meta": {"iter": 3, "epoch": 1}}
        files = {name: self._folder / name for name in ("iter_3.pth", "old.pth", "w.safetensors")}
        torch.save(content, files["iter_3.pth"])
        torch.save(content, files["old.pth"], _use_new_zipfile_serialization=False)
        safetensors.torch.save_file(network.state_dict(), files["w.safetensors"])

        def load(path: Path) -> None:
            load_backbone_weights(network, read_checkpoint(str(path)), str(path))

        def resume(path: Path) -> None:
            if (found := last_good(path.parent)) is not None:
                read_checkpoint(str(found))

        places = {f"weights {name}": (file, load) for name, file in files.items()}
        return {**places, "checkpoint to resume from": (files["iter_3.pth"], resume)}

    def _data(self) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
        """Images, labels and annotations, put into a data set of their own and checked as before a run."""
        places: dict[str, tuple[Path, Callable[[Path], Any]]] = {}
        for name, task, pattern in (
            ("image of a class", "classifier", "train/*/*.png"),
            ("image of a scene", "detector", "train2017/*.jpg"),
            ("annotation file", "detector", "annotations/instances_train2017.json"),
            ("label image", "segmentor", "annotations/training/*.png"),
        ):
            root = self._folder / f"data {name}"
            shutil.copytree(self._digits / FORMAT[task], root)
            file = min(root.glob(pattern))
            sound = self._folder / f"{task} {file.name}"
            shutil.copy(file, sound)
            config = load_config(CONFIG[task], {"data_root": str(root), "batch.size": 2}).cfg

            def check(path: Path, file: Path = file, config: Any = config) -> None:
                file.unlink()
                path.rename(file)
                for finding in check_datasets(config, ("train",), full=True, workers=1).findings:
                    assert len(str(finding.problem).splitlines()) <= 1, finding

            places[name] = (sound, self._restoring(check, file, sound))
        return places

    @staticmethod
    def _restoring(check: Callable[[Path], Any], file: Path, sound: Path) -> Callable[[Path], Any]:
        """The check on a data set that is sound but for this trial's file."""

        def run(path: Path) -> None:
            if file.is_symlink() or not file.is_file() or file.read_bytes() != sound.read_bytes():
                if file.is_dir() and not file.is_symlink():
                    file.rmdir()
                else:
                    file.unlink(missing_ok=True)  # rmtree would open a pipe, and wait
                shutil.copy(sound, file)
            check(path)

        return run

    def _lists(self) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
        """Configs, class names, rows of a head."""
        config, classes, rows = (self._folder / name for name in ("config.py", "classes.txt", "rows.json"))
        config.write_text(f"_base_ = {str(CONFIG['classifier'])!r}\nbatch = dict(size=8)\n")
        classes.write_text("\n".join(f"class {number}" for number in range(10)))
        rows.write_text(json.dumps(list(range(1000))))
        return {
            "config": (config, load_config),
            "class list": (classes, lambda path: load_config(CONFIG["classifier"], {"classes": str(path)})),
            "rows of a head": (rows, _read_rows),
        }

    def _run_files(self) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
        """What runs, launchers and tools leave for later ones."""
        contents: dict[str, Any] = {
            "starts.json": {"starts": [{"folder": "a", "from_step": 0, "resumed": False}]},
            "plan.json": {"schedule": {"epochs": 2, "steps_per_epoch": 3}},
            "report.json": {"ranks": {"had_it": [0]}, "by_rank": [{"rank": 0, "samples": []}], "step": 1, "torch": "2"},
            "error_report.json": {"line": "boom", "lost_peer": False},
            "scalars.json": {"step": 1, "lr": 0.1, "loss": 2.0},
        }
        others = ("position", "run_id", "last_checkpoint", "weights.pt")
        files = {name: self._folder / name for name in (*contents, *others)}
        for name, content in contents.items():
            files[name].write_text(json.dumps(content))
        files["position"].write_bytes(struct.pack("<QQQBd320s640s", 1, 1, 0, 2, 0.0, b"epoch 1", b"folder"))
        files["run_id"].write_text("0123")
        files["last_checkpoint"].write_text("iter_3.pth")
        torch.save({"config": {}, "state_dict": {}}, files["weights.pt"])

        def report(path: Path) -> None:
            logs = path.parent / "a" / "vis_data"
            logs.mkdir(parents=True)
            if path.name == "scalars.json":
                path.rename(logs / path.name)
            write_training_report(path.parent)

        def replay(path: Path) -> None:
            for name in ("report.json", "weights.pt", "rank_0.pt"):
                if name != path.name:
                    shutil.copy(files.get(name, files["weights.pt"]), path.parent / name)
            replay_step(path.parent)

        def launcher(path: Path) -> None:
            read_position(path.parent)
            read_error_report(path.parent)
            read_frames(path.parent)

        def choices(path: Path) -> None:
            os.environ["XDG_CACHE_HOME"] = str(path.parent)
            Autotuner({})._read_file()

        def resume(path: Path) -> None:
            shutil.copy(self._folder / "iter_3.pth", path.parent / "iter_3.pth")
            last_good(path.parent)
            last_checkpoint(path.parent)

        readers = {"report.json": replay, "weights.pt": replay, "error_report.json": launcher, "position": launcher}
        readers |= {"starts.json": report, "plan.json": report, "scalars.json": report}
        readers |= {"run_id": resume, "last_checkpoint": resume}
        return {name: (files[name], readers[name]) for name in files}


def cut(damager: Damager, content: bytes, target: Path) -> None:
    target.write_bytes(content[: damager._random.randrange(len(content) or 1)])


def flip(damager: Damager, content: bytes, target: Path) -> None:
    damaged = bytearray(content)
    for _ in range(damager._random.choice((1, 2, 16))):
        damaged[damager._random.randrange(len(damaged))] ^= 1 << damager._random.randrange(8)
    target.write_bytes(damaged)


def blank(damager: Damager, content: bytes, target: Path) -> None:
    start = damager._random.randrange(len(content))
    length = damager._random.randrange(1, 4096)
    target.write_bytes(content[:start] + bytes(min(length, len(content) - start)) + content[start + length :])


def lengthen(damager: Damager, content: bytes, target: Path) -> None:
    start = damager._random.randrange(len(content))
    target.write_bytes(content[:start] + damager._random.randbytes(damager._random.randrange(5000)) + content[start:])


def another_number(damager: Damager, content: bytes, target: Path) -> None:
    """Numbers in text become others, of a wrong sign, size or kind."""
    digits = [at for at, value in enumerate(content) if chr(value).isdigit()]
    at = damager._random.choice(digits or [0])
    new = damager._random.choice((b"-1", b"1e400", b"NaN", b"null", b'"x"', b"9" * 400, b"[]", b"{}", b"true"))
    target.write_bytes(content[:at] + new + content[at + 1 :])


def pickled_command(damager: Damager, content: bytes, target: Path) -> None:
    command = {"state_dict": Command(damager._marker), "meta": Command(damager._marker)}
    kind = damager._random.randrange(3)
    if kind == 0:
        target.write_bytes(pickle.dumps(command, damager._random.choice((0, 2, 4))))
    elif kind == 1:
        torch.save(command, target)
    else:
        np.save(target.with_suffix(".npy"), np.array([Command(damager._marker)]), allow_pickle=True)
        target.with_suffix(".npy").rename(target)


def nested(damager: Damager, content: bytes, target: Path) -> None:
    depth = damager._random.choice((1000, 100_000))
    target.write_bytes(
        damager._random.choice((b"[" * depth, b'{"a":' * depth, b"(" * depth, b"\x80\x02" + b"]" * depth))
    )


def huge_header(damager: Damager, content: bytes, target: Path) -> None:
    """Sizes of which the file has nothing."""
    kind = damager._random.randrange(4)
    if kind == 0:
        target.write_bytes(struct.pack("<Q", 2 ** damager._random.randrange(20, 63)) + b"{" + content[:1000])
    elif kind == 1:
        header = {"x": {"dtype": "F32", "shape": [2**31, 2**20], "data_offsets": [0, 2**53]}}
        text = json.dumps(header).encode()
        target.write_bytes(struct.pack("<Q", len(text)) + text)
    elif kind == 2:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(50_000_000))
    else:
        side = damager._random.choice((30_000, 2**31 - 1))
        head = struct.pack(">II", side, side) + b"\x08\x02\0\0\0"
        target.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + head + bytes(4) + content[:500])


def another_kind(damager: Damager, content: bytes, target: Path) -> None:
    source = damager._places[damager._random.choice(sorted(damager._places))][0]
    shutil.copyfile(source, target)


def another_picture(damager: Damager, content: bytes, target: Path) -> None:
    mode = damager._random.choice(("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"))
    kind = "TIFF" if mode in ("F", "CMYK", "I;16") else "PNG"
    Image.new(mode, (damager._random.choice((1, 3, 160)), 160)).save(target, kind)


def empty(damager: Damager, content: bytes, target: Path) -> None:
    target.touch()


def pipe(damager: Damager, content: bytes, target: Path) -> None:
    os.mkfifo(target)


def circle(damager: Damager, content: bytes, target: Path) -> None:
    target.symlink_to(target.name)


def device(damager: Damager, content: bytes, target: Path) -> None:
    target.symlink_to("/dev/zero")


def folder(damager: Damager, content: bytes, target: Path) -> None:
    target.mkdir()


def broken_link(damager: Damager, content: bytes, target: Path) -> None:
    target.symlink_to("absent")


DAMAGES: tuple[Callable[[Damager, bytes, Path], None], ...] = (
    *(cut, cut, flip, flip, flip, blank, lengthen, another_number, another_number, pickled_command, nested),
    *(huge_header, huge_header, another_kind, another_kind, another_picture, empty),
    *(pipe, circle, device, folder, broken_link),
)
