"""Classes, folder, pipeline and checks reach the data sets inside of wrappers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbones.errors import ConfigError
from engine.config.datasets import set_test_mode
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.checker import build_checkers
from engine.data.preflight import dataset_paths
from engine.planning.plan import training_plan

DIGITS = Path(__file__).resolve().parents[3] / "configs/detection/mask_rcnn_digits.py"
LOADING = [dict(type="LoadCheckedImage"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]


def inner(**settings: Any) -> dict[str, Any]:
    return dict(type="CocoInstances", ann_file="own.json", data_prefix=dict(img="own/"), **settings)


def resolved(dataset: dict[str, Any], tmp_path: Path, key: str = "train_dataloader") -> Any:
    file = tmp_path / "own.py"
    file.write_text(
        f"_base_ = [{str(DIGITS)!r}]\nclasses = ('cup', 'plate')\ndata_root = 'here'\n"
        f"{key} = dict(dataset=dict(_delete_=True, **{dataset!r}))\n"
    )
    return load_config(file, launch=Launch())


@pytest.mark.parametrize("kind", ["RepeatDataset", "ClassBalancedDataset"])
def test_a_wrapped_data_set_gets_what_a_single_one_gets(kind: str, tmp_path: Path) -> None:
    cfg = resolved(dict(type=kind, dataset=dict(type="RepeatDataset", times=2, dataset=inner())), tmp_path).cfg
    outer = cfg.train_dataloader.dataset
    assert set(outer) == {"type", "dataset"}
    leaf = outer.dataset.dataset
    assert (leaf.metainfo.classes, leaf.data_root, leaf.pipeline) == (("cup", "plate"), "here", cfg.train_pipeline)
    assert dataset_paths(outer) == [Path("here"), Path("here/own.json"), Path("here/own")]
    (checker,) = build_checkers(cfg, ("train",))
    assert type(checker).__name__ == "CocoChecker"


def test_several_data_sets_keep_their_own_folders_and_pipelines(tmp_path: Path) -> None:
    both = [inner(data_root="there", pipeline=LOADING), inner()]
    cfg = resolved(dict(type="ConcatDataset", datasets=both), tmp_path).cfg
    first, second = cfg.train_dataloader.dataset.datasets
    assert (first.data_root, second.data_root) == ("there", "here")
    assert (len(first.pipeline), second.pipeline) == (2, cfg.train_pipeline)
    assert [one.dataset.data_root for one in build_checkers(cfg, ("train",))] == ["there", "here"]


def test_mixed_images_have_two_pipelines(tmp_path: Path) -> None:
    mixed = dict(type="MultiImageMixDataset", dataset=inner(pipeline=LOADING))
    cfg = resolved(mixed, tmp_path).cfg
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert len(cfg.train_dataloader.dataset.dataset.pipeline) == 2
    with pytest.raises(ConfigError, match="mixes what the pipeline of its inner data set loads: state one"):
        resolved(mixed | {"dataset": inner()}, tmp_path)


@pytest.mark.parametrize("kind", ["Mosaic", "MixUp"])
def test_transforms_that_lose_masks_are_refused(kind: str, tmp_path: Path) -> None:
    mixed = dict(type="MultiImageMixDataset", dataset=inner(pipeline=LOADING))
    found = resolved(mixed, tmp_path)
    found.cfg.train_dataloader.dataset.pipeline = [dict(type=kind)]
    with pytest.raises(ConfigError, match=f"{kind} loses masks: use Cached"):
        training_plan(found, Launch())


def test_a_mask_head_without_masks_is_refused(tmp_path: Path) -> None:
    boxes = [dict(type="LoadCheckedImage"), dict(type="LoadAnnotations", with_bbox=True)]
    found = resolved(dict(type="ConcatDataset", datasets=[inner(), inner(pipeline=boxes)]), tmp_path)
    with pytest.raises(ConfigError, match=r"loads no masks, which model\.roi_head\.mask_head learns from"):
        training_plan(found, Launch())


def test_a_wrapped_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"val_dataloader\.dataset\.type='RepeatDataset': wrappers are for training"):
        resolved(dict(type="RepeatDataset", times=2, dataset=inner()), tmp_path, "val_dataloader")


def test_images_that_are_evaluated_are_neither_dropped_nor_replaced(tmp_path: Path) -> None:
    cfg = resolved(inner(), tmp_path, "val_dataloader").cfg
    assert cfg.val_dataloader.dataset.test_mode
    assert "test_mode" not in cfg.train_dataloader.dataset
    assert not resolved(inner(test_mode=False), tmp_path, "val_dataloader").cfg.val_dataloader.dataset.test_mode
    own = dict(type="RepeatDataset", times=2)  # takes no such argument
    set_test_mode(own, "mmdet")
    assert own == dict(type="RepeatDataset", times=2)


def test_every_reader_of_images_refuses_damaged_ones(tmp_path: Path) -> None:
    steps = [dict(type="LoadImageFromFile", imdecode_backend="pillow"), *LOADING[1:]]
    resolution = resolved(inner(pipeline=steps), tmp_path)
    found = resolution.cfg.train_dataloader.dataset.pipeline
    assert found == resolution.cfg.train_pipeline  # the config's, from which the step of the data set's own is gone
    mixed = resolved(dict(type="RepeatDataset", times=2, dataset=inner(pipeline=steps)), tmp_path)
    (first, _) = mixed.cfg.train_dataloader.dataset.dataset.pipeline
    assert first == dict(type="LoadCheckedImage", imdecode_backend="pillow")
    assert "LoadImageFromFile -> LoadCheckedImage in 1 places: it refuses damaged images" in mixed.notes


def test_a_name_that_begins_with_an_underscore_is_the_files_own(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"_base_ = [{str(DIGITS)!r}]\n_ours = dict(size=8, per_gpu=8)\nbatch = _ours\n")
    cfg = load_config(file, launch=Launch()).cfg
    assert cfg.batch.size == 8
    assert "_ours" not in cfg


def test_parts_may_lack_classes_and_are_balanced_together(tmp_path: Path) -> None:
    both = dict(type="ConcatDataset", datasets=[inner(data_root="there"), inner()])
    dataset = resolved(dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=both), tmp_path).cfg
    outer = dataset.train_dataloader.dataset
    assert outer.type == "BalancedDataset"
    assert [one.partial_classes for one in outer.dataset.datasets] == [True, True]
    alone = resolved(inner(), tmp_path).cfg.train_dataloader.dataset
    assert "partial_classes" not in alone
