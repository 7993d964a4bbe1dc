"""Our parts of a detector's work beside mmdet's and pycocotools': evaluation, masks, and the training step.

Both sides get the same input and take turns (see :mod:`analysis.benchmark.networks`). What they give is compared first;
nothing is timed that differs.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from mmdet.evaluation.metrics import CocoMetric
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.mask import encode_mask_results
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from analysis.benchmark.models import training_step
from analysis.benchmark.networks import MismatchError, Request, quartiles, ratios, relative_error, take_turns
from analysis.benchmark.peers import OURS, telling_weights
from analysis.benchmark.synthetic_detections import Scene, blobs, scenes, write_truth
from backbones.errors import UserError
from backbones.layouts import from_ours
from detection.coco_metric import KINDS, FastCocoMetric
from detection.masks import FastFCNMaskHead, encode_masks
from engine.config.load import load_config
from engine.config.world import Launch

CLASSES = 80
DETECTIONS = 100  # at most, per image, as COCO counts
SAME = 1e-6  # of a number of COCO's
SAME_FEATURES = 1e-5  # relative, in float32
WARM_UP = 1


@dataclass(frozen=True)
class Comparison:
    """Times of one kind of work.

    Attributes:
        work: In words.
        same: How it was seen that all sides give the same.
        seconds: Of each side in each round, ours first.
    """

    work: str
    same: str
    seconds: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        ours = self.seconds[OURS]
        sides = {
            name: {
                "seconds": list(taken),
                "median": statistics.median(taken),
                "ours_is_times_faster": statistics.median(ratios(ours, taken)),
                "ours_is_times_faster_quartiles": list(quartiles(ratios(ours, taken))),
            }
            for name, taken in self.seconds.items()
        }
        return {"work": self.work, "same": self.same, "sides": sides}

    def __str__(self) -> str:
        row = "  {:44} {:>10} {:>17} {:>20}"
        lines = [self.work, f"  {self.same}", row.format("", "s", "quartiles", "ours is x faster").rstrip()]
        ours = self.seconds[OURS]
        for name, taken in self.seconds.items():
            pairs = ratios(ours, taken)
            ratio = "" if name == OURS else "{:.2f} ({:.2f}-{:.2f})".format(statistics.median(pairs), *quartiles(pairs))
            between = "{:.3f}-{:.3f}".format(*quartiles(taken))
            lines.append(row.format(name, f"{statistics.median(taken):.3f}", between, ratio).rstrip())
        return "\n".join(lines)


def _compare(work: str, same: str, steps: Mapping[str, Callable[[], object]], rounds: int, clock: Any) -> Comparison:
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    return Comparison(work, same, take_turns(steps, rounds, clock=clock))


def compare_evaluation(images: int, rounds: int, clock: Callable[[], float] = time.perf_counter) -> Comparison:
    """AP of boxes and masks, from the predictions of a detector and the annotation file to the numbers.

    Args:
        images: Of a made-up set with as many objects per image as COCO's and 100 detections each.
        rounds: Of taking turns.
        clock: Seconds.

    Raises:
        MismatchError: If one of the 24 numbers differs.
    """
    found = scenes(images, CLASSES, DETECTIONS)
    names = [str(label) for label in range(CLASSES)]
    with TemporaryDirectory() as folder:
        path = write_truth(Path(folder) / "truth.json", found, names)

        def ours() -> dict[str, np.ndarray]:
            metric = FastCocoMetric(str(path))
            metric.dataset_meta = {"classes": names}
            metric.process({}, _samples(found))
            return metric.statistics(metric.results)

        def mmdets() -> object:
            metric = CocoMetric(str(path), metric=list(KINDS))
            metric.dataset_meta = {"classes": names}
            metric.process({}, _samples(found))
            return metric.evaluate(images)

        steps = {
            OURS: lambda: _quietly(ours),
            "mmdet's CocoMetric": lambda: _quietly(mmdets),
            "pycocotools alone": lambda: _quietly(_pycocotools, path, found),
        }
        numbers, expected = _quietly(ours), _quietly(_pycocotools, path, found)
        error = max(float(np.abs(numbers[kind] - expected[kind]).max()) for kind in KINDS)
        if not error <= SAME:
            raise MismatchError(f"evaluation: a number of COCO's differs from pycocotools' by {error:.1e}")
        objects = sum(len(scene.truths) for scene in found)
        work = f"evaluation of {images} images, {objects} objects, {DETECTIONS} detections per image, boxes and masks"
        same = f"all 24 numbers equal pycocotools': the largest difference is {error:.1e}"
        return _compare(work, same, steps, rounds, clock)


def _samples(found: list[Scene]) -> list[dict[str, Any]]:
    """As a detector gives them to a metric."""
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


def _pycocotools(path: Path, found: list[Scene]) -> dict[str, np.ndarray]:
    """Detections as lists in memory: without mmdet's way through files."""
    truth = COCO(str(path))
    numbers = {}
    for kind in KINDS:
        entries = []
        for scene in found:
            corners = scene.boxes.astype(np.float64)
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
            shapes = [{"bbox": box} for box in boxes] if kind == "bbox" else [{"segmentation": c} for c in scene.codes]
            for shape, label, score in zip(shapes, scene.labels.tolist(), scene.scores.tolist(), strict=True):
                entries.append({"image_id": scene.image_id, "category_id": label + 1, "score": score, **shape})
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        numbers[kind] = evaluation.stats
    return numbers


