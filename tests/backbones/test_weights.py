"""Weights in: every layout with its report, every defect with one line, and nothing executed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
)

from backbones import UserError, build_backbone
from backbones.base import Backbone
from backbones.convnext import ConvNeXt
from backbones.isotropic import IsotropicConvNeXt
from backbones.weights import LoadReport, convert_checkpoint, find_head, network_tensors, read_checkpoint

SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
TENSORS = 5 * 9 + 4 * 4 + 2
HEAD = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}


@pytest.fixture
def pretrained() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: torch.randn_like(value) for name, value in ConvNeXt(**SMALL).state_dict().items()}


def head_in(path: str) -> tuple[Tensor, Tensor] | None:
    return find_head(read_checkpoint(path), path)


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
    report = network.init_weights()
    assert report is not None
    assert (report.loaded, report.total, report.missing) == (TENSORS, TENSORS, ())
    assert {name.removeprefix("module.") for name in report.unexpected} == {"head.weight", "head.bias"}
    assert_loaded(network, pretrained)
    assert str(report) == f"{TENSORS}/{TENSORS} backbone tensors loaded from {path} (official layout), skipped: " + (
        "module.head" if layout == "parallel" else "head"
    )


def test_output_norms_of_a_dense_network_may_be_new(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained | HEAD}, tmp_path / "classifier.pth")
    network = dense(path)
    report = network.init_weights()
    assert isinstance(report, LoadReport)
    assert report.missing == tuple(f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias"))
    assert (report.loaded, report.total) == (TENSORS - 2, TENSORS - 2 + 8)
    assert set(report.unexpected) == {"norm.weight", "norm.bias", *HEAD}
    assert "new: norm0, norm1, norm2, norm3" in str(report)
    assert report.as_dict()["loaded"] == TENSORS - 2
    assert_loaded(network, pretrained)


def test_a_detector_gives_its_backbone_with_the_output_norms(tmp_path: Path) -> None:
    trained = {f"backbone.{name}": torch.randn_like(value) for name, value in dense().state_dict().items()}
    path = saved({"state_dict": trained | {"neck.conv.weight": torch.zeros(1)}}, tmp_path / "detector.pth")
    network = dense(path)
    report = network.init_weights()
    assert report is not None
    assert report.missing == ()
    assert report.unexpected == ("neck.conv.weight",)
    assert torch.equal(network.get_parameter("norm2.weight"), trained["backbone.norm2.weight"])


def test_build_backbone_loads(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    assert_loaded(build_backbone("convnext_atto", **SMALL, weights=path), pretrained)


def test_a_path_object_is_a_path(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    saved(pretrained, tmp_path / "weights.pth")
    network = build_backbone("convnext_tiny", **SMALL, weights=tmp_path / "weights.pth")
    assert_loaded(network, pretrained)
    assert network.weights == str(tmp_path / "weights.pth")


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


def test_no_weights_no_load_report() -> None:
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
    message = r"another network: it has 9 tensors more than the \d+ here: stages\.2\.1"
    with pytest.raises(UserError, match=message):  # of a deeper one
        build_backbone("convnext_atto", depths=(1, 1, 1, 1), dims=SMALL["dims"], weights=path)


def test_layer_scale_is_in_both_or_in_none(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    without = {name: value for name, value in pretrained.items() if not name.endswith(".gamma")}
    with pytest.raises(UserError, match=r"has the layer scale of 5 blocks: set layer_scale_init_value=1\.0 in the"):
        ConvNeXt(**SMALL, layer_scale_init_value=0.0, weights=path).init_weights()
    path = saved({"model": without}, tmp_path / "without.pth")
    with pytest.raises(UserError, match=r"lacks the layer scale of 5 blocks: set layer_scale_init_value=0\.0 in the"):
        ConvNeXt(**SMALL, weights=path).init_weights()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"conv1.weight": torch.zeros(2)}}, "no ConvNeXt.*conv1.weight"),
        ({}, "no tensors at all"),
        ([torch.zeros(2)], "holds a list"),
        ({"critic.downsample_layers.0.0.weight": torch.zeros(2)}, r"unknown prefix 'critic\.'.* save it without"),
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
    with pytest.raises(UserError, match=r"was refused: it refers to \w+\.mkdir; if .* --trust-checkpoint lets it"):
        read_checkpoint(str(path))
    assert not marker.exists()


def test_a_trusted_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "executed")}, tmp_path / "weights.pth")
    read_checkpoint(str(tmp_path / "weights.pth"), trust=True)
    assert (tmp_path / "executed").exists()
    with pytest.raises(UserError, match="was refused"):  # trust of one reading is not that of the next
        read_checkpoint(str(tmp_path / "weights.pth"))


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


# Files of other code bases


HF_SMALL: dict[str, Any] = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
V2: dict[str, Any] = dict(use_grn=True, layer_scale_init_value=0.0)


def shaken(network: Any) -> Any:
    """Random values in every parameter, so that none hides behind its initial 0, 1 or 1e-6."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 and len(parameter) > 1 else 4
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    return network.eval()


