"""Counting: the papers' numbers, hand-made sums, fvcore's own trace, and what is left out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from analysis import flops
from analysis.config_flops import count_config
from analysis.flops import Count, count_backbone, count_model
from backbones import UserError, build_backbone
from backbones.variants import CONVNEXT_V1
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import build_on_meta
from engine.task import task_of
from tests.programs import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DETECTORS, SEGMENTORS = ROOT / "configs/detection", ROOT / "configs/segmentation"
KEYS = {"name", "parts", "shape", "params", "flops", "by_module", "by_operator", "uncounted", "heavy"}
# A network with an operator that has no rule and, by its name, multiplies matrices.
TOY = """
import torch
from torch import nn
from backbones import register_backbone

@torch.library.custom_op("toy::shift_conv", mutates_args=())
def shift_conv(x: torch.Tensor) -> torch.Tensor:
    return x.clone()

@shift_conv.register_fake
def _(x):
    return torch.empty_like(x)

class Toy(nn.Module):
    num_features = 3
    out_channels, strides = (3,), (1,)

    def __init__(self, weights=None):
        super().__init__()

    def init_weights(self):
        pass

    def forward(self, x):
        return shift_conv(shift_conv(x)).mean((2, 3))

register_backbone("toy", Toy)
"""
TOY_CONFIG = f"""
_base_ = [{str(ROOT / "configs/classification/digits.py")!r}]
custom_imports = dict(imports=["classification", "toy_network"])
model = dict(backbone=dict(_delete_=True, type="toy"))
"""


def count(model: nn.Module, *size: int) -> Count:
    return count_model("net", model, torch.zeros(1, *size), lambda net, x: net(x))


def by_fvcore(model: nn.Module, images: Tensor) -> int:
    analysis = FlopCountAnalysis(model.eval(), images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        return int(analysis.total())


def run_tool(*arguments: str, extra_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(extra_path or "")}
    command = [sys.executable, "tools/flops.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


class Zoo(nn.Module):
    """One of each operator that fvcore has a rule for and our models may use."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.batch, self.group = nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.plain = nn.LayerNorm(6, elementwise_affine=False)
        self.linear, self.no_bias = nn.Linear(6, 5), nn.Linear(5, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.batch(self.up(self.grouped(x)).relu()))
        x = F.interpolate(x, scale_factor=2) + F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.adaptive_avg_pool2d(x, 3).flatten(2).transpose(1, 2)  # (1, 9, 6)
        x = self.no_bias(self.linear(self.plain(x)))
        return x @ x.transpose(1, 2) + torch.einsum("bic,bjc->bij", x, x)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        key = x[..., :5, :]
        return F.scaled_dot_product_attention(x, key, key)


# --- the papers' numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVNEXT_V1)
def test_sizes_of_the_table(name: str) -> None:
    row, counted = CONVNEXT_V1[name], count_backbone(name)
    printed_decimals = len(f"{row.params:g}".partition(".")[2])
    assert round(counted.params / 1e6, printed_decimals) == row.params
    assert counted.flops / 1e9 == pytest.approx(row.gflops, rel=0.01)
    assert counted.heavy == ()


@pytest.mark.parametrize(
    "config, gflops, params",
    [
        (DETECTORS / "mask_rcnn_convnext_tiny_coco_3x.py", 262, None),
        (DETECTORS / "cascade_mask_rcnn_convnext_tiny_coco_3x.py", 741, None),
        (SEGMENTORS / "upernet_convnext_tiny_ade20k_160k.py", 939, 60),
    ],
)
def test_whole_models_of_the_paper(config: Path, gflops: int, params: int | None) -> None:
    """Tables 2.3 and 2.4 of the dissertation; they print no parameters of detectors."""
    counted = count_config(config)
    assert counted.flops / 1e9 == pytest.approx(gflops, rel=0.01)
    assert params is None or round(counted.params / 1e6) == params
    assert counted.heavy == ()
    assert sum(counted.by_module.values()) == sum(counted.by_operator.values()) == counted.flops


# --- sums by hand ----------------------------------------------------------------------------------------------------


def test_a_small_net_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(8 * 5 * 4, 7))
    counted = count(net, 3, 10, 8)
    assert counted.by_operator == {"conv": 3 * 8 * 9 * (5 * 4), "linear": 8 * 5 * 4 * 7}
    assert counted.by_module == {"0": 3 * 8 * 9 * (5 * 4), "3": 8 * 5 * 4 * 7}
    assert counted.params == (3 * 8 * 9 + 8) + (8 * 5 * 4 * 7 + 7)
    assert counted.uncounted == {"aten::gelu": 1}


