"""Every config is loaded, resolved, built, dumped and read again; the paper's values hold for what would run."""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Iterator
from functools import cache
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

import engine.training.runner  # noqa: F401  (registers loops, hooks and the constructor)
from analysis.schedules import build_schedules, rate_schedulers
from backbones import UserError
from engine.config.load import load_config
from engine.config.world import Launch
from engine.optim.param_groups import ParameterGroup, parameter_groups

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_")
BASES = sorted((ROOT / "configs/_base_").glob("*.py"))
CLASSIFICATION = ROOT / "configs/classification/convnext_tiny_in1k_300e.py"
ABLATION = ROOT / "configs/classification/convnext_tiny_in1k_subset_ablation.py"
MASK = ROOT / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"
CASCADE = ROOT / "configs/detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py"
UPERNET = ROOT / "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py"
SLIDING = [p for p in sorted((ROOT / "configs/segmentation").glob("*_*0k.py")) if "mask2former" not in p.stem]
CPU, CLUSTER = Launch(), Launch(processes=8, device="cuda", local_processes=8)
GPUS = Launch(processes=4, device="cuda", local_processes=4)  # divides the small batches of the digits too
SHORTEST, LONGEST = 15, 60
IMAGENET_IMAGES = 1_281_167
FEW_CLASSES = {"classes": ("one", "two", "three")}

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
every_base = pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
every_launch = pytest.mark.parametrize("launch", [CPU, GPUS], ids=["1 cpu", "4 gpu"])
dense = pytest.mark.parametrize("path", [MASK, CASCADE, UPERNET], ids=lambda path: path.stem)


@cache
def resolved(path: Path, launch: Launch = GPUS) -> Config:
    """A config as it would run; shared by the tests, which change nothing in it."""
    return load_config(path, None, launch).cfg


def overridden(path: Path, options: dict[str, Any], launch: Launch = GPUS) -> Config:
    return load_config(path, options, launch).cfg


def built_from(cfg: Config) -> Any:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        return MODELS.build(copy.deepcopy(cfg.model))


@cache
def built(path: Path, launch: Launch = GPUS) -> Any:
    return built_from(resolved(path, launch))


def groups_of(cfg: Config, model: nn.Module) -> list[ParameterGroup]:
    optimizer = cfg.optim_wrapper.optimizer
    return parameter_groups(model, optimizer.weight_decay, **cfg.optim_wrapper.get("paramwise_cfg", {}))


