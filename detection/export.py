"""Detectors as plain networks: a normalised image to boxes, scores, labels and masks, with mmdet's own prediction.

An exporter records what runs for one example. Where mmdet decides by the contents of an image which code runs, or loops
over objects, :func:`recordable` puts forms of the same result in which every image runs through the same operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmcv.ops.nms import batched_nms
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.rtmdet_ins_head import RTMDetInsHead
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.seg_heads.panoptic_fusion_heads import HeuristicFusionHead, MaskFormerFusionHead
from mmdet.models.utils import filter_scores_and_topk
from mmdet.structures import DetDataSample
from mmdet.structures.mask import mask2bbox
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import nms

from backbones.channels import image_channels
from backbones.errors import ConfigError, describe_error
from engine.task import ExportedNetwork, image_meta

TRIED_SIDE = 128  # pixels of the image that shows what a detector predicts
PAIR_DISTANCE = (1.0, 0.01)  # largest difference of a coordinate in pixels, and of a score, within a pair
MAX_UNPAIRED = 0.02  # share of objects, from scores and overlaps on the very edge of a threshold
ALL_ROWS = sys.maxsize
OBJECT_FIELDS = {"bboxes": "boxes", "scores": "scores", "labels": "labels", "masks": "masks"}
PANOPTIC_OUTPUT = "panoptic"  # name of the output


class PredictedObjects(nn.Module):
    """A detector with all that follows its heads, NMS included, for one image that fills its tensor.

    Args:
        model: The trained model.
    """

    def __init__(self, model: BaseDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.predict(images).values())

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Predict one image, (1, C, H, W), in its own pixels.

        Returns:
            ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,) and, as the model has them, ``masks`` (D, H, W) and
                ``panoptic`` (1, H, W), mmdet's label plus 1000 times the number of the object.
        """
        sample = DetDataSample()
        for name, value in image_meta(images).items():
            # Not as metainfo=..., which copies sizes, and copies belong to no recorded computation.
            sample.set_field(value, name, field_type="metainfo")
        (found,) = self.model.predict(images, [sample], rescale=False)
        objects = found.pred_instances if "pred_instances" in found else {}
        outputs = {name: objects[field] for field, name in OBJECT_FIELDS.items() if field in objects}
        if "pred_panoptic_seg" in found:
            outputs[PANOPTIC_OUTPUT] = found.pred_panoptic_seg.sem_seg
        return outputs


def exported_detector(model: BaseDetector) -> ExportedNetwork:
    """A whole detector, from one normalised image to its objects.

    Raises:
        ConfigError: If the model cannot predict from a tensor alone, or predicts no boxes and no panoptic map.
    """
    network = PredictedObjects(model.eval())
    name = type(model).__name__
    try:
        with torch.no_grad():
            outputs = tuple(network.predict(torch.zeros(1, image_channels(model), TRIED_SIDE, TRIED_SIDE)))
    except Exception as error:  # of a library, of any kind
        raise ConfigError(
            f"{name} cannot be exported: it predicts nothing here ({describe_error(error, 200)})"
        ) from error
    if "boxes" not in outputs and PANOPTIC_OUTPUT not in outputs:
        raise ConfigError(f"{name} cannot be exported: it predicts neither boxes nor a panoptic map")
    note = "one image at a time; coordinates and masks are in pixels of the tensor, whose padding counts as image"
    return ExportedNetwork(
        "detector",
        network,
        outputs,
        prefix="model.",
        note=note,
        batch_size=1,
        recordable=recordable,
        align=lambda found, expected: pair_objects(outputs, found, expected),
    )