def _quietly(function: Callable[..., Any], *args: Any) -> Any:
    """Call without what libraries print and log."""
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
) -> tuple[Comparison, Comparison]:
    """From a mask head's scores of 100 detections to masks of the image's size, and from these to run-length codes.

    Args:
        shape: Height and width of the image in pixels.
        rounds: Of taking turns.
        clock: Seconds.

    Raises:
        MismatchError: If a pixel or a code differs.
    """
    boxes, logits = blobs(shape, DETECTIONS, CLASSES)
    labels = torch.arange(DETECTIONS) % CLASSES
    pasted = {name: _paster(kind, boxes, logits, labels, shape) for name, kind in _HEADS.items()}
    encoders: dict[str, Callable[[np.ndarray], Any]] = {OURS: encode_masks, "mmdet's": encode_mask_results}
    masks = {name: paste() for name, paste in pasted.items()}
    different = int((masks[OURS] != masks["mmdet's"]).sum())
    codes = {name: encode(masks[OURS].numpy()) for name, encode in encoders.items()}
    if different or [dict(code) for code in codes[OURS]] != [dict(code) for code in codes["mmdet's"]]:
        raise MismatchError(f"masks: {different} pixels differ from mmdet's, or their codes do")
    again = {name: (lambda f=encode: f(masks[OURS].numpy())) for name, encode in encoders.items()}
    what = f"{DETECTIONS} masks in an image of {shape[1]} x {shape[0]}"
    return (
        _compare(f"pasting {what}", "all pixels are the same", pasted, rounds, clock),
        _compare(f"encoding {what}", "all codes are the same", again, rounds, clock),
    )


_HEADS: dict[str, type[FCNMaskHead]] = {OURS: FastFCNMaskHead, "mmdet's": FCNMaskHead}


def _paster(
    kind: type[FCNMaskHead], boxes: Tensor, logits: Tensor, labels: Tensor, shape: tuple[int, int]
) -> Callable[[], Tensor]:
    head = kind(num_convs=0, in_channels=1, conv_out_channels=1, num_classes=CLASSES)

    def paste() -> Tensor:
        given = InstanceData(bboxes=boxes.clone(), labels=labels)
        meta = {"ori_shape": shape, "scale_factor": (1.0, 1.0)}
        settings = ConfigDict(mask_thr_binary=0.5)
        masks: Tensor = head.predict_by_feat([logits], [given], [meta], settings, rescale=True)[0].masks
        return masks

    return paste


def compare_step(request: Request, clock: Callable[[], float] = time.perf_counter) -> Comparison:
    """A training step, without the optimizer, beside stock mmdet with timm's backbone.

    mmcv's compiled operators are served by torchvision on both sides where they are absent.

    Args:
        request: ``name`` is a config; its batch, shape, device, dtype and rounds hold.
        clock: Seconds.

    Raises:
        MismatchError: If the features of the backbones differ.
        UserError: If timm does not have the backbone.
    """
    cfg = load_config(request.name, None, launch=Launch()).cfg
    name = cfg.model.backbone.type
    cfg.model.backbone.pop("weights", None)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    telling_weights(model.backbone)
    stock = copy.deepcopy(model)
    stock.backbone = StockBackbone(name, model.backbone, cfg.model.backbone.get("drop_path_rate", 0.0))
    sides = {OURS: model, "mmdet with timm's backbone, as it comes": stock}
    images = torch.randn(1, 3, *request.shape)
    with torch.no_grad():
        pairs = zip(model.eval().backbone(images), stock.eval().backbone(images), strict=True)
        error = max(relative_error(one, other) for one, other in pairs)
    if not error <= SAME_FEATURES:
        raise MismatchError(f"{name}: features differ from timm's by {error:.1e}")
    steps = {side: training_step(one.to(request.device), request) for side, one in sides.items()}
    height, width = request.shape
    work = f"training step of {request.name}, batch {request.batch}, {width} x {height}, {request.dtype}"
    same = f"the same weights; features differ by {error:.1e} in float32"
    return _compare(work, same, steps, request.rounds, clock)


class StockBackbone(nn.Module):
    """timm's ConvNeXt with our weights, giving the normalised maps of its four stages.

    Args:
        name: Known to timm.
        ours: Whose weights it takes.
        drop_path_rate: Stochastic depth of the last block.

    Raises:
        UserError: If timm does not have it.
    """

    def __init__(self, name: str, ours: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        if name not in timm.list_models("convnext*"):
            raise UserError(f"--config: its backbone {name!r} is no ConvNeXt of timm's")
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path_rate)
        network.head = nn.Identity()
        state = {key: value for key, value in ours.state_dict().items() if not key.startswith("norm")}
        network.load_state_dict(from_ours(state, "timm"))
        self.stem, self.stages = network.stem, network.stages
        self.norms = nn.ModuleList(copy.deepcopy(getattr(ours, f"norm{stage}")) for stage in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of strides 4 to 32 of images (N, 3, H, W)."""
        outputs = []
        stages: Any = self.stages
        x = self.stem(x)
        for stage, norm in zip(stages, self.norms, strict=True):
            x = stage(x)
            outputs.append(norm(x))
        return tuple(outputs)
