"""Class activation maps of each task: scores against the prediction, gradients, and Grad-CAM computed independently."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope

import analysis.explain.cams
from analysis.explain.cams import (
    BLANK,
    CAM_METHODS,
    PACKAGE,
    ScoredModel,
    cam_section,
    check_cams,
    choose_stage,
    class_maps,
    overlay_heat,
)
from analysis.explain.feature_maps import stage_maps
from analysis.explain.network import TrainedNetwork
from backbones.errors import ConfigError, MachineError
from backbones.packages import is_absent
from engine import load_model
from engine.config.building import build
from engine.config.load import load_config
from tests.engine.prediction.test_predictor import CONFIGS, SMALL, TASKS, small_settings

needs_package = pytest.mark.skipif(is_absent(PACKAGE), reason="grad-cam is not installed")


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task, a network of random weights, and an image."""
    name, data, _ = TASKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    cfg = load_config(CONFIGS / name, {"data_root": str(digits / data)} | small_settings()).cfg
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save({"state_dict": build(MODELS, cfg.model, "model").state_dict()}, folder / "model.pth")
    options = (f"data_root={digits / data}", f"work_dir={folder}", *SMALL)
    network = TrainedNetwork(load_model(CONFIGS / name, folder / "model.pth", options=options))
    DefaultScope._instance_dict.clear()
    return request.param, network, sorted((digits / "coco/val2017").glob("*.jpg"))[0]


def scored(network: TrainedNetwork, batch: dict[str, Any]) -> ScoredModel:
    assert network.task.explain is not None
    return ScoredModel(network.model, network.task.explain, batch, len(network.classes))


def test_scores_are_those_of_the_prediction_and_have_gradients(trained: Any) -> None:
    task, network, image = trained
    batch, prediction = network.batch(str(image)), network.predictor.predict(image)
    images = batch["inputs"].clone().requires_grad_()
    scores = scored(network, batch)(images)
    assert scores.shape == (1, len(network.classes))
    (row,) = scores.detach()
    if task == "classifier":
        assert torch.allclose(row.softmax(0), prediction.probabilities, atol=1e-5)
    elif task == "detector":
        for label in range(len(network.classes)):
            mine = prediction.scores[prediction.labels == label]
            expected = float(mine.max()) if len(mine) else -math.inf
            assert float(row[label]) == pytest.approx(expected, abs=1e-5)
    else:
        predicted = set(prediction.labels.unique().tolist())
        assert {label for label in range(len(row)) if row[label] > -math.inf} == predicted
        logits = prediction.sample.seg_logits.data
        label = int(prediction.labels[0, 0])
        assert float(row[label]) == pytest.approx(float(logits[label][prediction.labels == label].sum()), rel=1e-3)
    best = int(row.argmax())
    (gradient,) = torch.autograd.grad(scores[0, best], images)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_stages_are_found_and_padding_is_left_out(trained: Any) -> None:
    task, network, image = trained
    batch = network.batch(str(image))
    maps = stage_maps(network, batch)
    assert [len(one) for one in maps] == [8, 16, 16, 16]
    height, width = batch["inputs"].shape[-2:]
    assert [one.shape[1:] for one in maps] == [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    if task == "detector":
        batch["data_samples"][0].set_metainfo({"img_shape": (80, 97)})
        assert [one.shape[1:] for one in stage_maps(network, batch)] == [(20, 25), (10, 13), (5, 7), (3, 4)]
        assert network.picture(batch).shape == (80, 97, 3)
    assert choose_stage(maps) == {"classifier": 2, "detector": 3, "segmentor": 3}[task]


def test_the_picture_is_the_networks_input(trained: Any) -> None:
    task, network, image = trained
    if task != "segmentor":  # the others resize
        pytest.skip("the way is the same for all tasks")
    expected = cv2.imread(str(image))[..., ::-1]
    assert (network.picture(network.batch(str(image))) == expected).all()


@needs_package
def test_grad_cam_is_that_of_autograd(trained: Any) -> None:
    _, network, image = trained
    batch, layer = network.batch(str(image)), network.stage_layers()[1]
    found = class_maps(network, batch, layer, ())
    assert 0 < len(found) <= 2
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        kept: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda layer, inputs, output, kept=kept: kept.append(output))
        score = scored(network, batch)(batch["inputs"].clone().requires_grad_())[0, one.label]
        hook.remove()
        assert score.item() == pytest.approx(one.score, abs=1e-4)
        (gradient,) = torch.autograd.grad(score, kept[0])
        expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0].relu().detach().numpy()
        expected = expected - expected.min()
        side = batch["inputs"].shape[-2:]
        expected = cv2.resize(expected / (expected.max() + 1e-7), (side[1], side[0]))
        expected = (expected - expected.min()) / (1e-7 + (expected - expected.min()).max())
        assert one.maps["Grad-CAM"] == pytest.approx(expected, abs=1e-3)
        assert list(one.maps) == list(CAM_METHODS)
        for values in one.maps.values():
            assert values.shape == side
            assert values.min() >= 0
            assert values.max() <= 1
    assert not any(module._forward_hooks for module in network.model.modules())


@needs_package
def test_named_classes_are_explained_where_they_are_predicted(trained: Any) -> None:
    task, network, image = trained
    found = class_maps(network, network.batch(str(image)), network.stage_layers()[1], network.classes[:3])
    assert {one.label for one in found} <= {0, 1, 2}
    if task == "classifier":
        assert len(found) == 3


def test_what_is_missing_is_one_line(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, _ = trained
    with pytest.raises(ConfigError, match=r"^--classes: 'tow' is none of the 1[01] classes; nearest: two"):
        check_cams(network, ["two", "tow"])
    monkeypatch.setattr(analysis.explain.cams, "is_absent", lambda package: True)
    with pytest.raises(
        MachineError, match=r"^--parts cam: package 'pytorch_grad_cam' .*: pip install -e '\.\[explain\]'"
    ):
        check_cams(network, [])


def test_heat_is_red_where_a_map_is_high_and_the_picture_shows_through() -> None:
    picture = np.full((8, 16, 3), 100, np.uint8)
    values = np.zeros((4, 8))
    values[:, 6:] = 1
    shown = overlay_heat(picture, values).astype(int)
    assert shown.shape == picture.shape
    red, blue = shown[4, 15], shown[4, 0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert (overlay_heat(picture + 50, values)[4, 0] - blue >= 24).all()


@needs_package
def test_a_map_without_a_positive_value_is_said_to_be_blank(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, network, image = trained
    if task != "classifier":
        pytest.skip("the way is the same for all tasks")
    first, _ = cam_section(network, [image], 2, ["two"])
    assert BLANK not in first
    real = analysis.explain.cams._map
    monkeypatch.setattr(
        analysis.explain.cams,
        "_map",
        lambda kind, *rest: 0 * real(kind, *rest) if kind == "GradCAM" else real(kind, *rest),
    )
    blank, _ = cam_section(network, [image], 2, ["two"])
    assert blank.count(BLANK) == 1
    assert f"two: Grad-CAM, {BLANK}" in blank