def pair_objects(
    names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Bring the objects of two predictions of an image into one order; near ties may have changed it.

    Args:
        names: Name of each output.
        found: Outputs of a prediction.
        expected: Outputs of another prediction of the same image.

    Returns:
        Both, with row i of one belonging to row i of the other, without what has no counterpart.

    Raises:
        ConfigError: If more than :data:`MAX_UNPAIRED` of the objects have none.
    """
    if "boxes" not in names:
        return list(found), list(expected)
    (boxes, scores, labels), theirs = found[:3], expected[:3]
    rows, others = [], []
    free = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(theirs[0])):
        distances = torch.stack([(boxes - theirs[0][i]).abs().amax(1), (scores - theirs[1][i]).abs()], 1)
        fits = free & (labels == theirs[2][i]) & (distances <= distances.new_tensor(PAIR_DISTANCE)).all(1)
        if fits.any():
            cost = (distances / distances.new_tensor(PAIR_DISTANCE)).sum(1).masked_fill(~fits, torch.inf)
            rows.append(int(cost.argmin()))
            others.append(i)
            free[rows[-1]] = False
    most = max(len(boxes), len(theirs[0]))
    if most - len(rows) > MAX_UNPAIRED * most:
        raise ConfigError(f"refused: {len(rows)} of {most} objects are found by the exported file and by its source")
    objects = [name in OBJECT_FIELDS.values() for name in names]
    return (
        [one[rows] if listed else one for one, listed in zip(found, objects)],
        [one[others] if listed else one for one, listed in zip(expected, objects)],
    )


@contextmanager
def recordable() -> Iterator[None]:
    """While it lasts, mmdet predicts by the same operations whatever the image, and gives the same objects."""
    functions = {batched_nms: class_nms, filter_scores_and_topk: best_scores, mask2bbox: boxes_of_masks}
    methods: list[tuple[type, str, Callable[..., Any]]] = [
        (FCNMaskHead, "_predict_by_feat_single", pasted_masks),
        (HeuristicFusionHead, "_predict_single", lay_segments),
        (MaskFormerFusionHead, "panoptic_postprocess", merge_segments),
        (RPNHead, "_predict_by_feat_single", propose_boxes),
        (RTMDetInsHead, "_mask_predict_by_feat_single", dynamic_masks),
        # Under it mmdet calls what it has no more, and leaves the threshold of the scores out.
        (torch.onnx, "is_in_onnx_export", lambda: False),  # type: ignore[list-item]
    ]
    with ExitStack() as stack:
        for module in [module for name, module in list(sys.modules.items()) if name.startswith("mmdet.")]:
            for name, value in list(vars(module).items()):
                if callable(value) and not isinstance(value, type) and (new := _replacement(functions, value)):
                    stack.enter_context(replaced(module, name, new))
        for owner, name, method in methods:
            stack.enter_context(replaced(owner, name, method))
        # The wrapper of mmcv's own operator writes nodes that ONNX has no more.
        align = RoIAlign.forward
        stack.enter_context(replaced(RoIAlign, "forward", lambda layer, *inputs: _torchvision(align, layer, inputs)))
        stack.enter_context(_WholeBatch())
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module, a class or an object another value, and its own back at the end, however it comes.

    Args:
        owner: Module, class or object with an attribute of its own, not an inherited one.
        name: Name of the attribute.
        value: Value for as long as it lasts.
    """
    own = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def class_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """``mmcv.ops.batched_nms`` for horizontal boxes, in one call whatever their number, none included.

    Raises:
        ConfigError: For another type than greedy NMS.
    """
    if nms_cfg is None:
        scores, order = scores.sort(descending=True)
        return torch.cat([boxes[order], scores[:, None]], 1), order
    if (kind := nms_cfg.get("type", "nms")) != "nms":
        raise ConfigError(f"test_cfg.nms.type={kind!r} cannot be exported: take 'nms'")
    shifted = boxes
    if not nms_cfg.get("class_agnostic", class_agnostic):
        largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
        shifted = boxes + (idxs.to(boxes) * (largest + 1))[:, None]
    # mmcv compares in float32, torchvision takes a double.
    kept = nms(shifted, scores, torch.tensor(nms_cfg["iou_threshold"], dtype=torch.float32).item())
    kept = kept[: nms_cfg["max_num"]] if nms_cfg.get("max_num", -1) > 0 else kept
    return torch.cat([boxes[kept], scores[kept][:, None]], 1), kept


def best_scores(scores: Tensor, score_thr: float, topk: int, results: Any = None) -> tuple[Tensor, Tensor, Tensor, Any]:
    """``mmdet.models.utils.filter_scores_and_topk``, with a cut that does not ask how many scores there are."""
    valid = scores > score_thr
    places, scores = torch.nonzero(valid), scores[valid]
    scores, order = scores.sort(descending=True)
    scores, (rows, labels) = scores[:topk], places[order[:topk]].unbind(1)
    if isinstance(results, dict):
        results = {name: value[rows] for name, value in results.items()}
    elif isinstance(results, list):
        results = [value[rows] for value in results]
    elif results is not None:
        results = results[rows]
    return scores, labels, rows, results


def boxes_of_masks(masks: Tensor) -> Tensor:
    """``mmdet.structures.mask.mask2bbox`` without a loop: masks (N, H, W) to boxes (N, 4), zeros for an empty one."""
    bounds = []
    for side, length in ((masks.any(1), masks.shape[-1]), (masks.any(2), masks.shape[-2])):
        places = torch.arange(length, device=masks.device)
        bounds.append((torch.where(side, places, length).amin(1), torch.where(side, places + 1, 0).amax(1)))
    (left, right), (top, bottom) = bounds
    return torch.stack([left, top, right, bottom], 1).float() * masks.flatten(1).any(1)[:, None]


def propose_boxes(
    head: RPNHead,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    score_factor_list: list[Tensor],
    mlvl_priors: list[Tensor],
    img_meta: dict[str, Any],
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
) -> InstanceData:
    """``RPNHead._predict_by_feat_single``, which cuts every level of the pyramid and not the large ones alone."""
    cfg = head.test_cfg if cfg is None else cfg
    levels = []
    for level, (logits, deltas, priors) in enumerate(zip(cls_score_list, bbox_pred_list, mlvl_priors)):
        logits = logits.permute(1, 2, 0).reshape(-1, head.cls_out_channels)
        scores = (logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1))[:, 0]
        scores, order = scores.sort(descending=True)
        cut = cfg.nms_pre if cfg.get("nms_pre", -1) > 0 else ALL_ROWS
        scores, order = scores[:cut], order[:cut]
        deltas = deltas.permute(1, 2, 0).reshape(-1, head.bbox_coder.encode_size)[order]
        levels.append((scores, torch.full_like(scores, level, dtype=torch.long), deltas, priors[order]))
    scores, level_ids, deltas, priors = map(torch.cat, zip(*levels))
    boxes = head.bbox_coder.decode(priors, deltas, max_shape=img_meta["img_shape"])
    if (least := cfg.get("min_bbox_size", -1)) >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > least).all(1)
        boxes, scores, level_ids = boxes[large], scores[large], level_ids[large]
    rows = class_nms(boxes, scores, level_ids, cfg.nms)[1][: cfg.max_per_img]
    return InstanceData(bboxes=boxes[rows], scores=scores[rows], labels=torch.zeros_like(rows))


