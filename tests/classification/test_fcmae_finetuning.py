"""The three fine-tuning configs of ConvNeXt V2 begin with a file as it is released: dense, without head and norm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.convnext import ConvNeXt
from backbones.weights import read_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs/classification"
SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
NORM = ("norm.weight", "norm.bias")


@pytest.mark.parametrize("size", ["atto", "tiny", "base"])
def test_fine_tuning_begins_with_the_released_file(
    size: str, program: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    network = ConvNeXt(**SMALL, use_grn=True, layer_scale_init_value=0.0)
    released = {name: value for name, value in network.state_dict().items() if name not in NORM}
    file = tmp_path / f"convnextv2_{size}_1k_224_fcmae.pt"
    torch.save({"model": released}, file)
    data = digits / "imagenet"
    ended = program(
        "train.py",
        CONFIGS / f"convnextv2_{size}_fcmae_ft_in1k.py",
        "--work-dir",
        tmp_path / "run",
        "--cfg-options",
        f"model.backbone.weights={file}",
        *(f"model.backbone.{name}={value}".replace(" ", "") for name, value in SMALL.items()),
        f"data_root={data}",
        f"classes=({','.join(sorted(folder.name for folder in (data / 'train').iterdir()))})",
        "batch.size=8",
        "batch.per_gpu=8",
        "train_cfg.max_epochs=1",
        *([] if size == "atto" else ["param_scheduler.1.begin=0"]),  # no warm-up in the recipe of atto
    )
    assert ended.code == 0, ended.err
    line = f"66/68 backbone tensors loaded from {file} (official layout), new: norm (weight 1, bias 0)"
    assert f"{line}\n" in ended.out
    (report,) = json.loads((tmp_path / "run/weights.json").read_text())["receipts"]
    assert report["fresh"] == list(NORM)
    assert report["head"].startswith("new: the file has none, 10 classes here")
    trained = read_checkpoint(str(tmp_path / "run/epoch_1.pth"))["state_dict"]
    # The rate is low: the weights have moved away from the file, and not far.
    for name, value in released.items():
        torch.testing.assert_close(trained[f"backbone.{name}"], value, rtol=0, atol=0.1)
    assert any(not torch.equal(trained[f"backbone.{name}"], value) for name, value in released.items())
