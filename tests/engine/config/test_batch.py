"""The batch contract: the plan, the rate, and that the way a global batch is spread changes nothing."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from PIL import Image
from torch import Tensor

import classification  # noqa: F401  (registers its parts)
from analysis.start_check import check_parts
from backbones import UserError
from backbones.weights import read_checkpoint
from engine.config.batch import MicroBatches, collate_settings, micro_batch_collate, plan_batch, scaled_lr
from engine.config.load import load_config, resolve
from engine.config.world import Launch
from engine.training.build import build_runner
from tests.bad_inputs.builders import CONFIG

GLOBAL, IMAGES, EPOCHS = 16, 48, 2
STEPS = EPOCHS * IMAGES // GLOBAL
DECAY, CLIP = 0.7, 0.5
PEAK = 4e-3
SPREADS = {"1x16x1": (1, None), "2x8x1": (2, None), "1x4x4": (1, 4), "2x4x2": (2, 4)}  # processes, batch.per_gpu
PATIENCE = 120  # seconds


@pytest.mark.parametrize("per_gpu", [None, 1, 2, 3, 7, 32, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 8, 24, 36, 4096])
def test_a_plan_spreads_exactly_the_global_batch(size: int, processes: int, per_gpu: int | None) -> None:
    if size % processes:
        with pytest.raises(UserError) as caught:
            plan_batch(size, processes, per_gpu)
        fix = re.search(r"batch\.size=(\d+)", str(caught.value))
        assert fix is not None
        plan_batch(int(fix[1]), processes, per_gpu)
        return
    plan = plan_batch(size, processes, per_gpu)
    assert (plan.global_batch, plan.processes) == (size, processes)
    assert plan.processes * plan.per_process * plan.accumulation == size
    assert per_gpu is None or plan.per_process <= per_gpu
    share = size // processes
    fewer = [k for k in range(1, plan.accumulation) if share % k == 0 and (per_gpu is None or share // k <= per_gpu)]
    assert fewer == []


def test_the_plan_as_a_sentence() -> None:
    assert str(plan_batch(4096, 32, 128)) == "32 processes x 128 images x 1 accumulation = global batch 4096"
    assert str(plan_batch(4096, 1, 128)) == "1 process x 128 images x 32 accumulation = global batch 4096"


@pytest.mark.parametrize("size, per_gpu", [(0, None), (-4, 2), (8, 0), (8, -1)])
def test_a_batch_is_positive(size: int, per_gpu: int | None) -> None:
    with pytest.raises(UserError, match="positive"):
        plan_batch(size, 1, per_gpu)


def test_learning_rate_rules() -> None:
    assert scaled_lr(4e-3, 4096, 1024, "linear") == pytest.approx(1e-3)
    assert scaled_lr(4e-3, 4096, 1024, "sqrt") == pytest.approx(2e-3)
    assert scaled_lr(4e-3, 4096, 1024, "none") == 4e-3
    with pytest.raises(UserError, match=r"lr_rule='cubic'.*linear, sqrt, none"):
        scaled_lr(1.0, 1, 2, "cubic")


def test_micro_batches_keep_order_and_collate_like_one_batch() -> None:
    samples = [{"inputs": torch.full((3,), i), "label": i} for i in range(8)]
    parts = micro_batch_collate(samples, parts=4, collate="default_collate")
    assert isinstance(parts, MicroBatches)
    assert [part["label"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert parts[2]["inputs"].shape == (2, 3)
    listed = micro_batch_collate(samples, parts=2, collate="pseudo_collate")
    assert [part["label"] for part in listed] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("count", [3, 5])
def test_a_step_that_is_not_full_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"last {count} images .* into 4 .*drop_last=True"):
        micro_batch_collate([{"label": i} for i in range(count)], parts=4, collate="default_collate")


@FUNCTIONS.register_module()
def collate_of_test(samples: Any, label: str, collate: str = "") -> dict[str, Any]:
    """Collates one field; it has an argument that micro-batches have, too."""
    return {label: [sample[label] for sample in samples], "collate": collate}


@pytest.mark.parametrize("parts", [1, 2])
def test_the_arguments_of_a_collation_reach_it(parts: int) -> None:
    stated = {"type": "collate_of_test", "label": "name", "collate": "x"}
    options = {
        "train_dataloader.collate_fn": {"_delete_": True, **stated},
        "batch.size": 4,
        "batch.per_gpu": 4 // parts,
    }
    cfg = load_config(CONFIG["classifier"], options, Launch()).cfg
    again = collate_settings(cfg.train_dataloader.collate_fn, parts)
    assert again == cfg.train_dataloader.collate_fn
    check_parts(cfg)
    kind = again.pop("type")
    batch = FUNCTIONS.get(kind)([{"name": index} for index in range(4)], **again)
    batches = batch if parts == 2 else [batch]
    assert [one["name"] for one in batches] == ([[0, 1], [2, 3]] if parts == 2 else [[0, 1, 2, 3]])
    assert {one["collate"] for one in batches} == {"x"}


def test_a_wrong_argument_of_a_collation_is_refused_with_and_without_micro_batches() -> None:
    for per_gpu in (4, 2):
        stated = {"_delete_": True, "type": "collate_of_test", "lable": "name"}
        options = {"train_dataloader.collate_fn": stated, "batch.size": 4, "batch.per_gpu": per_gpu}
        with pytest.raises(UserError, match=r"collate_fn: collate_of_test has no argument 'lable'"):
            check_parts(load_config(CONFIG["classifier"], options, Launch()).cfg)


def test_what_collates_may_be_a_name_or_a_function() -> None:
    assert collate_settings("default_collate", 1) == {"type": "default_collate"}
    assert collate_settings(list, 2) == {"type": "micro_batch_collate", "parts": 2, "collate": list}
    assert list(micro_batch_collate("abcd", **{"parts": 2, "collate": list})) == [["a", "b"], ["c", "d"]]
    for wrong in (None, 3, {"label": "name"}):
        with pytest.raises(UserError, match=r"train_dataloader.collate_fn=.*dict\(type=NAME\) is needed"):
            collate_settings(wrong, 2)


class Witness(Hook):
    """Writes down what each optimizer step did."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.steps = 0
        self.start: dict[str, Tensor] = {}

    def before_train(self, runner: Any) -> None:
        self.start = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_post_hook(lambda *_: setattr(self, "steps", self.steps + 1))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.rates.append([group["lr"] for group in runner.optim_wrapper.optimizer.param_groups])

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs["loss"]))
        self.norms.append(float(runner.message_hub.get_scalar("train/grad_norm").current()))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, name, i in itertools.product(("train", "val"), ("dark", "light"), range(IMAGES // 2)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        low = 0 if name == "dark" else 90
        Image.fromarray(random.integers(low, low + 160, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return root


def config(images: Path, work_dir: Path, per_gpu: int | None, by_epoch: bool) -> Config:
    loop = dict(type="EpochLoop", max_epochs=EPOCHS, val_interval=EPOCHS)
    if not by_epoch:
        loop = dict(type="IterationLoop", max_iters=STEPS, val_interval=STEPS)
    loader = dict(
        num_workers=0,
        collate_fn=dict(type="default_collate"),
        sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True),
    )
    return Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=dict(
                    type="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), layer_scale_init_value=0.5
                ),
                num_classes="from_classes",
                data_preprocessor=dict(label_smoothing=0.1),
            ),
            classes=("dark", "light"),
            data_root=str(images),
            train_pipeline=[dict(type="ClassificationTransform", size=32, crop_ratio=1.0)],
            train_dataloader=dict(**loader, dataset=dict(type="FolderDataset", split="train")),
            batch=dict(size=GLOBAL, per_gpu=per_gpu),
            optim_wrapper=dict(
                constructor="LayerDecayConstructor",
                paramwise_cfg=dict(decay_rate=DECAY),
                clip_grad=dict(max_norm=CLIP),
                optimizer=dict(type="AdamW", lr=PEAK, eps=1e-3, weight_decay=0.05),
            ),
            train_cfg=loop,
            param_scheduler=[
                dict(type="LinearLR", start_factor=0.1, end=2, by_epoch=False),
                dict(type="CosineAnnealingLR", begin=1, T_max=1, eta_min_ratio=0.01, convert_to_iter_based=True)
                if by_epoch
                else dict(type="PolyLR", begin=2, end=STEPS, power=1.0, by_epoch=False),
            ],
            default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
            custom_hooks=[dict(type="ModelEMAHook", decay=0.8)],
            default_scope="mmengine",
            env_cfg=dict(),
            randomness=dict(seed=0),
            work_dir=str(work_dir),
            experiment_name=work_dir.name,
        )
    )


