"""Two processes, with whole or with sharded parameters, do what one does; and each goes on from the file of the other.

Run as a program, this file does all the trainings, ``python test_sharding.py FOLDER``: alone, then the two processes,
then alone again from their files. They are forks of one process, so that importing is paid for once.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
import torch.distributed as dist
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import DATASETS, MODELS
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

import classification  # noqa: F401
from backbones import UserError, build_backbone, list_backbones
from backbones.weights import read_checkpoint
from engine.config.load import resolve
from engine.config.world import Launch
from engine.distributed.sharding import gather_whole, shard_model, shard_optimizer
from engine.training.build import build_runner
from engine.training.ema import ModelEMAHook
from engine.training.model_preparation import compile_parts
from tests.runs import continue_from, forked, run_as_program, small_run

ROOT = Path(__file__).resolve().parents[3]
IMAGES, GLOBAL, STEPS, HALF = 16, 8, 5, 3
PATIENCE = 300  # seconds until something that hangs is ended
# Between one process and two, weights of up to 1 differed by at most 1.9e-7; the last two steps alone move each tensor
# by more than 2e-3.
CLOSE = dict(rtol=0, atol=1e-6)
MOVED = 1e-3


@DATASETS.register_module()
class ImagesOfTheShardingTest(Dataset):
    """Noise in two shades."""

    def __init__(self, metainfo: dict[str, Any]) -> None:
        self.metainfo = dict(metainfo)
        random = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 160, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=random)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = index % 2
        return {"inputs": self.images[index] + 90 * label, "label": label, "img_path": str(index)}


def config(work_dir: Path, **changes: Any) -> Config:
    """A training with all that sharding has to get right: groups, momenta, a clipped norm, averages, validation."""
    loader = dict(
        num_workers=0,
        collate_fn=dict(type="default_collate"),
        dataset=dict(type="ImagesOfTheShardingTest"),
    )
    backbone = dict(
        type="convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 15, 16), layer_scale_init_value=0.5, init_std=0.2
    )
    cfg = Config(
        dict(
            model=dict(type="ImageClassifier", backbone=backbone, num_classes="from_classes"),
            classes=("dark", "light"),
            batch=dict(size=GLOBAL),
            train_dataloader=dict(**loader, sampler=dict(type="InfiniteSampler", shuffle=True)),
            val_dataloader=dict(**loader, batch_size=4, sampler=dict(type="DefaultSampler", shuffle=False)),
            val_evaluator=dict(type="ClassificationMetric"),
            val_cfg=dict(type="ValidationLoop"),
            optim_wrapper=dict(
                type="OptimWrapper",
                constructor="LayerDecayConstructor",
                paramwise_cfg=dict(decay_rate=0.8),
                optimizer=dict(type="AdamW", lr=1e-2, eps=1e-5, weight_decay=0.05),
                clip_grad=dict(max_norm=0.5),
            ),
            train_cfg=dict(type="IterationLoop", max_iters=STEPS, val_interval=2),
            **small_run(work_dir, STEPS, interval=HALF),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train(work_dir: Path, launch: Launch, resume: bool = False, **changes: Any) -> Any:
    """Train as ``tools/train.py`` does."""
    resolved = resolve(config(work_dir, **changes), GLOBAL, launch)
    resolved.cfg.resume = resume
    runner = build_runner(resolved, launch)
    runner.train()
    return runner


def saved(work_dir: Path, step: int = STEPS) -> dict[str, Any]:
    return read_checkpoint(str(work_dir / f"iter_{step}.pth"))


def history(work_dir: Path, name: str) -> list[float]:
    return saved(work_dir)["message_hub"]["log_scalars"][name].data[0].tolist()


# ---- the trainings


def serve(folder: Path) -> None:
    """Do all the trainings; nothing is computed before the forks, which autograd would not survive."""
    forked(lambda: alone(folder))
    continue_from(folder / "alone", folder / "resumed", HALF)
    forked(lambda: together(0, folder), lambda: together(1, folder))
    forked(lambda: alone_again(folder))


def alone(folder: Path) -> None:
    """One process, which asks for sharding in vain; then a training that begins with the weights of the first."""
    torch.set_num_threads(1)
    runner = train(folder / "alone", Launch(), **{"env_cfg.sharded": True})
    assert not runner.sharded
    train(folder / "tuned_alone", Launch(), **{"model.backbone.weights": str(folder / "alone/iter_5.pth")})


def alone_again(folder: Path) -> None:
    """One process from the files of two."""
    torch.set_num_threads(1)
    for way in ("sharded", "ddp_recomputed"):
        continue_from(folder / way, folder / f"{way}_on", HALF)
        train(folder / f"{way}_on", Launch(), resume=True)


def together(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    two = Launch(processes=2, local_processes=2)
    shard = {"env_cfg.sharded": True}
    facts: dict[str, Any] = {"sharded": observed_run(folder / "sharded", two)}
    train(folder / "ddp", two)
    train(folder / "accumulated", two, **shard, **{"batch.per_gpu": 2})
    train(folder / "resumed", two, resume=True, **shard)
    train(folder / "tuned", two, **shard, **{"model.backbone.weights": str(folder / "alone/iter_5.pth")})
    options = {"model.backbone.grad_checkpointing": (0, 2), "env_cfg.compile": dict(backend="aot_eager")}
    for name, more in (("recomputed", shard), ("ddp_recomputed", {})):
        torch._dynamo.utils.counters.clear()
        train(folder / name, two, **more, **options)
        facts[name] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    facts["scaler"] = skipped_step(folder / "scaler", two)
    facts["detector"] = detector_difference()
    torch.save(facts, folder / f"facts_{rank}.pt")
    dist.destroy_process_group()


def observed_run(folder: Path, launch: Launch) -> dict[str, Any]:
    """Train sharded and look at what lies where."""
    runner = train(folder, launch, **{"env_cfg.sharded": True})
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, ModelEMAHook))
    tensors = {
        "parameters": list(runner.model.parameters()),
        "averages": list(hook.averages.values()),
        "moments": [one["exp_avg"] for one in runner.optim_wrapper.optimizer.state.values()],
    }
    facts: dict[str, Any] = {name: _share(values) for name, values in tensors.items()}
    facts["units"] = sum(type(module).__name__.startswith("FSDP") for module in runner.model.modules())
    return facts


def _share(values: list[Any]) -> tuple[bool, float]:
    local = sum(value.to_local().numel() for value in values)
    return all(isinstance(value, DTensor) for value in values), local / sum(value.numel() for value in values)


def skipped_step(folder: Path, launch: Launch) -> dict[str, Any]:
    """Mixed precision with a scaler, with one step in which the gradients of one process overflow."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    # mmengine builds its scaler on machines with a GPU alone; torch's works on CPUs too.
    amp_optimizer_wrapper.is_cuda_available = lambda: True
    amp_optimizer_wrapper.GradScaler = partial(torch.amp.GradScaler, "cpu")
    resolved = resolve(config(folder, **{"env_cfg.sharded": True}), GLOBAL, launch)
    resolved.cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(init_scale=64.0))
    runner = build_runner(resolved, launch)
    wrapper = runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    batch = next(iter(runner.train_loop.dataloader))
    history = []
    for overflow in (False, True, False):
        before = [param.to_local().clone() for param in runner.model.parameters()]
        with wrapper.optim_context(runner.model):
            data = runner.model.data_preprocessor(batch, True)
            loss = runner.model(**data, mode="loss")["loss"]
        wrapper.update_params(loss * (torch.inf if overflow and dist.get_rank() == 0 else 1.0))
        after = [param.to_local() for param in runner.model.parameters()]
        moved = any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        finite = all(bool(one.isfinite().all()) for one in after)
        history.append((moved, finite, wrapper.loss_scaler.get_scale()))
    return {"history": history, "autocast": loss.dtype}