def foreign(layout: str) -> Any:
    """A small classifier of 7 classes from another code base."""
    if layout == "timm":
        return TimmConvNeXt(**SMALL, num_classes=7)
    if layout == "timm V2":
        return TimmConvNeXt(**SMALL, num_classes=7, use_grn=True, ls_init_value=None, conv_mlp=True)
    if layout == "torchvision":
        blocks = [
            CNBlockConfig(8, 16, 1),
            CNBlockConfig(16, 24, 1),
            CNBlockConfig(24, 32, 2),
            CNBlockConfig(32, None, 1),
        ]
        return TorchvisionConvNeXt(blocks, num_classes=7)
    if layout == "Hugging Face":
        return ConvNextForImageClassification(ConvNextConfig(**HF_SMALL, num_labels=7))
    return ConvNextV2ForImageClassification(ConvNextV2Config(**HF_SMALL, num_labels=7))


FOREIGN = ("timm", "timm V2", "torchvision", "Hugging Face", "Hugging Face V2")


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert theirs.std() > 1e-2


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "folder"])
@pytest.mark.parametrize("layout", FOREIGN)
@torch.no_grad()
def test_files_of_other_code_bases_give_the_same_logits(layout: str, suffix: str, tmp_path: Path) -> None:
    theirs = shaken(foreign(layout))
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(theirs.state_dict(), path)
    elif suffix == "pth":
        torch.save(theirs.state_dict(), path)
    elif layout.startswith("Hugging"):
        theirs.save_pretrained(path)
    else:
        path.mkdir()
        safetensors.torch.save_file(theirs.state_dict(), path / "model.safetensors")
    network = ConvNeXt(**SMALL, **(V2 if "V2" in layout else {}), weights=str(path)).eval()
    report = network.init_weights()
    assert report is not None
    assert (report.loaded, report.layout) == (report.total, layout.removesuffix(" V2"))
    assert len(report.unexpected) == 2
    assert f"({layout.removesuffix(' V2')} layout), skipped: " in str(report)
    head = head_in(str(path))
    assert head is not None
    image = torch.randn(2, 3, 70, 77)
    output = theirs(image)
    assert_near(F.linear(network(image), *head), getattr(output, "logits", output))


@torch.no_grad()
def test_a_folder_of_dinov3(tmp_path: Path) -> None:
    theirs = shaken(DINOv3ConvNextModel(DINOv3ConvNextConfig(**HF_SMALL)))
    theirs.save_pretrained(tmp_path)
    network = ConvNeXt(**SMALL, weights=str(tmp_path)).eval()
    report = network.init_weights()
    assert report is not None
    assert (report.layout, report.unexpected) == ("Hugging Face DINOv3", ())
    image = torch.randn(2, 3, 64, 64)
    assert_near(network(image), theirs(image).pooler_output)
    assert head_in(str(tmp_path)) is None


