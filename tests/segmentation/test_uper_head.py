"""UperNet's head beside mmseg's: outputs, gradients, precision, multiplications, tracing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import UPerHead
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import segmentation  # noqa: F401  (registers the head)
from segmentation.uper_head import FastUPerHead, convolve_resized

CHANNELS, STRIDES = (6, 8, 10, 12), (1, 2, 4, 8)


def build_heads(**settings: Any) -> tuple[UPerHead, FastUPerHead]:
    """mmseg's head and ours, in float64, with the same weights and without dropout."""
    norm = dict(type="BN")
    arguments = dict(in_channels=list(CHANNELS), in_index=[0, 1, 2, 3], channels=16, num_classes=5, norm_cfg=norm)
    arguments |= dict(align_corners=False, dropout_ratio=0) | settings
    torch.manual_seed(0)
    theirs, ours = UPerHead(**arguments).double(), FastUPerHead(**arguments).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def draw_maps(height: int, width: int, channels: tuple[int, ...] = CHANNELS) -> list[Tensor]:
    """Maps of four strides, (2, C, H, W), in float64."""
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [torch.randn(2, count, *size, dtype=torch.float64) for count, size in zip(channels, sizes, strict=True)]


def outputs_and_gradients(head: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    maps = [one.clone().requires_grad_() for one in maps]
    logits = head.train()(maps)
    logits.backward(torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).sin())
    gradients = [parameter.grad for parameter in head.parameters()]
    return [logits.detach(), *gradients, *(one.grad for one in maps)]  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore:When align_corners=True")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (36, 20), (25, 47)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_and_gradients_are_mmsegs(align_corners: bool, size: tuple[int, int], layout: torch.memory_format) -> None:
    theirs, ours = build_heads(align_corners=align_corners)
    maps = [one.contiguous(memory_format=layout) for one in draw_maps(*size)]
    pairs = zip(outputs_and_gradients(theirs, maps), outputs_and_gradients(ours, maps), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "settings", [dict(norm_cfg=None), dict(act_cfg=None), dict(conv_cfg=dict(type="Conv2dAdaptivePadding"))]
)
def test_other_modules_are_mmsegs_too(settings: dict[str, Any]) -> None:
    theirs, ours = build_heads(**settings)
    maps = draw_maps(24, 40)
    torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-9, atol=1e-11)


def test_float32_is_no_further_from_the_truth() -> None:
    torch.manual_seed(0)
    maps = draw_maps(32, 32, (32,) * 4)
    exact = nn.Conv2d(128, 32, 3, padding=1).double()
    rounded = nn.Conv2d(128, 32, 3, padding=1)
    rounded.load_state_dict(exact.state_dict())
    exact.load_state_dict(rounded.state_dict())
    singles = [one.float() for one in maps]
    maps = [one.double() for one in singles]

    def resized_first(maps: list[Tensor], conv: nn.Conv2d) -> Tensor:
        size = maps[0].shape[2:]
        output: Tensor = conv(torch.cat([maps[0], *(F.interpolate(one, size, mode="bilinear") for one in maps[1:])], 1))
        return output

    truth = resized_first(maps, exact)
    errors = [(form(singles, rounded) - truth).norm() for form in (resized_first, convolve_resized)]
    assert errors[1] < 1.5 * errors[0]


def test_multiplications() -> None:
    theirs, ours = build_heads(channels=64)
    maps = draw_maps(64, 64)
    counts = []
    for head in (theirs, ours):
        with FlopCounterMode(display=False) as counter:
            head(maps)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.75 * counts[0]


def test_a_trace_computes_what_mmsegs_head_does() -> None:
    theirs, ours = build_heads()
    maps = draw_maps(32, 32)
    for head in (theirs.eval(), ours.eval()):
        traced = torch.jit.trace(head, (maps,))
        kinds = [node.kind() for node in traced.inlined_graph.nodes()]
        assert "aten::matmul" not in kinds
        assert kinds.count("aten::cat") == 2
        torch.testing.assert_close(traced(maps), theirs(maps), rtol=1e-9, atol=1e-11)
