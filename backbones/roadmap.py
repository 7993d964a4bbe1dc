"""The roadmap: ResNet-50 becomes ConvNeXt-T and ResNet-200 becomes ConvNeXt-B, one step at a time.

Source: Liu et al., "A ConvNet for the 2020s" (CVPR 2022), section 2; here after Zhuang Liu's dissertation (2022):
section 2.3 for what a step does, Tables 2.10 and 2.11 for what it gives, section 2.10 for the widths of the ResNet-200
regime.

The text leaves details open. Both tables print the multiply-adds of convolutions and linear layers alone, which
determine most details to the last digit. ResNets are torchvision's (stride 2 in the 3x3 convolution). The stage ratio
of the large regime comes with width 84. From the inverted bottleneck on, the residual stream has ``width`` channels and
a block four times as many hidden channels, so that stage 0 needs no convolution on its shortcut and the others become
thin. A depthwise convolution that has moved up has the block's input channels and stride; the 1x1 convolution after it
expands directly to four times the new width.

Norms, activations and biases cost nothing in that count, so that the tables cannot confirm these readings of the text:
the patchify stem keeps the norm and the activation of the ResNet's; "fewer activations" leaves one between the
1x1 convolutions and none after the sum or the stem; "fewer norms" leaves the one before the 1x1 convolutions and none
on the shortcut or after the stem, where the last step adds one. Layer scale (1e-6 in Table 2.5) enters with the last
step; ``layer_scale_init_value`` adds it to any other row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from backbones.base import PYRAMID_STRIDES, STAGE_INDICES, Backbone, Stage
from backbones.convnext import STEM_STRIDE, ConvNeXt, pyramid_groups
from backbones.errors import ConfigError
from backbones.layers import DropPath, LayerNorm2d, drop_path_rates, init_trunc_normal, layer_scale

BOTTLENECK_RATIO = 4


@dataclass(frozen=True)
class Design:
    """Design choices of one network of the roadmap; the defaults are ResNet-50's.

    Attributes:
        depths: Blocks per stage.
        width: Channels of the stem; they double from stage to stage.
        patchify: A stem of 4x4 patches in place of a 7x7 convolution and 3x3 max pooling, each of stride 2.
        depthwise: One group per channel in the spatial convolution.
        inverted: Inverted bottlenecks: more hidden channels than channels of the residual stream.
        depthwise_first: The spatial convolution before both 1x1 convolutions, not between them.
        kernel_size: Side of the spatial convolution.
        gelu: GELU in place of ReLU.
        fewer_activations: One activation in a block, between the 1x1 convolutions.
        fewer_norms: One norm in a block, after the first convolution.
        layer_norm: Layer normalisation in place of batch normalisation.
        separate_downsampling: Downsampling layers between the stages, in place of strides and convolutions on
            shortcuts: this is a ConvNeXt.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    patchify: bool = False
    depthwise: bool = False
    inverted: bool = False
    depthwise_first: bool = False
    kernel_size: int = 3
    gelu: bool = False
    fewer_activations: bool = False
    fewer_norms: bool = False
    layer_norm: bool = False
    separate_downsampling: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage's output."""
        return tuple(self.width * 2**i * (1 if self.inverted else BOTTLENECK_RATIO) for i in STAGE_INDICES)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Hidden channels of each stage's blocks."""
        return tuple(self.width * 2**i * (BOTTLENECK_RATIO if self.inverted else 1) for i in STAGE_INDICES)


