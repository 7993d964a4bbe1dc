"""The masked autoencoder: its loss by hand, both forms, masks, initial values, released names."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backbones.errors import ConfigError
from backbones.layers import GRN
from classification.pretraining.model import MaskedAutoencoder
from classification.pretraining.patches import to_images, to_patches
from engine.checkpoint.model_weights import load_model_weights
from tests.backbones.naming import sparse

SMALL = dict(type="convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))


def autoencoder(**options: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(**{"backbone": SMALL, "decoder_dim": 16, **options})


def batch(size: tuple[int, int] = (64, 96), images: int = 2) -> dict[str, Any]:
    torch.manual_seed(1)
    units = (size[0] // 32) * (size[1] // 32)
    order = torch.stack([torch.randperm(units) for _ in range(images)])
    return {"inputs": torch.randn(images, 3, *size), "data_samples": {"order": order, "img_path": ["a.png"] * images}}


def loss_by_hand(model: MaskedAutoencoder, data: dict[str, Any]) -> float:
    """Unit by unit in float64, as section 3.1 says: normalised pixels, hidden units alone."""
    images, order = data["inputs"].double().numpy(), data["data_samples"]["order"].numpy()
    with torch.no_grad():
        found = model(**data, mode="tensor").double().numpy()
    columns, losses = images.shape[3] // 32, []
    visible = int(order.shape[1] * (1 - model.mask_ratio))
    for image, pixels, units in zip(images, found, order, strict=True):
        for unit in units[visible:]:
            row, column = divmod(unit, columns)
            patch = image[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            wanted = patch.transpose(1, 2, 0).ravel()
            if model.normalize_patches:
                wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var(ddof=1) + 1e-6)
            losses.append(np.mean((pixels[:, row, column] - wanted) ** 2))
    return float(np.mean(losses))


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (70, 100)])
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_the_loss_is_that_of_the_hidden_units(form: str, size: tuple[int, int]) -> None:
    model = autoencoder(form=form)
    data = batch(size)
    assert model(**data, mode="loss")["loss"].item() == pytest.approx(loss_by_hand(model, data), rel=1e-5)


def test_raw_pixels_are_a_target_too() -> None:
    model, data = autoencoder(normalize_patches=False), batch()
    data["inputs"] = 3 * data["inputs"] + 1
    assert model(**data, mode="loss")["loss"].item() == pytest.approx(loss_by_hand(model, data), rel=1e-5)


def test_hidden_pixels_reach_no_prediction() -> None:
    model, data = autoencoder(), batch()
    hidden = model(**data, mode="predict")[0].hidden
    with torch.no_grad():
        before = model(**data, mode="tensor")[0]
        spots = hidden.repeat_interleave(32, 0).repeat_interleave(32, 1)
        data["inputs"][0][:, spots] = 3.0
        assert torch.equal(before, model(**data, mode="tensor")[0])


@pytest.mark.parametrize(("units", "ratio", "count"), [(49, 0.6, 19), (49, 0.5, 24), (49, 0.75, 12), (4, 0.6, 1)])
def test_as_many_units_are_visible_as_in_the_released_code(units: int, ratio: float, count: int) -> None:
    order = torch.stack([torch.randperm(units) for _ in range(3)])
    visible, hidden = autoencoder(mask_ratio=ratio).split_units(order)
    assert visible.shape == (3, count)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(units).expand(3, -1))


def test_predictions_are_images_again() -> None:
    model, data = autoencoder(), batch((70, 100))
    raw = torch.randint(0, 256, (2, 3, 70, 100), dtype=torch.uint8)
    data = model.data_preprocessor({**data, "inputs": raw})
    sample = model(**data, mode="predict")[0]
    torch.testing.assert_close(sample.image, raw[0].float(), rtol=0, atol=1e-3)
    assert (sample.hidden.shape, sample.reconstruction.shape) == ((2, 3), (3, 64, 96))
    patches = to_patches(data["inputs"], 32)
    assert torch.equal(to_images(patches, (2, 3), 32), data["inputs"][..., :64, :96])
    found, mean, std = patches, *model._targets(data["inputs"])[1:]
    again = to_images((found - mean) / std * std + mean, (2, 3), 32)
    torch.testing.assert_close(again, data["inputs"][..., :64, :96], rtol=1e-4, atol=1e-4)


def test_initial_weights_have_the_paper_s_spread_and_grn_begins_as_identity() -> None:
    model = autoencoder(backbone=dict(type="convnextv2_atto"), decoder_dim=512)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert 0.01 < module.weight.std() < 0.021, name
            assert not module.bias.any()
        if isinstance(module, GRN):
            assert not module.gamma.any()
            assert not module.beta.any()
    assert 0.015 < model.mask_token.std() < 0.025


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    model, data = autoencoder(backbone=dict(type="convnextv2_atto")), batch((64, 64))
    with torch.autocast("cpu", dtype):
        loss = model(**data, mode="loss")["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(one.grad is None or one.grad.isfinite().all() for one in model.parameters())


def test_every_parameter_is_trained() -> None:
    model = autoencoder()
    model(**batch(), mode="loss")["loss"].backward()
    assert [name for name, one in model.named_parameters() if one.grad is None] == []


def test_the_names_are_those_of_the_released_pre_training() -> None:
    names = {name.partition(".")[0] for name in autoencoder().state_dict()}
    assert names == {"backbone", "mask_token", "proj", "decoder", "pred"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mask_ratio=1.0), "mask_ratio=1.0"),
        (dict(mask_ratio=0), "mask_ratio=0: a fraction"),
        (dict(mask_ratio="most"), "mask_ratio='most': a fraction"),
        (dict(decoder_dim=2.5), "decoder_dim=2.5, decoder_depth=1: whole numbers"),
        (dict(normalize_patches="off"), "normalize_patches='off': True or False"),
        (dict(form="sparse"), "model.form='sparse': choose from dense, packed"),
        (dict(decoder_depth=0), "decoder_depth=0"),
        (dict(backbone=dict(type="resnet50")), "model.backbone.type='resnet50': masked pre-training needs a ConvNeXt"),
        (dict(backbone=dict(type="convnext_isotropic_small")), "needs a ConvNeXt"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        autoencoder(**options)


def test_too_small_an_image_for_the_ratio_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mask_ratio=0.8 hides all of 4 units"):
        autoencoder(mask_ratio=0.8)(**batch((64, 64)), mode="loss")


def test_a_network_without_response_normalisation_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        v1 = autoencoder(backbone={**SMALL, "type": "convnext_atto"})
    assert v1(**batch(), mode="loss")["loss"].isfinite()


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_a_released_pre_training_loads_whole(dense: bool) -> None:
    """As main_pretrain.py of facebookresearch/ConvNeXt-V2 saves it: encoder and decoder in one file."""
    trained, fresh = autoencoder(), autoencoder()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))
    state = {name.removeprefix("backbone."): one for name, one in trained.state_dict().items()}
    encoder = trained.backbone.state_dict()
    rest = {name: one for name, one in trained.state_dict().items() if not name.startswith("backbone.")}
    named = {f"encoder.{name}": one for name, one in encoder.items()} if dense else sparse(encoder)
    report = load_model_weights(fresh, {"model": {**named, **rest}}, "checkpoint-799.pth", training=True)
    assert report.loaded == report.total == len(state)
    data = batch()
    assert fresh(**data, mode="loss")["loss"] == trained(**data, mode="loss")["loss"]
