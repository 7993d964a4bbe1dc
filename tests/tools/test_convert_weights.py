"""The conversion tool: what it writes is loaded by the code base that it is for, and what it cannot do it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt
from transformers import AutoModel, AutoModelForImageClassification, ConvNextBackbone, ConvNextV2Backbone

from backbones import UserError, build_backbone
from backbones.convnext import ConvNeXt
from backbones.isotropic import IsotropicConvNeXt
from backbones.weights import convert_checkpoint, read_checkpoint

SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
V2: dict[str, Any] = dict(use_grn=True, layer_scale_init_value=0.0)
FOUR = (0, 1, 2, 3)
CLASSES = 7
State = dict[str, Tensor]


def shaken(network: nn.Module) -> State:
    """Random values in every parameter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 and len(parameter) > 1 else 4
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    return {name: value.detach() for name, value in network.state_dict().items()}


def head() -> State:
    torch.manual_seed(2)
    return {"head.weight": torch.randn(CLASSES, 32), "head.bias": torch.randn(CLASSES)}


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@torch.no_grad()
def our_logits(state: State, image: Tensor, **options: Any) -> Tensor:
    network = ConvNeXt(**SMALL, **options).eval()
    network.load_state_dict(state)
    return F.linear(network(image), *head().values())


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    assert ours.std() > 1e-2


@pytest.mark.parametrize("options", [{}, {"layer_scale_init_value": 0.0}, V2], ids=["V1", "no scale", "V2"])
@torch.no_grad()
def test_a_folder_for_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    state, image = shaken(ConvNeXt(**SMALL, **options)), torch.randn(2, 3, 70, 77)
    source, folder = saved({"model": state | head()}, tmp_path / "in.pth"), tmp_path / "new" / "folder"
    convert_checkpoint(source, str(folder), "hf")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    classifier, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert classifier.config.num_labels == CLASSES
    assert_near(our_logits(state, image, **options), classifier.eval()(image).logits)
    # AutoBackbone of transformers 5.23 asks its hub about every name and so takes no folder at all.
    kind = ConvNextV2Backbone if options is V2 else ConvNextBackbone
    maps = kind.from_pretrained(folder, out_features=["stage1", "stage4"]).eval()(image).feature_maps
    dense = ConvNeXt(**SMALL, **options, out_indices=(0, 3), weights=str(folder)).eval()
    dense.init_weights()
    for one, other in zip(dense(image), maps, strict=True):
        assert_near(one, other)


@torch.no_grad()
def test_a_folder_of_a_dense_backbone_or_of_features(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 64, 64)
    dense = ConvNeXt(**SMALL, out_indices=(1, 3)).eval()
    source = saved({f"backbone.{name}": value for name, value in shaken(dense).items()}, tmp_path / "detector.pth")
    convert_checkpoint(source, str(tmp_path / "dense"), "hf")
    backbone, report = ConvNextBackbone.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(report.values())
    for one, other in zip(dense(image), backbone.eval()(image).feature_maps, strict=True):
        assert_near(one, other)
    features = ConvNeXt(**SMALL).eval()
    convert_checkpoint(saved(shaken(features), tmp_path / "features.pth"), str(tmp_path / "features"), "hf")
    model, report = AutoModel.from_pretrained(tmp_path / "features", output_loading_info=True)
    assert not any(report.values())
    assert_near(features(image), model.eval()(image).pooler_output)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_files_for_timm_and_torchvision_and_back(suffix: str, tmp_path: Path) -> None:
    state, image = shaken(ConvNeXt(**SMALL)), torch.randn(2, 3, 70, 77)
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 2), CNBlockConfig(32, None, 1)]
    others: dict[Any, nn.Module] = {
        "timm": TimmConvNeXt(**SMALL, num_classes=CLASSES),
        "torchvision": TorchvisionConvNeXt(blocks, num_classes=CLASSES),
    }
    source = saved({"model": state | head()}, tmp_path / "in.pth")
    for layout, network in others.items():
        out, back = (str(tmp_path / f"{name}{suffix}") for name in (layout, f"{layout}-back"))
        convert_checkpoint(source, out, layout)
        network.load_state_dict(read_checkpoint(out))
        assert_near(our_logits(state, image), network.eval()(image))
        convert_checkpoint(out, back, "ours")
        again = read_checkpoint(back)
        assert again.keys() == (state | head()).keys()
        assert all(torch.equal(again[name], value) for name, value in (state | head()).items())


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_timm_loads_its_own_small_networks(name: str, tmp_path: Path) -> None:
    state = shaken(build_backbone(name))
    convert_checkpoint(saved(state, tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "timm")
    model = timm.create_model(name, num_classes=0, checkpoint_path=str(tmp_path / "out.safetensors"))
    assert torch.equal(model.head.norm.weight, state["norm.weight"])
    assert model.stages[0].blocks[0].mlp.fc1.weight.shape == (160, 40, 1, 1)


def test_the_printed_conversion(tool: Any, tmp_path: Path) -> None:
    state = {f"backbone.{name}": value for name, value in shaken(ConvNeXt(**SMALL, out_indices=FOUR)).items()}
    others = {"neck.a.weight": torch.zeros(1), "neck.a.bias": torch.zeros(1), "rpn_head.b.weight": torch.zeros(1)}
    source, target = saved({"state_dict": state | others}, tmp_path / "detector.pth"), tmp_path / "out.safetensors"
    ended = tool("convert_weights.py", source, target, "--to", "timm")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"read {source}: official layout, raw weights",
        f"wrote {target}: timm layout, 61 tensors, no head",
        "not in the file: norm",
        "no place in the timm layout: norm0, norm1, norm2, norm3",
        "heads left out: neck (2), rpn_head (1)",
    ]
    ended = tool(
        "convert_weights.py", saved(shaken(ConvNeXt(**SMALL)) | head(), tmp_path / "c.pth"), target, "--to", "hf"
    )
    assert ended.out.splitlines()[1:] == [f"wrote {target}: hf layout, 65 tensors, head of 7 classes"]
    assert {path.name for path in tmp_path.iterdir()} == {"detector.pth", "c.pth", "out.safetensors"}
    assert "convnext.embeddings.layernorm.weight" in safetensors.torch.load_file(target)


