"""Parameters and multiply-adds of a backbone or of a config's whole model, by the rules of fvcore.

fvcore counts a multiply-add as one FLOP, as the papers do, and has a rule for each kind of operator (convolution,
matrix product, norm, pooling, resizing). It reads the operators off ``torch.jit``'s trace, which has to compute for
real: the tracer loses convolutions on the ``meta`` device. Here the same rules see the operators as PyTorch dispatches
them, on ``meta``: nothing is computed or allocated, so that the largest segmentor takes no longer than the smallest
classifier. Both ways give the same number (tested), but for a global average pooling, which reaches the dispatcher as
a plain mean and is listed as uncounted. What fvcore has no rule for gets one (attention, RoIAlign) or is listed.

The papers' numbers for detectors and segmentors are those of mmcv 1.x's hooks on modules: with their rules, our Mask
R-CNN, Cascade Mask R-CNN and UperNet with ConvNeXt-T have 262.2, 741.1 and 939.0 G (printed: 262, 741, 939). They add
biases and ReLU, count only half of a layer norm or less, and leave RoIAlign and resizing out; the rules here give
262.6, 741.7 and 939.7 G.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from fvcore.nn.jit_analysis import _IGNORED_OPS
from fvcore.nn.jit_handles import (
    addmm_flop_jit,
    batchnorm_flop_jit,
    bmm_flop_jit,
    conv_flop_count,
    elementwise_flop_counter,
    matmul_flop_jit,
    norm_flop_counter,
)
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.errors import UserError, first_line
from backbones.registry import build_backbone
from engine.config.load import load_config
from engine.config.world import Launch

Shape = tuple[int, int]
Run = Callable[[Any, Tensor], object]

BACKBONE_SHAPE = (224, 224)
DETECTOR_SHAPE = (800, 1280)  # the papers write it "1280 x 800"
SEGMENTOR_SHAPE = (512, 2048)  # "2048 x 512"
SMALLEST_SIDE = 32
IMAGENET_CLASSES = 1000
# As in mmdet 2's tools/analysis_tools/get_flops.py, which gave the detectors' published numbers: each box head sees
# 1,000 proposals, each mask head the first 100 of them.
PROPOSALS, MASK_PROPOSALS = 1000, 100
# "We sample four regular locations" in each bin: He et al., "Mask R-CNN" (2017), section 3. It stands for mmdet's
# sampling_ratio=0 too, which adapts the number to the size of each box.
ROI_ALIGN_SAMPLES = 4
BILINEAR = 4  # multiply-adds of one bilinear sample, as fvcore counts them

HEAVY = re.compile(
    r"^(?!aten::_?upsample).*(conv|mm(?!a)|matmul|linear|attention|attn|einsum|cdist|deform|rnn|lstm|gru)"
)
# Moves or makes numbers without computing any: what the dispatcher shows beside the names that fvcore ignores.
FREE = {
    f"aten::{name}"
    for name in (
        *("clone", "_to_copy", "_unsafe_view", "as_strided_", "fill_", "zero_", "lift_fresh", "scalar_tensor"),
        *("empty_like", "empty_strided", "new_empty_strided", "ones_like", "unsafe_split"),
    )
} | set(_IGNORED_OPS)
EXPANDED_PARTS = ("backbone", "roi_head")


@dataclass(frozen=True)
class Count:
    """What a network costs on one image.

    Attributes:
        name: Registered name, or path of the config.
        parts: What was run, in words.
        shape: Height and width of the image in pixels.
        params: Parameters of the whole model.
        flops: Multiply-adds.
        by_module: Multiply-adds of each part that has any, in the model's order; their sum is ``flops``.
        by_operator: Multiply-adds of each kind of operator, the heaviest first; their sum is ``flops``.
        uncounted: Calls of each operator without a rule, the most frequent first.
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
        UserError: If the name is unknown, or the network does not take images of this shape.
    """

    def build() -> nn.Module:
        backbone = build_backbone(name)
        return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(backbone.num_features, IMAGENET_CLASSES)})

    parts = f"backbone with a head of {IMAGENET_CLASSES} classes"
    return _count_built(name, parts, build, _classify, shape or BACKBONE_SHAPE)


def count_config(path: str | Path, shape: Shape | None = None, options: dict[str, Any] | None = None) -> Count:
    """Count the model of a config of any task, heads included, the way its papers do.

    Args:
        path: Config file.
        shape: Height and width in pixels. By default a classifier is counted at its own test size, a detector at
            800 x 1280, a segmentor at 512 x 2048.
        options: Overrides of the config under dotted keys.

    Raises:
        UserError: If the config is wrong, its model is of no known kind, or does not take images of this shape.
    """
    cfg = load_config(path, options, launch=Launch()).cfg
    run: Run
    default: Shape | None
    if "backbone" in cfg.model:
        cfg.model.backbone.pop("weights", None)
    if "roi_head" in cfg.model:
        parts = f"whole model, {PROPOSALS} proposals for each box head, {MASK_PROPOSALS} of them for each mask head"
        run, default = _detect, DETECTOR_SHAPE
    elif "decode_head" in cfg.model:
        without = " (of the auxiliary head the parameters alone: it works in training)"
        parts = "backbone and decode head" + (without if cfg.model.get("auxiliary_head") else "")
        run, default = _segment, SEGMENTOR_SHAPE
    elif "num_classes" in cfg.model:
        parts = f"backbone with a head of {cfg.model.num_classes} classes"
        run, default = _classify, _test_size(cfg)
    else:
        raise UserError(
            f"config {str(path)!r}: model {cfg.model.get('type')!r} cannot be counted; known are classifiers "
            "(num_classes), two-stage detectors (roi_head) and segmentors (decode_head)"
        )

    def build() -> nn.Module:
        with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
            return MODELS.build(cfg.model)

    chosen = shape or default
    if chosen is None:
        raise UserError(f"config {str(path)!r}: its test pipeline states no size; give the image with --shape H W")
    return _count_built(str(path), parts, build, run, chosen)


def count_model(name: str, model: nn.Module, images: Tensor, run: Run, parts: str = "whole model") -> Count:
    """Count one run of a model.

    Args:
        name: What to call it.
        model: The model; its mode is left as it is.
        images: ``(1, C, H, W)``, on the model's device, ``meta`` included.
        run: Called with the model and the images.
        parts: What ``run`` runs, in words.
    """
    counter = _OperatorCounter()
    with torch.no_grad(), counter.watching(model), counter:
        run(model, images)
    by_module: Counter[str] = Counter()
    by_operator: Counter[str] = Counter()
    for (module, operator), work in counter.work.items():
        by_module[_part(module)] += work
        by_operator[operator] += work
    order = dict.fromkeys(_part(module) for module, _ in model.named_modules())
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


def _count_built(name: str, parts: str, build: Callable[[], nn.Module], run: Run, shape: Shape) -> Count:
    """Build without memory and count; where a model looks at its numbers, build and run it for real."""
    if min(shape) < SMALLEST_SIDE:
        raise UserError(
            f"--shape {shape[0]} {shape[1]}: an image of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels is needed"
        )
    failures: list[Exception] = []
    for device in ("meta", "cpu"):
        with torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' advice on losses, of no use here
            model = build().eval()
            try:
                return count_model(name, model, torch.zeros(1, 3, *shape), run, parts)
            except (RuntimeError, AssertionError) as error:
                failures.append(error)
    reason = first_line(failures[-1])
    raise UserError(f"{name} does not run on an image of {shape[0]} x {shape[1]}: {reason}") from failures[-1]


def _classify(model: Any, images: Tensor) -> object:
    return model.head(model.backbone(images))


def _segment(model: Any, images: Tensor) -> object:
    """Up to the decode head's scores at stride 4: resizing them to the image belongs to testing, not to the network."""
    return model.decode_head(model.extract_feat(images))


