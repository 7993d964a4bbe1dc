"""A segmentor that could learn nothing is refused in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import DefaultScope

import detection  # noqa: F401  (the packages register the libraries' scopes)
import segmentation  # noqa: F401
from backbones.errors import ConfigError
from engine.config.building import REGISTRIES
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import training_plan

DIGITS = Path(__file__).resolve().parents[2] / "configs/segmentation/upernet_digits.py"
TWO = {"classes": ["background", "road"]}
SINGLE = {f"model.{head}.out_channels": 1 for head in ("decode_head", "auxiliary_head")}
SIGMOID = {f"model.{head}.loss_decode.use_sigmoid": True for head in ("decode_head", "auxiliary_head")}


def plan(**options: Any) -> Any:
    return training_plan(load_config(DIGITS, options, Launch()), Launch())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"classes": ["road"]}, "decode_head: there is one class"),
        ({"classes": ["road"], **SINGLE, **SIGMOID}, "decode_head: there is one class"),
        ({**TWO, **SINGLE}, "decode_head: out_channels=1 with a softmax"),
        ({**TWO, **SIGMOID, "model.auxiliary_head.out_channels": 1} | {list(SIGMOID)[1]: False}, "auxiliary_head: out"),
    ],
    ids=["one class", "one class, sigmoid", "one score", "auxiliary"],
)
def test_a_constant_loss_is_refused_with_the_ways_out(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}.*use two classes.*or a sigmoid"):
        plan(**options)


@pytest.mark.parametrize("options", [TWO, {**TWO, **SINGLE, **SIGMOID}], ids=["softmax", "sigmoid"])
def test_the_ways_out_are_planned(options: dict[str, Any]) -> None:
    assert plan(**options).memory.activations


def test_one_value_per_channel_of_a_batch_norm_is_refused() -> None:
    """The pyramid pooling of UperNet ends at 1 x 1."""
    one = {"batch.size": 2, "batch.per_gpu": 1}
    with pytest.raises(ConfigError, match=r"batch of 1 per process: decode_head\.psp_modules.*per_gpu of 2"):
        plan(**one)
    with pytest.raises(ConfigError, match="gets one value per channel"):
        plan(**one, **{"model.data_preprocessor.size": None})
    norm = {f"model.{head}.norm_cfg": dict(type="GN", num_groups=8) for head in ("decode_head", "auxiliary_head")}
    assert plan(**one, **norm).memory.activations
    synchronised = load_config(DIGITS, {"batch.per_gpu": 1}, Launch.on_gpus(4))
    assert training_plan(synchronised, Launch.on_gpus(4)).batch.per_process == 1


def test_classes_of_one_s_own_do_not_get_the_weights_of_the_digits() -> None:
    resolved = load_config(DIGITS, {"classes": ["ground", "disc", "box"]}, Launch())
    assert resolved.cfg.model.decode_head.loss_decode.class_weight is None
    assert sum("'background', none of the classes" in note for note in resolved.notes) == 2
    own = load_config(DIGITS, {}, Launch()).cfg.model.decode_head.loss_decode
    assert own.class_weight == [0.1, *[1.0] * 10]


EPOCHS = {"train_dataloader.sampler": dict(type="DefaultSampler", shuffle=True)}


@pytest.mark.parametrize(
    "images, options, refused",
    [
        (9, {}, True),
        (8, {}, False),
        (10, {}, False),
        (9, {"train_dataloader.drop_last": True}, False),
        (9, {"train_dataloader.sampler": dict(type="InfiniteSampler", shuffle=True)}, False),
        (10, {"batch.per_gpu": 2}, True),
    ],
    ids=["one left", "none left", "two left", "dropped", "endless", "one in each of two passes"],
)
def test_the_last_batch_of_an_epoch_is_not_too_small(images: int, options: dict[str, Any], refused: bool) -> None:
    found = plan(**{"batch.size": 4, "batch.per_gpu": 4, **EPOCHS, **options})
    if not refused:
        assert found.with_data(images, 2).schedule.images == images
        return
    with pytest.raises(ConfigError, match=rf"1 of {images} images per pass: decode_head\.psp.*drop_last=True"):
        found.with_data(images, 2)


def test_the_last_batch_of_an_epoch_divides_or_is_refused_before_training() -> None:
    found = plan(**{"batch.size": 4, "batch.per_gpu": 2, **EPOCHS})
    with pytest.raises(ConfigError, match="the last 3 images of an epoch do not divide into 2 accumulation steps"):
        found.with_data(11, 3)


def test_a_decode_head_without_weight_is_refused() -> None:
    weightless = {"model.decode_head.loss_decode.loss_weight": 0.0}
    with pytest.raises(ConfigError, match=r"decode_head\.loss_decode: loss_weight is 0"):
        plan(**weightless)
    assert plan(**{"model.auxiliary_head.loss_decode.loss_weight": 0.0}).memory.activations


def test_a_head_that_ignores_another_value_than_the_labels_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decode_head\.ignore_index=0: .* as 255, so leave it out"):
        plan(**{"model.decode_head.ignore_index": 0})


def test_names_in_a_data_set_s_metainfo_are_not_ignored(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    text = f"_base_ = [{str(DIGITS)!r}]\nclasses = ('field', 'road')\n"
    file.write_text(f"{text}val_dataloader = dict(dataset=dict(metainfo=dict(classes=('road', 'field'))))\n")
    with pytest.raises(ConfigError, match=r"metainfo\.classes=.*'road', 'field'.*name them once"):
        load_config(file, launch=Launch())
    file.write_text(text)
    again = tmp_path / "resolved.py"
    load_config(file, launch=Launch()).cfg.dump(again)
    changed = load_config(again, {"classes": ["field", "street"]}, Launch()).cfg
    assert changed.train_dataloader.dataset.metainfo.classes == ("field", "street")


@pytest.mark.parametrize("scope", ["mmseg", "mmdet", "mmengine"])
def test_every_registry_has_the_scope_of_the_libraries(scope: str) -> None:
    """Where one has not, mmengine logs a warning of three lines whenever something is looked up in it."""
    with DefaultScope.overwrite_default_scope(scope):
        for registry in REGISTRIES:
            with registry.switch_scope_and_registry(None) as found:
                assert found.scope == scope, registry.name
