"""Steps with a number that is not finite: found before they change a weight, written down, reproduced, taken back.

Run as a program, this file does the trainings of two processes, ``python test_black_box.py FOLDER``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.utils.data import Dataset

from analysis.replay import check_types, replay_step
from backbones import UserError
from backbones.weights import read_checkpoint
from engine.config.environment import NonFinitePolicy
from engine.config.load import Resolved, load_config, resolve
from engine.config.world import Launch
from engine.launch.exit_codes import EXIT_NONFINITE
from engine.nonfinite import guard as nonfinite_guard
from engine.nonfinite.batch_codec import decode, describe_samples, encode
from engine.nonfinite.guard import NonFiniteError
from engine.nonfinite.report import make_event_folder, suggest_fix, thin_out
from engine.training.build import build_runner
from tests.runs import small_run

ROOT = Path(__file__).resolve().parents[3]
IMAGES, GLOBAL, STEPS, BAD_STEP = 16, 4, 8, 3
PATIENCE = 240  # seconds until something that hangs is ended
MARK = 255  # the first pixel of the image that makes a fault
BAD_IMAGE = 11


@DATASETS.register_module()
class ImagesOfTheBlackBoxTest(Dataset):
    """Noise; in order, the marked image comes in step 3 of 4."""

    def __init__(self, metainfo: dict[str, Any], marked: int = BAD_IMAGE) -> None:
        self.metainfo = dict(metainfo)
        random = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 200, (IMAGES, 3, 4, 4), dtype=torch.uint8, generator=random)
        self.images[marked, 0, 0, 0] = MARK

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.images[index], "label": index % 2, "img_path": f"{index}.png"}


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, which: str) -> Tensor:
        context.which = which
        return x * weight

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Any, ...]:
        total = gradient.sum().view(1)
        bad = {"input": (gradient * torch.nan, total), "weight": (gradient, total * torch.inf)}
        return (*bad[context.which], None)


class Faulty(nn.Module):
    """The identity, but for a fault."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.on = kind, False
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "drawn" and float(torch.rand(())) < 0.05:
            return x * self.weight * torch.nan
        if self.kind == "output" and self.on:
            return x * self.weight / 0
        if self.kind in ("input", "weight") and self.on:
            return _BadGradient.apply(x, self.weight, self.kind)
        return x * self.weight


@MODELS.register_module()
class ModelOfTheBlackBoxTest(BaseModel):
    """A few layers, a residual connection around the fault, statistics that a forward pass changes."""

    def __init__(self, fault: str, always: bool = False, buffers: bool = True) -> None:
        super().__init__()
        self.fault, self.always = fault, always
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=buffers)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Linear(4, 4), Faulty(fault))
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor, label: Tensor, img_path: Any = None, mode: str = "loss") -> Any:
        self.block[1].on = self.always or bool((inputs[:, 0, 0, 0] == MARK).any())
        x = self.relu(self.norm(self.stem(inputs.float() / 200))).mean((2, 3))
        x = x + self.block(x)
        loss = F.cross_entropy(self.head(self.drop(x)), label)
        return {"loss": loss + torch.inf if self.fault == "loss" and self.block[1].on else loss}


def config(work_dir: Path, fault: str = "none", **changes: Any) -> Config:
    loader = dict(num_workers=0, collate_fn=dict(type="default_collate"))
    dataset = dict(type="ImagesOfTheBlackBoxTest")
    cfg = Config(
        dict(
            model=dict(type="ModelOfTheBlackBoxTest", fault=fault),
            classes=("dark", "light"),
            batch=dict(size=GLOBAL),
            train_dataloader=dict(**loader, dataset=dataset, sampler=dict(type="InfiniteSampler", shuffle=False)),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2)),
            train_cfg=dict(type="IterationLoop", max_iters=STEPS),
            **small_run(work_dir, STEPS, interval=2, max_keep_ckpts=-1),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train(
    work_dir: Path, fault: str = "none", launch: Launch | None = None, resume: bool = False, **changes: Any
) -> Any:
    """Train as ``tools/train.py`` does; gives the runner, whose attribute ``error`` is what stopped it."""
    resolved = resolve(config(work_dir, fault, **changes), GLOBAL, launch or Launch())
    resolved.cfg.resume = resume
    return trained(resolved, launch or Launch())