def detector_difference() -> tuple[float, float, float]:
    """Train a small Mask R-CNN for two steps under DDP and sharded.

    Returns:
        The largest difference of a weight, how far the weights moved, and the last loss.
    """
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import OptimWrapper
    from mmengine.registry import DefaultScope

    import detection  # noqa: F401
    from engine.config.load import load_config

    options = {"model.backbone.depths": (1, 1, 1, 1), "model.backbone.dims": (8, 8, 16, 16)}
    cfg = load_config(ROOT / "configs/detection/mask_rcnn_digits.py", options, Launch(), training=False).cfg
    weights = []
    with DefaultScope.overwrite_default_scope("mmdet"):
        for wrap in (partial(MMDistributedDataParallel, broadcast_buffers=False), shard_model):
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
            model.init_weights()
            start = {name: value.clone() for name, value in model.state_dict().items()}
            model = wrap(model).train()
            wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))
            torch.manual_seed(dist.get_rank())  # the images, and which proposals are sampled
            for _ in range(2):
                log = model.train_step(detection_batch(), wrapper)
            state = getattr(model, "module", model).state_dict()
            weights.append({n: one.full_tensor() if isinstance(one, DTensor) else one for n, one in state.items()})
    ddp, sharded = weights
    moved = max(float((start[name] - one).abs().max()) for name, one in ddp.items())
    return max(float((sharded[name] - one).abs().max()) for name, one in ddp.items()), moved, float(log["loss"])


