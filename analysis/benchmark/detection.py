"""Speed of a detector's evaluation, masks, training step and inference beside mmdet and pycocotools.

All sides get the same input and take turns (:mod:`analysis.benchmark.timing`). Their outputs are compared first;
nothing is timed that differs.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from mmcv.ops import RoIAlign
from mmdet.evaluation.metrics import CocoMetric
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.mask import encode_mask_results
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from analysis.benchmark.models import build_random_model, model_step
from analysis.benchmark.peers import OUR_SIDE
from analysis.benchmark.request import BenchmarkRequest
from analysis.benchmark.synthetic_detections import SyntheticScene, draw_mask_logits, draw_scenes, write_annotations
from analysis.benchmark.timing import MismatchError, WorkComparison, relative_error, take_turns, warm_up
from backbones.errors import ConfigError
from backbones.layouts import from_ours
from detection.coco_metric import IOU_TYPES, FastCocoMetric
from detection.masks import FastFCNMaskHead, encode_masks
from engine.config.load import load_config
from engine.config.world import Launch

NUM_CLASSES = 80
MAX_DETECTIONS = 100  # per image, as COCO's evaluation
IMAGE_SEED = 0
CANDIDATES = 1000  # boxes of an image before non-maximum suppression, of all classes
AP_TOLERANCE = 1e-6
FEATURE_TOLERANCE = 1e-5  # relative, in float32
FAST_HEADS = ("FastFCNMaskHead", "FastUPerHead")  # they add nothing but methods to the library's


def _time(
    work: str, same: str, steps: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> WorkComparison:
    for step in steps.values():
        warm_up(step, 1)
    return WorkComparison(work, same, take_turns(steps, rounds, clock=clock))


def compare_evaluation(images: int, rounds: int, clock: Callable[[], float] = time.perf_counter) -> WorkComparison:
    """Time the AP of boxes and masks, from a detector's predictions and the annotation file to the numbers.

    Args:
        images: Number of images of a synthetic set with COCO's objects per image and 100 detections each.
        rounds: Number of turns of each side.
        clock: Function that returns the present time in seconds.

    Raises:
        MismatchError: If one of the 24 numbers differs.
    """
    found = draw_scenes(images, NUM_CLASSES, MAX_DETECTIONS)
    names = [str(label) for label in range(NUM_CLASSES)]
    with TemporaryDirectory() as folder:
        path = write_annotations(Path(folder) / "annotations.json", found, names)

        def filled(kind: type[BaseMetric]) -> Any:
            metric: Any = kind(str(path), metric=list(IOU_TYPES))
            metric.dataset_meta = {"classes": names}
            metric.process({}, _samples(found))
            return metric

        def ours() -> dict[str, np.ndarray]:
            metric = filled(FastCocoMetric)
            return metric.statistics(metric.results)

        steps = {
            OUR_SIDE: lambda: _quietly(ours),
            "mmdet's CocoMetric": lambda: _quietly(lambda: filled(CocoMetric).evaluate(images)),
            "pycocotools alone": lambda: _quietly(_pycocotools, path, found),
        }
        numbers, expected = steps[OUR_SIDE](), steps["pycocotools alone"]()
        error = max(float(np.abs(numbers[kind] - expected[kind]).max()) for kind in IOU_TYPES)
        if not error <= AP_TOLERANCE:
            raise MismatchError(f"evaluation: a number of COCO's differs from pycocotools' by {error:.1e}")
        objects = sum(len(scene.annotations) for scene in found)
        work = (
            f"evaluation of {images} images, {objects} objects, {MAX_DETECTIONS} detections per image, boxes and masks"
        )
        same = f"all 24 numbers equal pycocotools': the largest difference is {error:.1e}"
        return _time(work, same, steps, rounds, clock)


def _samples(found: list[SyntheticScene]) -> list[dict[str, Any]]:
    """Predictions as a detector hands them to a metric."""
    return [
        {
            "img_id": scene.image_id,
            "ori_shape": scene.shape,
            "pred_instances": {
                "bboxes": torch.from_numpy(scene.boxes),
                "scores": torch.from_numpy(scene.scores),
                "labels": torch.from_numpy(scene.labels),
                "masks": [dict(code) for code in scene.codes],  # mmdet's metric writes into them
            },
        }
        for scene in found
    ]


def _pycocotools(path: Path, found: list[SyntheticScene]) -> dict[str, np.ndarray]:
    """pycocotools on detections in memory, without mmdet's detour through files."""
    annotations = COCO(str(path))
    numbers = {}
    for kind in IOU_TYPES:
        entries = []
        for scene in found:
            corners = scene.boxes.astype(np.float64)
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
            shapes = [{"bbox": box} for box in boxes] if kind == "bbox" else [{"segmentation": c} for c in scene.codes]
            for shape, label, score in zip(shapes, scene.labels.tolist(), scene.scores.tolist(), strict=True):
                entries.append({"image_id": scene.image_id, "category_id": label + 1, "score": score, **shape})
        evaluation = COCOeval(annotations, annotations.loadRes(entries), kind)
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        numbers[kind] = evaluation.stats
    return numbers


