"""mmcv's binary functions, served by torchvision where mmcv comes without them.

mmcv's Python wrappers fetch every binary function from one module, ``mmcv._ext``, and mmdet and mmseg fetch
the wrappers. Building that module takes minutes and a compiler, so :func:`install` puts a stand-in of the
same name where it is absent. What Mask R-CNN, Cascade R-CNN and RetinaNet call is served; any other function
(deformable convolution, rotated boxes, RoIPool, ...) can be imported and raises :class:`MissingOpError` once
it is called.

Importing this module changes nothing. ``detection/__init__`` and ``segmentation/__init__`` call
:func:`install`, because it has to happen before the first import of ``mmcv.ops``, ``mmdet.models``,
``mmdet.structures`` or ``mmseg.models``: these take dummies, or fail, where they cannot import the ops.

The served functions have the arguments that mmcv 2.x's wrappers (``mmcv/ops/*.py``) pass: tensors of one
device of any kind, and buffers of the wrapper's into which results are written. Numbers of less than 32 bits
are computed in float32.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from engine.mmcv_ops.roi_gradient import roi_align_gradient

_EXTENSION = "mmcv._ext"
# Packages that bind dummies at import time when mmcv.ops cannot be imported.
_BIND_EARLY = ("mmdet.models", "mmdet.structures", "mmseg.models")
_LINEAR, _GAUSSIAN = 1, 2  # methods of mmcv.ops.soft_nms; 0 is naive
_MAX_POOLING = 0  # pool_mode of mmcv.ops.roi_align
_INTERSECTION_OVER_FOREGROUND = 1  # mode of mmcv.ops.bbox_overlaps


class MissingOpError(RuntimeError):
    """An mmcv function that has no stand-in was called; the message is one line and says how to get it."""


def _missing(op: str) -> MissingOpError:
    import mmcv

    return MissingOpError(
        f"mmcv op '{op}' is missing: this installation of mmcv has no compiled ops and torchvision does not "
        "stand in for this one. Building mmcv from source gives all of them; it needs a C++ compiler and, "
        "for a GPU, the CUDA toolkit: pip install 'setuptools>=80,<82' wheel && MMCV_WITH_OPS=1 pip install "
        "--no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary onedl-mmcv "
        f"onedl-mmcv=={mmcv.__version__}"
    )


def install() -> str:
    """Make ``mmcv.ops`` importable, before anything imports it; calling it again changes nothing.

    Returns:
        ``"compiled"`` where mmcv has its own binary functions (left untouched), else ``"torchvision"``.

    Raises:
        RuntimeError: mmdet or mmseg was imported before and has already replaced the ops by dummies.
    """
    present = sys.modules.get(_EXTENSION)
    if present is not None:
        return "torchvision" if isinstance(present, _StandIn) else "compiled"
    if importlib.util.find_spec(_EXTENSION) is not None:
        return "compiled"
    late = [name for name in _BIND_EARLY if name in sys.modules]
    if late:
        raise RuntimeError(
            f"engine.mmcv_ops.install() came too late: {late[0]} is imported already, without its ops; "
            "import `detection` or `segmentation` first"
        )
    sys.modules[_EXTENSION] = _StandIn()
    return "torchvision"


class _StandIn(ModuleType):
    """Takes the place of the compiled module; every name can be imported, not every one can be called."""

    def __init__(self) -> None:
        super().__init__(_EXTENSION, "Stand-in for mmcv's compiled module, served by torchvision.")
        # mmengine asks importlib for this spec and fails on None; no loader, since nothing was loaded.
        self.__spec__ = ModuleSpec(_EXTENSION, loader=None)
        for function in _SERVED:
            setattr(self, function.__name__, function)

    def __getattr__(self, name: str) -> Callable[..., None]:
        # Python probes modules for dunder names (__path__, __file__, ...); those must stay absent.
        if name.startswith("__"):
            raise AttributeError(f"module '{_EXTENSION}' has no attribute '{name}'")

        def missing(*args: Any, **kwargs: Any) -> None:
            raise _missing(name)

        return missing


def get_compiler_version() -> str:
    """What ``mmcv.utils.collect_env`` shows."""
    return "none: ops are served by torchvision"


def get_compiling_cuda_version() -> str:
    """What ``mmcv.utils.collect_env`` shows."""
    return "none: ops are served by torchvision"


def _at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if its numbers have 32 or 64 bits, else a float32 copy (exact)."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4), corners x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: a box is dropped if its IoU with a kept one is above this.
        offset: a box is ``x2 - x1 + offset`` wide; 1 for boxes that count pixels.

    Returns:
        (K,) int64, indices of the kept boxes by falling score.
    """
    boxes = _at_least_float32(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in single precision. Torchvision takes a double, and float32's 1/10 is above the double's.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torchvision_nms(boxes, scores.to(boxes.dtype), threshold)


def _iou_with_first(boxes: np.ndarray, offset: int) -> np.ndarray:
    """IoU of the first of (N, 4) boxes with each of the others, (N - 1,)."""
    first, others = boxes[0], boxes[1:]
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    sides = np.minimum(first[2:], others[:, 2:]) - np.maximum(first[:2], others[:, :2]) + offset
    overlap = np.maximum(sides, 0).prod(axis=1)
    union = areas[0] + areas[1:] - overlap
    # Two boxes without area would overlap by 0/0: they are apart.
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _decay(iou: np.ndarray, method: int, iou_threshold: float, sigma: float) -> np.ndarray:
    """The factor by which soft-NMS multiplies the scores of boxes of this overlap with the best one."""
    if method == _GAUSSIAN:
        return np.exp(-(iou * iou) / sigma)
    lowered = 1 - iou if method == _LINEAR else np.zeros_like(iou)
    return np.where(iou >= iou.dtype.type(iou_threshold), lowered, iou.dtype.type(1))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503): overlapping boxes lose score before they are dropped.

    Args:
        boxes: (N, 4) on the CPU, corners x1, y1, x2, y2.
        scores: (N,) on the CPU.
        dets: (N, 5), written: its first K rows become the kept boxes and their lowered scores.
        iou_threshold: overlap from which ``naive`` and ``linear`` act.
        sigma: width of ``gaussian``.
        min_score: a box is dropped when its score falls below this.
        method: 0 naive, 1 linear, 2 gaussian.
        offset: a box is ``x2 - x1 + offset`` wide.

    Returns:
        (K,) int64, indices of the kept boxes in the order of ``dets``.
    """
    rows = torch.cat([_at_least_float32(boxes), scores[:, None]], dim=1).detach().numpy()
    indices: np.ndarray = np.arange(len(rows))
    kept = 0
    while kept < len(rows):
        best = kept + int(rows[kept:, 4].argmax())
        rows[[kept, best]], indices[[kept, best]] = rows[[best, kept]], indices[[best, kept]]
        iou = _iou_with_first(rows[kept:, :4], offset)
        kept += 1
        rows[kept:, 4] *= _decay(iou, method, iou_threshold, sigma)
        # mmcv fills the place of a dropped box with the last one; the same here, so that ties end the same.
        alive = np.concatenate([np.ones(kept, dtype=bool), ~(rows[kept:, 4] < rows.dtype.type(min_score))])
        size = int(alive.sum())
        gaps, fillers = np.flatnonzero(~alive[:size]), size + np.flatnonzero(alive[size:])[::-1]
        rows[gaps], indices[gaps] = rows[fillers], indices[fillers]
        rows, indices = rows[:size], indices[:size]
    dets[: len(rows)] = torch.from_numpy(rows)
    return torch.from_numpy(indices)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes, each one kept by NMS followed by those that it suppresses.

    Args:
        dets: (N, 5) on the CPU, corners and score.
        iou_threshold: overlap from which a box is suppressed.

    Returns:
        Indices of each group by falling score; the groups by falling score of their first.
    """
    rows = _at_least_float32(dets).detach().numpy()
    waiting = np.argsort(-rows[:, 4], kind="stable")
    groups = []
    while len(waiting):
        iou = _iou_with_first(rows[waiting, :4], offset=0)
        suppressed = np.concatenate([[True], iou >= iou.dtype.type(iou_threshold)])
        groups.append(waiting[suppressed].tolist())
        waiting = waiting[~suppressed]
    return groups


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al. 2017, arXiv:1703.06870) by averaging.

    Args:
        input: (B, C, H, W).
        rois: (N, 5), batch index and corners in units of the image.
        output: (N, C, aligned_height, aligned_width), written.
        argmax_y: empty, since only pooling by maximum uses it.
        argmax_x: likewise.
        aligned_height: bins along y.
        aligned_width: bins along x.
        spatial_scale: size of the feature map over that of the image.
        sampling_ratio: samples per bin along each axis; 0 takes about one per pixel.
        pool_mode: 0 for maximum, 1 for average.
        aligned: True shifts boxes by half a pixel, so that pixel centres are where they belong.

    Raises:
        MissingOpError: the maximum was asked for.
    """
    if pool_mode == _MAX_POOLING:
        raise _missing('roi_align(pool_mode="max")')
    features = _at_least_float32(input)
    pooled = torch.ops.torchvision.roi_align(
        features,
        rois.to(features.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` by its input, written into ``grad_input`` (B, C, H, W)."""
    grad = _at_least_float32(grad_output)
    rois = rois.to(grad.dtype)
    if grad.device.type == "cpu":
        shape = (grad_input.shape[0], grad_input.shape[1], grad_input.shape[2], grad_input.shape[3])
        grad_input.copy_(roi_align_gradient(grad, rois, shape, spatial_scale, sampling_ratio, aligned))
        return
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overlaps of two sets of boxes, written into ``ious``.

    Args:
        bboxes1: (M, 4), corners x1, y1, x2, y2.
        bboxes2: (N, 4), or (M, 4) if ``aligned``.
        ious: (M, N), or (M,) if ``aligned``.
        mode: 0 for intersection over union, 1 for intersection over the area of ``bboxes1``.
        aligned: compare pairs instead of each with each.
        offset: a box is ``x2 - x1 + offset`` wide.
    """
    first = bboxes1 if aligned else bboxes1[:, None]
    size1, size2 = (boxes[..., 2:] - boxes[..., :2] + offset for boxes in (first, bboxes2))
    sides = torch.minimum(first[..., 2:], bboxes2[..., 2:]) - torch.maximum(first[..., :2], bboxes2[..., :2])
    overlap = (sides + offset).clamp(min=0).prod(dim=-1)
    area = size1.prod(dim=-1)
    if mode != _INTERSECTION_OVER_FOREGROUND:
        area = area + size2.prod(dim=-1) - overlap
    ious.copy_(overlap / area)


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 or float64, the mask of the true classes and each entry's factor, all (N, C)."""
    logits = _at_least_float32(input)
    # A target equal to C is background: no class is true.
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    factor = torch.where(positive, alpha, 1 - alpha).to(logits.dtype)
    if weight.numel():
        factor = factor * weight.to(logits.dtype)[target][:, None]
    return logits, positive, factor


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al. 2017, arXiv:1708.02002) of each class on its own.

    Args:
        input: (N, C) logits.
        target: (N,) int64, the class, or C for background.
        weight: (C,) factor by the target's class, which then must not be background; empty for none.
        output: (N, C), written.
        gamma: how much well-classified entries are turned down.
        alpha: weight of true classes; the others get ``1 - alpha``.
    """
    logits, positive, factor = _focal_terms(input, target, weight, alpha)
    # The same formula serves both kinds of entries: s is the logit of the answer that is right.
    s = torch.where(positive, logits, -logits)
    output.copy_(-factor * torch.sigmoid(-s) ** gamma * F.logsigmoid(s))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` by the logits, written into ``grad_input`` (N, C)."""
    logits, positive, factor = _focal_terms(input, target, weight, alpha)
    s = torch.where(positive, logits, -logits)
    right, wrong = torch.sigmoid(s), torch.sigmoid(-s)
    slope = factor * wrong**gamma * (gamma * right * F.logsigmoid(s) - wrong)
    grad_input.copy_(torch.where(positive, slope, -slope))


_SERVED: tuple[Callable[..., Any], ...] = (
    get_compiler_version,
    get_compiling_cuda_version,
    nms,
    softnms,
    nms_match,
    roi_align_forward,
    roi_align_backward,
    bbox_overlaps,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
)