def test_proposals_of_a_detector_by_hand() -> None:
    counted = count_config(DETECTORS / "mask_rcnn_convnext_tiny_coco_3x.py", (64, 96))
    box = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4)
    mask = 4 * 256 * 256 * 9 * 196 + 256 * 256 * 4 * 196 + 256 * 80 * 784
    assert counted.by_module["roi_head.bbox_head"] == 1000 * box
    assert counted.by_module["roi_head.mask_head"] == 100 * mask
    # Four samples of four multiply-adds for each number that is pooled.
    assert counted.by_operator["roi_align"] == 16 * 256 * (1000 * 49 + 100 * 196)


def test_every_stage_of_a_cascade_is_counted() -> None:
    by_module = count_config(DETECTORS / "cascade_mask_rcnn_convnext_tiny_coco_3x.py", (64, 96)).by_module
    for kind in ("bbox", "mask"):
        stages = [by_module[f"roi_head.{kind}_head.{i}"] for i in range(3)]
        assert stages[0] > 0
        assert len(set(stages)) == 1


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_by_hand(device: str) -> None:
    images = torch.zeros(2, 3, 9, 4, device=device)
    counted = count_model("attention", Attention(), images, lambda net, x: net(x))
    assert counted.flops == 2 * 3 * 9 * 5 * (4 + 4)
    assert counted.heavy == ()


# --- the same as fvcore's trace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_a_pyramid_counts_as_in_fvcores_trace(size: tuple[int, int]) -> None:
    network = build_backbone("convnext_atto", out_indices=(0, 1, 2, 3))
    assert count(network, 3, *size).flops == by_fvcore(network, torch.zeros(1, 3, *size))


def test_every_rule_counts_as_in_fvcores_trace() -> None:
    zoo = Zoo().eval()
    counted = count(zoo, 4, 13, 17)
    assert counted.flops == by_fvcore(zoo, torch.zeros(1, 4, 13, 17))
    assert set(counted.by_operator) == {"conv", "linear", "matmul", "norm", "pooling", "resizing"}
    assert counted.uncounted == {"aten::add": 2}


def test_memory_format_does_not_matter() -> None:
    network, images = Zoo().eval(), torch.zeros(1, 4, 16, 16)
    plain = count_model("zoo", network, images, lambda net, x: net(x))
    network.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    assert count_model("zoo", network, images, lambda net, x: net(x)).by_module == plain.by_module


def test_counting_leaves_the_model_as_it_was() -> None:
    zoo = Zoo()
    count(zoo, 4, 16, 16)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in zoo.modules())


# --- the same as torch's own counter ----------------------------------------------------------------------------------

PRODUCTS = ("conv", "linear", "matmul", "attention")  # what torch counts, each multiply-add as two


def by_torch(run: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "swin_tiny", "vit_small", "resnet50"])
def test_products_of_a_network_count_as_in_torchs_counter(name: str) -> None:
    with torch.device("meta"):
        network, images = build_backbone(name).eval(), torch.zeros(1, 3, 224, 224)
    counted = count_model(name, network, images, lambda net, x: net(x))
    assert 2 * sum(counted.by_operator.get(kind, 0) for kind in PRODUCTS) == by_torch(lambda: network(images))


@pytest.mark.parametrize("config", ["detection/mask_rcnn_digits.py", "segmentation/upernet_digits.py"])
def test_products_of_a_whole_model_count_as_in_torchs_counter(config: str) -> None:
    cfg = load_config(ROOT / "configs" / config, None, Launch()).cfg
    model, images = build_on_meta(cfg).eval(), torch.zeros(1, 3, 96, 128, device="meta")
    task = task_of(cfg)
    counted = count_model("model", model, images, task.count_forward)
    expected = by_torch(lambda: task.count_forward(model, images))
    assert 2 * sum(counted.by_operator.get(kind, 0) for kind in PRODUCTS) == expected > 0


# --- what is not counted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, heavy",
    [
        ("aten::_trilinear", True),
        ("toy::modulated_deform", True),
        ("aten::_scaled_mm", True),
        ("aten::mkldnn_rnn_layer", True),
        ("aten::_native_multi_head_attention", True),
        ("aten::upsample_bilinear2d", False),
        ("aten::upsample_trilinear3d", False),
        ("aten::lgamma", False),
        ("aten::gelu", False),
    ],
)
def test_which_operators_are_heavy(name: str, heavy: bool) -> None:
    counted = Count("net", "", (1, 1), 0, 0, {}, {}, {name: 1})
    assert counted.heavy == ((name,) if heavy else ())