def trained(resolved: Resolved, launch: Launch) -> Any:
    runner = build_runner(resolved, launch)
    runner.error = None
    try:
        runner.train()
    except NonFiniteError as error:
        runner.error = error
    return runner


def record(work_dir: Path, step: int = BAD_STEP) -> tuple[Path, dict[str, Any]]:
    (folder,) = (work_dir / "nonfinite").iterdir()
    assert folder.name == f"step_{step}"
    return folder, json.loads((folder / "report.json").read_text())


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


FAULTS = {
    "output": ("block.1", "output"),
    "input": ("block.1", "gradient of its input"),
    "weight": ("block.1", "gradient of weight"),
    "loss": ("", "output"),
}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The model before the step of the fault."""
    runner = train(tmp_path_factory.mktemp("before"), **{"train_cfg.max_iters": BAD_STEP - 1})
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_bad_module_is_named_and_its_step_changes_nothing(
    tmp_path: Path, before: dict[str, Tensor], fault: str
) -> None:
    runner = train(tmp_path, fault)
    folder, report = record(tmp_path)
    assert runner.error.exit_code == EXIT_NONFINITE == 3
    assert str(runner.error).startswith("step 3 was not finite, first in ")
    assert str(runner.error).endswith(f"{folder} has it all: python tools/replay.py {folder}")
    assert "\n" not in str(runner.error)
    same(runner.model.state_dict(), before)
    same(read_checkpoint(str(folder / "weights.pt"))["state_dict"], before)
    assert (report["cause"]["module"], report["cause"]["what"], report["cause"]["micro_batch"]) == (*FAULTS[fault], 0)
    assert (report["step"], report["ranks"]) == (3, {"had_it": [0], "received_it": []})
    assert [one["path"] for one in report["by_rank"][0]["samples"][0]] == [f"{i}.png" for i in (8, 9, 10, 11)]
    assert report["losses"]["loss"] in (
        {"output": ["nan", "inf"], "loss": ["inf"]}.get(fault) or [report["losses"]["loss"]]
    )
    assert isinstance(report["losses"]["loss"], float) == (fault in ("input", "weight"))
    assert Config.fromfile(folder / "config.py").model.fault == fault
    result = replay_step(folder)
    assert result.reproduced, result.lines
    assert result.lines[-1] == "reproduced"
    assert result.lines[0] == "step 3, rank 0 of 1: 8.png, 9.png, 10.png, 11.png"


def test_a_model_may_have_no_buffers(tmp_path: Path) -> None:
    runner = train(tmp_path, "output", **{"model.buffers": False})
    assert not list(runner.model.buffers())
    folder, report = record(tmp_path)
    assert report["cause"]["module"] == "block.1"
    assert replay_step(folder).reproduced


@pytest.mark.parametrize(
    "changes",
    [
        {"optim_wrapper.clip_grad": dict(max_norm=1.0)},
        {"optim_wrapper.optimizer.fused": True},
        {"optim_wrapper.optimizer.foreach": True},
    ],
    ids=["clipped", "fused", "foreach"],
)
@pytest.mark.parametrize("fault", ["input", "loss"])
def test_whatever_steps_the_weights_stay(tmp_path: Path, fault: str, changes: dict[str, Any]) -> None:
    before = train(tmp_path / "before", **changes, **{"train_cfg.max_iters": BAD_STEP - 1})
    runner = train(tmp_path / "run", fault, **changes)
    assert runner.error is not None
    same(runner.model.state_dict(), before.model.state_dict())
    ours, theirs = runner.optim_wrapper.state_dict()["state"], before.optim_wrapper.state_dict()["state"]
    for number, state in theirs.items():
        same(ours[number], state)
    assert record(tmp_path / "run")[1]["gradient_norm"] == "nan"


def test_the_norm_of_clipping_is_not_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a second norm")

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", refuse)
    runner = train(tmp_path, "input", **{"optim_wrapper.clip_grad": dict(max_norm=1.0)})
    assert runner.error is not None


def test_a_micro_batch_of_a_step(tmp_path: Path) -> None:
    options = {"batch.per_gpu": 2}
    before = train(tmp_path / "before", **options, **{"train_cfg.max_iters": BAD_STEP - 1})
    runner = train(tmp_path / "run", "output", **options)
    folder, report = record(tmp_path / "run")
    same(runner.model.state_dict(), before.model.state_dict())
    assert report["cause"]["micro_batch"] == 1
    assert [[one["path"] for one in part] for part in report["by_rank"][0]["samples"]] == [
        ["8.png", "9.png"],
        ["10.png", "11.png"],
    ]
    assert replay_step(folder).reproduced


def test_a_fault_by_chance_is_reproduced_by_the_random_states_alone(tmp_path: Path) -> None:
    runner = train(tmp_path, "drawn", **{"train_cfg.max_iters": 100})
    assert runner.error is not None
    (folder,) = (tmp_path / "nonfinite").iterdir()
    assert replay_step(folder).reproduced
    file = folder / "rank_0.pt"
    content = read_checkpoint(str(file))
    content["random"] = {**content["random"], "torch": torch.Generator().manual_seed(1).get_state()}
    torch.save(content, file)
    result = replay_step(folder)
    assert not result.reproduced
    assert result.lines[-1].startswith("not reproduced: ")


def test_nothing_is_written_and_nothing_differs_when_all_is_well(tmp_path: Path) -> None:
    watched = train(tmp_path / "watched")
    ignored = train(tmp_path / "ignored", **{"env_cfg.nonfinite": "ignore"})
    assert watched.error is None
    assert not (tmp_path / "watched/nonfinite").exists()
    same(watched.model.state_dict(), ignored.model.state_dict())
    spoilt = train(tmp_path / "spoilt", "output", **{"env_cfg.nonfinite": "ignore"})
    assert not (tmp_path / "spoilt/nonfinite").exists()
    assert not all(bool(value.isfinite().all()) for value in spoilt.model.state_dict().values())


def test_a_record_that_cannot_be_written_still_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "nonfinite").write_text("in the way")
    runner = train(tmp_path, "output")
    assert str(runner.error).startswith("step 3 was not finite, first in block.1 (Faulty), output: ")


ROLL = dict(action="roll_back", max_rollbacks=3, window=1)


def test_a_run_goes_on_without_the_steps_that_led_to_the_event(tmp_path: Path) -> None:
    """Both passes over the images come to the marked one: steps 3 and 7."""
    first = train(tmp_path / "first", "output", **{"env_cfg.nonfinite": ROLL})
    again = train(tmp_path / "again", "output", **{"env_cfg.nonfinite": ROLL})
    assert first.error is None
    assert (first.iter, first.nonfinite_guard.events, first.nonfinite_guard.skipped) == (STEPS, 2, {3, 7})
    assert all(bool(value.isfinite().all()) for value in first.model.state_dict().values())
    same(first.model.state_dict(), again.model.state_dict())
    assert {folder.name for folder in (tmp_path / "first/nonfinite").iterdir()} == {"step_3", "step_7"}
    # The same as if one had known before: the schedule and the averages count the steps, the weights do not learn.
    resolved = resolve(config(tmp_path / "known", "output"), GLOBAL, Launch())
    known = build_runner(resolved, Launch())
    known.nonfinite_guard.skipped = {3, 7}
    known.train()
    same(first.model.state_dict(), known.model.state_dict())
    assert first.param_schedulers[0].state_dict() == known.param_schedulers[0].state_dict()
    saved = read_checkpoint(str(tmp_path / "first/iter_8.pth"))
    assert saved["nonfinite"] == {"skipped": [3, 7], "events": 2, "in_row": 0}
    same(saved["ema_state_dict"], read_checkpoint(str(tmp_path / "known/iter_8.pth"))["ema_state_dict"])
    gone_on = train(tmp_path / "first", "output", resume=True, **{"env_cfg.nonfinite": ROLL, "train_cfg.max_iters": 9})
    assert gone_on.nonfinite_guard.skipped == {3, 7}


def test_a_window_of_steps_and_too_many_events(tmp_path: Path) -> None:
    wide = train(tmp_path / "wide", "output", **{"env_cfg.nonfinite": {**ROLL, "window": 2}})
    assert wide.nonfinite_guard.skipped == {2, 3, 6, 7}
    few = train(tmp_path / "few", "output", **{"env_cfg.nonfinite": {**ROLL, "max_rollbacks": 1}})
    assert str(few.error).endswith("more such events than env_cfg.nonfinite.max_rollbacks=1")
    assert few.iter == 6


def test_checkpoints_of_an_earlier_training_are_nothing_to_go_back_to(tmp_path: Path) -> None:
    train(tmp_path, **{"train_cfg.max_iters": 2, "randomness.seed": 5})
    # A name that the interval asks for: others are removed when the run saves.
    (tmp_path / "iter_2.pth").rename(tmp_path / "iter_4.pth")
    changes = {"env_cfg.nonfinite": ROLL, "train_cfg.max_iters": 3, "default_hooks.checkpoint.interval": 4}
    clean = train(tmp_path / "clean", "output", **changes)
    runner = train(tmp_path, "output", **changes)
    assert runner.nonfinite_guard.skipped == {3}
    same(runner.model.state_dict(), clean.model.state_dict())


# ---- float16's scaler, pretended on the CPU


def scaled(
    work_dir: Path, fault: str, dtype: str | None, scale: float, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Any:
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    resolved = resolve(config(work_dir, fault, **changes), GLOBAL, Launch())
    resolved.cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype=dtype, loss_scale=dict(init_scale=scale))
    return trained(resolved, Launch())


@pytest.mark.parametrize("fused", [False, True])
def test_a_scale_that_is_searched_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    changes = {"optim_wrapper.optimizer.fused": fused, "train_cfg.max_iters": 20}
    for dtype in (None, "bfloat16"):
        runner = scaled(tmp_path, "none", dtype, 2.0**127, monkeypatch, **changes)
        assert runner.error is None
        assert not (tmp_path / "nonfinite").exists()
        assert 2.0**100 < runner.optim_wrapper.loss_scaler.get_scale() < 2.0**127  # some steps were skipped


@pytest.mark.parametrize("fused", [False, True])
def test_a_scale_that_is_never_found_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    changes = {"model.always": True, "train_cfg.max_iters": 30, "optim_wrapper.optimizer.fused": fused}
    runner = scaled(tmp_path, "input", None, 2.0**30, monkeypatch, **changes)
    _, report = record(tmp_path, nonfinite_guard.MAX_OVERFLOWS_IN_A_ROW)
    assert report["skipped_in_a_row"] == nonfinite_guard.MAX_OVERFLOWS_IN_A_ROW
    assert report["scale"] == 2.0 ** (30 - nonfinite_guard.MAX_OVERFLOWS_IN_A_ROW)
    assert report["cause"]["what"].startswith("gradient")
    assert runner.error is not None


def test_a_loss_is_one_at_once_and_so_is_a_gradient_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled(tmp_path / "loss", "loss", None, 2.0**16, monkeypatch)
    assert record(tmp_path / "loss")[1]["cause"]["module"] == ""
    scaled(tmp_path / "half", "input", None, 2.0**16, monkeypatch)
    assert not (tmp_path / "half/nonfinite").exists()
    scaled(tmp_path / "wide", "input", "bfloat16", 2.0**16, monkeypatch)
    folder, report = record(tmp_path / "wide")
    assert (report["precision"], report["scale"]) == ("bfloat16", 2.0**15)
    assert replay_step(folder).reproduced


# ---- two processes


def together(rank: int, folder: Path) -> None:
    """One of the two processes; the marked image is in the share of the second."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    two = Launch(processes=2, local_processes=2)
    facts: dict[str, Any] = {}
    for way, changes in WAYS.items():
        runner = train(folder / way, changes["fault"], two, **changes["settings"])
        model = getattr(runner.model, "module", runner.model)
        state = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
        facts[way] = {"error": str(runner.error), "iter": runner.iter, "state": state}
    torch.save(facts, folder / f"facts_{rank}.pt")
    dist.destroy_process_group()


