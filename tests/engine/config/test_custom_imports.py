"""Bases of mmdet and mmseg, by name and by path, with variables that are no settings."""

from __future__ import annotations

from pathlib import Path

import mmdet
import mmseg
import pytest

import engine.run  # noqa: F401  (registers the loops)
from analysis.dry_run import dry_run
from backbones.errors import ConfigError
from engine.config.load import load_config
from engine.config.world import Launch

BASES = Path(__file__).resolve().parents[3] / "configs/_base_"
PACKAGED = {library.__name__: f"{library.__path__[0]}/.mim/configs" for library in (mmdet, mmseg)}
PYRAMID = 'backbone=dict(_delete_=True, type="convnext_atto", out_indices=(0, 1, 2, 3))'
DETECTOR = f'model = dict({PYRAMID}, neck=dict(in_channels="from_backbone"))'
HEADS = 'decode_head=dict(in_channels={}), auxiliary_head=dict(in_channels="from_backbone[2]")'
ALL, LAST = '"from_backbone"', '"from_backbone[3]"'


def segmentor(rest: str) -> str:
    return f"model = dict(pretrained=None, data_preprocessor=dict(size=(64, 64)), {PYRAMID}, {rest})"


def config(folder: Path, bases: list[str], text: str) -> Path:
    file = folder / "own.py"
    file.write_text(f"_base_ = {bases!r}\n{text}\n")
    return file


def ours(*names: str) -> list[str]:
    return [str(BASES / f"{name}.py") for name in names]


@pytest.mark.parametrize(
    "base, text",
    [
        ("mmseg::_base_/models/upernet_r50.py", segmentor(HEADS.format(ALL))),
        ("mmseg::_base_/models/fcn_r50-d8.py", segmentor(HEADS.format(LAST))),
        ("mmseg::_base_/models/pspnet_r50-d8.py", segmentor(HEADS.format(LAST))),
        ("mmseg::_base_/models/danet_r50-d8.py", segmentor(HEADS.format(LAST))),
        ("mmseg::_base_/models/segformer_mit-b0.py", segmentor(f"decode_head=dict(in_channels={ALL})")),
        ("mmseg::_base_/models/fpn_r50.py", segmentor(f"neck=dict(in_channels={ALL})")),
        (PACKAGED["mmseg"] + "/_base_/models/upernet_r50.py", segmentor(HEADS.format(ALL))),
        ("mmdet::_base_/models/faster-rcnn_r50_fpn.py", DETECTOR),
        ("mmdet::_base_/models/mask-rcnn_r50_fpn.py", DETECTOR),
        ("mmdet::_base_/models/cascade-rcnn_r50_fpn.py", DETECTOR),
        ("mmdet::_base_/models/rpn_r50_fpn.py", DETECTOR),
        (PACKAGED["mmdet"] + "/_base_/models/cascade-mask-rcnn_r50_fpn.py", DETECTOR),
    ],
)
def test_a_model_of_a_library_with_our_backbone(base: str, text: str, tmp_path: Path) -> None:
    is_segmentor = text != DETECTOR
    rest = ours(*(("ade20k", "schedule_160k") if is_segmentor else ("coco_instance", "schedule_3x")), "runtime")
    resolved = load_config(config(tmp_path, [base, *rest], text), launch=Launch())
    said = "variables of a library's bases, which nothing reads from here on: data_preprocessor, norm_cfg"
    assert (said in resolved.notes) == is_segmentor
    assert not {"data_preprocessor", "norm_cfg"} & {*resolved.cfg}
    assert any(line.startswith("total") for line in dry_run(resolved, Launch()))


@pytest.mark.parametrize(
    "base, text",
    [
        ("mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py", segmentor(HEADS.format(ALL))),
        ("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", DETECTOR),
    ],
)
def test_a_whole_training_of_a_library(base: str, text: str, tmp_path: Path) -> None:
    task, classes = ("segmentation", "ade20k") if "mmseg" in base else ("detection", "coco")
    text += f"\ncustom_imports = dict(imports=[{task!r}])\nclasses = {classes!r}\nbatch = dict(size=16, per_gpu=2)"
    file = config(tmp_path, [base], text)
    resolved = load_config(file, launch=Launch())
    assert dry_run(resolved, Launch())
    assert "dataset_type" in resolved.notes[0]
    assert resolved.cfg.train_dataloader.dataset.data_root.startswith("data/")
    dumped = tmp_path / "dumped.py"
    resolved.cfg.dump(dumped)
    assert load_config(dumped, launch=Launch()).notes == ()


def test_a_variable_of_the_library_may_be_set_again_and_a_misspelt_key_stays_an_error(tmp_path: Path) -> None:
    bases = ["mmseg::_base_/models/upernet_r50.py", *ours("ade20k", "schedule_160k", "runtime")]
    text = segmentor(HEADS.format(ALL))
    own = 'norm_cfg = dict(type="BN")\n' + text.replace("in_channels", "norm_cfg=norm_cfg, in_channels", 1)
    cfg = load_config(config(tmp_path, bases, own), launch=Launch()).cfg
    assert cfg.model.decode_head.norm_cfg.type == "BN"
    for wrong, hint in {
        "norm_cgf": "nothing reads it",
        "trian_cfg": "did you mean 'train_cfg'",
        "zzz": "nothing",
    }.items():
        with pytest.raises(ConfigError, match=f"unknown top-level key '{wrong}'; {hint}"):
            load_config(config(tmp_path, bases, f"{text}\n{wrong} = dict()"), launch=Launch())
    own_base = tmp_path / "base.py"
    own_base.write_text("trian_cfg = dict()\n")
    with pytest.raises(ConfigError, match="unknown top-level key 'trian_cfg'; did you mean 'train_cfg'"):
        load_config(config(tmp_path, [*bases, str(own_base)], text), launch=Launch())
    with pytest.raises(ConfigError, match="unknown top-level key 'norm_cfg'"):
        load_config(config(tmp_path, bases, text), {"norm_cfg": 1}, Launch())


@pytest.mark.parametrize(
    "base, message",
    [
        (
            "mmseg::_base_/models/upernet_r51.py",
            "_base_ 'mmseg::_base_/models/upernet_r51.py': the installed mmseg has no such config; nearest: "
            "_base_/models/upernet_r50.py, ",
        ),
        ("mmdet::atss/atss_r50_fpn_1x_coco", "has no such config; nearest: atss/atss_r50_fpn_1x_coco.py, "),
        ("mmsegg::_base_/models/upernet_r50.py", "there is no library 'mmsegg'; nearest: mmseg, "),
        ("mmfewshot::_base_/models/resnet50.py", "mmfewshot is not installed"),
    ],
)
def test_a_base_that_is_not_there(base: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(config(tmp_path, [base], ""), launch=Launch())
    assert "\n" not in str(caught.value)
