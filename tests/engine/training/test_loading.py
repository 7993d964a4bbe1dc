"""Weights of a whole model: every tensor, or one line that says which."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import CheckpointLoader
from torch import nn

from backbones import UserError
from engine.checkpoint import model_weights
from engine.checkpoint.model_weights import load_model_weights


class Model(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, classes)


def filled(value: float) -> Model:
    model = Model()
    for tensor in model.state_dict().values():  # not one value throughout: such weights are refused
        tensor.copy_((value + torch.arange(tensor.numel())).view_as(tensor))
    return model


def holds(model: nn.Module, value: float) -> bool:
    wanted = filled(value).state_dict()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    averages = ExponentialMovingAverage(filled(2)).state_dict()
    return {"state_dict": filled(1).state_dict(), "ema_state_dict": averages, "meta": {"epoch": 1}}


def test_raw_weights(checkpoint: dict[str, Any]) -> None:
    model = Model()
    assert str(load_model_weights(model, checkpoint, "run.pth")) == "9/9 tensors loaded from run.pth"
    assert holds(model, 1)


def test_averaged_weights(checkpoint: dict[str, Any]) -> None:
    model = Model()
    report = load_model_weights(model, checkpoint, "run.pth", averaged=True)
    assert str(report) == "9/9 tensors loaded from run.pth (averaged weights)"
    assert holds(model, 2)


def test_a_bare_mapping_of_tensors(checkpoint: dict[str, Any]) -> None:
    model = Model()
    load_model_weights(model, checkpoint["state_dict"], "bare.pth")
    assert holds(model, 1)


def test_no_averages_to_load(checkpoint: dict[str, Any]) -> None:
    del checkpoint["ema_state_dict"]
    with pytest.raises(UserError, match=r"'run\.pth' has no averaged weights: leave --ema out"):
        load_model_weights(Model(), checkpoint, "run.pth", averaged=True)


def test_a_missing_tensor(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"]["head.bias"], checkpoint["state_dict"]["norm.running_var"]
    model = filled(5)
    with pytest.raises(UserError, match=r"another model: it lacks 2/9 tensors \(norm\.running_var, head\.bias\)$"):
        load_model_weights(model, checkpoint, "run.pth")
    assert holds(model, 5)


def test_a_tensor_without_a_place(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["neck.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"another model: 1 of its tensors have no place here \(neck\.weight\)$"):
        load_model_weights(Model(), checkpoint, "run.pth")


def test_another_number_of_classes(checkpoint: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"head\.weight is \(3, 2\), the config wants \(10, 2\); check classes"):
        load_model_weights(Model(classes=10), checkpoint, "run.pth")


def test_something_else_altogether() -> None:
    with pytest.raises(UserError, match="lacks 9/9 tensors"):
        load_model_weights(Model(), {"epoch": 3}, "run.pth")
    with pytest.raises(UserError, match="lacks 9/9 tensors"):
        load_model_weights(Model(), {"state_dict": {}}, "run.pth")


def test_a_wrapped_model(checkpoint: dict[str, Any]) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    MODEL_WRAPPERS.register_module(name="WrapperOfTheTest", module=Wrapper)
    try:
        wrapped = Wrapper(Model())
        load_model_weights(wrapped, checkpoint, "run.pth")
    finally:
        MODEL_WRAPPERS._module_dict.pop("WrapperOfTheTest")
    assert holds(wrapped.module, 1)


@pytest.mark.parametrize("place", ["{}", "file://{}"])
def test_what_mmengine_loads_is_read_safely(place: str, tmp_path: Path) -> None:
    torch.save({"model": Decimal(1)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"was refused: it refers to decimal"):
        CheckpointLoader.load_checkpoint(place.format(tmp_path / "a.pth"))


def test_mmengine_loads_what_is_trusted_until_the_next_run(tmp_path: Path) -> None:
    torch.save({"model": Decimal(1)}, tmp_path / "a.pth")
    model_weights.LOADER_SETTINGS.trust = True
    try:
        assert CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth")) == {"model": Decimal(1)}
    finally:
        model_weights.LOADER_SETTINGS.trust = False
    with pytest.raises(UserError, match="was refused"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("scheme", sorted(prefix for prefix in CheckpointLoader._schemes if "://" in prefix))
def test_no_other_way_of_loading_is_left(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model_weights, "read_checkpoint", lambda source, trust: asked.append(source) or {})
    monkeypatch.setattr(model_weights, "get_torchvision_models", lambda: {"net": "https://there/net.pth"})
    if scheme.startswith(("http", "torchvision", "modelzoo")):
        CheckpointLoader.load_checkpoint(f"{scheme}net")
        assert asked == [f"{scheme}net" if scheme.startswith("http") else "https://there/net.pth"]
    else:
        with pytest.raises(UserError, match="is not supported: give a URL or a file"):
            CheckpointLoader.load_checkpoint(f"{scheme}net")


def test_a_way_of_loading_that_is_added_later_is_not_used() -> None:
    CheckpointLoader.register_scheme("zoo-of-the-test://", lambda filename, map_location: {"executed": True})
    try:
        with pytest.raises(UserError, match="is not supported"):
            CheckpointLoader.load_checkpoint("zoo-of-the-test://net")
    finally:
        CheckpointLoader._schemes.pop("zoo-of-the-test://")
