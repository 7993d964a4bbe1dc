"""What a config says once reaches every place: the test's data, folders, classes, label conventions, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backbones.errors import UserError
from engine.config.load import Resolved, load_config
from engine.config.world import Launch

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CLASSIFIER = CONFIGS / "classification/digits.py"
DETECTOR = CONFIGS / "detection/mask_rcnn_digits.py"
SEGMENTOR = CONFIGS / "segmentation/upernet_digits.py"
BOXES_ALONE = "model = dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))\n"


def resolved(base: Path, tmp_path: Path, text: str = "", **settings: Any) -> Resolved:
    """A config of these lines upon a base."""
    file = tmp_path / "own.py"
    file.write_text(f"_base_ = [{str(base)!r}]\n{text}", encoding="utf-8")
    options = settings.pop("options", None)
    return load_config(file, options, Launch(), **settings)


def test_a_test_follows_the_validation_in_all_that_it_does_not_state(tmp_path: Path) -> None:
    own = "val_dataloader = dict(batch_size=3, dataset=dict(ann_file='mine.json', data_prefix=dict(img='Bilder/')))\n"
    cfg = resolved(DETECTOR, tmp_path, own).cfg
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator.ann_file == str(Path("data/digits/coco/mine.json"))
    partly = own + "test_dataloader = dict(dataset=dict(ann_file='test.json'))\n"
    cfg = resolved(DETECTOR, tmp_path, partly).cfg
    assert (cfg.test_dataloader.dataset.ann_file, cfg.test_dataloader.batch_size) == ("test.json", 3)
    assert cfg.test_dataloader.dataset.data_prefix.img == "Bilder/"
    assert cfg.val_evaluator.ann_file.endswith("mine.json")
    assert cfg.test_evaluator.ann_file.endswith("test.json")
    whole = (
        own + "test_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(type='CocoInstances', ann_file='x'))\n"
    )
    assert "data_prefix" not in resolved(DETECTOR, tmp_path, whole).cfg.test_dataloader.dataset


def test_options_of_validation_and_test_meet(tmp_path: Path) -> None:
    options = {"val_dataloader.dataset.split": "dev", "test_dataloader.num_workers": 0}
    cfg = resolved(CLASSIFIER, tmp_path, options=options).cfg
    assert (cfg.test_dataloader.dataset.split, cfg.test_dataloader.num_workers) == ("dev", 0)
    without = {f"val_{part}": None for part in ("dataloader", "evaluator", "cfg")}
    cfg = resolved(CLASSIFIER, tmp_path, options=without).cfg
    assert cfg.val_dataloader is None
    assert cfg.test_dataloader.dataset.split == "val"
    cfg = resolved(CLASSIFIER, tmp_path, options={name.replace("val_", "test_"): None for name in without}).cfg
    assert cfg.test_dataloader is None
    assert cfg.val_dataloader.dataset.split == "val"


def test_a_folder_that_a_data_set_states_is_its_own(tmp_path: Path) -> None:
    found = resolved(CLASSIFIER, tmp_path, "data_root = 'a'\nval_dataloader = dict(dataset=dict(data_root='b'))\n")
    loaders = (found.cfg.train_dataloader, found.cfg.val_dataloader, found.cfg.test_dataloader)
    assert [loader.dataset.data_root for loader in loaders] == ["a", "b", "b"]
    assert "val data is in its own data_root 'b', not in the config's 'a'" in found.notes
    dumped = tmp_path / "dumped.py"
    found.cfg.dump(dumped)
    again = load_config(dumped, {"data_root": "c"}, Launch()).cfg
    loaders = (again.train_dataloader, again.val_dataloader, again.test_dataloader)
    assert [loader.dataset.data_root for loader in loaders] == ["c", "b", "b"]


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_classes_are_the_folders_of_the_training_data(tmp_path: Path) -> None:
    folders(tmp_path / "Fotos", "train/Käfer gross", "train/ant", "train/10", "train/.thumbs", "val/ant")
    for text in ("classes = None\n", "classes = 'from_data'\n"):
        cfg = resolved(CLASSIFIER, tmp_path, f"{text}data_root = {str(tmp_path / 'Fotos')!r}\n").cfg
        assert cfg.classes == cfg.val_dataloader.dataset.metainfo.classes == ("10", "Käfer gross", "ant")
        assert cfg.model.num_classes == 3
    with pytest.raises(
        UserError, match=r"no folder .*nowhere/train' to take their names from: set data_root, or state"
    ):
        resolved(CLASSIFIER, tmp_path, "classes = 'from_data'\ndata_root = 'nowhere'\n")
    folders(tmp_path / "flat", "train")
    (tmp_path / "flat/train/1.jpg").touch()
    with pytest.raises(UserError, match=r"flat/train' has no folders to take their names from: .*put them into class"):
        resolved(CLASSIFIER, tmp_path, f"classes = 'from_data'\ndata_root = {str(tmp_path / 'flat')!r}\n")


def test_classes_are_the_categories_in_the_order_of_their_ids(tmp_path: Path) -> None:
    categories = [{"id": 9, "name": "Ente"}, {"id": 2, "name": 7}, {"id": 4, "name": "ant hill"}]
    file = tmp_path / "alle.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    own = f"classes = 'from_data'\ntrain_dataloader = dict(dataset=dict(ann_file={str(file)!r}))\n"
    assert resolved(DETECTOR, tmp_path, own).cfg.classes == ("7", "ant hill", "Ente")
    for content in ("[]", "{", '{"categories": {}}', '{"categories": [{"name": "a"}]}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"(has no list of categories|the data tells none)"):
            resolved(DETECTOR, tmp_path, own)
    file.unlink()
    with pytest.raises(UserError, match=r"no file .*alle.json' to take their names from: set data_root and ann_file"):
        resolved(DETECTOR, tmp_path, own)


def test_several_training_sets_have_the_same_classes(tmp_path: Path) -> None:
    for name, ids in (("a", "xy"), ("b", "xz")):
        content = {"categories": [{"id": number, "name": one} for number, one in enumerate(ids)]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    sets = [dict(type="CocoInstances", ann_file=str(tmp_path / f"{name}.json")) for name in "ab"]
    own = (
        f"classes = None\ntrain_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets={sets}))\n"
    )
    with pytest.raises(UserError, match="the training data sets have different ones"):
        resolved(DETECTOR, tmp_path, own)
    (tmp_path / "b.json").write_bytes((tmp_path / "a.json").read_bytes())
    assert resolved(DETECTOR, tmp_path, own).cfg.classes == ("x", "y")


def test_label_images_have_no_names(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"label images hold numbers alone; .*one name per line, classes='classes\.txt'"
    ):
        resolved(SEGMENTOR, tmp_path, "classes = 'from_data'\n")


def test_the_classes_of_a_checkpoint_go_before_those_of_the_data(tmp_path: Path) -> None:
    cfg = resolved(CLASSIFIER, tmp_path, "classes = 'from_data'\n", known_classes=lambda: ("a", "b")).cfg
    assert cfg.classes == ("a", "b")  # without any data
    assert len(resolved(CLASSIFIER, tmp_path, known_classes=lambda: ("a", "b")).cfg.classes) == 10


def label_settings(cfg: Any, name: str) -> set[Any]:
    """The values of a setting in all data sets and pipelines of a segmentor."""
    loaders = [cfg[f"{split}_dataloader"].dataset for split in ("train", "val", "test")]
    branches = [step for branch in cfg.tta_pipeline[1]["transforms"] for step in branch]
    steps = [step for one in loaders for step in one.pipeline] + branches
    found = {step.get(name) for step in steps if step["type"] == "LoadLabels"}
    return found | ({one[name] for one in loaders} if name == "reduce_zero_label" else set())


def test_the_convention_of_label_images_is_said_once(tmp_path: Path) -> None:
    assert label_settings(resolved(SEGMENTOR, tmp_path).cfg, "reduce_zero_label") == {True}
    found = resolved(SEGMENTOR, tmp_path, "reduce_zero_label = False\nunlabelled = 11\n")
    assert label_settings(found.cfg, "reduce_zero_label") == {False}
    assert label_settings(found.cfg, "unlabelled") == {11}
    assert not any("goes before" in note for note in found.notes)
    masks = resolved(SEGMENTOR, tmp_path, "classes = ('a', 'b')\nreduce_zero_label = False\nlabel_values = (0, 255)\n")
    assert label_settings(masks.cfg, "label_values") == {(0, 255)}
    dumped = tmp_path / "dumped.py"
    found.cfg.dump(dumped)
    again = load_config(dumped, {"reduce_zero_label": True, "unlabelled": 3}, Launch()).cfg
    assert label_settings(again, "reduce_zero_label") == {True}
    assert label_settings(again, "unlabelled") == {3}


def test_a_place_that_states_another_convention_is_named(tmp_path: Path) -> None:
    found = resolved(SEGMENTOR, tmp_path, "val_dataloader = dict(dataset=dict(reduce_zero_label=False))\n")
    assert found.cfg.val_dataloader.dataset.reduce_zero_label is False
    line = "reduce_zero_label=False of LabelPngDataset goes before reduce_zero_label=True of the config"
    assert found.notes.count(line) == 1
    elsewhere = (
        "unlabelled = 3\ntrain_pipeline = test_pipeline = [dict(type='LoadImageFromFile')]\ntta_pipeline = None\n"
    )
    with pytest.raises(UserError, match=r"unlabelled=3: no pipeline loads labels by LoadLabels"):
        resolved(SEGMENTOR, tmp_path, elsewhere)
    with pytest.raises(UserError, match="unknown top-level key 'reduce_zero_labels'; did you mean 'reduce_zero_label'"):
        resolved(SEGMENTOR, tmp_path, "reduce_zero_labels = False\n")


@pytest.mark.parametrize("masks", [True, False])
def test_scores_and_loading_follow_the_heads(masks: bool, tmp_path: Path) -> None:
    cfg = resolved(DETECTOR, tmp_path, "" if masks else BOXES_ALONE).cfg
    expected = ("bbox", "segm") if masks else ("bbox",)
    assert cfg.val_evaluator.metric == cfg.test_evaluator.metric == expected
    for pipeline in (cfg.train_pipeline, cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline):
        assert [step.with_mask for step in pipeline if step.type == "LoadAnnotations"] == [masks]
    stated = resolved(DETECTOR, tmp_path, "val_evaluator = dict(metric=('bbox',))\n").cfg
    assert stated.val_evaluator.metric == stated.test_evaluator.metric == ("bbox",)
