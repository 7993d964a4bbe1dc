"""The gradient noise scale of a model for which it is known, in one process and in two; measuring changes nothing.

Run as a program, ``python test_noise_scale.py FOLDER``, this file does the trainings of two processes.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import Tensor, nn
from torch.utils.data import Dataset

from backbones.errors import ConfigError
from engine.config.batch import BatchPlan
from engine.config.environment import check_noise_scale
from engine.config.load import resolve
from engine.config.world import Launch
from engine.report.run_dir import read_curves
from engine.training.build import build_runner
from engine.training.noise_scale import NoiseScaleAverage
from tests.runs import continue_from, forked, run_as_program, small_run

SIZE, MEAN, IMAGES, BATCH, STEPS = 16, 0.5, 1024, 16, 120
NOISE_SCALE = SIZE / (SIZE * MEAN**2)  # trace of the covariance by the squared norm of the mean
PATIENCE = 300  # seconds until something that hangs is ended
ON = {"env_cfg.noise_scale": True}


@DATASETS.register_module()
class ImagesOfTheNoiseScaleTest(Dataset):
    """Each pixel has the mean 0.5 and the variance 1."""

    def __init__(self, metainfo: dict[str, Any]) -> None:
        self.metainfo = dict(metainfo)
        images = torch.randn(IMAGES, SIZE, generator=torch.Generator().manual_seed(0))
        self.images = MEAN + (images - images.mean(0)) / images.std(0)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.images[index]}


@MODELS.register_module()
class ModelOfTheNoiseScaleTest(BaseModel):
    """A loss that is linear in the weights: the gradient of an image is the image, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(SIZE // 2)), nn.Parameter(torch.zeros(SIZE // 2))

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return {"loss": (inputs @ torch.cat([self.first, self.second])).mean()}


def config(work_dir: Path, **changes: Any) -> Config:
    cfg = Config(
        dict(
            model=dict(type="ModelOfTheNoiseScaleTest"),
            classes=("one",),
            batch=dict(size=BATCH),
            train_dataloader=dict(
                num_workers=0,
                collate_fn=dict(type="default_collate"),
                dataset=dict(type="ImagesOfTheNoiseScaleTest"),
                sampler=dict(type="InfiniteSampler", shuffle=True),
            ),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2)),
            train_cfg=dict(type="IterationLoop", max_iters=STEPS),
            **small_run(work_dir, STEPS, interval=STEPS // 2),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train(
    work_dir: Path, launch: Launch, resume: bool = False, amp: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Train; returns the averages and the weights at the end, and the logged noise scales."""
    resolved = resolve(config(work_dir, **changes), BATCH, launch)
    resolved.cfg.resume = resume
    resolved.cfg.optim_wrapper.update(amp or {})  # resolved for a CPU, it would be float32 again
    runner = build_runner(resolved, launch)
    runner.train()
    meter = runner.train_loop.noise_scale
    weights = [param.detach().tolist() for param in runner.model.parameters()]
    logged = read_curves(work_dir).get("train/noise_scale", [])
    return {"average": vars(meter.average) if meter else None, "weights": weights, "logged": logged}


# ---- the trainings of two processes


def together(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    two = Launch(processes=2, local_processes=2)
    clip = {"optim_wrapper.clip_grad": dict(max_norm=0.1)}
    facts = {
        "on": train(folder / "on", two, **ON),
        "off": train(folder / "off", two),
        "clipped": train(folder / "clipped", two, **ON, **clip, **{"batch.per_gpu": 2}),
    }
    if not rank:
        continue_from(folder / "on", folder / "resumed", STEPS // 2)
    dist.barrier()
    facts["resumed"] = train(folder / "resumed", two, resume=True, **ON)
    (folder / f"facts_{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    run_as_program(__file__, folder, PATIENCE)
    return [json.loads((folder / f"facts_{rank}.json").read_text()) for rank in range(2)]


# ---- the tests


def test_the_terms_are_without_bias() -> None:
    average = NoiseScaleAverage()
    assert average.noise_scale is None
    for _ in range(3):
        average.update(4 + 60 / 8, 4 + 60 / 32, 8, 32)  # |G|^2 = 4 and tr = 60
    average.update(float("inf"), 1.0, 8, 32)
    assert average.steps == 3
    assert average.noise_scale == pytest.approx(15)
    average.update(100.0, 1.0, 8, 32)  # the noise hides the gradient
    assert average.noise_scale is None


@pytest.mark.parametrize("name", ["on", "clipped"])
def test_two_processes_find_the_noise_scale_of_the_model(ranks: list[dict[str, Any]], name: str) -> None:
    for facts in ranks:
        steps, value = facts[name]["logged"][-1]
        assert steps == STEPS
        assert value == pytest.approx(NOISE_SCALE, rel=0.2)
        assert facts[name]["average"] == ranks[0][name]["average"]


def test_measuring_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["on"]["weights"] == ranks[0]["off"]["weights"]
    assert ranks[0]["off"]["average"] is None
    assert not ranks[0]["off"]["logged"]


def test_a_resumed_run_continues_its_average(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["resumed"]["average"] == ranks[0]["on"]["average"]
    assert ranks[1]["resumed"]["weights"] == ranks[0]["on"]["weights"]


def test_one_process_compares_a_micro_batch_with_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulated = {**ON, "batch.per_gpu": 4}
    plain = train(tmp_path / "plain", Launch(), **accumulated)
    assert plain["logged"][-1][1] == pytest.approx(NOISE_SCALE, rel=0.2)
    clipped = train(tmp_path / "clipped", Launch(), **accumulated, **{"optim_wrapper.clip_grad": dict(max_norm=0.1)})
    assert clipped["average"] == plain["average"]

    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    amp = dict(type="AmpOptimWrapper", loss_scale=dict(init_scale=2.0**10), dtype="bfloat16")
    scaled = train(tmp_path / "scaled", Launch(), amp=amp, **accumulated)
    assert scaled["logged"][-1][1] == pytest.approx(plain["logged"][-1][1], rel=0.02)
    assert scaled["average"]["signal"] == pytest.approx(plain["average"]["signal"], rel=0.02)


def test_where_it_cannot_be_measured_one_line_says_so() -> None:
    alone = BatchPlan(global_batch=16, processes=1, per_process=16, accumulation=1)
    with pytest.raises(ConfigError, match=r"one process without accumulation .* batch.per_gpu=8"):
        check_noise_scale({"noise_scale": True}, alone)
    check_noise_scale({}, alone)
    check_noise_scale({"noise_scale": True}, BatchPlan(16, 1, 8, 2))
    with pytest.raises(ConfigError, match=r"not with env_cfg.sharded"):
        check_noise_scale({"noise_scale": True, "sharded": True}, BatchPlan(16, 2, 8, 1))
    with pytest.raises(ConfigError, match=r"^env_cfg.noise_scale='yes': True or False is needed$"):
        resolve(config(Path("unused"), **{"env_cfg.noise_scale": "yes"}), BATCH, Launch())
    with pytest.raises(ConfigError, match="one process without accumulation"):
        resolve(config(Path("unused"), **ON), BATCH, Launch())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    forked(lambda: together(0, folder), lambda: together(1, folder))