def rates(cfg: Config, epoch_length: int, shrink: int = 1) -> list[float]:
    """The rate of every step, by the real schedulers; ``shrink`` divides what the config counts in iterations.

    Ends are divided without the one step by which mmengine's lie behind the last value.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    epochs = cfg.train_cfg.get("max_epochs")
    steps = cfg.train_cfg.max_iters // shrink if epochs is None else epochs * epoch_length
    scheduled = []
    for place, one in rate_schedulers(cfg):
        options = dict(one)
        if not options.get("by_epoch", True):
            options |= {"begin": options["begin"] // shrink} if "begin" in options else {}
            options |= {"end": (options["end"] - 1) // shrink + 1} if "end" in options else {}
            if "milestones" in options:
                options["milestones"] = [step // shrink for step in options["milestones"]]
        scheduled.append((place, options))
    schedulers = build_schedules(scheduled, optimizer, epochs, steps, epoch_length)
    seen = []
    for step in range(1, steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % epoch_length == 0:
                scheduler.step()
    return seen


def read(cfg: Config, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


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
def test_nothing_is_left_to_fill_in(path: Path, launch: Launch) -> None:
    cfg = resolved(path, launch)
    assert cfg.optim_wrapper.constructor == "LayerDecayConstructor"
    # The names of many classes make a long text, and are no settings.
    settings = {key: value for key, value in cfg.to_dict().items() if not key.endswith("_dataloader")}
    assert not re.search(r"from_(classes|backbone)|set from", str(settings))
    for split in ("train", "val", "test"):
        if loader := cfg.get(f"{split}_dataloader"):
            assert loader.dataset.pipeline
            assert not re.search("from_classes", str(loader.dataset.pipeline))


@every_config
def test_every_parameter_learns_once(path: Path) -> None:
    cfg, model = resolved(path), built(path)
    groups = groups_of(cfg, model)
    grouped = [param for group in groups for param in group.params]
    assert sorted(map(id, grouped)) == sorted(id(param) for param in model.parameters() if param.requires_grad)
    # The stem and the first stage of ResNets in detectors, as in mmdet; all of a backbone but its output norms; and
    # nothing else.
    frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
    resnet, whole = "cascade_mask_rcnn_resne" in path.stem, re.search("^linear_|_frozen_", path.stem) is not None
    assert bool(frozen) == (resnet or whole)
    parts = "downsample_layers|stages" if whole else "conv1|bn1|layer1"
    assert all(re.match(rf"backbone\.({parts})\.", name) for name in frozen)
    assert not whole or {name for name, _ in model.named_parameters() if name not in frozen and "backbone" in name} == {
        f"backbone.norm{i}.{kind}" for i in model.backbone.out_indices for kind in ("weight", "bias")
    }
    assert groups[0].lr_scale == 1
    scales = {group.lr_scale for group in groups}
    paramwise = cfg.optim_wrapper.get("paramwise_cfg", {})
    factors = [one for one in paramwise.get("custom_keys", {}).values() if "lr_mult" in one]
    assert (len(scales) > 1) == ("decay_rate" in paramwise or bool(factors))


@every_config
def test_a_dumped_config_is_the_same_and_stays_so(path: Path, tmp_path: Path) -> None:
    # With few classes: the names of 21,841 take minutes to write and read, and are written like three.
    cfg = overridden(path, FEW_CLASSES)
    dumped = tmp_path / "dumped.py"
    Config(cfg.to_dict(), format_python_code=False).dump(dumped)
    assert Config.fromfile(str(dumped)).to_dict() == cfg.to_dict()
    assert overridden(dumped, {}).to_dict() == cfg.to_dict()


def test_a_config_as_the_runner_dumps_it(tmp_path: Path) -> None:
    cfg = resolved(UPERNET)
    dumped = tmp_path / "dumped.py"
    cfg.dump(dumped)
    assert Config.fromfile(str(dumped)).to_dict() == cfg.to_dict()


@every_config
def test_pipelines_build(path: Path) -> None:
    cfg = resolved(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for pipeline in (cfg.train_pipeline, cfg.test_pipeline, cfg.get("tta_pipeline", [])):
            Compose(pipeline)


@every_config
def test_whatever_a_config_names_is_registered(path: Path) -> None:
    cfg = resolved(path)
    loaders = [cfg[f"{split}_dataloader"] for split in ("train", "val", "test") if f"{split}_dataloader" in cfg]
    named = [
        (LOOPS, [cfg.train_cfg, *([cfg.val_cfg] if "val_cfg" in cfg else [])]),
        (OPTIM_WRAPPERS, [cfg.optim_wrapper]),
        (OPTIMIZERS, [cfg.optim_wrapper.optimizer]),
        (OPTIM_WRAPPER_CONSTRUCTORS, [{"type": cfg.optim_wrapper.constructor}]),
        (PARAM_SCHEDULERS, cfg.param_scheduler),
        (HOOKS, [*cfg.default_hooks.values(), *cfg.custom_hooks]),
        (METRICS, [cfg[key] for key in ("val_evaluator", "test_evaluator") if key in cfg]),
        (VISUALIZERS, [cfg.visualizer]),
        (DATASETS, [loader.dataset for loader in loaders]),
        (DATA_SAMPLERS, [loader.sampler for loader in loaders]),
    ]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for root, parts in named:
            with root.switch_scope_and_registry(None) as registry:
                assert [part for part in parts if registry.get(part["type"]) is None] == []


@every_config
def test_validation_is_whole_or_absent(path: Path) -> None:
    cfg = resolved(path)
    has = {key: bool(cfg.get(f"val_{key}")) for key in ("dataloader", "evaluator", "cfg")}
    assert set(has.values()) == {cfg.classes != "imagenet-22k"}


@every_config
def test_rates_rise_to_the_stated_one_and_end_low(path: Path) -> None:
    cfg = resolved(path)
    shrink = max(1, cfg.train_cfg.get("max_iters", 0) // 600)
    # Detection warms up for up to 999 iterations, which has to be well before the first cut.
    steps = 4000 if path.stem.startswith("rtmdet") else 1800
    curve = rates(cfg, epoch_length=max(1, steps // cfg.train_cfg.get("max_epochs", 900)), shrink=shrink)
    stated = cfg.optim_wrapper.optimizer.lr
    # A polynomial falls from step 0 on, also during the warm-up, and is below the stated rate when that ends.
    peak = stated
    warm_up, decay = cfg.param_scheduler[0], cfg.param_scheduler[-1]
    warm = warm_up["type"] in ("LinearLR", "LinearWarmUpLR")
    if decay["type"] == "PolyDecayLR" and warm:
        peak *= 1 - (warm_up["end"] - 1) / cfg.train_cfg.max_iters
    elif path.stem.endswith("_own_data"):  # so do a line and a cosine from the start
        done = (warm_up["end"] - 1) / len(curve)
        peak *= 1 - done if decay["type"] == "PolyLR" else (1 + math.cos(math.pi * done)) / 2
    assert max(curve) == pytest.approx(peak, rel=0.01)
    assert curve[0] < 0.1 * stated if warm else curve[0] == stated
    # A cosine may end at a twentieth of the rate, and the shortest schedule has one cut.
    last = 0.0501 if path.stem.startswith("rtmdet") else 0.05
    assert 0 <= curve[-1] < (0.101 if decay.get("milestones") == [11] else last) * stated


@every_config
def test_no_group_ends_at_a_higher_rate_than_it_begins(path: Path) -> None:
    cfg = resolved(path)
    least = min(group.lr_scale for group in groups_of(cfg, built(path))) * cfg.optim_wrapper.optimizer.lr
    floors = [one.get("eta_min") or 0.0 for one in cfg.param_scheduler]
    assert max(floors) < least


@every_config
def test_a_config_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    name = re.escape(str(path.relative_to(ROOT)))
    alone = "digits" in path.stem or path.parent.name == "examples"
    program = "python tools/train.py" if alone else "bash tools/dist_train.sh"
    assert re.search(rf"^    (python \S+ && )?{program} {name}", docstring, re.MULTILINE)
    assert docstring.partition("\n")[0].endswith(".")
    assert SHORTEST <= len(text.splitlines()) <= LONGEST


@every_config
def test_a_file_that_a_config_begins_with_is_what_another_leaves(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for run, kind, count in re.findall(r"work_dirs/(\w+)/(epoch|iter)_(\d+)\.pth", docstring):
        (source,) = [config for config in CONFIGS if config.stem == run.replace("work_dirs/", "")]
        loop = resolved(source).train_cfg
        assert loop[{"epoch": "max_epochs", "iter": "max_iters"}[kind]] == int(count)
        assert resolved(source).model.backbone.type == resolved(path).model.backbone.type


def bases(path: Path) -> list[Path]:
    """Config files of ours that a config inherits from."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            named = ast.literal_eval(node.value)
            named = [named] if isinstance(named, str) else named
            return [(path.parent / one).resolve() for one in named if "::" not in one]
    return []


