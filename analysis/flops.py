"""Parameters and multiply-adds of a network, by the rules of fvcore.

fvcore counts a multiply-add as one FLOP, as the papers do, and has a rule for each kind of operator (convolution,
matrix product, norm, pooling, resizing). Its own analysis reads the operators off ``torch.jit``'s trace, which has to
compute for real: convolutions cannot be traced on the ``meta`` device. Here the same rules see the operators as PyTorch
dispatches them, on ``meta``: nothing is computed or allocated, so that the largest segmentor takes no longer than the
smallest classifier. Both ways give the same number (tested), but for a global average pooling, which reaches the
dispatcher as a plain mean and is listed as uncounted. Operators for which fvcore has no rule get one in
:mod:`analysis.flop_rules` (attention, RoIAlign) or are listed.

The papers' numbers for detectors and segmentors are those of mmcv 1.x's hooks on modules: with their rules, our Mask
R-CNN, Cascade Mask R-CNN and UperNet with ConvNeXt-T have 262.2, 741.1 and 939.0 G (printed: 262, 741, 939). They add
biases and ReLU, count only half of a layer norm or less, and leave RoIAlign and resizing out; the rules here give
262.6, 741.7 and 939.7 G.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.flop_rules import OperatorCounter
from backbones.channels import image_channels
from backbones.errors import ConfigError, first_line
from backbones.registry import build_backbone
from engine.task import Shape, task_of_model

ForwardRun = Callable[[Any, Tensor], object]

BACKBONE_SHAPE = (224, 224)
SMALLEST_SIDE = 32
IMAGENET_CLASSES = 1000

HEAVY = re.compile(
    r"^(?!aten::_?upsample).*(conv|mm(?!a)|matmul|linear|attention|attn|einsum|cdist|deform|rnn|lstm|gru)"
)


@dataclass(frozen=True)
class Count:
    """Parameters and FLOPs of a network on one image.

    Attributes:
        name: Registered name, or path of the config.
        parts: Description of the parts that were run.
        shape: Height and width of the image in pixels.
        params: Parameters of the whole model.
        flops: Multiply-adds.
        by_module: Multiply-adds of each part that has any, in the model's order; their sum is ``flops``.
        by_operator: Multiply-adds of each kind of operator, the heaviest first; their sum is ``flops``.
        uncounted: Number of calls of each operator without a rule, the most frequent first.
    """

    name: str
    parts: str
    shape: Shape
    params: int
    flops: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    uncounted: dict[str, int]

    @property
    def heavy(self) -> tuple[str, ...]:
        """Uncounted operators that multiply matrices, by their name (``HEAVY``): with one, ``flops`` is too low."""
        return tuple(name for name in self.uncounted if HEAVY.match(name))

    def as_dict(self) -> dict[str, Any]:
        """The count as plain data."""
        return {**asdict(self), "shape": list(self.shape), "heavy": list(self.heavy)}


def count_backbone(name: str, shape: Shape | None = None) -> Count:
    """Count a registered network as a classifier: pooled, with a linear head of 1,000 classes.

    Args:
        name: A name of :func:`backbones.list_backbones`.
        shape: Height and width in pixels; 224 x 224 by default.

    Raises:
        ConfigError: If the name is unknown, or the network does not take images of this shape.
    """

    def build_classifier() -> nn.Module:
        backbone = build_backbone(name)
        return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(backbone.num_features, IMAGENET_CLASSES)})

    def run(network: Any, images: Tensor) -> object:
        return network.head(network.backbone(images))

    parts = f"backbone with a head of {IMAGENET_CLASSES} classes"
    return count_built(name, lambda network: parts, build_classifier, run, shape or BACKBONE_SHAPE)


def count_model(name: str, model: nn.Module, images: Tensor, run: ForwardRun, parts: str = "whole model") -> Count:
    """Count one run of a model.

    Args:
        name: Name in the result.
        model: The model; its mode (training or evaluation) is kept.
        images: Images, (1, C, H, W), on the model's device, ``meta`` included.
        run: Function that runs the model; gets the model and the images.
        parts: Description of the parts that ``run`` runs.
    """
    detailed = task_of_model(model).detailed_modules
    counter = OperatorCounter()
    with torch.no_grad(), counter.watching(model), counter:
        run(model, images)
    by_module: Counter[str] = Counter()
    by_operator: Counter[str] = Counter()
    for (module, operator), work in counter.work.items():
        by_module[_part(module, detailed)] += work
        by_operator[operator] += work
    order = dict.fromkeys(_part(module, detailed) for module, _ in model.named_modules())
    return Count(
        name=name,
        parts=parts,
        shape=(images.shape[-2], images.shape[-1]),
        params=sum(parameter.numel() for parameter in model.parameters()),
        flops=by_operator.total(),
        by_module={part: by_module[part] for part in order if by_module[part]},
        by_operator=dict(by_operator.most_common()),
        uncounted=dict(counter.uncounted.most_common()),
    )


def count_built(
    name: str, parts: Callable[[Any], str], build: Callable[[], nn.Module], run: ForwardRun, shape: Shape
) -> Count:
    """Build on the ``meta`` device and count; a model that depends on its numbers is built and run on the CPU.

    Args:
        name: Name in the result.
        parts: Function from the model to a description of the parts that ``run`` runs.
        build: Builds the model, once for each device.
        run: Function that runs the model; gets the model and the images.
        shape: Height and width of the image in pixels.

    Raises:
        ConfigError: If the model does not take images of this shape.
    """
    if min(shape) < SMALLEST_SIDE:
        raise ConfigError(
            f"--shape {shape[0]} {shape[1]}: an image of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels is needed"
        )
    failures: list[Exception] = []
    for device in ("meta", "cpu"):
        with torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' advice on losses, of no use here
            model = build().eval()
            try:
                return count_model(name, model, torch.zeros(1, image_channels(model), *shape), run, parts(model))
            except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
                failures.append(error)
    reason = first_line(failures[-1])
    raise ConfigError(f"{name} does not run on an image of {shape[0]} x {shape[1]}: {reason}") from failures[-1]


def _part(module: str, detailed: tuple[str, ...]) -> str:
    """The row of the table that a module belongs to, such as ``backbone.stages.2`` or ``neck``."""
    first, *rest = module.split(".")
    if first not in detailed or not rest:
        return first or "other"
    return ".".join([first, rest[0], *(rest[1:2] if rest[1:] and rest[1].isdigit() else [])])
