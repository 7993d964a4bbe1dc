"""Tensors under our names, which are the released ones, written as other code bases publish them.

These code bases cannot be installed here: each function states names and shapes in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
# What a masked autoencoder holds beside its encoder (ConvNeXt-V2, models/fcmae.py, lines 47-65): one block of V2 in the
# decoder, with 4 channels instead of 512, and 32 * 32 * 3 pixels of a patch.
DECODER: State = {
    "mask_token": torch.zeros(1, 4, 1, 1),
    "proj.weight": torch.zeros(4, 32, 1, 1),
    "proj.bias": torch.zeros(4),
    "decoder.0.dwconv.weight": torch.zeros(4, 1, 7, 7),
    "decoder.0.dwconv.bias": torch.zeros(4),
    "decoder.0.norm.weight": torch.zeros(4),
    "decoder.0.norm.bias": torch.zeros(4),
    "decoder.0.pwconv1.weight": torch.zeros(16, 4),
    "decoder.0.pwconv1.bias": torch.zeros(16),
    "decoder.0.grn.gamma": torch.zeros(1, 1, 1, 16),
    "decoder.0.grn.beta": torch.zeros(1, 1, 1, 16),
    "decoder.0.pwconv2.weight": torch.zeros(4, 16),
    "decoder.0.pwconv2.bias": torch.zeros(4),
    "pred.weight": torch.zeros(3072, 4, 1, 1),
    "pred.bias": torch.zeros(3072),
}


def sparse(state: Mapping[str, Tensor]) -> State:
    """The encoder of a masked autoencoder, as MinkowskiEngine holds it, with its decoder."""
    result: State = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        stem = module in ("downsample_layers.0.0", "downsample_layers.0.1")
        if module.startswith(("head", "norm")):
            continue
        if kind == "weight" and value.ndim == 4 and not stem:
            out, into, height, width = value.shape
            kernel = torch.empty(height * width, into, out)
            for column in range(width):
                for row in range(height):
                    kernel[column * height + row] = value[:, :, row, column].T
            result[f"encoder.{module}.kernel"] = kernel[:, 0] if "dwconv" in module else kernel
        elif (
            kind == "bias" and value.ndim == 1 and ("dwconv" in module or re.fullmatch(r"downsample.*[123]\.1", module))
        ):
            result[f"encoder.{name}"] = value[None]
        elif ".grn" in module:
            result[f"encoder.{name}"] = value[0, 0]
        elif "pwconv" in module:
            result[f"encoder.{module}.linear.{kind}"] = value
        elif value.ndim == 1 and not stem and kind != "gamma":
            result[f"encoder.{module}.ln.{kind}"] = value
        else:
            result[f"encoder.{name}"] = value
    return result | DECODER


def mmpretrain(state: Mapping[str, Tensor], conv_mlp: bool = False) -> State:
    """A classifier of mmpretrain."""
    words = {"dwconv": "depthwise_conv", "pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2"}
    result = {}
    for name, value in state.items():
        parts = [words.get(part, part) for part in name.split(".")]
        if parts[0] == "head":
            result[f"head.fc.{parts[1]}"] = value
            continue
        if parts[0] == "norm":
            parts[0] = "norm3"
        if "grn" in parts:
            value = value[0, 0, 0]
        if conv_mlp and parts[-2].startswith("pointwise") and parts[-1] == "weight":
            value = value[..., None, None]
        result[".".join(["backbone", *parts])] = value
    return result


def dinov3_of_transformers(state: Mapping[str, Tensor]) -> State:
    """DINOv3's file as transformers publishes it (models/dinov3_convnext/convert_dinov3_convnext_to_hf.py)."""
    result = {}
    for name, value in state.items():
        name = (
            name.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv").replace("norm", "layer_norm")
        )
        name = re.sub(r"^stages\.(\d)\.(\d+)", r"stages.\1.layers.\2", name)
        result[re.sub(r"^downsample_layers\.(\d)\.(\d)", r"stages.\1.downsample_layers.\2", name)] = value
    return result