def _detect(model: Any, images: Tensor) -> object:
    features = model.extract_feat(images)
    outputs = [model.rpn_head(features)]
    roi_head = model.roi_head
    for kind, proposals in (("bbox", PROPOSALS), ("mask", MASK_PROPOSALS)):
        heads = _stages(getattr(roi_head, f"{kind}_head", None))
        extractors = _stages(getattr(roi_head, f"{kind}_roi_extractor", None))
        for extractor, head in zip(extractors, heads, strict=True):
            outputs.append(head(_pool_proposals(extractor, features, proposals)))
    return outputs


def _stages(module: Any) -> list[Any]:
    """The heads of a cascade, the one head of another detector, or none."""
    if module is None:
        return []
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _pool_proposals(extractor: Any, features: Sequence[Tensor], proposals: int) -> Tensor:
    """Pool proposals of all sizes, ``(proposals, C, h, w)``: as many of them from each level of the pyramid.

    mmdet sorts the boxes by size to find each one's level. That needs their numbers; the work does not depend on them.
    """
    if not hasattr(extractor, "map_roi_levels"):
        raise UserError(f"{type(extractor).__name__} cannot be counted; known is SingleRoIExtractor")
    levels = len(extractor.roi_layers)
    pooled = []
    for i, (feature, layer) in enumerate(zip(features, extractor.roi_layers, strict=False)):
        layer.use_torchvision = True  # mmcv's own compiled operator is invisible to the dispatcher
        boxes = feature.new_zeros(proposals // levels + (i < proposals % levels), 5)
        pooled.append(layer(feature, boxes))
    return torch.cat(pooled)


def _test_size(cfg: Config) -> Shape | None:
    sizes = [step["size"] for step in cfg.get("test_pipeline", []) if isinstance(step.get("size"), int)]
    return (sizes[-1], sizes[-1]) if sizes else None


def _part(module: str) -> str:
    """The part of the model that a module belongs to: ``backbone.stages.2``, ``neck``, ``roi_head.bbox_head.0``..."""
    first, *rest = module.split(".")
    if first not in EXPANDED_PARTS or not rest:
        return first or "other"
    return ".".join([first, rest[0], *(rest[1:2] if rest[1:] and rest[1].isdigit() else [])])


class _OperatorCounter(TorchDispatchMode):
    """Apply the rules to every operator that runs inside of ``with counter:``.

    Attributes:
        work: Multiply-adds by module and kind of operator.
        uncounted: Calls of each operator without a rule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[tuple[str, str]] = Counter()
        self.uncounted: Counter[str] = Counter()
        self._running = [""]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keep account of which of the model's modules is running."""

        def enter(name: str, *_: Any) -> None:
            self._running.append(name)

        def leave(*_: Any) -> None:
            self._running.pop()

        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(enter, name)))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in RULES:
            kind, rule = RULES[name]
            outputs = result if isinstance(result, tuple | list) else [result]
            self.work[self._running[-1], kind] += int(rule(list(map(_Value, args)), list(map(_Value, outputs))))
        elif not func.is_view and name not in FREE:
            self.uncounted[name] += 1
        return result


