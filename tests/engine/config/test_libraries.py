"""A config of mmdet or mmseg with one of our backbones in the place of its own, and our data, batch and classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import SequentialSampler

import engine.run  # noqa: F401  (registers the loops)
from analysis.dry_run import dry_run
from backbones.errors import ConfigError, MachineError
from engine.config.building import build
from engine.config.load import Resolved, load_config
from engine.config.world import Launch
from engine.planning.plan import epoch_steps

ATSS = "mmdet::atss/atss_r50_fpn_1x_coco.py"
RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
FCN = "mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py"
Load = Callable[..., Resolved]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a config of six lines: its base, its backbone, and what else it states."""

    def load(base: str, backbone: str = "", rest: str = "", batch: int = 16) -> Resolved:
        task, classes = ("detection", "coco") if base.startswith("mmdet") else ("segmentation", "ade20k")
        lines = [
            f"_base_ = [{base!r}]",
            f"custom_imports = dict(imports=[{task!r}])",
            f"classes = {classes!r}",
            "data_root = 'own/data'",
            f"batch = dict(size={batch}, per_gpu=1)",
            f"model = dict(backbone=dict(type='convnext_atto'{backbone}))",
        ]
        file = tmp_path / "own.py"
        file.write_text("\n".join([*lines, rest, ""]))
        return load_config(file, launch=Launch())

    return load


def test_a_detector_takes_our_network_and_our_data(load: Load) -> None:
    resolved = load(ATSS)
    cfg = resolved.cfg
    assert cfg.model.backbone == {"type": "convnext_atto", "out_indices": (0, 1, 2, 3)}
    assert cfg.model.neck.in_channels == [40, 80, 160, 320]
    assert cfg.model.bbox_head.in_channels == 256
    assert cfg.train_dataloader.dataset.data_root == "own/data"
    assert cfg.val_evaluator.ann_file == "own/data/annotations/instances_val2017.json"
    notes = "\n".join(resolved.notes)
    assert "data in 'data/coco/' of a library's bases -> 'own/data'" in notes
    assert "ResNet -> convnext_atto: left out depth, num_stages, out_indices, frozen_stages" in notes
    assert "a library's for a batch" not in notes
    assert any("activations of 1 image " in line for line in dry_run(resolved, Launch()))


def test_a_segmentor_takes_our_network_and_our_data(load: Load) -> None:
    resolved = load(FCN)
    cfg = resolved.cfg
    assert (cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels) == (320, 160)
    assert cfg.model.pretrained is None
    assert cfg.test_dataloader.dataset.data_root == "own/data"
    assert any("activations of 1 image " in line for line in dry_run(resolved, Launch()))


@pytest.mark.parametrize(
    ("base", "former", "name"),
    [(ATSS, "DetLocalVisualizer", "DetectionVisualizer"), (FCN, "SegLocalVisualizer", "SegmentationVisualizer")],
)
def test_pictures_are_drawn_as_those_of_our_configs(base: str, former: str, name: str, load: Load) -> None:
    resolved = load(base, rest="visualizer = dict(alpha=0.3)")
    assert resolved.cfg.visualizer.pop("vis_backends")
    assert resolved.cfg.visualizer == {"type": name, "name": "visualizer"}
    assert f"visualizer {former} -> {name}" in resolved.notes


def test_classes_of_ones_own_in_a_data_set_of_the_library(load: Load) -> None:
    resolved = load(FCN, rest="classes = ('sky', 'road', 'pavement')\nunlabelled = 11")
    cfg = resolved.cfg
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        dataset = loader.dataset
        assert (dataset.type, dataset.img_suffix, dataset.seg_map_suffix) == ("LabelPngDataset", ".jpg", ".png")
        (step,) = [step for step in dataset.pipeline if step.type == "LoadLabels"]
        assert step == dict(type="LoadLabels", num_classes=3, unlabelled=11)  # and no reduce_zero_label, as ADE20K's
    assert "reduce_zero_label" not in str(resolved.cfg.train_pipeline)
    notes = "\n".join(resolved.notes)
    assert "ADE20KDataset -> LabelPngDataset: the config's classes are others" in notes
    assert "LoadAnnotations -> LoadLabels" in notes
    assert load(FCN).cfg.train_dataloader.dataset.type == "ADE20KDataset"