def pasted_masks(
    head: FCNMaskHead,
    mask_preds: Tensor,
    bboxes: Tensor,
    labels: Tensor,
    img_meta: dict[str, Any],
    rcnn_test_cfg: Any,
    rescale: bool = False,
    activate_map: bool = False,
) -> Tensor:
    """``FCNMaskHead._predict_by_feat_single`` with all masks at once, for images in their own pixels: (D, H, W)."""
    masks = mask_preds if activate_map else mask_preds.sigmoid()
    if not head.class_agnostic:
        masks = masks[torch.arange(labels.shape[0], device=labels.device), labels][:, None]
    grid, around = [], []
    for axis, length in enumerate(reversed(img_meta["ori_shape"][:2])):
        low, high = bboxes[:, axis, None], bboxes[:, axis + 2, None]
        pixels = torch.arange(length, device=bboxes.device).to(bboxes)
        places = (pixels + 0.5 - low) / (high - low) * 2 - 1
        grid.append(torch.where(places.isinf(), 0.0, places))
        around.append((pixels >= low.floor() - 1) & (pixels < high.ceil() + 1))  # no more is pasted on the CPU
    columns, rows = grid[0][:, None], grid[1][:, :, None]
    shape = (-1, rows.shape[1], columns.shape[2])
    points = torch.stack([columns.expand(shape), rows.expand(shape)], 3)
    pasted = F.grid_sample(masks, points, align_corners=False)[:, 0] >= rcnn_test_cfg.mask_thr_binary
    return pasted & around[0][:, None] & around[1][:, :, None]