def detection_batch() -> dict[str, Any]:
    """Two images, each with two objects."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64)))
        boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0], [20.0, 24.0, 60.0, 60.0]])
        masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.randint(10, (2,))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks.numpy(), 64, 64))
        samples.append(sample)
    return {"inputs": [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in samples], "data_samples": samples}


# ---- the tests


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the work directories of all trainings."""
    folder = tmp_path_factory.mktemp("runs")
    run_as_program(__file__, folder, PATIENCE)
    return folder


@pytest.fixture(scope="module")
def facts(runs: Path) -> list[dict[str, Any]]:
    return [torch.load(runs / f"facts_{rank}.pt") for rank in range(2)]


WAYS = ("ddp", "sharded", "accumulated", "recomputed", "ddp_recomputed", "resumed")


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_learns(runs: Path, way: str) -> None:
    ours, theirs = saved(runs / way), saved(runs / "alone")
    for key in ("state_dict", "ema_state_dict"):
        assert list(ours[key]) == list(theirs[key])
        torch.testing.assert_close(ours[key], theirs[key], **CLOSE)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], **CLOSE)
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    # Adam would not notice a factor in the gradients, the norm does.
    assert history(runs / way, "train/grad_norm") == pytest.approx(history(runs / "alone", "train/grad_norm"), rel=1e-5)
    for name in ("train/loss", "val/val_loss", "val/ema/val_loss"):
        assert history(runs / way, name) == pytest.approx(history(runs / "alone", name), abs=1e-6), name


def test_the_training_is_a_hard_one(runs: Path) -> None:
    """Every weight moves, the norm is clipped, averages and groups differ: else equality would say little."""
    first, last = saved(runs / "alone", HALF), saved(runs / "alone")
    for name, value in last["state_dict"].items():
        assert float((value - first["state_dict"][name]).abs().max()) > MOVED, name
        assert float((value - last["ema_state_dict"][f"module.{name}"]).abs().max()) > MOVED, name
    assert min(history(runs / "alone", "train/grad_norm")) > 0.5
    assert len({group["lr"] for group in last["optimizer"]["param_groups"]}) > 3
    assert history(runs / "alone", "val/val_loss") != pytest.approx(
        history(runs / "alone", "val/ema/val_loss"), rel=1e-2
    )