def test_the_switch_of_the_pipeline_reaches_our_data(load: Load) -> None:
    resolved = load("mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py")
    hook = resolved.cfg.custom_hooks[1]
    assert (hook.type, hook.epochs, hook.pipeline[0].type) == ("LastEpochsPipelineHook", 20, "LoadCheckedImage")
    assert "custom_hooks.1: PipelineSwitchHook -> LastEpochsPipelineHook, in the last 20 epochs" in resolved.notes


def test_paths_that_begin_with_their_data_folder_move_too(load: Load) -> None:
    cfg = load("mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py").cfg
    assert cfg.val_evaluator.seg_prefix == "own/data/annotations/panoptic_val2017"


def test_what_the_config_states_itself_stays(load: Load) -> None:
    model = load(ATSS, ", frozen_stages=1, dims=(8, 16, 24, 32)").cfg.model
    assert model.backbone.frozen_stages == 1
    assert model.neck.in_channels == [8, 16, 24, 32]
    own = "model['neck'] = dict(in_channels='from_backbone', start_level=0)"
    model = load(RETINANET, ", out_indices=(1, 2, 3)", own).cfg.model
    assert (model.neck.in_channels, model.neck.start_level) == ([80, 160, 320], 0)


def test_a_rate_of_another_batch_is_noted(load: Load) -> None:
    note = "optim_wrapper.optimizer.lr=0.01 is a library's for a batch of 16, and this one is 4: state the rate"
    assert any(one.startswith(note) for one in load(ATSS, batch=4).notes)
    own = "optim_wrapper = dict(optimizer=dict(lr=0.0025))"
    assert not any("a library's for a batch" in one for one in load(ATSS, rest=own, batch=4).notes)
    same = "optim_wrapper = dict(optimizer=dict(lr=0.01))"
    assert not any("a library's for a batch" in one for one in load(ATSS, rest=same, batch=4).notes)


@pytest.mark.parametrize(("sampler", "steps"), [("", 8), ("dict(drop_last=True)", 7), ("AspectRatioBatches", 7)])
def test_the_plan_counts_the_batches_that_their_sampler_gives(load: Load, sampler: str, steps: int) -> None:
    own = "dict(_delete_=True, type='AspectRatioBatches')" if sampler == "AspectRatioBatches" else sampler
    rest = f"train_dataloader = dict(batch_sampler={own})" if own else ""
    loader = load(ATSS, rest=rest, batch=4).cfg.train_dataloader
    assert epoch_steps(loader, 30, 1) == steps
    order = dict(loader.batch_sampler, sampler=SequentialSampler(range(30)), batch_size=4)
    assert len(build(DATA_SAMPLERS, order, "train_dataloader.batch_sampler", "mmdet")) == steps


