"""A segmentor's loss on validation data gets labels of the size of the network's input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample
from torch import nn

from backbones.errors import ConfigError
from segmentation.loss_inputs import segmentor_loss_inputs

LABELS = torch.arange(4).view(2, 2).repeat_interleave(10, 0).repeat_interleave(20, 1)[None]  # (1, 20, 40)


class Model(nn.Module):
    def __init__(self, **test_cfg: Any) -> None:
        super().__init__()
        self.data_preprocessor = SegDataPreProcessor(size=(64, 64), test_cfg={"size_divisor": 32})
        self.test_cfg = ConfigDict(test_cfg)


def batch(*labels: torch.Tensor | None) -> dict[str, Any]:
    """Images of 50 x 100, two and a half times as large as their labels."""
    samples = []
    for one in labels:
        sample = SegDataSample(metainfo={"img_shape": (50, 100), "ori_shape": (20, 40)})
        if one is not None:
            sample.gt_sem_seg = PixelData(data=one)
        samples.append(sample)
    return {"inputs": [torch.zeros(3, 50, 100) for _ in labels], "data_samples": samples}


def test_labels_are_resized_and_padded_as_the_image() -> None:
    tested = batch(LABELS)
    inputs = segmentor_loss_inputs(Model(mode="whole"), tested, [])  # type: ignore[arg-type]
    assert inputs is not None
    assert inputs["inputs"].shape == (1, 3, 64, 128)
    labels = inputs["data_samples"][0].gt_sem_seg.data[0]
    assert labels.shape == (64, 128)
    assert [labels[row, column].item() for row in (0, 49) for column in (0, 49, 50, 99)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert labels[50:].unique().tolist() == labels[:, 100:].unique().tolist() == [255]
    assert tested["data_samples"][0].gt_sem_seg.data.shape == (1, 20, 40)


def test_a_model_that_is_tested_in_windows_gets_the_central_one() -> None:
    inputs = segmentor_loss_inputs(Model(mode="slide", crop_size=(32, 200)), batch(LABELS), [])  # type: ignore[arg-type]
    assert inputs is not None
    assert inputs["inputs"].shape == (1, 3, 32, 128)
    sample = inputs["data_samples"][0]
    assert sample.gt_sem_seg.data.shape == (1, 32, 128)
    assert sample.gt_sem_seg.data[0, 8:10, 0].tolist() == [0, 2]
    assert sample.pad_shape == (32, 128)


def test_images_without_labelled_pixels_are_left_out() -> None:
    model, nothing = Model(mode="whole"), torch.full_like(LABELS, 255)
    assert segmentor_loss_inputs(model, batch(nothing), []) is None  # type: ignore[arg-type]
    inputs = segmentor_loss_inputs(model, batch(nothing, LABELS), [])  # type: ignore[arg-type]
    assert inputs is not None
    assert (len(inputs["inputs"]), len(inputs["data_samples"])) == (1, 1)


def test_a_pipeline_that_loads_no_labels_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^test_pipeline: LoadLabels or LoadAnnotations is needed for the truth$"):
        segmentor_loss_inputs(Model(mode="whole"), batch(None), [])  # type: ignore[arg-type]
