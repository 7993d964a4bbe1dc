"""Which parts of the page a network has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import classification
from analysis.explain import page
from analysis.explain.network import TrainedNetwork
from analysis.explain.page import PARTS, fitting_parts
from backbones.errors import ConfigError, DataError
from backbones.registry import build_backbone
from backbones.timm_backbones import TimmConvNet, TimmVisionTransformer
from engine.task import CUSTOM_TASK


def network(backbone: Any, task: Any) -> TrainedNetwork:
    found = TrainedNetwork.__new__(TrainedNetwork)  # without a config, of which nothing is asked
    found.task, found.name, found.model = task, "mine", SimpleNamespace(backbone=backbone)
    return found


def test_a_network_has_the_parts_that_its_layers_and_its_task_allow() -> None:
    task = classification.task.CLASSIFICATION
    small = {"depths": [1] * 4, "dims": [8] * 4}
    assert fitting_parts(network(build_backbone("convnext_atto", **small), task)) == list(PARTS)
    assert fitting_parts(network(build_backbone("convnext_atto", **small), CUSTOM_TASK)) == list(PARTS[1:])
    assert fitting_parts(network(TimmConvNet("resnet10t"), task)) == ["cam", "features", "embeddings"]
    tokens = network(TimmVisionTransformer("test_vit"), task)
    assert fitting_parts(tokens) == ["embeddings"]
    with pytest.raises(ConfigError, match=r"^mine: the blocks of this test_vit give tokens, not maps: --parts emb"):
        tokens.stage_layers()


def test_too_few_images_for_embeddings_leave_the_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise DataError("--parts embeddings: 2 test images are too few, 3 are needed: name other --parts")

    monkeypatch.setattr(page, "embedding_section", refuse)
    some: Any = None
    html, numbers = page.embeddings_or_reason(some, some, [], alone=False)
    assert "Left out: --parts embeddings: 2 test images are too few" in html
    assert numbers["left_out"].startswith("--parts embeddings: 2 test images")
    with pytest.raises(DataError):
        page.embeddings_or_reason(some, some, [], alone=True)