def test_a_folder_with_an_old_file(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(pretrained, tmp_path / "pytorch_model.bin")
    assert_loaded(build_backbone("convnext_atto", **SMALL, weights=str(tmp_path)), pretrained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_into_single(
    dtype: torch.dtype, pretrained: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {name: value.to(dtype) for name, value in pretrained.items()}
    network = build_backbone("convnext_atto", **SMALL, weights=saved(halves, tmp_path / "half.pth"))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert_loaded(network, {name: value.float() for name, value in halves.items()})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(number: float, pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    pretrained["stages.2.1.pwconv1.weight"][3, 5] = number
    path = saved({"model": pretrained}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"stages\.2\.1\.pwconv1\.weight has 1 NaN or infinite values of 2304$"):
        ConvNeXt(**SMALL, weights=path).init_weights()


def test_a_small_file_cannot_claim_much_memory(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    huge = {
        name: torch.zeros(1).expand([size * 2**14 if size % 8 == 0 else size for size in value.shape])
        for name, value in pretrained.items()
    }
    path = saved({"model": huge}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"downsample_layers\.0\.0\.weight claims 6291456 numbers, the file has fewer$"):
        head_in(path)


def test_numbers_of_eight_bits_are_no_weights(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    pretrained["stages.0.0.gamma"] = pretrained["stages.0.0.gamma"].to(torch.float8_e4m3fn)
    path = saved(pretrained, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"stages\.0\.0\.gamma is no array of floating-point numbers of 16, 32 or 64 bits$"
    ):
        ConvNeXt(**SMALL, weights=path).init_weights()


def test_names_that_would_write_on_the_terminal_are_refused(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(pretrained | {"stages.0.0.\x1b[2J\nerror: x": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"unprintable name 'stages\.0\.0\.\\x1b\[2J\\nerror: x'$") as caught:
        ConvNeXt(**SMALL, weights=path).init_weights()
    assert str(caught.value).isprintable()


def test_raw_weights_go_before_averaged_ones_which_are_taken_by_name(pretrained: dict[str, Tensor]) -> None:
    mean = {name: value + 1 for name, value in pretrained.items()}
    ours = {f"module.backbone.{name}": value for name, value in mean.items()} | {"steps": torch.tensor(7)}
    files: list[dict[str, Any]] = [
        {"model_ema": mean, "model": pretrained},
        {"state_dict": {f"backbone.{name}": value for name, value in pretrained.items()}, "ema_state_dict": ours},
        {"state_dict_ema": mean, "state_dict": pretrained},
    ]
    for file in files:
        for averaged, expected in ((False, pretrained), (True, mean)):
            tensors = network_tensors(file, "weights.pth", averaged)
            short = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in tensors.items()}
            assert short.keys() == expected.keys()
            assert all(short[name] is value for name, value in expected.items())
    assert network_tensors({"model_ema": mean}, "weights.pth").keys() == mean.keys()
    for file in ({"model": pretrained}, {"state_dict": pretrained, "ema_state_dict": {}}):
        with pytest.raises(UserError, match="has no averaged weights: leave --ema out"):
            network_tensors(file, "weights.pth", averaged=True)


def test_a_checkpoint_of_the_released_code_with_its_arguments(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    args = argparse.Namespace(lr=4e-3, model="convnext_tiny", layer_decay=None)
    content = {"model": {**pretrained, 5: torch.zeros(1), "epoch": 3}, "args": args, 7: None}
    assert_loaded(build_backbone("convnext_atto", **SMALL, weights=saved(content, tmp_path / "w.pth")), pretrained)


def test_a_checkpoint_inside_of_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    with pytest.raises(UserError, match="no tensors at all"):
        ConvNeXt(**SMALL, weights=saved(content, tmp_path / "weights.pth")).init_weights()


def test_safetensors_are_told_by_content(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    safe, torchs = tmp_path / "weights.bin", tmp_path / "weights.safetensors"
    safetensors.torch.save_file(pretrained, safe)
    torch.save(pretrained, torchs)
    for path in (safe, torchs):
        assert_loaded(build_backbone("convnext_atto", **SMALL, weights=str(path)), pretrained)


def test_damaged_safetensors(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(pretrained, path)
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    header["norm.weight"]["data_offsets"] = [0, 2**40]
    outside = json.dumps(header).encode()
    damaged = {
        "empty": b"",
        "start": whole[:5],
        "header": whole[: size // 2],
        "half": whole[: len(whole) // 2],
        "end": whole[:-1],
        "longer": whole + b"0",
        "huge": struct.pack("<Q", 2**62) + whole[8:],
        "outside": struct.pack("<Q", len(outside)) + outside + whole[8 + size :],
        "no header": struct.pack("<Q", 20) + b"{" + b"x" * 19,
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"safetensors' (was refused|cannot be read)") as caught:
            read_checkpoint(str(path))
        assert "\n" not in str(caught.value), name


def test_folders_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"does not exist: the folder has no model\.safetensors and no pytorch_model\.bin"
    ):
        read_checkpoint(str(tmp_path))


def test_addresses_with_one_file_name_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file({name: torch.zeros(1)}, tmp_path / name / "model.safetensors")
    read = [set(read_checkpoint(f"file://{tmp_path}/{name}/model.safetensors")) for name in ("one", "two")]
    assert read == [{"one"}, {"two"}]
    address = f"file://{tmp_path}/one/model.safetensors"
    (cached,) = (path for path in (tmp_path / "cache").rglob("*.safetensors") if b'"one"' in path.read_bytes())
    assert set(read_checkpoint(address)) == {"one"}
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"damaged, or no checkpoint; delete {cached} to download it again$"):
        read_checkpoint(address)


def test_isotropic_weights(tmp_path: Path) -> None:
    own = shaken(IsotropicConvNeXt(depth=4, dim=8)).state_dict()
    path = saved({"model": own | {"head.weight": torch.zeros(5, 8), "head.bias": torch.zeros(5)}}, tmp_path / "iso.pth")
    network = IsotropicConvNeXt(depth=4, dim=8, weights=path)
    report = network.init_weights()
    assert report is not None
    assert (report.layout, report.loaded) == ("official isotropic", report.total)
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    with pytest.raises(UserError, match=r"lacks \d+ of 63 tensors"):
        ConvNeXt(**SMALL, weights=path).init_weights()


class Plain(Backbone):
    """A network that is no ConvNeXt and has no names but its own."""

    def __init__(self, weights: str | None = None) -> None:
        super().__init__(None, weights=weights)
        self.conv = nn.Conv2d(3, 4, 2)
        self.bn = nn.BatchNorm2d(4)


class Renaming(Plain):
    """One that understands the files of others."""

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("convolution", "conv").replace("fc.", "head."): value for name, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("build", [Plain, Renaming])
def test_networks_that_are_no_convnext(build: type[Plain], prefix: str, tmp_path: Path) -> None:
    own = shaken(build()).state_dict()
    others = {"head.weight": torch.zeros(7, 4), "head.bias": torch.zeros(7)}
    outside = prefix.removesuffix("backbone.")
    file = {prefix + name: value for name, value in own.items()} | {outside + n: v for n, v in others.items()}
    if build is Renaming:
        file = {name.replace("conv.", "convolution."): value for name, value in file.items()}
    network = build(saved({"state_dict": file}, tmp_path / "weights.pth"))
    report = network.init_weights()
    assert report is not None
    assert (report.loaded, report.total, report.layout) == (7, 7, "")
    assert set(report.unexpected) == {outside + name for name in others}
    assert "layout" not in str(report)
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    head = head_in(str(tmp_path / "weights.pth"))
    assert head is not None
    assert head[0].shape == (7, 4)


def test_defects_in_files_of_other_networks(tmp_path: Path) -> None:
    own = shaken(Plain()).state_dict()
    for change, message in (
        ({"conv.bias": torch.full((4,), torch.nan)}, "conv.bias has 4 NaN"),
        ({"conv.bias": torch.zeros(4, dtype=torch.int32)}, "conv.bias is no array of floating-point numbers"),
        ({"conv.bias": torch.zeros(5)}, "another network: conv.bias"),
    ):
        with pytest.raises(UserError, match=message):
            Plain(saved(own | change, tmp_path / "weights.pth")).init_weights()
    with pytest.raises(UserError, match="lacks 1 of 7 tensors: conv"):
        Plain(saved({n: v for n, v in own.items() if n != "conv.bias"}, tmp_path / "weights.pth")).init_weights()
    with pytest.raises(UserError, match=r"is of another network; it begins with: downsample_layers\.0\.0\.weight"):
        Plain(saved(ConvNeXt(**SMALL).state_dict(), tmp_path / "weights.pth")).init_weights()


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("layout", ["released", "ours", "parallel"])
def test_weights_that_are_one_value_throughout_are_refused(
    pretrained: dict[str, Tensor], layout: str, value: float, tmp_path: Path
) -> None:
    """Such as those of a file that was written before its tensors were filled."""
    content = layouts({name: torch.full_like(one, value) for name, one in pretrained.items()})[layout]
    path = saved(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"holds no trained network: 19 of 19 weight matrices .* is {value:g}\)"):
        dense(path).init_weights()
    with pytest.raises(UserError, match="holds no trained network"):
        head_in(path)
    with pytest.raises(UserError, match="holds no trained network"):
        convert_checkpoint(path, str(tmp_path / "out.pth"), "timm")
    other = saved({name: torch.full_like(one, value) for name, one in Plain().state_dict().items()}, tmp_path / "o.pth")
    with pytest.raises(UserError, match="holds no trained network: 1 of 1 weight matrices"):
        Plain(other).init_weights()


def test_a_few_constant_matrices_are_said(
    pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr("backbones.weights.print_log", lambda line, logger, level: said.append((line, level)))
    pretrained["stages.2.1.pwconv1.weight"].zero_()
    pretrained |= {name: torch.ones_like(one) for name, one in pretrained.items() if one.ndim == 1}
    report = dense(saved(pretrained, tmp_path / "weights.pth")).init_weights()
    assert report is not None
    (first, _), (line, level) = said
    assert first == str(report)
    assert line.endswith(": 1 of 19 weight matrices have one value throughout, such as stages.2.1.pwconv1.weight")
    assert level == logging.WARNING


@pytest.mark.parametrize("name", ["head", "head.fc", "fc", "classifier", "model.head"])
def test_heads_of_other_classifiers(name: str, tmp_path: Path) -> None:
    weight, bias = torch.randn(7, 4), torch.randn(7)
    path = saved({f"{name}.weight": weight, f"{name}.bias": bias, "conv.weight": weight}, tmp_path / "weights.pth")
    head = head_in(path)
    assert head is not None
    assert torch.equal(head[0], weight)
    assert torch.equal(head[1], bias)
    convolution = saved({f"{name}.weight": weight[..., None, None], f"{name}.bias": bias}, tmp_path / "weights.pth")
    head = head_in(convolution)
    assert head is not None
    assert torch.equal(head[0], weight)
    bias[2] = torch.nan
    with pytest.raises(UserError, match=f"{name}.bias has 1 NaN"):
        head_in(saved({f"{name}.weight": weight, f"{name}.bias": bias}, tmp_path / "weights.pth"))


def test_no_head_no_answer(tmp_path: Path) -> None:
    pair = {"fc.weight": torch.zeros(7, 4), "fc.bias": torch.zeros(7)}
    for content in (
        {},
        {"fc.weight": torch.zeros(7, 4)},
        pair | {"head.weight": torch.zeros(7, 4), "head.bias": torch.zeros(7)},
        pair | {"fc.bias": torch.zeros(8)},
        {"decode_head.weight": torch.zeros(7, 4), "decode_head.bias": torch.zeros(7)},
    ):
        assert head_in(saved(content, tmp_path / "weights.pth")) is None


def test_a_file_of_averaged_weights_alone_says_so(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"ema_state_dict": pretrained, "epoch": 3}, tmp_path / "averages.pth")
    with pytest.raises(UserError, match=r"averages\.pth' has averaged weights only.*--ema"):
        build_backbone("convnext_atto", **SMALL, weights=path)
