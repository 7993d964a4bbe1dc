"""Normalisation, mixing and the classifier, against timm and by hand; heads that come with the weights."""

from __future__ import annotations

import json
from pathlib import Path
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
    return MODELS.build(dict(type="ImageClassifier", backbone=SMALL, num_classes=CLASSES) | options)


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


@pytest.mark.parametrize("which", ["mean", "std"])
def test_statistics_of_bytes_are_refused(which: str) -> None:
    with pytest.raises(UserError, match=r"are fractions of max_value=255\.0, up to 1: divide them by 255\.0"):
        ClassificationPreprocessor(CLASSES, **{which: (123.7, 116.3, 103.5)})  # type: ignore[arg-type]
    ClassificationPreprocessor(CLASSES, max_value=1.0, **{which: (123.7, 116.3, 103.5)})  # type: ignore[arg-type]


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


def pretrained(tmp_path: Path, classes: int | None, layout: str = "released") -> tuple[str, dict[str, Tensor]]:
    """A file with random weights, and what is in it under our names."""
    torch.manual_seed(1)
    model = MODELS.build(dict(type="ImageClassifier", backbone=SMALL, num_classes=classes or 1))
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    kept = {name: value for name, value in state.items() if classes or not name.startswith("head.")}
    if layout == "released":
        content = {"model": {name.removeprefix("backbone."): value for name, value in kept.items()}}
    else:
        content = {"state_dict": kept, "meta": {"epoch": 1}}
    torch.save(content, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth"), state


def fine_tuned(path: str, **options: Any) -> ImageClassifier:
    """A classifier with another seed than the file's that has loaded it."""
    model = classifier(**({"backbone": {**SMALL, "weights": path}} | options))
    model.init_weights()
    return model


def classifier_of(**options: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in classifier(**options).state_dict().items()}


@pytest.mark.parametrize("layout", ["released", "ours"])
def test_the_same_number_of_classes_loads_the_head_unscaled(tmp_path: Path, layout: str) -> None:
    path, state = pretrained(tmp_path, CLASSES, layout)
    model = fine_tuned(path, head_init_scale=0.001)
    assert model.backbone.load_report.head == f"loaded: {CLASSES} classes"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_backbone_and_head_are_loaded_from_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = pretrained(tmp_path, CLASSES)
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: read.append(str(file)) or load(file, **options))
    model = fine_tuned(path)
    assert read == [path]
    assert model.backbone.load_report.loaded == model.backbone.load_report.total


def test_another_number_of_classes_keeps_the_small_new_head(tmp_path: Path) -> None:
    path, state = pretrained(tmp_path, 21)
    model, new = fine_tuned(path, head_init_scale=0.001), classifier(head_init_scale=0.001)
    assert model.backbone.load_report.head == f"re-initialised: 21 -> {CLASSES} classes, initial weights x 0.001"
    assert torch.equal(model.head.weight, new.head.weight)
    assert torch.equal(model.backbone.norm.weight, state["backbone.norm.weight"])


def test_a_file_without_a_head(tmp_path: Path) -> None:
    path, _ = pretrained(tmp_path, None)
    model = fine_tuned(path)
    assert model.backbone.load_report.head == f"new: the file has none, {CLASSES} classes here, initial weights x 1"
    assert torch.equal(model.head.weight, classifier().head.weight)


@pytest.mark.parametrize("form", ["list", "json", "lines", "path"])
def test_rows_of_a_larger_head_are_taken_over(tmp_path: Path, form: str) -> None:
    path, state = pretrained(tmp_path, 21)
    rows, mapping = [20, 0, 7, 3, 4, 11], tmp_path / "mapping"
    mapping.write_text(json.dumps(rows) if form == "json" else "\n".join(map(str, rows)) + "\n", "utf-8-sig")
    model = fine_tuned(
        path, head_mapping={"list": rows, "path": mapping}.get(form, str(mapping)), head_init_scale=0.001
    )
    assert model.backbone.load_report.head == f"mapped: {CLASSES} of 21 classes"
    for kind in ("weight", "bias"):
        expected = torch.stack([state[f"head.{kind}"][row] for row in rows])
        assert torch.equal(model.head.get_parameter(kind), expected)


def test_a_class_that_the_old_head_lacks_gets_a_new_row(tmp_path: Path) -> None:
    path, state = pretrained(tmp_path, 21)
    model = fine_tuned(path, head_mapping=[20, None, 7, 3, 4, 11])
    assert model.backbone.load_report.head == "mapped: 5 of 21 classes, a new row for class 1"
    assert torch.equal(model.head.weight[2], state["head.weight"][7])
    assert not any(torch.equal(model.head.weight[1], row) for row in state["head.weight"])
    assert model.head.weight[1].abs().sum() > 0
    assert model.head.bias[1] == 0


@pytest.mark.parametrize(
    "mapping, message",
    [
        ([0, 1, 2, 3, 4], "head_mapping has 5 rows for 6 classes"),
        ([0, 1, 2, 3, 4, 21], "row 21 is not in the old head, which has 0 to 20"),
        ([0, 1, -2, 3, 4, 5], "row -2 is not in the old head"),
        ([0, 1, 2, 3, 4, 3], "row 3 stands twice"),
        ([0, 1, 2, 3, 4, True], "True is no row number"),
        ([0, 1, 2, 3, 4, "5"], "'5' is no row number"),
        ("absent.txt", r"head_mapping 'absent\.txt' cannot be read"),
        (__file__, "is neither a JSON list nor one row number per line"),
    ],
)
def test_a_mapping_is_checked(tmp_path: Path, mapping: Any, message: str) -> None:
    path, _ = pretrained(tmp_path, 21)
    with pytest.raises(UserError, match=message):
        fine_tuned(path, head_mapping=mapping)


def test_a_mapping_needs_a_head_to_take_from(tmp_path: Path) -> None:
    path, _ = pretrained(tmp_path, None)
    with pytest.raises(UserError, match=r"head_mapping: .* holds no head to take rows from"):
        fine_tuned(path, head_mapping=list(range(CLASSES)))
    with pytest.raises(UserError, match=r"head_mapping takes rows of the head in model\.backbone\.weights: give"):
        classifier(head_mapping=list(range(CLASSES))).init_weights()
    classifier(head_mapping="absent.txt")  # to be tested, with a checkpoint of the whole model


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    model = fine_tuned(pretrained(tmp_path, CLASSES)[0])
    with pytest.raises(UserError, match=r"is of another network: head is \(6, 5\), here \(6, 16\)"):
        model._load_head((torch.zeros(CLASSES, 5), torch.zeros(CLASSES)))


def test_the_head_is_loaded_once_and_a_whole_checkpoint_wins(tmp_path: Path) -> None:
    path, _ = pretrained(tmp_path, CLASSES)
    model, trained = fine_tuned(path), classifier_of()
    model.load_state_dict(trained)
    model.init_weights()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_no_weights_no_word_about_the_head() -> None:
    model = classifier()
    before = model.head.weight.clone()
    model.init_weights()
    assert model.backbone.load_report is None
    assert torch.equal(model.head.weight, before)