def test_averaged_weights(tool: Any, tmp_path: Path) -> None:
    raw = shaken(ConvNeXt(**SMALL)) | head()
    whole = {name if name.startswith("head") else f"backbone.{name}": value for name, value in raw.items()}
    averages = {f"module.{name}": value + 1 for name, value in whole.items()} | {"steps": torch.tensor(3)}
    source, target = tmp_path / "run.pth", tmp_path / "out.pth"
    torch.save({"state_dict": whole, "ema_state_dict": averages}, source)
    for option, shift in ((), 0), (("--ema",), 1):
        ended = tool("convert_weights.py", source, target, "--to", "ours", *option)
        assert (ended.code, "averaged weights" in ended.out, "left out" in ended.out) == (0, bool(shift), False)
        converted = read_checkpoint(str(target))
        assert all(torch.equal(converted[name], value + shift) for name, value in raw.items())
    ended = tool("convert_weights.py", target, tmp_path / "no.pth", "--to", "ours", "--ema")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: checkpoint {str(target)!r} has no averaged weights: leave --ema out\n"


def test_numbers_stay_as_they_are_and_no_larger(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in shaken(ConvNeXt(**SMALL)).items()}
    memory = torch.randn(4_000_000).half()
    state["norm.weight"] = memory[5:37]
    for name in ("out.pth", "out.safetensors"):
        source = saved(state, tmp_path / "in.pth")
        convert_checkpoint(source, str(tmp_path / name), "timm")
        converted = read_checkpoint(str(tmp_path / name))
        assert {value.dtype for value in converted.values()} == {torch.float16}
        assert torch.equal(converted["head.norm.weight"], memory[5:37])
        assert (tmp_path / name).stat().st_size < 200_000


BAD = {  # input, output, layout, message
    "input": ("sound.pth", "sound.pth", "ours", "it is the file that is read, choose another name"),
    "link to the input": ("sound.pth", "link.pth", "ours", "it is the file that is read"),
    "folder of the input": ("hf", "hf", "hf", "it is the file that is read"),
    "suffix": ("sound.pth", "out.bin", "timm", "ends in .safetensors or .pth, or a folder for --to hf"),
    "file for a folder": ("sound.pth", "text", "hf", "ends in .safetensors or .pth"),
    "folder for a file": ("sound.pth", "folder.pth", "timm", "it is a folder"),
    "below a file": ("sound.pth", "text/out.pth", "timm", "cannot be written: [Errno"),
    "absent": ("absent.pth", "out.pth", "timm", "does not exist"),
    "damaged": ("text", "out.pth", "timm", "damaged"),
    "isotropic": ("isotropic.pth", "out.pth", "timm", "timm has no ConvNeXt with one resolution"),
    "V2": ("v2.pth", "out.pth", "torchvision", "torchvision has no ConvNeXt with global response"),
    "incomplete": ("incomplete.pth", "out.pth", "timm", "lacks 1 of 63 tensors: stages.0.0.dwconv"),
    "no ConvNeXt": ("other.pth", "out.pth", "timm", "holds no ConvNeXt of a known layout"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_it_cannot_do_is_one_line_and_leaves_nothing(case: str, tool: Any, tmp_path: Path) -> None:
    state = shaken(ConvNeXt(**SMALL))
    saved(state, tmp_path / "sound.pth")
    saved(IsotropicConvNeXt(depth=4, dim=8).state_dict(), tmp_path / "isotropic.pth")
    saved(ConvNeXt(**SMALL, **V2).state_dict(), tmp_path / "v2.pth")
    saved({name: v for name, v in state.items() if name != "stages.0.0.dwconv.bias"}, tmp_path / "incomplete.pth")
    saved({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text").write_text("notes\n")
    (tmp_path / "link.pth").symlink_to(tmp_path / "sound.pth")
    (tmp_path / "folder.pth").mkdir()
    convert_checkpoint(str(tmp_path / "sound.pth"), str(tmp_path / "hf"), "hf")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    source, target, layout, message = BAD[case]
    ended = tool("convert_weights.py", tmp_path / source, tmp_path / target, "--to", layout)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = saved(shaken(ConvNeXt(**SMALL)), tmp_path / "in.pth"), tmp_path / "out.safetensors"
    convert_checkpoint(source, str(target), "ours")
    before = target.read_bytes()

    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device"):
        convert_checkpoint(source, str(target), "timm")
    assert target.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", "out.safetensors"}


def test_as_a_program_from_an_address(program: Any, tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    source = saved(shaken(ConvNeXt(**SMALL)), tmp_path / "in.pth")
    ended = program("convert_weights.py", f"file://{source}", tmp_path / "out", "--to", "hf")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "out/config.json").read_text())["depths"] == [1, 1, 2, 1]
    assert tool("convert_weights.py", source, tmp_path / "out", "--to", "jax").code == 2
