"""Weights and normalisation for images of other numbers of channels than three."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.model import ImgDataPreprocessor

from backbones.channels import ChannelStatistics, image_channels
from backbones.errors import CheckpointError
from backbones.registry import build_backbone


class AnyPreprocessor(ChannelStatistics, ImgDataPreprocessor):
    """mmengine's with any number of values."""


@pytest.mark.parametrize("name", ["convnext_atto", "resnet50", "deit_small"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7])
def test_weights_of_three_channels_are_mapped(name: str, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = build_backbone(name)
    first = next(key for key, value in colour.state_dict().items() if value.ndim == 4 and value.shape[1] == 3)
    path = tmp_path / "colour.pth"
    torch.save(colour.state_dict(), path)
    network = build_backbone(name, in_channels=channels, weights=str(path))
    report = network.init_weights()
    assert image_channels(network) == channels
    theirs, ours = colour.state_dict()[first], network.state_dict()[first]
    if channels == 1:
        assert torch.equal(ours, theirs.sum(1, keepdim=True))
    else:
        for index in range(channels):
            torch.testing.assert_close(ours[:, index], theirs[:, index % 3] * 3 / channels)
    rule = "added up" if channels == 1 else f"repeated and scaled by 3/{channels}"
    assert f"{first} of 3 channels {rule} for {channels}" in str(report)
    assert report.as_dict()["adapted"]


def test_grey_copies_of_a_channel_give_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = build_backbone("convnext_atto").eval()
    torch.save(colour.state_dict(), tmp_path / "colour.pth")
    grey = build_backbone("convnext_atto", in_channels=1, weights=str(tmp_path / "colour.pth")).eval()
    grey.init_weights()
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_weights_of_three_channels_are_loaded_unchanged_and_others_are_not_mapped(tmp_path: Path) -> None:
    five = build_backbone("convnext_atto", in_channels=5)
    torch.save(five.state_dict(), tmp_path / "five.pth")
    with pytest.raises(CheckpointError, match="of another network"):
        build_backbone("convnext_atto", weights=str(tmp_path / "five.pth")).init_weights()
    again = build_backbone("convnext_atto", in_channels=5, weights=str(tmp_path / "five.pth"))
    assert not again.init_weights().adapted


def test_any_number_of_means() -> None:
    mean, std = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 4.0, 8.0, 16.0]
    preprocessor = AnyPreprocessor(mean=mean, std=std, pad_size_divisor=4)
    images = [torch.full((5, 3, 4), 9, dtype=torch.uint8)]
    inputs = preprocessor({"inputs": images})["inputs"]
    assert inputs.shape == (1, 5, 4, 4)
    assert inputs[0, :, 0, 0].tolist() == [(9 - m) / s for m, s in zip(mean, std, strict=True)]
    assert not preprocessor.state_dict()
