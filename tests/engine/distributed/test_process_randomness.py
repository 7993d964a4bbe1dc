"""Processes mix, erase and drop by random numbers of their own, from the same initial weights, also after a resume.

Run as a program, ``python test_process_randomness.py FOLDER``, this file does the trainings: two processes, then one
that takes over from them. They are forks of one process, so that importing is paid for once.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

import classification  # noqa: F401
from backbones.layers import DropPath
from engine.config.load import resolve
from engine.config.world import Launch
from engine.training.build import build_runner
from tests.runs import continue_from, forked, run_as_program, small_run

IMAGES, GLOBAL, PER_GPU, STEPS, HALF = 16, 16, 4, 6, 3
PATIENCE = 300  # seconds until something that hangs is ended
DRAWS = ("mixing", "erased", "dropped")


@DATASETS.register_module()
class ImagesOfTheRandomnessTest(Dataset):
    """Noise."""

    def __init__(self, metainfo: dict[str, Any]) -> None:
        self.metainfo = dict(metainfo)
        random = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=random)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.images[index], "label": index % 2, "img_path": str(index)}


def config(work_dir: Path, **changes: Any) -> Config:
    cfg = Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=dict(
                    type="convnext_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), drop_path_rate=0.5, init_std=0.2
                ),
                num_classes="from_classes",
                data_preprocessor=dict(mixup=0.8, cutmix=1.0, erasing=0.5),
            ),
            classes=("even", "odd"),
            batch=dict(size=GLOBAL, per_gpu=PER_GPU),
            train_dataloader=dict(
                num_workers=0,
                collate_fn=dict(type="default_collate"),
                dataset=dict(type="ImagesOfTheRandomnessTest"),
                sampler=dict(type="InfiniteSampler", shuffle=True),
            ),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2)),
            train_cfg=dict(type="IterationLoop", max_iters=STEPS),
            **small_run(work_dir, STEPS, interval=HALF),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


class Drawn(Hook):
    """Notes what one process draws in each micro-batch, and the weights before the first step and at the end."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {name: [] for name in DRAWS}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if "start" not in self.facts:
            self.facts["start"] = digest(runner.model)
            drops = [module for module in runner.model.modules() if isinstance(module, DropPath) and module.drop_prob]
            self.facts["drops"] = len(drops)
            for module in drops:
                module.register_forward_hook(self._dropped)

    def after_train(self, runner: Any) -> None:
        self.facts["end"] = digest(runner.model)

    def _dropped(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.facts["dropped"].append(tuple((output.flatten(1) == 0).all(1).tolist()))


def digest(model: nn.Module) -> str:
    """Hash of all weights, whole ones also where they are sharded."""
    values = (one.full_tensor() if isinstance(one, DTensor) else one for one in model.parameters())
    return hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in values)).hexdigest()


def train(work_dir: Path, launch: Launch, resume: bool = False, **changes: Any) -> dict[str, Any]:
    """Train as ``tools/train.py`` does, and return what this process drew."""
    resolved = resolve(config(work_dir, **changes), GLOBAL, launch)
    resolved.cfg.resume = resume
    runner = build_runner(resolved, launch)
    hook = Drawn()
    runner.register_hook(hook)
    choose, erase = Mixup._params_per_batch, RandomErasing.__call__

    def chosen(mixup: Mixup) -> tuple[float, bool]:
        lam, use_cutmix = choose(mixup)
        hook.facts["mixing"].append((float(lam), bool(use_cutmix)))
        return lam, use_cutmix

    def erased(erasing: RandomErasing, images: Tensor) -> Tensor:
        before = images.clone()
        images = erase(erasing, images)
        hook.facts["erased"].append((before != images).any(1).numpy().tobytes())
        return images

    Mixup._params_per_batch, RandomErasing.__call__ = chosen, erased
    try:
        runner.train()
    finally:
        Mixup._params_per_batch, RandomErasing.__call__ = choose, erase
    return hook.facts


# ---- the trainings


def serve(folder: Path) -> None:
    """Do all the trainings; nothing is computed before the forks, which autograd would not survive."""
    forked(lambda: together(0, folder), lambda: together(1, folder))
    continue_from(folder / "ddp", folder / "taken_over", HALF)
    forked(lambda: alone(folder))