@every_config
def test_a_config_inherits_from_bases_alone(path: Path) -> None:
    assert bases(path)
    assert set(bases(path)) <= set(BASES)


@every_base
def test_a_base_stands_alone_and_is_used(path: Path) -> None:
    assert bases(path) == []
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert any(path in bases(config) for config in CONFIGS)


def test_an_unknown_key_in_a_config_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {str(MASK)!r}\ntrain_pipline = []\n", encoding="utf-8")
    with pytest.raises(UserError, match="'train_pipline'; did you mean 'train_pipeline'"):
        load_config(path)


def test_classification_is_table_2_5() -> None:
    cfg, model = resolved(CLASSIFICATION, CLUSTER), built(CLASSIFICATION, CLUSTER)
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
    (ema,) = [hook for hook in cfg.custom_hooks if hook.type == "ModelEMAHook"]
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
    cfg, model = resolved(path, CLUSTER), built(path, CLUSTER)
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


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if re.search(r"convnextv2.*_(3x|160k)", p.stem)], ids=lambda p: p.stem
)
def test_layers_of_v2_decay_in_detectors_and_segmentors(path: Path) -> None:
    cfg, model = resolved(path), built(path)
    detector = path.parent.name == "detection"
    by_name = {name: group for group in groups_of(cfg, model) for name in group.names}
    # Twelve groups, the head above them: three blocks of the third stage each; or one of each stage.
    below = (
        {(0, 0): 12, (1, 2): 11, (2, 0): 10, (2, 26): 2, (3, 0): 1}
        if detector
        else {(0, 0): 12, (2, 26): 10, (3, 2): 9}
    )
    for (stage, block), steps in below.items():
        parts = ("dwconv.weight", "pwconv1.weight", "pwconv2.weight", "grn.gamma", "grn.beta")
        groups = [by_name[f"backbone.stages.{stage}.{block}.{part}"] for part in parts]
        rate = cfg.optim_wrapper.paramwise_cfg.decay_rate**steps
        assert [group.lr_scale for group in groups] == pytest.approx([rate] * len(parts))
        assert [group.weight_decay for group in groups] == [0.05, 0.05, 0.05, 0, 0]
    assert not any(name.endswith(".gamma") and ".grn." not in name for name in by_name)  # no layer scale beside GRN