@dataclass(frozen=True)
class _Value:
    """A value that has been computed, under the interface that fvcore's rules know from the trace."""

    value: Any

    def isCompleteTensor(self) -> bool:
        return isinstance(self.value, Tensor)

    def type(self) -> _Value:
        return self

    def sizes(self) -> list[int]:
        return list(self.value.shape)

    def toIValue(self) -> Any:
        return self.value


def _convolution(inputs: list[_Value], outputs: list[_Value]) -> int:
    image, weight, transposed = inputs[0].sizes(), inputs[1].sizes(), inputs[6].value
    return conv_flop_count(image, weight, outputs[0].sizes(), transposed)


def _batched_product_and_sum(inputs: list[_Value], outputs: list[_Value]) -> int:
    return bmm_flop_jit(inputs[1:3], outputs)


def _attention(inputs: list[_Value], outputs: list[_Value]) -> int:
    """Both products of softmax(Q K^T) V; Q is ``(..., L, E)``, K ``(..., S, E)``, V ``(..., S, E')``."""
    query, key, value = (one.sizes() for one in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _roi_align(inputs: list[_Value], outputs: list[_Value]) -> int:
    """Bilinear samples of every bin; the arguments are (features, boxes, scale, height, width, samples per side)."""
    per_side = inputs[5].value
    samples = per_side**2 if per_side > 0 else ROI_ALIGN_SAMPLES
    return prod(outputs[0].sizes()) * samples * BILINEAR


# Dispatched operator -> its kind in the table, and multiply-adds from its inputs and outputs.
RULES: dict[str, tuple[str, Callable[[list[_Value], list[_Value]], float]]] = {
    "aten::convolution": ("conv", _convolution),
    "aten::addmm": ("linear", addmm_flop_jit),
    "aten::mm": ("linear", matmul_flop_jit),
    "aten::mv": ("linear", elementwise_flop_counter(1, 0)),
    "aten::bmm": ("matmul", bmm_flop_jit),
    "aten::baddbmm": ("matmul", _batched_product_and_sum),
    "aten::native_batch_norm": ("norm", batchnorm_flop_jit),
    "aten::native_layer_norm": ("norm", norm_flop_counter(2)),
    "aten::native_group_norm": ("norm", norm_flop_counter(1)),
    "aten::_adaptive_avg_pool2d": ("pooling", elementwise_flop_counter(1, 0)),
    "aten::upsample_nearest2d": ("resizing", elementwise_flop_counter(0, 1)),
    "aten::upsample_bilinear2d": ("resizing", elementwise_flop_counter(0, BILINEAR)),
    "aten::grid_sampler_2d": ("resizing", elementwise_flop_counter(0, BILINEAR)),
    "torchvision::roi_align": ("roi_align", _roi_align),
    "aten::_scaled_dot_product_flash_attention_for_cpu": ("attention", _attention),
}