def test_label_maps_that_nothing_reads_need_not_be_there(load: Load) -> None:
    resolved = load("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    for split in ("train", "val", "test"):
        assert list(resolved.cfg[f"{split}_dataloader"].dataset.data_prefix) == ["img"]
        left = f"{split}_dataloader.dataset.data_prefix.seg: left out, no step of the pipeline reads it"
        assert left in resolved.notes
    for base in ("mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py", "htc/htc_r50_fpn_1x_coco.py"):
        assert load(f"mmdet::{base}").cfg.train_dataloader.dataset.data_prefix.seg


def test_the_pipeline_of_their_data_set_holds_where_their_variable_is_another(load: Load) -> None:
    resolved = load("mmdet::guided_anchoring/ga-fast-rcnn_r50-caffe_fpn_1x_coco.py")
    assert "Collect" not in [step.type for step in resolved.cfg.train_dataloader.dataset.pipeline]
    assert resolved.cfg.train_pipeline == resolved.cfg.train_dataloader.dataset.pipeline
    note = ": that of the data set of a library's base, whose variable of this name is another"
    assert {f"train_pipeline{note}", f"test_pipeline{note}"} <= {*resolved.notes}


def test_a_pipeline_below_the_data_set_is_refused_where_that_of_the_top_level_takes_its_place(load: Load) -> None:
    for split, key in (("train", "train_pipeline"), ("val", "test_pipeline"), ("test", "test_pipeline")):
        own = f"{split}_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))"
        message = f"{split}_dataloader.dataset.pipeline: {key} of a library's base takes its place: state {key} at"
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(ATSS, rest=own)
    load(ATSS, rest="train_pipeline = [dict(type='LoadImageFromFile')]")


@pytest.mark.parametrize(
    ("base", "backbone", "rest", "message"),
    [
        (
            ATSS,
            ", out_indices=(0, 1, 2, 3)",
            "",
            "model.neck.lateral_convs.0.conv takes 512 channels and gets 80: correct in_channels of model.neck; "
            "the backbone gives 40, 80, 160, 320, which 'from_backbone' stands for",
        ),
        (
            ATSS,
            ", out_indices=(1, 2, 3)",
            "",
            "model.neck.in_channels has 4 numbers, and the backbone returns 3 maps: state "
            "in_channels='from_backbone', or other out_indices of the backbone",
        ),
        (
            "mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
            ", out_indices=(2, 3)",
            "",
            "model.decode_head.in_index=[0, 1, 2, 3], and the backbone returns 2 maps: state its out_indices, such as "
            "(0, 1, 2, 3)",
        ),
        (
            FCN,
            "",
            "model['decode_head'] = dict(in_channels=7)",
            "model.decode_head.convs.0.conv takes 7 channels and gets 320: correct in_channels of model.decode_head; "
            "the backbone gives 40, 80, 160, 320, which 'from_backbone' stands for",
        ),
        (
            FCN,
            ", out_indices=None",
            "",
            "model.backbone returns one vector for each image, and no map: state out_indices=(0, 1, 2, 3)",
        ),
        (
            FCN,
            ", out_indices=(3,)",
            "model['decode_head'] = dict(in_channels='from_backbone[3]')",
            "in_channels='from_backbone[3]': number of maps that the backbone returns: 1; state its out_indices, such "
            "as (0, 1, 2, 3)",
        ),
        (
            ATSS,
            ", depth=50",
            "",
            "config does not build: model.backbone: convnext_atto has no argument 'depth'; nearest: depths; correct "
            "it, or leave out with _delete_=True beside type='convnext_atto' what the base has for another type",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_fix(load: Load, base: str, backbone: str, rest: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dry_run(load(base, backbone, rest), Launch())
    assert str(caught.value) == message


def test_a_network_of_an_absent_package(tmp_path: Path) -> None:
    base = "mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
    lines = [f"_base_ = [{base!r}]", "custom_imports = dict(imports=['detection'])", "classes = 'coco'"]
    file = tmp_path / "own.py"
    file.write_text("\n".join([*lines, "batch = dict(size=16, per_gpu=2)", ""]))
    with pytest.raises(MachineError) as caught:
        load_config(file, launch=Launch())
    assert str(caught.value) == (
        "model.backbone: mmpretrain.ConvNeXt: package 'mmpretrain' is missing: pip install onedl-mmpretrain, or "
        "remove what asks for it: model=dict(backbone=dict(type='convnext_tiny')) takes one of ours"
    )
    file.write_text(file.read_text() + "model = dict(backbone=dict(type='convnext_atto'))\n")
    assert load_config(file, launch=Launch()).cfg.model.neck.in_channels == [40, 80, 160, 320]


def test_a_base_of_a_library_needs_a_task(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"_base_ = [{ATSS!r}]\n")
    with pytest.raises(ConfigError, match="names no task: add custom_imports"):
        load_config(file, launch=Launch())