class RoadmapBlock(nn.Module):
    """Two 1x1 convolutions and a spatial one, with a shortcut around them.

    ``(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))``

    Args:
        design: Design of the network.
        channels: Input channels ``C``, hidden channels, output channels ``C'``.
        stride: Stride of the spatial convolution and the shortcut.
        drop_path: Probability of skipping the block in training.
        layer_scale_init_value: Initial layer scale; 0 for none.
    """

    def __init__(
        self,
        design: Design,
        channels: tuple[int, int, int],
        stride: int,
        drop_path: float,
        layer_scale_init_value: float,
    ) -> None:
        super().__init__()
        before, hidden, after = channels
        spatial = dict(kernel_size=design.kernel_size, stride=stride)
        plan: list[tuple[int, int, dict[str, int]]]
        if design.depthwise_first:
            plan = [(before, before, spatial), (before, hidden, {}), (hidden, after, {})]
        else:
            plan = [(before, hidden, {}), (hidden, hidden, spatial), (hidden, after, {})]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (fan_in, fan_out, shape) in enumerate(plan, start=1):
            groups = fan_in if design.depthwise and shape else 1
            normed = i == 1 or not design.fewer_norms
            layers[f"conv{i}"] = _convolution(design, fan_in, fan_out, normed, groups=groups, **shape)
            if normed:
                layers[f"norm{i}"] = _norm(design, fan_out)
            if i == 2 or (i == 1 and not design.fewer_activations):
                layers[f"act{i}"] = _activation(design)
        self.branch = nn.Sequential(layers)
        self.gamma = layer_scale(after, layer_scale_init_value)
        self.drop_path = DropPath(drop_path)
        self.shortcut = nn.Sequential()
        if before != after:  # every stride comes with a change of width
            normed = not design.fewer_norms
            self.shortcut.append(_convolution(design, before, after, normed, stride=stride))
            if normed:
                self.shortcut.append(_norm(design, after))
        self.act = nn.Identity() if design.fewer_activations else _activation(design)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.gamma is not None:
            y = self.gamma[:, None, None] * y
        return self.act(self.shortcut(x) + self.drop_path(y))


