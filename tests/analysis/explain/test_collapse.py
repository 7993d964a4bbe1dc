"""Distances of channels: against the paper's formula, and in networks with and without response normalisation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.explain.collapse import AFTER, BEFORE, Collapse, channel_distance, collapse_section, measure_collapse
from backbones.errors import ConfigError
from backbones.layers import GRN
from backbones.registry import build_backbone
from tests.pages import Page


def paper_distance(features: Tensor) -> float:
    """The formula pair by pair, of one image, (H, W, C)."""
    channels = features.flatten(0, 1).T
    pairs = [(1 - F.cosine_similarity(one, other, dim=0)) / 2 for one in channels for other in channels]
    return float(sum(pairs)) / len(channels) ** 2


def network(name: str, side: int = 64) -> Any:
    torch.manual_seed(0)
    backbone = build_backbone(name, depths=[1, 1, 2, 1], dims=[8, 8, 16, 16], init_std=0.2).eval()
    return SimpleNamespace(
        name=name,
        label=name,
        backbone=backbone,
        batch=lambda path: {"inputs": torch.randn(1, 3, side, side)},
        model=backbone,
    )


def test_the_distance_is_the_papers() -> None:
    features = torch.randn(2, 3, 4, 5).relu()
    features[0, :, :, 1] = 2 * features[0, :, :, 0]  # two channels that say the same
    features[1, :, :, 2] = 0  # one that says nothing
    found = channel_distance(features)
    assert found.tolist() == pytest.approx([paper_distance(one.double()) for one in features])
    same = torch.randn(1, 3, 4, 1).expand(-1, -1, -1, 6)
    assert channel_distance(same).item() == pytest.approx(0, abs=1e-12)
    opposite = torch.cat([same[..., :3], -same[..., :3]], 3)
    assert channel_distance(opposite).item() == pytest.approx(0.5)


def test_v2_is_measured_before_and_after_its_normalisation_and_v1_once() -> None:
    first, second = network("convnext_atto"), network("convnextv2_atto")
    found = measure_collapse(first, [Path("a"), Path("b")])
    assert list(found.distances) == [""]
    assert len(found.distances[""]) == 5
    layers = [module for module in second.backbone.modules() if isinstance(module, GRN)]
    same = measure_collapse(second, [Path("a")]).distances
    assert same[BEFORE] == pytest.approx(same[AFTER])  # its scale and shift begin at zero
    with torch.no_grad():
        layers[2].beta.fill_(100.0)  # all channels become nearly the same
    changed = measure_collapse(second, [Path("a")]).distances
    assert changed[AFTER][2] < 0.01 < 0.1 < changed[BEFORE][2]
    assert not any(module._forward_hooks for module in second.backbone.modules())


def test_the_distance_of_a_block_is_that_of_its_expanded_features() -> None:
    one = network("convnext_atto")
    images = torch.randn(1, 3, 64, 64)
    one.batch = lambda path: {"inputs": images}
    block, seen = one.backbone.stages[1][0], []
    with torch.no_grad():
        hook = block.act.register_forward_hook(lambda layer, inputs, output: seen.append(output))
        one.backbone(images)
    hook.remove()
    assert measure_collapse(one, [Path("a")]).distances[""][1] == pytest.approx(paper_distance(seen[0][0].double()))


def test_another_network_is_refused_in_one_line() -> None:
    other = SimpleNamespace(name="resnet", backbone=nn.Linear(2, 2), batch=None)
    with pytest.raises(ConfigError, match=r"--parts collapse: resnet has no blocks of ConvNeXt"):
        measure_collapse(other, [Path("a")])


def test_the_chart_has_a_line_for_each_and_says_where_maps_have_one_position() -> None:
    found = [measure_collapse(network(name, 32), [Path("a")]) for name in ("convnext_atto", "convnextv2_atto")]
    assert found[0].single == 1
    page = Page(collapse_section(found, 1))
    assert page.tags.count("polyline") == 3
    for words in ("convnext_atto", f"convnextv2_atto, {BEFORE}", f"convnextv2_atto, {AFTER}"):
        assert page.lines.count(words) == 2  # in the legend and in the table
    assert "convnext_atto: of 1 blocks the map has one position" in page.words
    twice = Page(collapse_section([Collapse("a", {"": [0.25, 0.5]}), Collapse("a", {"": [0.5, 0.125]})], 7))
    assert "1: a" in twice.lines
    assert "2: a" in twice.lines
    assert "over 7 images" in twice.words
    assert "0.125" in twice.lines