WAYS: dict[str, dict[str, Any]] = {
    "before": {"fault": "none", "settings": {"train_cfg.max_iters": BAD_STEP - 1}},
    "ddp": {"fault": "output", "settings": {}},
    "backward": {"fault": "input", "settings": {}},
    "loss": {"fault": "loss", "settings": {}},
    "accumulated": {"fault": "output", "settings": {"batch.per_gpu": 1}},
    "sharded": {"fault": "output", "settings": {"env_cfg.sharded": True}},
    "sharded_backward": {"fault": "input", "settings": {"env_cfg.sharded": True}},
    "rolled": {"fault": "output", "settings": {"env_cfg.nonfinite": ROLL}},
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, [torch.load(folder / f"facts_{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("way", ["ddp", "backward", "loss", "accumulated", "sharded", "sharded_backward"])
def test_one_process_has_it_and_both_stop(facts: tuple[Path, list[dict[str, Any]]], way: str) -> None:
    root, ranks = facts
    folder, report = record(root / way)
    fault = WAYS[way]["fault"]
    assert (report["cause"]["module"], report["cause"]["what"]) == FAULTS[fault]
    assert report["ranks"] == {"had_it": [1], "received_it": [0]}
    assert ranks[0][way]["error"] == ranks[1][way]["error"] != "None"
    if not WAYS[way]["settings"]:
        same(ranks[0][way]["state"], ranks[0]["before"]["state"])
        same(ranks[1][way]["state"], ranks[1]["before"]["state"])
    assert all(bool(value.isfinite().all()) for rank in ranks for value in rank[way]["state"].values())
    assert "11.png" in [one["path"] for part in report["by_rank"][1]["samples"] for one in part]
    assert replay_step(folder).reproduced
    other = replay_step(folder, rank=0)
    assert not other.reproduced
    assert "rank 0 only received it, --rank 1 had it" in other.lines[-1]


def test_two_processes_go_back_together(facts: tuple[Path, list[dict[str, Any]]]) -> None:
    _, ranks = facts
    assert [rank["rolled"]["iter"] for rank in ranks] == [STEPS, STEPS]
    assert [rank["rolled"]["error"] for rank in ranks] == ["None", "None"]
    trained = {name for name in ranks[0]["rolled"]["state"] if not name.startswith("norm.")}  # statistics are one's own
    same(*({name: rank["rolled"]["state"][name] for name in trained} for rank in ranks))


# ---- the parts


def test_batches_survive_as_plain_data(tmp_path: Path) -> None:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks, PolygonMasks
    from mmseg.structures import SegDataSample

    import detection  # noqa: F401  (registers the classes of its batches)
    import segmentation  # noqa: F401

    thing = DetDataSample(metainfo=dict(img_path="a.jpg", img_id=7, scale_factor=(np.float32(0.5), 2.0), flip=None))
    thing.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]])),
        labels=torch.tensor([3]),
        masks=BitmapMasks(np.eye(4, dtype=np.uint8)[None], 4, 4),
    )
    thing.ignored_instances = InstanceData(masks=PolygonMasks([[np.array([0.0, 0, 1, 0, 1, 1])]], 4, 4))
    pixels = SegDataSample(metainfo=dict(img_path="b.jpg", ori_shape=(4, 4)))
    pixels.gt_sem_seg = PixelData(data=torch.arange(16).view(1, 4, 4))
    images = [torch.rand(3, 4, 4), torch.rand(3, 8, 8)[:, ::2]]
    file = tmp_path / "batch.pt"
    torch.save(encode({"inputs": images, "data_samples": [thing, pixels], "order": (np.arange(3), b"x", "y")}), file)
    back = decode(torch.load(file, weights_only=True))
    assert all(torch.equal(one, other) for one, other in zip(back["inputs"], images, strict=True))
    first, second = back["data_samples"]
    assert (type(first), type(second)) == (DetDataSample, SegDataSample)
    assert (first.metainfo, second.metainfo) == (thing.metainfo, pixels.metainfo)
    assert type(first.gt_instances.bboxes) is HorizontalBoxes
    assert torch.equal(first.gt_instances.bboxes.tensor, thing.gt_instances.bboxes.tensor)
    assert first.gt_instances.masks.masks.dtype == np.uint8
    assert (first.gt_instances.masks.masks == thing.gt_instances.masks.masks).all()
    assert (first.ignored_instances.masks.masks[0][0] == [0, 0, 1, 0, 1, 1]).all()
    assert torch.equal(second.gt_sem_seg.data, pixels.gt_sem_seg.data)
    assert back["order"][0].tolist() == [0, 1, 2]
    assert back["order"][1:] == (b"x", "y")
    described = describe_samples(back)
    assert [(one["path"], one["id"]) for one in described] == [("a.jpg", 7), ("b.jpg", None)]
    assert described[0]["image"]["shape"] == [3, 4, 4]