class RoadmapNet(Backbone):
    """A network on the way from ResNet to ConvNeXt: four stages at strides 4, 8, 16 and 32, without a head.

    The outputs are those of the stages: like a ResNet, and unlike ConvNeXt, it has no norm after them. Parameters are
    named as in ConvNeXt where possible (``downsample_layers.0.0.weight`` for the stem,
    ``stages.2.5.branch.conv1.weight``). With ``grad_checkpointing``, each training step updates the running statistics
    of batch normalisation twice. If the sides of an image are not multiples of 32, each halving rounds up, as in a
    ResNet; the patchify stem drops rows and columns beyond a multiple of 4.

    Args:
        design: Design of the network.
        drop_path_rate: Probability of stochastic depth in the last block, growing linearly from 0 in the first.
        layer_scale_init_value: Initial layer scale; 0 for none.
        out_indices: ``None`` for one pooled vector, or stage indices for one map each.
        grad_checkpointing: Blocks to recompute in the backward pass, see :class:`backbones.base.Backbone`.
        weights: Path or URL of a checkpoint, loaded by :meth:`init_weights`.

    Raises:
        ConfigError: If an argument is invalid, or the design is a ConvNeXt's.
    """

    described_as = "a network of the roadmap"

    def __init__(
        self,
        design: Design,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        out_indices: Sequence[int] | None = None,
        grad_checkpointing: bool | float | Sequence[int] = False,
        weights: str | None = None,
    ) -> None:
        super().__init__(out_indices, drop_path_rate, grad_checkpointing, weights)
        if design.separate_downsampling:
            raise ConfigError("separate_downsampling=True is a ConvNeXt: build it with RoadmapRow.build or as ConvNeXt")
        self.depths, self.dims = design.depths, design.dims
        self.groups |= pyramid_groups(self.depths)
        self.set_outputs(self.dims, PYRAMID_STRIDES, self.dims[-1])
        self.downsample_layers = nn.ModuleList([_stem(design)])
        self.stages = nn.ModuleList()
        before = design.width
        for i, rates in enumerate(drop_path_rates(drop_path_rate, design.depths)):
            stage = Stage()
            for rate in rates:
                stride = 2 if i > 0 and not stage else 1
                channels = (before, design.hidden[i], design.dims[i])
                stage.append(RoadmapBlock(design, channels, stride, rate, layer_scale_init_value))
                before = design.dims[i]
            self.stages.append(stage)
        self.apply(init_trunc_normal)

    def run_stem(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W) -> (N, width, H / 4, W / 4)``"""
        return self.downsample_layers[0](x)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """The blocks of a stage: ``(N, C, H, W) -> (N, C', H', W')``."""
        return self.run_blocks(self.stages[stage], x)


def _convolution(
    design: Design, fan_in: int, fan_out: int, normed: bool, kernel_size: int = 1, **options: Any
) -> nn.Module:
    """A convolution with padding for the same size; without a bias before a batch norm, which would remove it."""
    bias = design.layer_norm or not normed
    return nn.Conv2d(fan_in, fan_out, kernel_size, padding=kernel_size // 2, bias=bias, **options)


def _norm(design: Design, channels: int) -> nn.Module:
    return LayerNorm2d(channels) if design.layer_norm else nn.BatchNorm2d(channels)


def _activation(design: Design) -> nn.Module:
    return nn.GELU() if design.gelu else nn.ReLU()


def _stem(design: Design) -> nn.Sequential:
    """``(N, 3, H, W) -> (N, width, H / 4, W / 4)``"""
    normed = not design.fewer_norms
    stem = nn.Sequential()
    if design.patchify:
        stem.append(nn.Conv2d(3, design.width, STEM_STRIDE, STEM_STRIDE, bias=not normed))
    else:
        stem.append(_convolution(design, 3, design.width, normed, kernel_size=7, stride=2))
    if normed:
        stem.append(_norm(design, design.width))
    if not design.fewer_activations:
        stem.append(_activation(design))
    if not design.patchify:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    return stem


@dataclass(frozen=True)
class PrintedResult:
    """Printed results of one row, on ImageNet-1K at 224 x 224.

    Attributes:
        accuracy: Top-1 accuracy in percent; in Table 2.10 the mean of three seeds.
        gflops: Multiply-adds in billions.
        std: Standard deviation over the seeds; ``None`` in Table 2.11.
        note: Reason for a difference from the count of the network built here; empty if there is none.
    """

    accuracy: float
    gflops: float
    std: float | None = None
    note: str = ""


@dataclass(frozen=True)
class RoadmapRow:
    """One row of Table 2.10 or 2.11.

    Attributes:
        label: Printed name of the row.
        design: Design of the network.
        printed: Printed results.
    """

    label: str
    design: Design
    printed: PrintedResult

    def build(self, **options: Any) -> Backbone:
        """Build the network; that of the last step is a ConvNeXt."""
        return self.constructor()(**options)

    def constructor(self) -> Callable[..., Backbone]:
        """What builds the network from its other arguments."""
        design = self.design
        if design.separate_downsampling:
            return partial(ConvNeXt, design.depths, design.dims, kernel_size=design.kernel_size)
        return partial(RoadmapNet, design)


@dataclass(frozen=True)
class RoadmapStep:
    """One step of the roadmap; pairs are for the regimes of ResNet-50 and ResNet-200.

    Attributes:
        name: Suffix of the networks' names.
        label: Printed names of the rows.
        change: Fields of :class:`Design` that differ from the last adopted step.
        printed: Printed results.
        adopted: Whether the next step builds on this one.
    """

    name: str
    label: tuple[str, str]
    change: tuple[dict[str, Any], dict[str, Any]]
    printed: tuple[PrintedResult, PrintedResult]
    adopted: bool = True


def _step(
    name: str, label: str, small: PrintedResult, large: PrintedResult, adopted: bool = True, **change: Any
) -> RoadmapStep:
    """A step that is the same in both regimes."""
    return RoadmapStep(name, (label, label), (change, change), (small, large), adopted)


_WIDE_NORMS = (
    "counted like the table, without norms, it has the printed 4.64; fvcore's rules give 4.69, for two of the three "
    "batch norms in a block now have four times the channels"
)
_EARLY = (
    "misprint: this network has 4.15 like the row above it (norms are not counted in this table, and Table 2.11 prints "
    "14.81 before and after this step); 4.46 is what the next row's network has"
)
_LAST = (
    "ConvNeXt-T has 4.46, printed one row early, in the count that gives the other rows and ConvNeXt-B's 15.35 in "
    "Table 2.11, and 4.47 by fvcore's rules; 4.49 would take norms, biases and layer scale too: then no other row fits"
)

ROADMAP_STEPS = (
    RoadmapStep(
        "resnet",
        ("ResNet-50 (enhanced recipe)", "ResNet-200 (enhanced recipe)"),
        ({}, {"depths": (3, 24, 36, 3)}),
        (PrintedResult(78.82, 4.09, 0.07), PrintedResult(81.14, 15.01)),
    ),
    RoadmapStep(
        "stage_ratio",
        ("stage ratio", "stage ratio and increase width"),
        ({"depths": (3, 3, 9, 3)}, {"depths": (3, 3, 27, 3), "width": 84}),
        (PrintedResult(79.36, 4.53, 0.07), PrintedResult(81.33, 14.52)),
    ),
    _step("patchify", "“patchify” stem", PrintedResult(79.51, 4.42, 0.18), PrintedResult(81.59, 14.38), patchify=True),
    _step("depthwise", "depthwise conv", PrintedResult(78.28, 2.35, 0.08), PrintedResult(80.54, 7.23), depthwise=True),
    RoadmapStep(
        "width",
        ("increase width", "increase width"),
        ({"width": 96}, {"width": 128}),
        (PrintedResult(80.50, 5.27, 0.02), PrintedResult(81.85, 16.76)),
    ),
    _step(
        "inverted",
        "inverting dimensions",
        PrintedResult(80.64, 4.64, 0.03, _WIDE_NORMS),
        PrintedResult(82.64, 15.68),
        inverted=True,
    ),
    _step(
        "depthwise_first",
        "move up depthwise conv",
        PrintedResult(79.92, 4.07, 0.08),
        PrintedResult(82.04, 14.63),
        depthwise_first=True,
    ),
    _step("kernel5", "kernel size → 5", PrintedResult(80.35, 4.10, 0.08), PrintedResult(82.32, 14.70), kernel_size=5),
    _step("kernel7", "kernel size → 7", PrintedResult(80.57, 4.15, 0.14), PrintedResult(82.30, 14.81), kernel_size=7),
    _step(
        "kernel9",
        "kernel size → 9",
        PrintedResult(80.57, 4.21, 0.06),
        PrintedResult(82.27, 14.95),
        False,
        kernel_size=9,
    ),
    _step(
        "kernel11",
        "kernel size → 11",
        PrintedResult(80.47, 4.29, 0.11),
        PrintedResult(82.18, 15.13),
        False,
        kernel_size=11,
    ),
    _step("gelu", "ReLU → GELU", PrintedResult(80.62, 4.15, 0.14), PrintedResult(82.19, 14.81), gelu=True),
    _step(
        "fewer_activations",
        "fewer activations",
        PrintedResult(81.27, 4.15, 0.06),
        PrintedResult(82.71, 14.81),
        fewer_activations=True,
    ),
    _step(
        "fewer_norms", "fewer norms", PrintedResult(81.41, 4.15, 0.09), PrintedResult(83.17, 14.81), fewer_norms=True
    ),
    _step(
        "layer_norm", "BN → LN", PrintedResult(81.47, 4.46, 0.09, _EARLY), PrintedResult(83.35, 14.81), layer_norm=True
    ),
    RoadmapStep(
        "separate_downsampling",
        ("separate d.s. conv (ConvNeXt-T)", "separate d.s. conv (ConvNeXt-B)"),
        ({"separate_downsampling": True}, {"separate_downsampling": True}),
        (PrintedResult(81.97, 4.49, 0.06, _LAST), PrintedResult(83.60, 15.35)),
    ),
)


def _rows(prefix: str, regime: int) -> dict[str, RoadmapRow]:
    """The rows of one regime, index 0 or 1 of a step's pairs, by name of the network."""
    rows = {}
    design = Design()
    for step in ROADMAP_STEPS:
        changed = replace(design, **step.change[regime])
        rows[f"{prefix}_{step.name}"] = RoadmapRow(step.label[regime], changed, step.printed[regime])
        if step.adopted:
            design = changed
    return rows


RESNET50_TO_TINY = _rows("roadmap50", 0)  # Table 2.10
RESNET200_TO_BASE = _rows("roadmap200", 1)  # Table 2.11