def train(images: Path, work_dir: Path, per_gpu: int | None, by_epoch: bool, processes: int = 1) -> dict[str, Any]:
    """What one of the processes of a training has seen."""
    launch = Launch(processes, "cpu", processes)
    runner = build_runner(resolve(config(images, work_dir, per_gpu, by_epoch), GLOBAL, launch), launch)
    witness = Witness()
    runner.register_hook(witness)
    runner.train()
    seen = {name: getattr(witness, name) for name in ("rates", "losses", "norms", "steps")}
    start = {name.removeprefix("module."): value for name, value in witness.start.items()}
    raw = getattr(runner.model, "module", runner.model).state_dict()
    return seen | {"iter": runner.iter, "start": start, "raw": raw}


def worker(rank: int, processes: int, arguments: tuple[Any, ...]) -> None:
    """One of several processes, which leaves what it has seen beside the work directory."""
    torch.set_num_threads(1)
    work_dir = arguments[1]
    meeting = f"file://{work_dir}.meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    torch.save(train(*arguments, processes=processes), f"{work_dir}.{rank}")
    dist.destroy_process_group()


def trained(images: Path, work_dir: Path, spread: tuple[int, int | None], by_epoch: bool) -> list[dict[str, Any]]:
    """What each process of a training has seen, and the averages that they have saved."""
    processes, per_gpu = spread
    arguments = (images, work_dir, per_gpu, by_epoch)
    if processes == 1:
        return [train(*arguments) | {"averaged": averages(work_dir)}]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine.training.runner", "classification"])
    workers = [context.Process(target=worker, args=(rank, processes, arguments)) for rank in range(processes)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(PATIENCE)
        one.kill()
    seen = [torch.load(f"{work_dir}.{rank}", weights_only=True) for rank in range(processes)]
    return [one | {"averaged": averages(work_dir)} for one in seen]


def averages(work_dir: Path) -> dict[str, Tensor]:
    """The averaged weights in the last checkpoint."""
    saved = read_checkpoint((work_dir / "last_checkpoint").read_text())["ema_state_dict"]
    return {name.removeprefix("module."): value for name, value in saved.items() if name.startswith("module.")}


@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
def test_how_a_step_is_spread_changes_nothing(by_epoch: bool, images: Path, tmp_path: Path) -> None:
    """Rates of all layers, losses, clipped norms, weights and averages, with layer-wise decay and AdamW."""
    runs = {name: trained(images, tmp_path / name, spread, by_epoch) for name, spread in SPREADS.items()}
    (reference,) = runs.pop("1x16x1")
    assert reference["steps"] == len(reference["rates"]) == reference["iter"] == STEPS
    assert len({rates[0] for rates in reference["rates"]}) > STEPS // 2
    assert all(rates[-1] == pytest.approx(rates[0] * DECAY**5) for rates in reference["rates"])
    assert sum(norm > CLIP for norm in reference["norms"]) > STEPS // 2
    for key in ("start", "averaged"):
        assert not any(torch.equal(reference["raw"][name], reference[key][name]) for name in reference["start"])
    for name, processes in runs.items():
        for other in processes:
            assert (other["steps"], other["iter"]) == (STEPS, STEPS), name
            assert other["rates"] == [pytest.approx(rates, rel=1e-9) for rates in reference["rates"]], name
            assert other["losses"] == pytest.approx(reference["losses"], abs=1e-5), name
            assert other["norms"] == pytest.approx(reference["norms"], rel=1e-4), name
            for key in ("start", "raw", "averaged"):
                torch.testing.assert_close(other[key], reference[key], rtol=0, atol=2e-5)


def test_the_log_has_the_highest_rate(images: Path, tmp_path: Path) -> None:
    seen = train(images, tmp_path, 4, by_epoch=False)
    (path,) = tmp_path.glob("*/vis_data/scalars.json")
    logged = [json.loads(line)["lr"] for line in path.read_text().splitlines()]
    assert logged == pytest.approx([max(rates) for rates in seen["rates"]])
    assert max(logged) == pytest.approx(PEAK)
    assert all(min(rates) <= 0.2 * max(rates) for rates in seen["rates"])