def test_nothing_else_is_written_or_built() -> None:
    odd = encode({"inputs": [], "path": Path("x")})
    with pytest.raises(UserError, match=r"the batch holds a pathlib[.]PosixPath, which was not recorded"):
        decode(odd)
    with pytest.raises(UserError, match="names 'Popen', which is no part of a batch"):
        decode([{"__kind__": "Popen", "args": "true"}])
    with pytest.raises(UserError, match="'__class__' is no field"):
        decode({"__kind__": "InstanceData", "meta": {}, "data": {"__class__": 1}})


@pytest.mark.parametrize("name", ["os.system", "mmengine.load", "subprocess", "mmdet.apis.init_detector"])
def test_a_config_that_calls_something_else_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"it builds '{name}', which is no registered part of a model"):
        check_types({"type": "ModelOfTheBlackBoxTest", "parts": [{"inner": {"type": name}}]})


@pytest.mark.parametrize("task", ["classification/digits", "detection/mask_rcnn_digits", "segmentation/upernet_digits"])
def test_the_models_of_all_tasks_are_let_through(task: str) -> None:
    check_types(load_config(ROOT / f"configs/{task}.py", launch=Launch(), training=False).cfg.model)


def test_the_first_and_the_last_events_keep_their_weights(tmp_path: Path) -> None:
    for number in range(1, 6):
        folder = tmp_path / f"step_{number}"
        make_event_folder(folder)
        (folder / "weights.pt").write_bytes(b"")
        (folder / "report.json").write_text('{"ranks": {}, "by_rank": []}')
        os.utime(folder / "report.json", (number, number))
        thin_out(tmp_path)
    assert sorted(file.parent.name for file in tmp_path.glob("*/weights.pt")) == ["step_1", "step_4", "step_5"]
    assert len(list(tmp_path.glob("*/report.json"))) == 5
    with pytest.raises(UserError, match="step_2' holds the report alone"):
        replay_step(tmp_path / "step_2")


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, "lower the learning rate (here 0.1) or warm up longer, clip gradients"),
        ({"clipped": True}, "lower the learning rate (here 0.1) or warm up longer, if the images"),
        ({"weights_not_finite": ["head.weight"]}, "weights were not finite before the step, head.weight first"),
        (
            {"precision": "float16", "skipped_in_a_row": 20},
            "float16 ends at 65504: take optim_wrapper.dtype='bfloat16'",
        ),
        ({"cause": None}, "not deterministic"),
        ({"image": {"nan": 1, "inf": 0}}, "image a.jpg holds NaN or Inf: fix it"),
        ({"what": "output", "module": "head.loss_cls"}, "the loss of finite outputs: look at the labels"),
    ],
)
def test_the_hint_follows_the_record(change: dict[str, Any], said: str) -> None:
    tensor = {"dtype": "float32", "inf": 1, "nan": 0}
    cause = {"module": "head", "class": "Linear", "what": "gradient of weight", "tensor": tensor, "inputs_finite": True}
    cause |= {key: change[key] for key in ("what", "module") if key in change}
    sample = {"path": "a.jpg", "id": None, "image": change.get("image", {"nan": 0, "inf": 0})}
    report = {"cause": cause, "weights_not_finite": [], "precision": None, "skipped_in_a_row": 0, "clipped": False}
    report |= {"learning_rates": [0.1], "by_rank": [{"samples": [[sample]]}]}
    report |= {key: value for key, value in change.items() if key in report}
    assert suggest_fix(report).startswith(said)


@pytest.mark.parametrize(
    "setting, said",
    [
        ("halt", "action='halt': choose from stop, roll_back, ignore"),
        (True, "env_cfg.nonfinite=True: one of stop"),
        ({"action": "roll_back", "at_most": 2}, "one of stop, roll_back, ignore"),
        ({"action": "roll_back", "max_rollbacks": 0}, "max_rollbacks=0: a positive whole number is needed"),
        ({"window": 1.5}, "window=1.5: a positive whole number"),
    ],
)
def test_a_wrong_setting_is_said_in_a_line(setting: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        NonFinitePolicy.from_setting(setting)
    assert said in str(caught.value)


def test_the_former_name_of_a_setting_is_accepted() -> None:
    assert NonFinitePolicy.from_setting({"action": "roll_back", "most": 5}).max_rollbacks == 5


if __name__ == "__main__":
    place = Path(sys.argv[1])
    children = []
    for number in range(2):
        child = os.fork()
        if not child:
            try:
                together(number, place)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) > 0)
