"""Normalisation, mixing and the classifier, against timm and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor

from backbones import UserError
from classification.model import ClassificationPreprocessor, ImageClassifier

CLASSES = 6
SMALL = dict(type="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))


def batch(count: int = 4) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "inputs": torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8),
        "label": torch.arange(count) % CLASSES,
        "img_path": [f"{i}.png" for i in range(count)],
    }


def classifier(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return MODELS.build(dict(type="ImageClassifier", backbone=SMALL, num_classes=CLASSES, **options))


@pytest.mark.parametrize("training", [False, True])
def test_pixels_are_normalised_from_bytes(training: bool) -> None:
    data = batch()
    inputs = ClassificationPreprocessor(CLASSES)(data, training)["inputs"]
    unit = data["inputs"].float() / 255
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    torch.testing.assert_close(inputs, (unit - mean[:, None, None]) / std[:, None, None], rtol=1e-5, atol=1e-6)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_other_statistics() -> None:
    data = batch()
    plain = ClassificationPreprocessor(CLASSES, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    torch.testing.assert_close(plain(data)["inputs"], data["inputs"].float())


def test_validation_passes_labels_and_paths_on() -> None:
    data = batch()
    prepared = ClassificationPreprocessor(CLASSES, mixup=0.8, erasing=1.0, label_smoothing=0.1)(data)
    assert torch.equal(prepared["data_samples"]["label"], data["label"])
    assert prepared["data_samples"]["img_path"] == data["img_path"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_is_that_of_timm(smoothing: float) -> None:
    data, logits = batch(), torch.randn(4, CLASSES)
    targets = ClassificationPreprocessor(CLASSES, label_smoothing=smoothing)(data, True)["data_samples"]
    theirs = LabelSmoothingCrossEntropy(smoothing)(logits, data["label"])
    torch.testing.assert_close(F.cross_entropy(logits, targets), theirs)
    model = classifier(data_preprocessor=dict(label_smoothing=smoothing))
    prepared = model.data_preprocessor(data, True)
    loss = model(**prepared, mode="loss")["loss"]
    expected = LabelSmoothingCrossEntropy(smoothing)(model(prepared["inputs"]), data["label"])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_are_distributions(mixup: float, cutmix: float) -> None:
    preprocessor = ClassificationPreprocessor(CLASSES, mixup=mixup, cutmix=cutmix, label_smoothing=0.1)
    plain = ClassificationPreprocessor(CLASSES)(batch(8), True)["inputs"]
    for _ in range(5):
        prepared = preprocessor(batch(8), True)
        targets: Tensor = prepared["data_samples"]
        assert targets.shape == (8, CLASSES)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        assert bool((targets >= 0.1 / CLASSES - 1e-6).all())
        assert prepared["inputs"].shape == plain.shape
    assert not torch.equal(prepared["inputs"], plain)


def test_mixing_needs_pairs() -> None:
    preprocessor = ClassificationPreprocessor(CLASSES, mixup=0.8)
    with pytest.raises(UserError, match=r"3 images per process.*batch\.per_gpu has to be even"):
        preprocessor(batch(3), True)
    ClassificationPreprocessor(CLASSES)(batch(3), True)
    preprocessor(batch(3))


def test_erasing_is_for_training() -> None:
    always, never = ClassificationPreprocessor(CLASSES, erasing=1.0), ClassificationPreprocessor(CLASSES)
    assert torch.equal(always(batch())["inputs"], never(batch())["inputs"])
    changed = (always(batch(), True)["inputs"] != never(batch(), True)["inputs"]).flatten(1).any(1)
    assert bool(changed.all())


def test_modes_of_the_classifier() -> None:
    model = classifier().eval()
    data = batch()
    prepared = model.data_preprocessor(data)
    logits = model(prepared["inputs"])
    assert logits.shape == (4, CLASSES)
    data["label"][2] = -1
    samples = model.val_step(data)
    for i, sample in enumerate(samples):
        torch.testing.assert_close(sample.scores, logits[i].detach().softmax(0))
        assert sample.pred_label == int(logits[i].argmax())
        assert (sample.gt_label, sample.img_path) == (int(data["label"][i]), f"{i}.png")
    expected = F.cross_entropy(logits, batch()["label"], reduction="none")
    assert samples[1].loss == pytest.approx(float(expected[1].detach()), rel=1e-5)
    assert samples[2].loss == 0


def test_the_head_can_start_small() -> None:
    normal, small = classifier(), classifier(head_init_scale=0.001)
    torch.testing.assert_close(small.head.weight, normal.head.weight * 0.001)
    assert not small.head.bias.any()
    assert (normal.head.in_features, normal.head.out_features) == (16, CLASSES)


def test_a_checkpoint_holds_no_statistics_of_the_data() -> None:
    assert not any(name.startswith("data_preprocessor") for name in classifier().state_dict())