@pytest.mark.parametrize("way", ["sharded", "ddp_recomputed"])
def test_one_process_goes_on_from_the_file_of_two(runs: Path, way: str) -> None:
    ours, theirs = saved(runs / f"{way}_on"), saved(runs / "alone")
    for key in ("state_dict", "ema_state_dict", "optimizer"):
        torch.testing.assert_close(ours[key], theirs[key], **CLOSE)


def test_a_sharded_training_begins_with_the_weights_it_is_given(runs: Path) -> None:
    torch.testing.assert_close(saved(runs / "tuned")["state_dict"], saved(runs / "tuned_alone")["state_dict"], **CLOSE)
    load_reports = [
        json.loads((runs / way / "weights.json").read_text())["receipts"] for way in ("tuned", "tuned_alone")
    ]
    assert len(load_reports[0]) == 1
    assert load_reports[0] == load_reports[1]


def test_the_file_holds_nothing_but_plain_tensors(runs: Path) -> None:
    kinds = [_kinds(saved(folder)) for folder in (runs / "alone", runs / "sharded")]
    assert kinds[0] == kinds[1]
    size, whole = (os.path.getsize(folder / "iter_5.pth") for folder in (runs / "sharded", runs / "alone"))
    random_states = 16_000  # of the second process: 624 words each of Python and of NumPy, and torch's 5,056 bytes
    assert whole < size < whole + random_states


def _kinds(node: Any, path: str = "") -> dict[str, str]:
    if path == "/meta":  # the config, with names and times
        return {}
    if isinstance(node, dict):
        return {key: kind for name, one in node.items() for key, kind in _kinds(one, f"{path}/{name}").items()}
    return {
        path: f"{type(node).__name__} {node.dtype} {tuple(node.shape)}" if isinstance(node, Tensor) else str(type(node))
    }


def test_what_is_to_be_compiled_is(facts: list[dict[str, Any]]) -> None:
    """Training and evaluation, in one graph each; under sharding in pieces, since units are gathered between them."""
    for one in facts:
        assert one["ddp_recomputed"] == 2
        assert one["recomputed"] > 2


def test_every_process_holds_its_share(facts: list[dict[str, Any]]) -> None:
    for kind in ("parameters", "averages", "moments"):
        shares = []
        for one in facts:
            sharded, share = one["sharded"][kind]
            assert sharded, kind
            shares.append(share)
        assert sum(shares) == pytest.approx(1)
        # Scales of one row, and odd numbers of rows, are the first process's.
        assert min(shares) > 0.4, kind
    assert facts[0]["sharded"]["units"] == 5 + 1  # blocks, and the rest


def test_an_overflow_in_one_process_is_a_skipped_step_in_all(facts: list[dict[str, Any]]) -> None:
    for one in facts:
        moved, finite, scales = zip(*one["scaler"]["history"], strict=True)
        assert moved == (True, False, True)
        assert all(finite)
        assert scales == (64.0, 32.0, 32.0)


