"""Checkpoints of the released pre-training: the network is computed from their own tensors, as MinkowskiEngine does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.errors import CheckpointError
from classification.pretraining.model import MaskedAutoencoder
from engine.checkpoint.model_weights import load_model_weights

CONFIG = Path(__file__).resolve().parents[3] / "configs/pretraining/fcmae_digits.py"
DEPTHS, DIMS, DECODER = (1, 2, 1, 1), (8, 12, 16, 20), 24
State = dict[str, Tensor]


def released(channels: int = 3) -> State:
    """Random tensors with the names and shapes of FCMAE in models/fcmae.py and models/convnextv2_sparse.py."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, DECODER, 1, 1)}
    for part in ("0.weight", "0.bias", "1.weight", "1.bias"):
        shapes[f"encoder.downsample_layers.0.{part}"] = (DIMS[0], channels, 4, 4) if part == "0.weight" else (DIMS[0],)
    for stage in range(1, 4):
        before, after = DIMS[stage - 1 : stage + 1]
        name = f"encoder.downsample_layers.{stage}"
        shapes |= {f"{name}.0.ln.weight": (before,), f"{name}.0.ln.bias": (before,)}
        shapes |= {f"{name}.1.kernel": (4, before, after), f"{name}.1.bias": (1, after)}
    for stage, (depth, dim) in enumerate(zip(DEPTHS, DIMS)):
        for block in range(depth):
            name = f"encoder.stages.{stage}.{block}"
            shapes |= {f"{name}.dwconv.kernel": (49, dim), f"{name}.dwconv.bias": (1, dim)}
            shapes |= {f"{name}.norm.ln.weight": (dim,), f"{name}.norm.ln.bias": (dim,)}
            shapes |= {f"{name}.pwconv1.linear.weight": (4 * dim, dim), f"{name}.pwconv1.linear.bias": (4 * dim,)}
            shapes |= {f"{name}.pwconv2.linear.weight": (dim, 4 * dim), f"{name}.pwconv2.linear.bias": (dim,)}
            shapes |= {f"{name}.grn.gamma": (1, 4 * dim), f"{name}.grn.beta": (1, 4 * dim)}
    shapes |= {"proj.weight": (DECODER, DIMS[3], 1, 1), "proj.bias": (DECODER,)}
    shapes |= {"decoder.0.dwconv.weight": (DECODER, 1, 7, 7), "decoder.0.dwconv.bias": (DECODER,)}
    shapes |= {"decoder.0.norm.weight": (DECODER,), "decoder.0.norm.bias": (DECODER,)}
    shapes |= {"decoder.0.pwconv1.weight": (4 * DECODER, DECODER), "decoder.0.pwconv1.bias": (4 * DECODER,)}
    shapes |= {"decoder.0.grn.gamma": (1, 1, 1, 4 * DECODER), "decoder.0.grn.beta": (1, 1, 1, 4 * DECODER)}
    shapes |= {"decoder.0.pwconv2.weight": (DECODER, 4 * DECODER), "decoder.0.pwconv2.bias": (DECODER,)}
    shapes |= {"pred.weight": (1024 * channels, DECODER, 1, 1), "pred.bias": (1024 * channels,)}
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def normed(x: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def response(x: Tensor, state: State, name: str, dims: tuple[int, ...]) -> Tensor:
    norm = x.square().sum(dims, keepdim=True).sqrt()
    return state[f"{name}.gamma"] * (x * norm / (norm.mean(-1, keepdim=True) + 1e-6)) + state[f"{name}.beta"] + x


def sparse_convolution(x: dict[tuple[int, int], Tensor], kernel: Tensor, bias: Tensor, stride: int) -> Any:
    """MinkowskiEngine's: the first coordinate, the row, changes fastest among the positions of the kernel."""
    side = 7 if stride == 1 else 2
    out = {}
    for row, column in dict.fromkeys((row // stride, column // stride) for row, column in x):
        total = bias[0].clone()
        for number in range(side * side):
            shift = (number % side - (side // 2) * (stride == 1), number // side - (side // 2) * (stride == 1))
            found = x.get((row * stride + shift[0], column * stride + shift[1]))
            if found is not None:
                total = total + (found * kernel[number] if kernel.ndim == 2 else found @ kernel[number])
        out[row, column] = total
    return out


def reference(state: State, image: Tensor, visible: list[int]) -> Tensor:
    """Predicted pixels ``(32 * 32 * C, rows, columns)`` of an image ``(C, H, W)``, in float64."""
    state = {name: value.double() for name, value in state.items()}
    stem = "encoder.downsample_layers.0"
    x = F.conv2d(image.double()[None], state[f"{stem}.0.weight"], state[f"{stem}.0.bias"], stride=4)
    x = normed(x.permute(0, 2, 3, 1), state, f"{stem}.1")[0]
    columns = image.shape[2] // 32
    units = [divmod(unit, columns) for unit in visible]
    points = {
        (row, column): x[row, column]
        for row in range(x.shape[0])
        for column in range(x.shape[1])
        if (row // 8, column // 8) in units
    }
    for stage in range(4):
        if stage:
            name = f"encoder.downsample_layers.{stage}"
            points = {place: normed(value, state, f"{name}.0.ln") for place, value in points.items()}
            points = sparse_convolution(points, state[f"{name}.1.kernel"], state[f"{name}.1.bias"], 2)
        for block in range(DEPTHS[stage]):
            name = f"encoder.stages.{stage}.{block}"
            inner = sparse_convolution(points, state[f"{name}.dwconv.kernel"], state[f"{name}.dwconv.bias"], 1)
            y = normed(torch.stack(list(inner.values())), state, f"{name}.norm.ln")
            y = F.gelu(F.linear(y, state[f"{name}.pwconv1.linear.weight"], state[f"{name}.pwconv1.linear.bias"]))
            y = response(y, state, f"{name}.grn", (0,))
            y = F.linear(y, state[f"{name}.pwconv2.linear.weight"], state[f"{name}.pwconv2.linear.bias"])
            points = {place: value + change for (place, value), change in zip(points.items(), y, strict=True)}
    grid = state["mask_token"].expand(1, -1, image.shape[1] // 32, columns).clone()
    for (row, column), value in points.items():
        grid[0, :, row, column] = state["proj.weight"][..., 0, 0] @ value + state["proj.bias"]
    weight, bias = state["decoder.0.dwconv.weight"], state["decoder.0.dwconv.bias"]
    y = F.conv2d(grid, weight, bias, padding=3, groups=DECODER).permute(0, 2, 3, 1)
    y = normed(y, state, "decoder.0.norm")
    y = F.gelu(F.linear(y, state["decoder.0.pwconv1.weight"], state["decoder.0.pwconv1.bias"]))
    y = response(y, state, "decoder.0.grn", (1, 2))
    y = F.linear(y, state["decoder.0.pwconv2.weight"], state["decoder.0.pwconv2.bias"])
    return F.conv2d(grid + y.permute(0, 3, 1, 2), state["pred.weight"], state["pred.bias"])[0]


def checkpoint(state: State) -> dict[str, Any]:
    """As main_pretrain.py saves it (utils.py, save_model)."""
    args = argparse.Namespace(model="convnextv2_atto", mask_ratio=0.6, output_dir=Path("out"))
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 1599, "scaler": {}, "args": args}


def autoencoder(form: str = "packed", channels: int = 3) -> MaskedAutoencoder:
    backbone = dict(type="convnextv2_atto", depths=DEPTHS, dims=DIMS, in_channels=channels)
    statistics = dict(type="ImgDataPreprocessor", mean=[0.0], std=[1.0])
    return MaskedAutoencoder(backbone, decoder_dim=DECODER, form=form, data_preprocessor=statistics)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("form", ["packed", "dense"])
def test_a_loaded_checkpoint_predicts_what_the_released_network_does(form: str, channels: int) -> None:
    state, model = released(channels), autoencoder(form, channels)
    report = load_model_weights(model, checkpoint(state), "checkpoint-1599.pth", training=True)
    assert (report.loaded, report.missing, report.unexpected) == (len(state), (), ())
    images = torch.randn(2, channels, 64, 96)
    order = torch.tensor([[4, 1, 0, 2, 3, 5], [5, 3, 2, 1, 0, 4]])
    with torch.no_grad():
        found = model(images, {"order": order, "img_path": ["", ""]}, mode="tensor")
    for image, units, pixels in zip(images, order, found, strict=True):
        expected = reference(state, image, units[:2].tolist())
        torch.testing.assert_close(pixels.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_training_goes_on_from_a_released_checkpoint(tool: Any, digits: Path, tmp_path: Path) -> None:
    torch.save(checkpoint(released()), tmp_path / "checkpoint-1599.pth")
    options = [f"data_root={digits / 'imagenet'}", f"load_from={tmp_path / 'checkpoint-1599.pth'}", "batch.size=8"]
    options += [f"model.backbone.depths={DEPTHS}", f"model.backbone.dims={DIMS}", f"model.decoder_dim={DECODER}"]
    options += ["train_dataloader.num_workers=0", "val_dataloader.num_workers=0", "train_cfg.max_epochs=2"]
    options = [one.replace(" ", "") for one in options]
    ended = tool("train.py", CONFIG, "--work-dir", tmp_path / "run", "--cfg-options", *options)
    assert ended.code == 0, ended.err
    (report,) = json.loads((tmp_path / "run/weights.json").read_text())["receipts"]
    assert (report["loaded"], report["fresh"], report["layout"]) == (len(released()), [], "FCMAE")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mask_token"), r"lacks 1/\d+ tensors \(mask_token\)"),
        (lambda state: state.pop("encoder.stages.1.1.dwconv.kernel"), "dwconv"),
        (lambda state: state.update({"pred.weight": torch.zeros(7, DECODER, 1, 1)}), "pred.weight is"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_named(change: Any, message: str) -> None:
    state = released()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_model_weights(autoencoder(), checkpoint(state), "checkpoint-1599.pth", training=True)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_released_encoder_alone_is_told_where_it_goes(prefix: str) -> None:
    """The published convnextv2_*_1k_224_fcmae.pt may hold the dense encoder without a decoder."""
    state = {prefix + name: value for name, value in autoencoder().backbone.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"backbone alone, without mask_token, .*: give it as model.backbone.weig"
    ):
        load_model_weights(autoencoder(), {"model": state}, "convnextv2_atto_1k_224_fcmae.pt", training=True)
