"""A detector's loss on validation data gets the truth that a training on the same image would have."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from torch import nn

from backbones.errors import ConfigError
from detection.loss_inputs import detector_loss_inputs

HEIGHT, WIDTH = 50, 70
KEYS = ("img_id", "ori_shape", "img_shape", "scale_factor")
STEPS = [{"type": "LoadCheckedImage"}, {"type": "CheckedResize"}, {"type": "mmdet.LoadAnnotations"}]


class Model(nn.Module):
    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.data_preprocessor = DetDataPreprocessor(pad_mask=True, pad_seg=True, pad_size_divisor=32)
        if masks:
            self.mask_head = nn.Identity()


def image() -> dict[str, Any]:
    pixels = np.random.randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return {"img": pixels, "img_id": 1, "img_shape": (HEIGHT, WIDTH), "ori_shape": (HEIGHT, WIDTH)}


def truth(objects: int = 2) -> dict[str, Any]:
    masks = np.zeros((objects, HEIGHT, WIDTH), np.uint8)
    masks[:, 5:40, 10:60] = 1
    labels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3
    return {
        "gt_bboxes": HorizontalBoxes(np.array([[10, 5, 75, 40]] * objects, np.float32).reshape(-1, 4), dtype=None),
        "gt_bboxes_labels": np.zeros(objects, np.int64),
        "gt_ignore_flags": np.array([False, True][:objects]),
        "gt_masks": BitmapMasks(masks, HEIGHT, WIDTH),
        "gt_seg_map": labels,
        "ignore_index": 255,
    }


def batch(results: dict[str, Any]) -> dict[str, Any]:
    packed = PackDetInputs(meta_keys=KEYS)(copy.deepcopy(results))
    return {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}


def test_truth_at_the_size_of_the_image_is_scaled_as_in_training() -> None:
    model, resize, first = Model(), Resize(scale=(100, 100), keep_ratio=True), image()
    expected = model.data_preprocessor(batch(resize({**first, **truth()})), True)["data_samples"][0]
    tested = batch(resize({**first}) | truth())
    before = copy.deepcopy(tested["data_samples"][0])
    inputs = detector_loss_inputs(model, tested, STEPS)  # type: ignore[arg-type]
    assert inputs is not None
    assert inputs["mode"] == "loss"
    assert inputs["inputs"].shape == (1, 3, 96, 128)
    (sample,) = inputs["data_samples"]
    for name in ("gt_instances", "ignored_instances"):
        ours, theirs = sample.get(name), expected.get(name)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes)
        assert len(ours) == 1
    np.testing.assert_array_equal(sample.gt_instances.masks.masks, expected.gt_instances.masks.masks)
    assert sample.gt_instances.masks.masks.shape == (1, 96, 128)
    assert sample.gt_sem_seg.sem_seg.shape == expected.gt_sem_seg.sem_seg.shape
    assert (sample.gt_sem_seg.sem_seg == expected.gt_sem_seg.sem_seg).float().mean() > 0.99  # other rounding
    assert torch.equal(tested["data_samples"][0].gt_instances.bboxes.tensor, before.gt_instances.bboxes.tensor)


def test_truth_that_was_resized_with_the_image_stays() -> None:
    resized = batch(Resize(scale=(100, 100), keep_ratio=True)(image() | truth()))
    inputs = detector_loss_inputs(Model(), resized, [STEPS[0], STEPS[2], STEPS[1]])  # type: ignore[arg-type]
    assert inputs is not None
    assert torch.equal(
        inputs["data_samples"][0].gt_instances.bboxes, resized["data_samples"][0].gt_instances.bboxes.tensor
    )


def test_images_without_objects_are_left_out() -> None:
    one, none = (batch(image() | {"scale_factor": (1.0, 1.0)} | truth(objects)) for objects in (1, 0))
    assert detector_loss_inputs(Model(), none, STEPS) is None  # type: ignore[arg-type]
    both = {key: none[key] + one[key] for key in one}
    inputs = detector_loss_inputs(Model(), both, STEPS)  # type: ignore[arg-type]
    assert inputs is not None
    assert len(inputs["inputs"]) == len(inputs["data_samples"]) == 1
    assert len(inputs["data_samples"][0].gt_instances) == 1


@pytest.mark.parametrize(("absent", "option"), [("gt_bboxes", "with_bbox"), ("gt_masks", "with_mask")])
def test_a_pipeline_that_loads_no_truth_is_named(absent: str, option: str) -> None:
    found = batch(image() | {key: value for key, value in truth(1).items() if key != absent})
    with pytest.raises(ConfigError, match=rf"^test_pipeline: LoadAnnotations {option}=True is needed for the truth$"):
        detector_loss_inputs(Model(), found, STEPS)  # type: ignore[arg-type]
    if absent == "gt_masks":
        assert detector_loss_inputs(Model(masks=False), found, STEPS) is not None  # type: ignore[arg-type]