def dynamic_masks(head: RTMDetInsHead, mask_feat: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
    """``RTMDetInsHead._mask_predict_by_feat_single`` with a product of matrices for each object: logits (D, h, w)."""
    height, width = mask_feat.shape[-2:]
    objects = priors.shape[0]
    places = head.prior_generator.single_level_grid_priors((height, width), level_idx=0, device=mask_feat.device)
    relative = (priors[:, None, :2] - places.reshape(1, -1, 2)).permute(0, 2, 1) / (priors[:, 2].reshape(-1, 1, 1) * 8)
    values = torch.cat([relative, mask_feat.reshape(1, head.num_prototypes, -1).expand(objects, -1, -1)], 1)
    weights, biases = head.parse_dynamic_params(kernels)
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        values = weight.reshape(objects, -1, values.shape[1]) @ values + bias.reshape(objects, -1, 1)
        values = values.relu() if i < len(weights) - 1 else values
    return values.reshape(objects, height, width)


def merge_segments(head: MaskFormerFusionHead, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
    """``MaskFormerFusionHead.panoptic_postprocess`` over all queries at once.

    Args:
        head: Head with the thresholds in its ``test_cfg``.
        mask_cls: Logits of the classes and of "no object", (Q, K + 1).
        mask_pred: Logits of the masks, (Q, H, W).
    """
    scores, labels = mask_cls.softmax(-1).max(-1)
    masks = mask_pred.sigmoid()
    kept = (labels != head.num_classes) & (scores > head.test_cfg.get("object_mask_thr", 0.8))
    owner = torch.where(kept[:, None, None], scores[:, None, None] * masks, -1.0).argmax(0)
    queries = torch.arange(mask_cls.shape[0], device=owner.device)
    area = (owner == queries[:, None, None]).flatten(1).sum(1)
    whole = (masks >= 0.5).flatten(1).sum(1)
    kept = kept & (area > 0) & (whole > 0)
    kept = kept & (area.double() / whole.double() >= head.test_cfg.get("iou_thr", 0.8))
    things = kept & (labels < head.num_things_classes)
    segments = labels + torch.where(things, things.long().cumsum(0) * INSTANCE_OFFSET, 0)
    shown = kept[owner]
    if head.test_cfg.get("filter_low_score", False):
        shown = shown & (masks.gather(0, owner[None])[0] >= 0.5)
    return PixelData(sem_seg=torch.where(shown, segments[owner], head.num_classes).int()[None])


def lay_segments(head: HeuristicFusionHead, mask_results: InstanceData, seg_preds: Tensor) -> PixelData:
    """``HeuristicFusionHead._predict_single`` with one loop over the things, which an exporter keeps as one.

    Args:
        head: Head with the thresholds in its ``test_cfg``.
        mask_results: ``scores`` (D,), ``labels`` (D,) and ``masks`` (D, H, W) of the things.
        seg_preds: Logits of the stuff and of "no stuff", (S + 1, H, W).

    Raises:
        ConfigError: If there is no thing: what follows would not be recorded.
    """
    if not len(mask_results.scores):
        raise ConfigError("no thing is found in the photographs: give --images with an image in which one is found")
    order = torch.argsort(-mask_results.scores)
    labels, masks = mask_results.labels[order], mask_results.masks[order].bool()
    lay_masks = torch.jit.script(_lay_masks)  # whose loop stays one
    owner = lay_masks(masks, float(head.test_cfg.mask_overlap))
    ranks = torch.arange(1, labels.shape[0] + 1, device=owner.device)
    present = (owner == ranks[:, None, None]).flatten(1).any(1)
    segments = labels + present.long().cumsum(0) * INSTANCE_OFFSET
    segments = torch.cat([segments.new_zeros(1), segments])  # that of rank 0 is none, and never shown
    stuff = seg_preds.argmax(0)
    kinds = torch.arange(seg_preds.shape[0], device=owner.device)
    areas = ((stuff == kinds[:, None, None]) & (owner == 0)).flatten(1).sum(1)
    names = torch.where(areas < head.test_cfg.stuff_area_limit, head.num_classes, kinds + head.num_things_classes)
    laid = torch.where(owner > 0, segments[owner], names[stuff])
    return PixelData(sem_seg=laid.int()[None])


def _lay_masks(masks: Tensor, max_overlap: float) -> Tensor:
    """Rank, from 1, of the mask that each pixel belongs to, (H, W): of (D, H, W), those before go first; 0 for none."""
    owner = masks.sum(0) * 0  # also of no mask
    for i in range(masks.shape[0]):
        free = owner == 0
        area = masks[i].sum()
        overlap = (masks[i] & ~free).sum() / (area + 1e-5)
        owner = torch.where(masks[i] & free & (area > 0) & (overlap <= max_overlap), i + 1, owner)
    return owner


class _WholeBatch(TorchFunctionMode):
    """Leaves a batch of one image undivided: its number of objects would become a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.split, torch.Tensor.split) and isinstance(args[1], list | tuple) and len(args[1]) == 1:
            return (args[0],)
        return func(*args, **(kwargs or {}))


def _replacement(functions: dict[Any, Any], value: Any) -> Any:
    return next((new for old, new in functions.items() if old is value), None)


def _torchvision(align: Callable[..., Tensor], layer: RoIAlign, inputs: tuple[Tensor, ...]) -> Tensor:
    """RoIAlign by torchvision's operator, for which there is one of ONNX."""
    with replaced(layer, "use_torchvision", True):
        return align(layer, *inputs)