@pytest.mark.parametrize("path", [MASK, CASCADE], ids=lambda path: path.stem)
def test_detection_falls_after_epochs_27_and_33_of_36(path: Path) -> None:
    cfg = resolved(path)
    length = 1000
    curve = rates(cfg, epoch_length=length)
    peak = cfg.optim_wrapper.optimizer.lr
    assert len(curve) == 36 * length
    assert curve[0] == pytest.approx(peak * 1e-3)
    assert curve[499] == pytest.approx(peak * (0.999 * 499 / 500 + 0.001))
    assert curve[500] == pytest.approx(peak)
    assert curve[27 * length - 1] == pytest.approx(peak)
    assert curve[27 * length] == curve[33 * length - 1] == pytest.approx(peak / 10)
    assert curve[33 * length] == curve[-1] == pytest.approx(peak / 100)


def test_detection_sees_the_customary_sizes() -> None:
    for path in (MASK, CASCADE):
        cfg = resolved(path)
        choice = next(step for step in cfg.train_pipeline if step.type == "RandomChoice")
        sides = [scale[0] for scale in choice.transforms[0][0].scales]
        assert (min(sides), max(sides), {scale[1] for scale in choice.transforms[0][0].scales}) == (480, 800, {1333})
        resize = next(step for step in cfg.test_pipeline if step.type == "CheckedResize")
        assert resize.scale == (1333, 800)


def test_cascade_has_three_4conv1fc_heads_with_giou_and_synchronised_norm() -> None:
    cfg, model = resolved(CASCADE), built(CASCADE)
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
    assert (warm_up.type, warm_up.get("begin", 0), warm_up.end) == ("LinearLR", 0, 1501)
    assert fall == dict(type="PolyDecayLR", power=1.0, by_epoch=False)
    assert cfg.train_cfg.max_iters == 160_000
    curve = rates(cfg, epoch_length=1, shrink=100)
    assert len(curve) == 1600
    assert curve[0] == pytest.approx(1e-10)
    assert max(curve) == curve[15] == pytest.approx(1e-4 * (1 - 15 / 1600))
    assert curve[800] == pytest.approx(0.5e-4)
    assert curve[-1] == pytest.approx(1e-4 / 1600)


