"""An option that names another part takes away what belonged to the one before, and nothing else."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import engine.training  # noqa: F401  (registers the loops)
from backbones.errors import ConfigError
from backbones.registry import BACKBONES, list_backbones
from engine.config.load import Resolved, load_config
from engine.config.options import parse_options
from engine.config.world import Launch

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DIGITS = CONFIGS / "classification/digits.py"
MASK = CONFIGS / "detection/mask_rcnn_digits.py"
UPERNET = CONFIGS / "segmentation/upernet_digits.py"
RESNET = CONFIGS / "detection/cascade_mask_rcnn_resnet50_coco_3x.py"


def load(path: Path, **options: Any) -> Resolved:
    return load_config(path, options, Launch())


def derived(path: Path, folder: Path, text: str) -> Path:
    config = folder / "own.py"
    config.write_text(f"_base_ = [{str(path)!r}]\n{text}\n")
    return config


@pytest.mark.parametrize(
    "option, line",
    [
        ("_batch=4", "--cfg-options _batch: a variable inside of the file, which has used its value by now"),
        ("custom_hooks=[dict(type='A',b=2)]", "write a mapping as {'type':'Name'}, or in the config"),
    ],
)
def test_options_that_nothing_would_read(option: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options([option])
    assert line in str(caught.value)


@pytest.mark.parametrize("split, driver", [("train", "train"), ("val", "test"), ("test", "test")])
def test_an_option_of_a_pipeline_whose_place_that_of_the_top_level_takes_is_refused(split: str, driver: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(UPERNET, **{f"{split}_dataloader.dataset.pipeline.0.type": "LoadImageFromFile"})
    message = f"{driver}_pipeline takes its place: write {driver}_pipeline.0.type"
    assert str(caught.value) == f"--cfg-options {split}_dataloader.dataset.pipeline.0.type: {message}"


@pytest.mark.parametrize("path", [MASK, UPERNET], ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "name, channels, dropped",
    [
        ("swin_tiny", [96, 192, 384, 768], "layer_scale_init_value, init_std (not of swin_tiny)"),
        ("resnet50", [256, 512, 1024, 2048], "layer_scale_init_value (not of resnet50)"),
        ("convnextv2_atto", [40, 80, 160, 320], "layer_scale_init_value (convnextv2_atto has its own)"),
        ("vit_small", [384] * 4, "layer_scale_init_value, init_std (not of vit_small)"),
    ],
)
def test_another_backbone_is_one_option(path: Path, name: str, channels: list[int], dropped: str) -> None:
    resolved = load(path, **{"model.backbone.type": name})
    assert resolved.notes[0] == f"model.backbone.type convnext_atto -> {name}: left out {dropped}"
    backbone = resolved.cfg.model.backbone
    assert (backbone.type, list(backbone.out_indices), backbone.drop_path_rate) == (name, [0, 1, 2, 3], 0.05)
    reader = resolved.cfg.model.get("neck") or resolved.cfg.model.decode_head
    assert list(reader.in_channels) == channels


def test_what_a_network_of_the_tables_is_made_of_goes_and_what_any_has_stays(tmp_path: Path) -> None:
    stated = 'model = dict(backbone=dict(type="convnext_atto", depths=(1, 1, 1, 1), kernel_size=5, weights="a.pth"))'
    resolved = load(derived(DIGITS, tmp_path, stated), **{"model.backbone.type": "convnext_pico"})
    assert resolved.notes[0].endswith("left out depths (convnext_pico has its own); weights (of convnext_atto)")
    backbone = resolved.cfg.model.backbone
    assert backbone.kernel_size == 5
    assert not {"depths", "weights"} & backbone.keys()
    frozen = load(RESNET, **{"model.backbone.type": "convnext_tiny"}).cfg.model.backbone
    assert (frozen.frozen_stages, "norm_eval" in frozen) == (1, False)


def test_what_the_options_state_is_kept_or_refused() -> None:
    stated = {"model.backbone.type": "convnextv2_atto", "model.backbone.weights": "mine.pth"}
    stated |= {"model.backbone.layer_scale_init_value": 0.5}
    backbone = load(DIGITS, **stated).cfg.model.backbone
    assert (backbone.weights, backbone.layer_scale_init_value) == ("mine.pth", 0.5)
    with pytest.raises(ConfigError, match=r"^--cfg-options model\.backbone\.drop_path: swin_tiny .*: drop_path_rate"):
        load(DIGITS, **{"model.backbone.type": "swin_tiny", "model.backbone.drop_path": 0.1})
    with pytest.raises(ConfigError, match=r"optimizer\.betas: SGD has no argument 'betas'"):
        load(DIGITS, **{"optim_wrapper.optimizer.type": "SGD", "optim_wrapper.optimizer.betas": (0.9, 0.99)})


def test_another_optimizer_says_whose_rate_it_has() -> None:
    resolved = load(DIGITS, **{"optim_wrapper.optimizer.type": "SGD"})
    assert resolved.notes[:2] == (
        "optim_wrapper.optimizer.type AdamW -> SGD: left out betas (not of SGD)",
        "optim_wrapper.optimizer: lr=0.004, weight_decay=0.05 stated for AdamW, give those of SGD; "
        "momentum is 0 unless stated",
    )
    place = "optim_wrapper.optimizer"
    stated = {"type": "SGD", "lr": 0.1, "weight_decay": 0, "momentum": 0.9}
    own = load(DIGITS, **{f"{place}.{name}": value for name, value in stated.items()})
    assert len(own.notes) == 1
    assert own.cfg.optim_wrapper.optimizer == stated
    assert load(DIGITS, **{f"{place}.type": "AdamW"}).notes == ()


@pytest.mark.parametrize(
    "path, options, dropped",
    [
        (DIGITS, {"param_scheduler.1.type": "ExponentialLR"}, "eta_min (not of ExponentialLR)"),
        (DIGITS, {"train_cfg.type": "IterationLoop", "train_cfg.max_iters": 9}, "max_epochs (not of IterationLoop)"),
        (UPERNET, {"model.decode_head.type": "FCNHead"}, "pool_scales (not of FCNHead)"),
        (UPERNET, {"model.decode_head.loss_decode.type": "DiceLoss"}, "class_weight (not of DiceLoss)"),
        (DIGITS, {"model.backbone.type": "mmdet.ResNet"}, "layer_scale_init_value, init_std"),
        # The keys beside the constructor's arguments, such as convert_to_iter_based, are mmengine's and stay.
        (DIGITS, {"param_scheduler.1.type": "CosineAnnealingParamScheduler"}, None),
        (DIGITS, {"custom_hooks.1.type": "EMAHook"}, None),  # hands other arguments to the average, whichever it is
        (DIGITS, {"train_dataloader.sampler.type": "InfiniteSampler"}, None),
    ],
)
def test_other_parts(path: Path, options: dict[str, Any], dropped: str | None) -> None:
    resolved = load(path, **options)
    said = [note for note in resolved.notes if "left out" in note]
    assert [dropped in note for note in said] == ([] if dropped is None else [True])
    if "param_scheduler.1.type" in options:
        assert resolved.cfg.param_scheduler[1].convert_to_iter_based


def test_a_network_that_does_not_say_its_channels() -> None:
    with pytest.raises(ConfigError, match=r"^in_channels='from_backbone': mmdet\.ResNet does not say its channels"):
        load(MASK, **{"model.backbone.type": "mmdet.ResNet", "model.backbone.depth": 50})


def test_a_file_that_changes_the_type_is_told_what_does_not_fit(tmp_path: Path) -> None:
    own = derived(MASK, tmp_path, 'model = dict(backbone=dict(type="swin_tiny", drop_path=0.1))')
    with pytest.raises(ConfigError) as caught:
        load(own)
    assert str(caught.value) == (
        "config does not build: model.backbone: swin_tiny has no argument 'drop_path', 'init_std', "
        "'layer_scale_init_value'; nearest: drop_path_rate; correct it, or leave out with _delete_=True beside "
        "type='swin_tiny' what the base has for another type"
    )


@pytest.mark.parametrize(("name", "said"), [("convnextv2_atto", True), ("convnext_pico", False)])
def test_a_file_that_keeps_the_layer_scale_of_a_base_is_told(name: str, said: bool, tmp_path: Path) -> None:
    resolved = load(derived(MASK, tmp_path, f"model = dict(backbone=dict(type={name!r}))"))
    notes = [note for note in resolved.notes if note.startswith("model.backbone.layer_scale_init_value=1.0: ")]
    assert len(notes) == said
    assert resolved.cfg.model.backbone.layer_scale_init_value == 1.0
    whole = f"model = dict(backbone=dict(_delete_=True, type={name!r}, out_indices=(0, 1, 2, 3)))"
    assert not [note for note in load(derived(MASK, tmp_path, whole)).notes if "layer_scale" in note]


@pytest.mark.parametrize("name", list_backbones())
def test_a_network_says_which_arguments_it_takes(name: str) -> None:
    taken = inspect.signature(BACKBONES.get(name)).parameters
    assert {"out_indices", "drop_path_rate", "grad_checkpointing", "weights", "frozen_stages"} <= taken.keys()
    assert not any(one.kind is one.VAR_KEYWORD for one in taken.values())


NO_WEIGHTS = (
    "model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='CrossEntropyLoss', class_weight=None)))"
)
WEIGHTS = "model = dict(decode_head=dict(loss_decode=dict(class_weight=dict({}background=0.1))))"


def test_a_mapping_over_nothing_says_what_to_write(tmp_path: Path) -> None:
    base = derived(UPERNET, tmp_path, NO_WEIGHTS).rename(tmp_path / "base.py")
    message = r"own\.py' cannot be read: class_weight is a mapping here and None in its base: write class_weight=dict"
    with pytest.raises(ConfigError, match=message) as caught:
        load(derived(base, tmp_path, WEIGHTS.format("")))
    assert len(str(caught.value).splitlines()) == 1
    cfg = load(derived(base, tmp_path, WEIGHTS.format("_delete_=True, "))).cfg
    assert cfg.model.decode_head.loss_decode.class_weight == [0.1, *[1.0] * 10]


@pytest.mark.parametrize("value, first", [("{'background':0.1}", 0.1), ("{}", 1.0)])
def test_an_option_may_give_a_mapping_in_place_of_nothing(value: str, first: float, tmp_path: Path) -> None:
    base = derived(UPERNET, tmp_path, NO_WEIGHTS)
    cfg = load(base, **parse_options([f"model.decode_head.loss_decode.class_weight={value}"])).cfg
    assert cfg.model.decode_head.loss_decode.class_weight == [first, *[1.0] * 10]
    with pytest.raises(ConfigError, match=r"load_from=.*: text is needed, or None"):
        load(base, load_from={"a": 1})
