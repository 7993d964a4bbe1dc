"""One name is one network, wherever it is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mmdet.registry import MODELS as DETECTION
from mmengine.registry import MODELS
from mmseg.registry import MODELS as SEGMENTATION
from torch import nn

from backbones import UserError, build_backbone, list_backbones, register_backbone, registry, variants
from backbones.convnext import ConvNeXt
from backbones.errors import ConfigError
from backbones.isotropic import IsotropicConvNeXt
from backbones.layers import GRN
from backbones.variants import CONVNEXT_V1

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))


@pytest.fixture
def new_name() -> Iterator[str]:
    yield "network_of_the_test"
    registry.BACKBONES._module_dict.pop("network_of_the_test", None)
    MODELS._module_dict.pop("network_of_the_test", None)


def test_list_follows_the_table() -> None:
    assert [name for name in list_backbones() if name in CONVNEXT_V1] == list(CONVNEXT_V1)


@pytest.mark.parametrize("models", [MODELS, DETECTION, SEGMENTATION], ids=["mmengine", "mmdet", "mmseg"])
def test_the_neck_that_changes_the_layout_of_memory(models: object) -> None:
    neck = models.build([dict(type="ContiguousMaps")])  # type: ignore[attr-defined]
    images = torch.randn(2, 3, 4, 5)
    (there, again) = neck([images, images.contiguous(memory_format=torch.channels_last)])
    assert there is images
    assert again.is_contiguous()
    assert torch.equal(again, images)


@pytest.mark.parametrize("models", [MODELS, DETECTION, SEGMENTATION], ids=["mmengine", "mmdet", "mmseg"])
def test_every_openmmlab_registry_finds_the_name_without_a_scope(models: object) -> None:
    built = models.build(dict(type="convnext_tiny", out_indices=(0, 3), **SMALL))  # type: ignore[attr-defined]
    direct = build_backbone("convnext_tiny", out_indices=(0, 3), **SMALL)
    assert type(built) is type(direct) is ConvNeXt
    assert built.out_channels == direct.out_channels == (8, 8)


@pytest.mark.parametrize("name", list_backbones())
def test_every_name_is_in_the_root_registry(name: str) -> None:
    assert MODELS.get(name).__name__ == name


@pytest.mark.parametrize(
    "typed, meant",
    [("convnext_tinny", "convnext_tiny"), ("ConvNeXt-Base", "convnext_base"), ("xlarge", "convnext_xlarge")],
)
def test_an_unknown_name_lists_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown backbone {typed!r}.*{meant}"):
        build_backbone(typed)


def test_former_argument_names_are_accepted_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(variants, "print_log", lambda message, *_: logged.append(message))
    options = dict(expansion=2, grn=True, **SMALL)
    for network in (build_backbone("convnext_tiny", **options), MODELS.build(dict(type="convnext_tiny", **options))):
        block = network.stages[0][0]
        assert (block.pwconv1.out_features, type(block.grn)) == (16, GRN)
    assert IsotropicConvNeXt(4, 8, mlp_ratio=2).blocks[0].pwconv1.out_features == 16
    assert build_backbone("convnext_isotropic_small", depth=4, dim=8, expansion=2).blocks[0].pwconv1.out_features == 16
    assert logged[0].startswith("expansion is now called mlp_ratio")
    with pytest.raises(ConfigError, match="grn is the former name of use_grn"):
        build_backbone("convnext_tiny", grn=True, use_grn=True)


def test_a_name_like_no_other_lists_some() -> None:
    with pytest.raises(UserError, match="convnext_"):
        build_backbone("%%%")


def test_a_network_of_ones_own(new_name: str) -> None:
    class Own(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

        def init_weights(self) -> None: ...

    register_backbone(new_name, Own)
    assert build_backbone(new_name, width=3).width == 3
    assert DETECTION.build(dict(type=new_name, width=4)).width == 4
    assert new_name in list_backbones()


def test_a_second_registration_under_a_name_is_an_error(new_name: str) -> None:
    register_backbone(new_name, ConvNeXt)
    with pytest.raises(KeyError, match="registered already"):
        register_backbone(new_name, ConvNeXt)
    with pytest.raises(KeyError, match="convnext_tiny"):
        register_backbone("convnext_tiny", ConvNeXt)


def test_a_name_of_another_module_is_an_error_too() -> None:
    taken = next(iter(MODELS.module_dict))
    if taken in list_backbones():
        taken = next(name for name in MODELS.module_dict if name not in list_backbones())
    with pytest.raises(KeyError):
        register_backbone(taken, ConvNeXt)
    assert taken not in list_backbones()