def test_segmentation_sees_crops_of_512_and_tests_at_several_scales() -> None:
    cfg = resolved(UPERNET)
    crop = next(step for step in cfg.train_pipeline if step.type == "RandomCrop")
    resize = next(step for step in cfg.train_pipeline if step.type == "RandomResize")
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (cfg.model.test_cfg.mode, cfg.model.test_cfg.crop_size) == ("slide", (512, 512))
    scales = [one.scale for one in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [(2048 * ratio, 512 * ratio) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
    model = built(UPERNET)
    assert (model.decode_head.channels, model.decode_head.num_classes) == (512, 150)
    assert type(model.auxiliary_head).__name__ == "FCNHead"
    assert model.auxiliary_head.loss_decode.loss_weight == 0.4
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(60, abs=0.5)


COCO_SWEEP = {
    "optim_wrapper.optimizer.lr": (1e-4, 2e-4),
    "optim_wrapper.paramwise_cfg.decay_rate": (0.7, 0.8, 0.9, 0.95),
    "model.backbone.drop_path_rate": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
}
ADE20K_SWEEP = {
    "optim_wrapper.optimizer.lr": (8e-5, 1e-4),
    "optim_wrapper.paramwise_cfg.decay_rate": (0.8, 0.9),
    "model.backbone.drop_path_rate": (0.3, 0.4, 0.5),
}


@pytest.mark.parametrize(
    "path, sweep, runs", [(CASCADE, COCO_SWEEP, 48), (UPERNET, ADE20K_SWEEP, 12)], ids=["coco", "ade20k"]
)
def test_one_config_makes_the_runs_of_a_sweep(path: Path, sweep: dict[str, tuple[float, ...]], runs: int) -> None:
    """Section 2.8. Each value of each setting at least once: an override changes its own place and no other."""
    assert math.prod(map(len, sweep.values())) == runs
    for turn in range(max(map(len, sweep.values()))):
        options = {key: values[turn % len(values)] for key, values in sweep.items()}
        cfg = overridden(path, options)
        assert {key: read(cfg, key) for key in sweep} == options


def test_a_swept_run_trains_what_it_was_asked_to() -> None:
    cfg = overridden(CASCADE, dict(zip(COCO_SWEEP, (1e-4, 0.9, 0.8), strict=True)))
    model = built_from(cfg)
    assert min(group.lr_scale for group in groups_of(cfg, model)) == pytest.approx(0.9**7)
    assert model.backbone.stages[3][2].drop_path.drop_prob == 0.8


@pytest.mark.parametrize("path", [p for p in CONFIGS if re.search("swin_(base|large)_in22k_coco", p.stem)])
def test_swin_can_be_swept_like_convnext(path: Path) -> None:
    """Section 2.8: the ImageNet-22K Swins on COCO had the same sweep."""
    cfg = overridden(path, dict(zip(COCO_SWEEP, (2e-4, 0.8, 0.5), strict=True)))
    assert min(group.lr_scale for group in groups_of(cfg, built_from(cfg))) == pytest.approx(0.8**25)


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if re.search(r"_(swin|resn)\w+_(coco|ade20k)_", p.stem)], ids=lambda path: path.stem
)
def test_networks_compared_with_are_trained_by_the_configs_of_swin(path: Path) -> None:
    """Their release: AdamW 1e-4 and 0.05 on COCO, 6e-5 and 0.01 on ADE20K, one rate for all layers."""
    cfg = resolved(path)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == ((6e-5, 0.01) if "ade20k" in path.stem else (1e-4, 0.05))
    assert {group.lr_scale for group in groups_of(cfg, built(path))} == {1.0}
    backbone = built(path).backbone.train()
    assert not any(module.training for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("setting, values", [("kernel_size", (3, 5, 7, 9, 11)), ("mlp_ratio", (2, 3, 4, 6))])
def test_the_ablation_changes_kernel_sizes_and_mlp_ratios_by_options(setting: str, values: tuple[int, ...]) -> None:
    for value in values:
        cfg = overridden(ABLATION, {f"model.backbone.{setting}": value, **FEW_CLASSES})
        block = built_from(cfg).backbone.stages[0][0]
        found = {"kernel_size": block.dwconv.kernel_size[0], "mlp_ratio": block.pwconv1.out_features / 96}
        assert found[setting] == value


def test_the_ablation_trains_on_every_tenth_image_and_is_validated_on_all() -> None:
    cfg = resolved(ABLATION)
    assert (cfg.train_dataloader.dataset.every, cfg.val_dataloader.dataset.get("every", 1)) == (10, 1)
    assert cfg.optim_wrapper.optimizer.lr / cfg.batch.size == 4e-3 / 4096


@pytest.mark.parametrize("path", SLIDING, ids=lambda path: path.stem)
def test_windows_are_two_thirds_of_a_crop_apart(path: Path) -> None:
    test = resolved(path).model.test_cfg
    assert test.mode == "slide"
    assert [step / side for step, side in zip(test.stride, test.crop_size, strict=True)] == pytest.approx(
        [2 / 3, 2 / 3], abs=2e-3
    )


@pytest.mark.parametrize("mode, passes", [("slide", 2), ("whole", 1)])
def test_one_segmentor_is_tested_whole_or_by_windows(mode: str, passes: int) -> None:
    cfg = overridden(
        UPERNET,
        {
            "model.test_cfg.mode": mode,
            "model.backbone.type": "convnext_atto",
            "model.decode_head.channels": 8,
            "model.auxiliary_head.channels": 8,
            **FEW_CLASSES,
        },
        CPU,
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model).eval()
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, outputs: seen.append(tuple(inputs[0].shape[-2:])))
    images = torch.rand(1, 3, 512, 600)
    with torch.inference_mode():
        logits = model.inference(images, [dict(ori_shape=(512, 600), img_shape=(512, 600), pad_shape=(512, 600))])
    assert logits.shape == (1, 3, 512, 600)
    assert len(seen) == passes
    assert set(seen) == {(512, 512) if mode == "slide" else (512, 600)}