def test_a_detector_learns_the_same_sharded(facts: list[dict[str, Any]]) -> None:
    for one in facts:
        difference, moved, loss = one["detector"]
        assert difference < 1e-5
        assert moved > 0.01
        assert 0 < loss < 100


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"env_cfg.shard": True}, "env_cfg has no setting 'shard'; nearest: sharded"),
        ({"env_cfg.sharded": "fsdp"}, "env_cfg.sharded='fsdp': True or False"),
        ({"env_cfg.compile": "max"}, "env_cfg.compile='max': True, False or arguments of torch.compile"),
        ({"env_cfg.compile": dict(speed=1)}, "unexpected keyword argument 'speed'"),
        ({"custom_hooks": [dict(type="ModelEMAHook", decay=1.0)]}, "ModelEMAHook: decay=1.0"),
    ],
)
def test_wrong_settings(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_runner(resolve(config(tmp_path, **setting), GLOBAL, Launch()), Launch())


@pytest.mark.parametrize("name", list_backbones())
def test_units_are_the_blocks_that_are_called(name: str) -> None:
    """Parameters are whole while the unit they belong to is called: a unit that never is would stay in pieces."""
    with torch.device("meta"):
        network = build_backbone(name)
        stages = network.block_stages()
        units = [network.get_submodule(path) for path in stages]
        called: list[nn.Module] = []
        for unit in units:
            unit.register_forward_pre_hook(lambda module, _: called.append(module))
        network.eval()(torch.empty(1, 3, 224, 224))
    assert called == units
    containers = [set(module) for module in network.modules() if isinstance(module, nn.Sequential)]
    assert all(blocks <= set(units) for blocks in containers if not blocks.isdisjoint(units))
    assert sorted(set(stages.values())) == [0, 1, 2, 3]
    assert list(stages.values()) == sorted(stages.values())


@pytest.mark.parametrize("stages", [True, (0, 1), [3], False])
@pytest.mark.parametrize("name", ["convnext_atto", "convnext_isotropic_small", "swin_tiny", "resnet50"])
def test_blocks_of_the_chosen_stages_are_recomputed(name: str, stages: Any) -> None:
    with torch.device("meta"):
        network = copy.deepcopy(build_backbone(name, grad_checkpointing=stages)).train()
        calls: dict[str, int] = {}
        for path in network.block_stages():
            # The first layer of a block is called once more where the block is.
            first = next(layer for layer in network.get_submodule(path).modules() if not list(layer.children()))
            first.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls.get(path, 0) + 1))
        network(torch.empty(2, 3, 64, 64)).sum().backward()
        network.eval()(torch.empty(2, 3, 64, 64))
    chosen = {True: (0, 1, 2, 3), False: ()}.get(stages) if isinstance(stages, bool) else stages
    assert calls == {path: 3 if stage in chosen else 2 for path, stage in network.block_stages().items()}


@pytest.mark.parametrize("stages", [2, (0, 4), "01"])
def test_stages_to_recompute_have_to_exist(stages: Any) -> None:
    with pytest.raises(UserError, match=r"grad_checkpointing=.*: give True, stages from 0, 1, 2, 3"):
        build_backbone("convnext_atto", grad_checkpointing=stages)


def test_heads_are_not_compiled() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("backbone", "neck", "head")})
    model.backbone, model.neck = model["backbone"], model["neck"]
    assert compile_parts(model, {"backend": "eager"}) == ["backbone", "neck"]
    compiled = [name for name, part in model.items() if part._compiled_call_impl is not None]
    assert compiled == ["backbone", "neck"]


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_sharded_over_one(tmp_path: Path) -> None:
    """From the CPU to shards on the GPU, steps in float16 with scaler and clipping, a whole file, and back."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        states = [gpu_steps(wrap) for wrap in (lambda model: model.cuda(), shard_model)]
    finally:
        dist.destroy_process_group()
    assert all(value.device.type == "cpu" for value in states[1].values())
    torch.testing.assert_close({n: v.cpu() for n, v in states[0].items()}, dict(states[1]), rtol=0, atol=1e-3)


def gpu_steps(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
    """Train for three steps, then load what was saved."""
    torch.manual_seed(0)
    backbone = dict(type="convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 15, 16), init_std=0.2)
    model = wrap(MODELS.build(dict(type="ImageClassifier", backbone=backbone, num_classes=2))).train()
    assert all(param.device.type == "cuda" for param in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wrapper = AmpOptimWrapper(optimizer=optimizer, dtype="float16", clip_grad=dict(max_norm=0.5))
    batch = {"inputs": torch.randint(255, (8, 3, 32, 32), dtype=torch.uint8), "label": torch.arange(8) % 2}
    for _ in range(3):
        model.train_step({**batch, "img_path": [""] * 8}, wrapper)
    state, moments = gather_whole(model.state_dict()), gather_whole(wrapper.state_dict())
    shard_optimizer(optimizer)
    model.load_state_dict(state)
    wrapper.load_state_dict(moments)
    model.train_step({**batch, "img_path": [""] * 8}, wrapper)
    return state


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