def together(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    two = Launch(processes=2, local_processes=2)
    facts = {name: train(folder / name, two, **{"env_cfg.sharded": name == "sharded"}) for name in ("ddp", "sharded")}
    if not rank:
        continue_from(folder / "ddp", folder / "resumed", HALF)
    dist.barrier()
    facts["resumed"] = train(folder / "resumed", two, resume=True)
    torch.save(facts, folder / f"facts_{rank}.pt")
    dist.destroy_process_group()


def alone(folder: Path) -> None:
    """One process: from the start, and from the checkpoint of two."""
    torch.set_num_threads(1)
    facts = {"alone": train(folder / "alone", Launch())}
    facts["taken_over"] = train(folder / "taken_over", Launch(), resume=True)
    torch.save(facts, folder / "facts_alone.pt")


# ---- the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all trainings."""
    folder = tmp_path_factory.mktemp("runs")
    run_as_program(__file__, folder, PATIENCE)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"facts_{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "facts_alone.pt"))


@pytest.mark.parametrize("way", ["ddp", "sharded"])
def test_each_process_draws_its_own_numbers(ranks: list[dict[str, Any]], way: str) -> None:
    first, second = (rank[way] for rank in ranks)
    micro_batches = STEPS * GLOBAL // PER_GPU // 2
    for name, count in zip(DRAWS, (micro_batches, micro_batches, micro_batches * first["drops"]), strict=True):
        assert len(first[name]) == len(second[name]) == count
        assert sum(one == other for one, other in zip(first[name], second[name], strict=True)) < count / 2, name
    assert not {lam for lam, _ in first["mixing"]} & {lam for lam, _ in second["mixing"]}
    # Mixing is drawn for each micro-batch, as in the released code (facebookresearch/ConvNeXt, engine.py, line 49).
    assert len({lam for lam, _ in first["mixing"]}) == micro_batches


@pytest.mark.parametrize("way", ["ddp", "sharded"])
def test_all_processes_begin_and_end_with_the_same_weights(
    ranks: list[dict[str, Any]], single: dict[str, Any], way: str
) -> None:
    assert ranks[0][way]["start"] == ranks[1][way]["start"] == single["alone"]["start"]
    assert ranks[0][way]["end"] == ranks[1][way]["end"] != ranks[0][way]["start"]


def test_a_resumed_process_draws_what_it_would_have_drawn(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name in DRAWS:
            whole, rest = rank["ddp"][name], rank["resumed"][name]
            assert rest == whole[len(whole) * HALF // STEPS :], name
        assert rank["resumed"]["end"] == rank["ddp"]["end"]


def test_one_process_that_takes_over_draws_anew_and_says_so(
    folder: Path, ranks: list[dict[str, Any]], single: dict[str, Any]
) -> None:
    taken = {lam for lam, _ in single["taken_over"]["mixing"]}
    assert len(taken) == (STEPS - HALF) * GLOBAL // PER_GPU
    for other in (single["alone"], *(rank["ddp"] for rank in ranks)):
        assert not taken & {lam for lam, _ in other["mixing"]}
    (log,) = (folder / "taken_over").glob("*/*.log")
    said = (
        "saved by 2 processes, resumed with 1: the images, their order and augmentation are the same, but mixup, "
        "random erasing, stochastic depth and dropout draw other numbers than without the stop"
    )
    assert said in log.read_text()


def test_the_spread_of_a_step_is_that_of_independent_draws() -> None:
    """With one lambda for all, a step of 32 processes would spread as one of a single process does."""
    from engine.checkpoint.rng import seed_process

    mixup, steps = Mixup(0.8, 1.0, num_classes=2), 200
    weights = np.empty((32, steps))
    for rank in range(32):
        seed_process(0, 32, rank, 0)
        for step in range(steps):
            lam, _ = mixup._params_per_batch()
            weights[rank, step] = max(lam, 1 - lam)
    assert weights.std() == pytest.approx(0.148, abs=0.01)
    assert weights.mean(0).std() == pytest.approx(0.026, abs=0.005)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