def _quietly(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function without the output and logs of libraries."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            return function(*args)
    finally:
        logger.setLevel(level)


def compare_masks(
    shape: tuple[int, int], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[WorkComparison, WorkComparison]:
    """Time pasting a mask head's logits of 100 detections into the image, and encoding these masks by run length.

    Args:
        shape: Height and width of the image in pixels.
        rounds: Number of turns of each side.
        clock: Function that returns the present time in seconds.

    Raises:
        MismatchError: If a pixel or a code differs.
    """
    boxes, logits = draw_mask_logits(shape, MAX_DETECTIONS, NUM_CLASSES)
    labels = torch.arange(MAX_DETECTIONS) % NUM_CLASSES
    pasted = {name: _paster(kind, boxes, logits, labels, shape) for name, kind in _HEADS.items()}
    encoders: dict[str, Callable[[np.ndarray], Any]] = {OUR_SIDE: encode_masks, "mmdet's": encode_mask_results}
    masks = {name: paste() for name, paste in pasted.items()}
    different = int((masks[OUR_SIDE] != masks["mmdet's"]).sum())
    codes = {name: encode(masks[OUR_SIDE].numpy()) for name, encode in encoders.items()}
    if different or [dict(code) for code in codes[OUR_SIDE]] != [dict(code) for code in codes["mmdet's"]]:
        raise MismatchError(f"masks: {different} pixels differ from mmdet's, or their codes do")
    again = {name: (lambda f=encode: f(masks[OUR_SIDE].numpy())) for name, encode in encoders.items()}
    subject = f"{MAX_DETECTIONS} masks in an image of {shape[1]} x {shape[0]}"
    return (
        _time(f"pasting {subject}", "all pixels are the same", pasted, rounds, clock),
        _time(f"encoding {subject}", "all codes are the same", again, rounds, clock),
    )


_HEADS: dict[str, type[FCNMaskHead]] = {OUR_SIDE: FastFCNMaskHead, "mmdet's": FCNMaskHead}


def _paster(
    kind: type[FCNMaskHead], boxes: Tensor, logits: Tensor, labels: Tensor, shape: tuple[int, int]
) -> Callable[[], Tensor]:
    head = kind(num_convs=0, in_channels=1, conv_out_channels=1, num_classes=NUM_CLASSES)

    def paste() -> Tensor:
        given = InstanceData(bboxes=boxes.clone(), labels=labels)
        meta = {"ori_shape": shape, "scale_factor": (1.0, 1.0)}
        settings = ConfigDict(mask_thr_binary=0.5)
        masks: Tensor = head.predict_by_feat([logits], [given], [meta], settings, rescale=True)[0].masks
        return masks

    return paste


def compare_step(request: BenchmarkRequest, clock: Callable[[], float] = time.perf_counter) -> WorkComparison:
    """Time a step of training, without the optimizer, or of a test, beside the stock model with timm's backbone.

    In a test the threshold of a two-stage detector's scores is set to what lets ``CANDIDATES`` boxes through to
    non-maximum suppression: with random weights no score would reach the config's.

    Where mmcv's compiled ops are missing, both sides use the same replacements (:mod:`engine.mmcv_ops`), but for
    RoIAlign in a test: for mmcv's stands torchvision's, which visits the same samples in the same way.

    Args:
        request: Request whose name is the path of a config; its peers, layout and compilation are not used.
        clock: Function that returns the present time in seconds.

    Raises:
        MismatchError: If the features of the backbones differ.
        ConfigError: If timm does not have the backbone.
    """
    cfg = load_config(request.name, None, launch=Launch()).cfg
    model, name = build_random_model(cfg), cfg.model.backbone.type
    if not request.train and hasattr(model, "roi_head"):
        model.roi_head.test_cfg.score_thr = _threshold(model, request)
    stock = copy.deepcopy(model)
    stock.backbone = StockBackbone(name, model.backbone, cfg.model.backbone.get("drop_path_rate", 0.0)).eval()
    for module in stock.modules():
        if type(module).__name__ in FAST_HEADS:
            module.__class__ = type(module).__base__
        elif isinstance(module, RoIAlign) and not request.train:
            module.use_torchvision = True
    sides = {OUR_SIDE: model, "stock model with timm's backbone, as it comes": stock}
    images = torch.randn(1, 3, *request.shape)
    with torch.no_grad():
        pairs = zip(model.backbone(images), stock.backbone(images), strict=True)
        error = max(relative_error(*pair) for pair in pairs)
    if not error <= FEATURE_TOLERANCE:
        raise MismatchError(f"{name}: features differ from timm's by {error:.1e}")
    steps = {}
    for side, one in sides.items():
        torch.manual_seed(IMAGE_SEED)  # the same images
        steps[side] = model_step(one.to(request.device), request)
    height, width = request.shape
    kind = "training step" if request.train else "inference"
    work = f"{kind} of {request.name}, batch {request.batch}, {width} x {height}, {request.dtype}"
    return _time(work, f"the same weights; features differ by {error:.1e} in float32", steps, request.rounds, clock)


def _threshold(model: Any, request: BenchmarkRequest) -> float:
    """The score that ``CANDIDATES`` boxes of an image of noise exceed."""
    heads = model.roi_head.bbox_head
    found: list[Tensor] = []
    handle = (heads[-1] if isinstance(heads, nn.ModuleList) else heads).register_forward_hook(
        lambda head, inputs, outputs: found.append(outputs[0].softmax(-1)[:, :-1].flatten())
    )
    torch.manual_seed(IMAGE_SEED)
    try:
        model_step(model, replace(request, batch=1, device="cpu"))()
    finally:
        handle.remove()
    return float(found[-1].topk(min(CANDIDATES, len(found[-1]))).values[-1])


class StockBackbone(nn.Module):
    """timm's ConvNeXt with our weights, returning the normalised maps of its four stages.

    Args:
        name: timm's name of the network.
        ours: Our backbone, whose weights it gets.
        drop_path_rate: Stochastic depth rate of the last block.

    Raises:
        ConfigError: If timm does not have the network.
    """

    def __init__(self, name: str, ours: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        if name not in timm.list_models("convnext*"):
            raise ConfigError(f"--config: its backbone {name!r} is no ConvNeXt of timm's")
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path_rate)
        network.head = nn.Identity()
        state = {key: value for key, value in ours.state_dict().items() if not key.startswith("norm")}
        network.load_state_dict(from_ours(state, "timm"))
        self.stem, self.stages = network.stem, network.stages
        self.norms = nn.ModuleList(copy.deepcopy(getattr(ours, f"norm{stage}")) for stage in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of strides 4 to 32 of images (N, 3, H, W)."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return tuple(norm(one) for norm, one in zip(self.norms, maps[1:], strict=True))
