"""A worker of a data loader that is killed, or stopped, in whole trainings and tests: one line, and nothing is left."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from engine.config.load import load_config
from engine.launch.exit_codes import EXIT_FAILED, EXIT_HUNG
from engine.launch.leftovers import SHARED_MEMORY, is_running
from tests.fuzz.kills import serving
from tests.programs import PATIENCE, ROOT, ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process is doing")

# The worker that first gets an image of the split signals itself in it; the watch is less patient.
CONFIG = """
import os
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 16]))
batch = dict(size=8)
custom_hooks = []
default_hooks = dict(logger=dict(interval=1))
train_dataloader = dict(num_workers=2)
val_dataloader = dict(num_workers=2)
test_dataloader = dict(num_workers=2, batch_size=4)
def _register():
    from mmcv.transforms import BaseTransform
    from mmengine.registry import TRANSFORMS
    from engine.data import worker_watch

    worker_watch.WORKER_PATIENCE_SECONDS, worker_watch.WORKER_POLL_SECONDS = 1.5, 0.3

    @TRANSFORMS.register_module(force=True)
    class Fault(BaseTransform):
        def transform(self, results):
            open(os.path.join({pids!r}, str(os.getpid())), "w").close()
            try:
                os.mkdir(os.path.join({pids!r}, "fault"))
            except FileExistsError:
                return results
            os.kill(os.getpid(), {number})

_register()
{split}_pipeline = [dict(type="Fault"), dict(type="ClassificationTransform", size=48, crop_ratio=1.0)]
"""


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")


@pytest.fixture(scope="module")
def server(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with serving(tmp_path_factory.mktemp("server"), str(temporary)) as server:
        yield server


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (9, EXIT_FAILED, r"was ended by a signal \(Killed\), most often by the kernel, for lack of memory: .*"),
        (19, EXIT_HUNG, r"was stopped by a signal, \d+ s ago or more: kill -CONT would have let it go on"),
    ],
)
@pytest.mark.parametrize(("name", "split"), [("train.py", "train"), ("train.py", "test"), ("test.py", "test")])
def test_a_run_loses_a_worker(
    name: str,
    split: str,
    number: int,
    code: int,
    line: str,
    digits: Path,
    tmp_path: Path,
    server: ForkServer,
    temporary: Path,
) -> None:
    config, pids = tmp_path / "config.py", tmp_path / "pids"
    pids.mkdir()
    base, data = str(ROOT / "configs/classification/digits.py"), str(digits / "imagenet")
    config.write_text(CONFIG.format(base=base, data=data, pids=str(pids), number=number, split=split))
    arguments = [config, "--work-dir", tmp_path / "work", "--no-data-check"]
    if name == "test.py":
        weights = tmp_path / "weights.pth"
        torch.save({"state_dict": MODELS.build(load_config(config).cfg.model).state_dict()}, weights)
        arguments.insert(1, weights)
    ended = server(name, *arguments)
    assert ended.code == code, ended.err
    (said,) = [one for one in ended.err.splitlines() if "worker" in one or "error" in one or "Traceback" in one]
    who = r"error: worker \d of a data loader \(process \d+, sample \d+, \S+\)"
    assert re.fullmatch(f"{who} {line}", said)
    workers = [int(file.name) for file in pids.iterdir() if file.name.isdecimal()]
    assert workers
    until = time.monotonic() + PATIENCE
    while any(map(is_running, workers)):
        assert time.monotonic() < until
        time.sleep(0.05)
    shared = [place for pid in workers for place in SHARED_MEMORY.glob(f"torch_{pid}_*")]
    assert [*temporary.iterdir(), *shared] == []
