"""Weights in: every layout with its receipt, every defect with one line, and nothing executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import UserError, build_backbone
from backbones.convnext import ConvNeXt
from backbones.weights import Receipt, read_checkpoint

SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
TENSORS = 5 * 9 + 4 * 4 + 2
HEAD = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}


@pytest.fixture
def pretrained() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: torch.randn_like(value) for name, value in ConvNeXt(**SMALL).state_dict().items()}


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def dense(weights: str | None = None) -> ConvNeXt:
    return ConvNeXt(**SMALL, out_indices=(0, 1, 2, 3), weights=weights)


def assert_loaded(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = network.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in state if name in tensors)
    assert sum(name in tensors for name in state) >= TENSORS - 2


def layouts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    ours = {f"backbone.{name}": value for name, value in tensors.items()} | HEAD
    return {
        "released": {"model": tensors | HEAD},
        "bare": tensors | HEAD,
        "ours": {"state_dict": ours, "meta": {"epoch": 3}, "ema_state_dict": {}},
        "parallel": {"state_dict": {f"module.{name}": value for name, value in ours.items()}},
    }


@pytest.mark.parametrize("layout", ["released", "bare", "ours", "parallel"])
def test_known_layouts(layout: str, pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(layouts(pretrained)[layout], tmp_path / "weights.pth")
    network = ConvNeXt(**SMALL, weights=path)
    receipt = network.init_weights()
    assert receipt is not None
    assert (receipt.loaded, receipt.total, receipt.fresh) == (TENSORS, TENSORS, ())
    assert {name.removeprefix("module.") for name in receipt.skipped} == {"head.weight", "head.bias"}
    assert_loaded(network, pretrained)
    assert str(receipt) == f"{TENSORS}/{TENSORS} backbone tensors loaded from {path}, skipped: " + (
        "module.head" if layout == "parallel" else "head"
    )


def test_output_norms_of_a_dense_network_may_be_new(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained | HEAD}, tmp_path / "classifier.pth")
    network = dense(path)
    receipt = network.init_weights()
    assert isinstance(receipt, Receipt)
    assert receipt.fresh == tuple(f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias"))
    assert (receipt.loaded, receipt.total) == (TENSORS - 2, TENSORS - 2 + 8)
    assert set(receipt.skipped) == {"norm.weight", "norm.bias", *HEAD}
    assert "new: norm0, norm1, norm2, norm3" in str(receipt)
    assert receipt.as_dict()["loaded"] == TENSORS - 2
    assert_loaded(network, pretrained)


def test_a_detector_gives_its_backbone_with_the_output_norms(tmp_path: Path) -> None:
    trained = {f"backbone.{name}": torch.randn_like(value) for name, value in dense().state_dict().items()}
    path = saved({"state_dict": trained | {"neck.conv.weight": torch.zeros(1)}}, tmp_path / "detector.pth")
    network = dense(path)
    receipt = network.init_weights()
    assert receipt is not None
    assert receipt.fresh == ()
    assert receipt.skipped == ("neck.conv.weight",)
    assert torch.equal(network.get_parameter("norm2.weight"), trained["backbone.norm2.weight"])


def test_build_backbone_loads(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    assert_loaded(build_backbone("convnext_atto", **SMALL, weights=path), pretrained)


def test_a_url_is_read(pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    assert_loaded(build_backbone("convnext_atto", **SMALL, weights=f"file://{path}"), pretrained)
    with pytest.raises(UserError, match=r"absent\.pth' cannot be read"):
        read_checkpoint(f"file://{tmp_path}/absent.pth")


class Parent(BaseModel):
    """A model whose initialisation would overwrite all convolutions and linear layers."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(init_cfg=dict(type="Constant", layer=["Conv2d", "Linear"], val=5.0))
        self.backbone = backbone
        self.head = nn.Linear(32, 2)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        return self.head(self.backbone(inputs))


def test_weights_survive_the_initialisation_of_a_parent(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    model = Parent(ConvNeXt(**SMALL, weights=path))
    model.init_weights()
    assert bool((model.head.weight == 5).all())
    assert_loaded(model.backbone, pretrained)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_a_forward_pass_before_the_load_is_an_error(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    network = ConvNeXt(**SMALL, weights=path)
    image = torch.randn(1, 3, 32, 32)
    with pytest.raises(UserError, match=r"weights=.*weights\.pth' were not loaded"):
        network(image)
    network.init_weights()
    network(image)
    resumed = Parent(ConvNeXt(**SMALL, weights=path))
    resumed.load_state_dict(Parent(network).state_dict())
    resumed(image)


def test_no_weights_no_receipt() -> None:
    assert ConvNeXt(**SMALL).init_weights() is None


def test_missing_tensors_are_an_error(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    del pretrained["stages.2.1.gamma"], pretrained["norm.bias"]
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    network = ConvNeXt(**SMALL, weights=path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"lacks 2 of {TENSORS} tensors: (norm, stages\.2\.1|stages\.2\.1, norm)"):
        network.init_weights()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_another_network_is_an_error(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"another network: downsample_layers.* is \(8, .*here \(12, "):
        build_backbone("convnext_atto", depths=(1, 1, 2, 1), dims=(12, 16, 24, 32), weights=path)
    with pytest.raises(UserError, match="lacks 9 of"):
        build_backbone("convnext_atto", depths=(1, 1, 3, 1), dims=SMALL["dims"], weights=path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"conv1.weight": torch.zeros(2)}}, "no ConvNeXt.*conv1.weight"),
        ({}, "no tensors at all"),
        ([torch.zeros(2)], "holds a list"),
        ({"teacher.downsample_layers.0.0.weight": torch.zeros(2)}, r"unknown prefix 'teacher\.'"),
    ],
)
def test_a_file_without_a_convnext(content: Any, message: str, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        ConvNeXt(**SMALL, weights=path).init_weights()


class Malicious:
    """Makes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("plain", [False, True], ids=["torch.save", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(plain: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = {"model": Malicious(marker)}
    if plain:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"was refused: it refers to \w+\.mkdir$"):
        read_checkpoint(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("owner, name", [(Path, "home"), (HistoryBuffer, "update")])
def test_getattr_serves_the_loss_histories_alone(owner: Any, name: str, tmp_path: Path) -> None:
    class Reaching:
        def __reduce__(self) -> Any:
            return getattr, (owner, name)

    with pytest.raises(UserError, match="was refused"):
        read_checkpoint(saved({"model": Reaching()}, tmp_path / "weights.pth"))


def test_damaged_files(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = Path(saved({"model": pretrained}, tmp_path / "weights.pth"))
    text, half, empty = tmp_path / "text.pth", tmp_path / "half.pth", tmp_path / "empty.pth"
    text.write_text("these are no weights\nat all\n")
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    empty.write_bytes(b"")
    for damaged in (text, half, empty):
        with pytest.raises(UserError, match=rf"{damaged.name}' (was refused|cannot be read)") as caught:
            read_checkpoint(str(damaged))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(str(tmp_path))


def test_what_mmengine_saves_beside_tensors_is_read(tmp_path: Path) -> None:
    history = HistoryBuffer([1.5, 2.5], [1, 1])
    content = {"message_hub": {"loss": history}, "best": np.float64(3), "labels": np.arange(3), "step": np.int64(4)}
    read = read_checkpoint(saved(content, tmp_path / "run.pth"))
    assert read["message_hub"]["loss"].current() == 2.5
    assert (float(read["best"]), int(read["step"]), read["labels"].tolist()) == (3.0, 4, [0, 1, 2])