def test_a_model_that_looks_at_its_numbers_is_run_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    class Curious(nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * float(x.sum())

    monkeypatch.setattr(flops, "build_backbone", lambda name: Curious())
    assert count_backbone("curious").by_module == {"head": 3000}


# --- configs and errors ----------------------------------------------------------------------------------------------


def test_a_classifier_is_counted_at_its_test_size_or_as_asked() -> None:
    config = ROOT / "configs/classification/digits.py"
    assert count_config(config).shape == (48, 48)
    assert count_config(config, (64, 32)).flops == count(build_classifier(), 3, 64, 32).flops


@pytest.mark.parametrize(
    ("base", "model", "message"),
    [
        (
            "atss/atss_r50_fpn_1x_coco.py",
            "bbox_head=dict(in_channels=100)",
            "model.bbox_head.cls_convs.0.conv takes 100 channels and gets 256: correct in_channels of model.bbox_head; "
            "it reads the maps of model.neck",
        ),
        (
            "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
            "roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(_delete_=True, type='RoIAlignRotated', "
            "output_size=7)))",
            "mmcv op 'roi_align_rotated_forward' (for rotated boxes) is missing",
        ),
    ],
)
def test_a_layer_that_does_not_fit_or_is_missing_is_named(base: str, model: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "own.py"
    config.write_text(
        f"_base_ = ['mmdet::{base}']\ncustom_imports = dict(imports=['detection'])\n"
        "classes = 'coco'\nbatch = dict(size=16, per_gpu=2)\n"
        f"model = dict(backbone=dict(type='convnext_atto'), {model})\n"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        count_config(config, (64, 64))


def test_a_detector_and_a_segmentor_are_counted_at_the_scale_of_their_tests() -> None:
    options = {"test_pipeline.1.scale": (320, 192), "model.backbone.type": "convnext_atto"}
    detector = count_config(DETECTORS / "mask_rcnn_convnext_tiny_coco_3x.py", None, options)
    assert detector.shape == (192, 320)
    segmentor = count_config(SEGMENTORS / "upernet_convnext_tiny_ade20k_160k.py", None, options)
    assert segmentor.shape == (192, 320)


def build_classifier() -> nn.Module:
    return nn.Sequential(build_backbone("convnext_atto"), nn.Linear(320, 10))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: count_backbone("convnext_tinny"), "nearest: convnext_tiny"),
        (lambda: count_backbone("convnext_atto", (224, 31)), r"--shape 224 31: .* at least 32 x 32"),
        (lambda: count_config("configs/no_such_file.py"), "does not exist"),
    ],
)
def test_mistakes_get_one_line(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- the tool --------------------------------------------------------------------------------------------------------


def test_the_tool_prints_plain_data() -> None:
    result = run_tool("convnext_atto", "--shape", "64", "96", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert set(data) == KEYS
    assert data["shape"] == [64, 96]
    assert data["flops"] == sum(data["by_module"].values())
    assert data["heavy"] == []


def test_the_tool_imports_no_detector_for_a_backbone() -> None:
    code = (
        "import runpy, sys; sys.argv = ['flops.py', 'convnext_atto']; "
        "runpy.run_path('tools/flops.py', run_name='__main__'); "
        "assert not {'mmdet', 'mmseg', 'mmcv'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    for word in ("with a head of 1000 classes", "multiply-adds", "backbone.stages.3", "uncounted: aten::gelu x 12"):
        assert word in result.stdout


def test_the_tool_fails_when_something_heavy_is_uncounted(tmp_path: Path) -> None:
    (tmp_path / "toy_network.py").write_text(TOY)
    (tmp_path / "toy.py").write_text(TOY_CONFIG)
    result = run_tool(str(tmp_path / "toy.py"), extra_path=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "toy::shift_conv x 2" in result.stdout
    assert "no rule counts toy::shift_conv" in result.stderr


def test_the_tool_turns_a_mistake_into_one_line() -> None:
    result = run_tool("convnext_tinny")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: unknown backbone 'convnext_tinny'")
    assert result.stderr.count("\n") == 1


def test_options_are_a_config_s() -> None:
    config = "configs/pretraining/fcmae_digits.py"
    shown = run_tool(config, "--cfg-options", "model.form=dense")
    assert shown.returncode == 0, shown.stderr
    assert "encoder (dense, 60 % hidden) and decoder" in shown.stdout
    refused = run_tool("convnext_atto", "--cfg-options", "model.form=dense")
    assert refused.returncode == 2
    assert "--cfg-options overrides a config's settings" in refused.stderr
