"""Every config is loaded, resolved, built, dumped and read again; the paper's values hold for what would run."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISUALIZERS,
    DefaultScope,
)
from torch import nn

import engine.runner  # noqa: F401  (registers loops, hooks and the constructor)
from backbones import UserError
from engine.layer_decay import ParameterGroup, parameter_groups
from engine.resolve import Launch, load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_")
CLASSIFICATION = ROOT / "configs/classification/convnext_tiny_in1k_300e.py"
MASK = ROOT / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"
CASCADE = ROOT / "configs/detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py"
UPERNET = ROOT / "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py"
CPU, CLUSTER = Launch(), Launch(processes=8, device="cuda", local_processes=8)
GPUS = Launch(processes=4, device="cuda", local_processes=4)  # divides the small batches of the digits too
SHORTEST, LONGEST = 15, 60
IMAGENET_IMAGES = 1_281_167

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
every_launch = pytest.mark.parametrize("launch", [CPU, GPUS], ids=["1 cpu", "4 gpu"])
dense = pytest.mark.parametrize("path", [MASK, CASCADE, UPERNET], ids=lambda path: path.stem)


def resolved(path: Path, launch: Launch = GPUS) -> Config:
    return load_config(path, None, launch).cfg


def built(cfg: Config) -> Any:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        return MODELS.build(cfg.model)


def groups_of(cfg: Config, model: nn.Module) -> list[ParameterGroup]:
    optimizer = cfg.optim_wrapper.optimizer
    return parameter_groups(model, optimizer.weight_decay, **cfg.optim_wrapper.get("paramwise_cfg", {}))


def rates(cfg: Config, epoch_length: int, shrink: int = 1) -> list[float]:
    """The rate of every step, by the real schedulers; ``shrink`` divides what the config counts in iterations."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for one in cfg.param_scheduler:
        options = dict(one)
        if not options.get("by_epoch", True):
            options |= {key: options[key] // shrink for key in ("begin", "end") if key in options}
        schedulers.append(
            PARAM_SCHEDULERS.build(options, default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        )
    steps = (
        cfg.train_cfg.max_iters // shrink if "max_iters" in cfg.train_cfg else cfg.train_cfg.max_epochs * epoch_length
    )
    seen = []
    for step in range(1, steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % epoch_length == 0:
                scheduler.step()
    return seen


def norms(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("norm_cfg"), dict):
            yield node["norm_cfg"]["type"]
        for value in node.values():
            yield from norms(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from norms(value)


def test_the_configs_are_found() -> None:
    assert {CLASSIFICATION, MASK, CASCADE, UPERNET} < set(CONFIGS)


@every_launch
@every_config
def test_a_config_builds_and_every_parameter_learns(path: Path, launch: Launch) -> None:
    cfg = resolved(path, launch)
    assert cfg.optim_wrapper.constructor == "LayerDecayConstructor"
    model = built(cfg)
    grouped = [param for group in groups_of(cfg, model) for param in group.params]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert not re.search(r"from_(classes|backbone)|set from", str(cfg.to_dict()))


@every_config
def test_a_dumped_config_is_the_same_and_stays_so(path: Path, tmp_path: Path) -> None:
    cfg = resolved(path)
    dumped = tmp_path / "dumped.py"
    cfg.dump(dumped)
    assert Config.fromfile(str(dumped)).to_dict() == cfg.to_dict()
    assert resolved(dumped).to_dict() == cfg.to_dict()


@every_config
def test_pipelines_build(path: Path) -> None:
    cfg = resolved(path)
    pipelines = [cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for pipeline in (*pipelines, cfg.get("tta_pipeline", [])):
            Compose(pipeline)


@every_config
def test_whatever_a_config_names_is_registered(path: Path) -> None:
    cfg = resolved(path)
    named = [
        (LOOPS, [cfg.train_cfg, cfg.val_cfg]),
        (OPTIM_WRAPPERS, [cfg.optim_wrapper]),
        (OPTIMIZERS, [cfg.optim_wrapper.optimizer]),
        (OPTIM_WRAPPER_CONSTRUCTORS, [{"type": cfg.optim_wrapper.constructor}]),
        (PARAM_SCHEDULERS, cfg.param_scheduler),
        (HOOKS, [*cfg.default_hooks.values(), *cfg.custom_hooks]),
        (METRICS, [cfg.val_evaluator, cfg.test_evaluator]),
        (VISUALIZERS, [cfg.visualizer]),
        (DATASETS, [cfg[f"{split}_dataloader"].dataset for split in ("train", "val", "test")]),
        (DATA_SAMPLERS, [cfg.train_dataloader.sampler, cfg.val_dataloader.sampler]),
    ]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for root, parts in named:
            with root.switch_scope_and_registry(None) as registry:
                assert [part for part in parts if registry.get(part["type"]) is None] == []


@every_config
def test_rates_start_low_reach_the_stated_one_and_end_low(path: Path) -> None:
    cfg = resolved(path)
    epoch_length = 6000 // cfg.train_cfg.get("max_epochs", 1)
    curve = rates(cfg, epoch_length, shrink=100 if path == UPERNET else 1)
    stated = cfg.optim_wrapper.optimizer.lr
    assert max(curve) == pytest.approx(stated, rel=0.01)
    assert curve[0] < 0.1 * stated
    assert 0 <= curve[-1] < 0.05 * stated


@every_config
def test_a_config_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    name = re.escape(str(path.relative_to(ROOT)))
    assert re.search(rf"^    .*(bash|python) tools/(dist_)?train\.(sh|py) {name}", docstring, re.MULTILINE)
    assert docstring.partition("\n")[0].endswith(".")
    assert SHORTEST <= len(text.splitlines()) <= LONGEST


def bases(path: Path) -> list[Path]:
    """Config files of ours that a config inherits from."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            named = ast.literal_eval(node.value)
            named = [named] if isinstance(named, str) else named
            return [(path.parent / one).resolve() for one in named if "::" not in one]
    return []


def levels(path: Path) -> int:
    return max((1 + levels(base) for base in bases(path)), default=0)


@every_config
def test_at_most_two_levels_of_inheritance(path: Path) -> None:
    assert 1 <= levels(path) <= 2


def test_an_unknown_key_in_a_config_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {str(MASK)!r}\ntrain_pipline = []\n", encoding="utf-8")
    with pytest.raises(UserError, match="'train_pipline'; did you mean 'train_pipeline'"):
        load_config(path)


def test_classification_is_table_2_5() -> None:
    cfg = resolved(CLASSIFICATION, CLUSTER)
    model = built(cfg)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 4e-3, 0.05)
    assert optimizer.betas == (0.9, 0.999)
    assert cfg.batch.size == 4096
    assert cfg.train_dataloader.batch_size * 8 == 4096
    assert cfg.train_cfg.max_epochs == 300
    assert "clip_grad" not in cfg.optim_wrapper
    assert {group.lr_scale for group in groups_of(cfg, model)} == {1.0}
    assert {group.weight_decay for group in groups_of(cfg, model)} == {0.05, 0.0}
    mix = model.data_preprocessor.mix
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.label_smoothing) == (0.8, 1.0, 0.1)
    assert (mix.mix_prob, mix.num_classes) == (1.0, 1000)
    assert model.data_preprocessor.erasing == 0.25
    (transform,) = cfg.train_dataloader.dataset.pipeline
    assert (transform.size, transform.rand_augment) == (224, "rand-m9-mstd0.5-inc1")
    (transform,) = cfg.val_dataloader.dataset.pipeline
    assert (transform.size, transform.crop_ratio) == (224, 0.875)
    blocks = [block for stage in model.backbone.stages for block in stage]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.1 * i / 17 for i in range(18)])
    assert {block.layer_scale_init_value for block in blocks} == {1e-6}
    (ema,) = [hook for hook in cfg.custom_hooks if hook.type == "KeepEMA"]
    assert ema.decay == 0.9999
    assert (model.head.out_features, model.backbone.dims) == (1000, (96, 192, 384, 768))


def test_classification_warms_up_for_20_epochs_and_follows_a_cosine_to_the_300th() -> None:
    length, peak = 10, 4e-3
    curve = rates(resolved(CLASSIFICATION), epoch_length=length)
    assert len(curve) == 300 * length
    warm_up = 20 * length
    assert curve[0] == pytest.approx(peak * 1e-6)
    for step in range(warm_up):
        assert curve[step] == pytest.approx(peak * step / (warm_up - 1), abs=peak * 2e-6)
    assert curve[warm_up - 1] == pytest.approx(peak)
    for step in range(warm_up, len(curve)):
        share = (step - warm_up) / (280 * length)
        assert curve[step] == pytest.approx(1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * share)) / 2, rel=1e-4)
    assert curve[-1] < 2e-6


@pytest.mark.parametrize("launch", [CPU, CLUSTER, Launch(32, "cuda", 8)], ids=["1 cpu", "8 gpu", "32 gpu"])
def test_an_imagenet_epoch_has_312_steps_however_it_is_spread(launch: Launch) -> None:
    cfg = resolved(CLASSIFICATION, launch)
    share = math.ceil(IMAGENET_IMAGES / launch.processes)
    assert cfg.train_dataloader.drop_last
    assert share // cfg.train_dataloader.batch_size == 312


@dense
def test_dense_tasks_are_those_of_the_released_code(path: Path) -> None:
    cfg = resolved(path, CLUSTER)
    model = built(cfg)
    lr, decay = {MASK: (1e-4, 0.95), CASCADE: (2e-4, 0.7), UPERNET: (1e-4, 0.9)}[path]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", lr, 0.05)
    assert optimizer.betas == (0.9, 0.999)
    assert (cfg.batch.size, cfg.train_dataloader.batch_size) == (16, 2)
    groups = groups_of(cfg, model)
    by_name = {name: group for group in groups for name in group.names}
    steps_below_the_head = {
        "backbone.downsample_layers.0.0.weight": 7,
        "backbone.stages.0.0.pwconv1.weight": 6,
        "backbone.stages.1.0.pwconv1.weight": 5,
        "backbone.stages.2.0.pwconv1.weight": 4,
        "backbone.stages.2.8.pwconv1.weight": 4 if path == UPERNET else 2,
        "backbone.stages.3.0.pwconv1.weight": 3 if path == UPERNET else 1,
        "backbone.downsample_layers.3.1.weight": 7 if path == UPERNET else 1,
        "backbone.norm0.weight": 0,
    }
    for name, below in steps_below_the_head.items():
        assert by_name[name].lr_scale == pytest.approx(decay**below), name
    head = "decode_head.conv_seg.weight" if path == UPERNET else "rpn_head.rpn_conv.weight"
    assert (by_name[head].lr_scale, by_name[head].weight_decay) == (1.0, 0.05)
    assert by_name["backbone.norm0.weight"].weight_decay == by_name["backbone.stages.2.0.gamma"].weight_decay == 0
    blocks = [block for stage in model.backbone.stages for block in stage]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.4 * i / 17 for i in range(18)])
    assert {block.layer_scale_init_value for block in blocks} == {1.0}
    assert model.backbone.out_indices == (0, 1, 2, 3)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


@pytest.mark.parametrize("path", [MASK, CASCADE], ids=lambda path: path.stem)
def test_detection_falls_after_epochs_27_and_33_of_36(path: Path) -> None:
    cfg = resolved(path)
    length = 1000
    curve = rates(cfg, epoch_length=length)
    peak = cfg.optim_wrapper.optimizer.lr
    assert len(curve) == 36 * length
    assert curve[0] == pytest.approx(peak * 1e-3)
    assert curve[499] == pytest.approx(peak)
    assert curve[27 * length - 1] == pytest.approx(peak)
    assert curve[27 * length] == curve[33 * length - 1] == pytest.approx(peak / 10)
    assert curve[33 * length] == curve[-1] == pytest.approx(peak / 100)


def test_detection_sees_the_customary_sizes() -> None:
    for path in (MASK, CASCADE):
        cfg = resolved(path)
        choice = next(step for step in cfg.train_pipeline if step.type == "RandomChoice")
        sides = [scale[0] for scale in choice.transforms[0][0].scales]
        assert (min(sides), max(sides), {scale[1] for scale in choice.transforms[0][0].scales}) == (480, 800, {1333})
        resize = next(step for step in cfg.test_pipeline if step.type == "Resize")
        assert resize.scale == (1333, 800)


def test_cascade_has_three_4conv1fc_heads_with_giou_and_synchronised_norm() -> None:
    cfg = resolved(CASCADE)
    model = built(cfg)
    assert len(model.roi_head.bbox_head) == 3
    for head in model.roi_head.bbox_head:
        assert (len(head.shared_convs), len(head.shared_fcs)) == (4, 1)
        assert type(head.loss_bbox).__name__ == "GIoULoss"
        assert isinstance(head.shared_convs[0].bn, nn.SyncBatchNorm)
        assert head.reg_decoded_bbox
        assert head.num_classes == 80
    ious = [stage.assigner.pos_iou_thr for stage in cfg.model.train_cfg.rcnn]
    assert ious == [0.5, 0.6, 0.7]
    assert list(norms(cfg.model)) == ["SyncBN"] * 3


def test_segmentation_runs_160k_iterations_with_a_warm_up_of_1500() -> None:
    cfg = resolved(UPERNET)
    warm_up, fall = cfg.param_scheduler
    assert (warm_up.type, warm_up.get("begin", 0), warm_up.end) == ("LinearLR", 0, 1500)
    assert (fall.type, fall.power, fall.begin, fall.end, fall.eta_min) == ("PolyLR", 1.0, 1500, 160_000, 0.0)
    assert cfg.train_cfg.max_iters == 160_000
    curve = rates(cfg, epoch_length=1, shrink=100)
    assert len(curve) == 1600
    assert curve[0] == pytest.approx(1e-10)
    assert curve[14] == pytest.approx(1e-4)
    assert curve[807] == pytest.approx(0.5e-4, rel=0.01)
    assert curve[-1] < 1e-6


def test_segmentation_sees_crops_of_512_and_tests_at_several_scales() -> None:
    cfg = resolved(UPERNET)
    crop = next(step for step in cfg.train_pipeline if step.type == "RandomCrop")
    resize = next(step for step in cfg.train_pipeline if step.type == "RandomResize")
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (cfg.model.test_cfg.mode, cfg.model.test_cfg.crop_size) == ("slide", (512, 512))
    scales = [one.scale_factor for one in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    model = built(cfg)
    assert (model.decode_head.channels, model.decode_head.num_classes) == (512, 150)
    assert type(model.auxiliary_head).__name__ == "FCNHead"
    assert model.auxiliary_head.loss_decode.loss_weight == 0.4
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(60, abs=0.5)
