"""Pictures of reconstructions: what each panel shows, for images of any number of channels, after each validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from classification.pretraining.model import MaskedAutoencoder
from classification.pretraining.visualizer import HIDDEN_COLOUR, ReconstructionVisualizer
from engine.report.training import read_run, render_training_report

CONFIG = Path(__file__).resolve().parents[3] / "configs/pretraining/fcmae_digits.py"
SMALL = dict(type="convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))


def sample(channels: int, values: float = 255.0) -> BaseDataElement:
    """An image of 96 x 70, of which the last 6 columns belong to no unit, with two hidden units of six."""
    random = torch.Generator().manual_seed(0)
    image, predicted = (values * torch.rand(channels, 96, width, generator=random) for width in (70, 64))
    hidden = torch.tensor([[False, True], [False, False], [True, False]])
    return BaseDataElement(image=image, reconstruction=predicted, hidden=hidden)


def panels(one: BaseDataElement) -> list[np.ndarray]:
    """The four panels at the size of the image: it is enlarged by a whole factor."""
    picture = ReconstructionVisualizer().add_datasample("", np.zeros((1, 1, 3), np.uint8), one)
    factor = picture.shape[1] // (4 * 64)  # the gaps are narrower than a panel
    height, width = 96 * factor, 64 * factor
    gap = (picture.shape[1] - 4 * width) // 3
    parts = [picture[-height:, number * (width + gap) :][:, :width] for number in range(4)]
    return [cv2.resize(part, (64, 96), interpolation=cv2.INTER_AREA) for part in parts]


@pytest.mark.parametrize(("channels", "values"), [(3, 255.0), (1, 255.0), (2, 255.0), (5, 9000.0), (3, 60000.0)])
def test_the_panels_are_image_visible_part_prediction_and_both(channels: int, values: float) -> None:
    one = sample(channels, values)
    image, seen, predicted, pasted = panels(one)
    hidden = one.hidden.repeat_interleave(32, 0).repeat_interleave(32, 1).numpy()
    inner = cv2.erode(hidden.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    outer = cv2.dilate(hidden.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert (seen[inner] == HIDDEN_COLOUR).all()
    assert np.array_equal(seen[outer], image[outer])
    assert np.array_equal(pasted[inner], predicted[inner])
    assert np.array_equal(pasted[outer], image[outer])
    shown = [part.astype(float).mean(-1)[inner | outer].ravel() for part in (image, predicted)]
    bands = slice(0, 3 if channels >= 3 else 1)
    given = [part[bands, :96, :64].mean(0).numpy()[inner | outer].ravel() for part in (one.image, one.reconstruction)]
    for drawn, true in zip(shown, given, strict=True):
        assert np.corrcoef(drawn, true)[0, 1] > 0.9
    if channels < 3:
        assert (image[..., :1] == image).all()


def test_a_value_has_the_same_colour_in_the_image_and_in_the_prediction() -> None:
    one = sample(4, 3000.0)
    one.reconstruction = one.image[..., :64] / 2
    image, _, predicted, _ = panels(one)
    assert predicted.mean() == pytest.approx(image.mean() / 2, rel=0.05)


def test_colours_of_8_bits_are_those_of_the_file() -> None:
    one = sample(3)
    one.image = torch.full((3, 96, 70), 77.0)
    one.reconstruction = torch.full((3, 96, 64), 300.0)
    image, _, predicted, _ = panels(one)
    assert (image == 77).all()
    assert (predicted == 255).all()


def test_the_right_pixels_are_drawn_where_the_right_ones_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """De-normalised by mean and deviation of each unit of the image itself, as the loss normalises them."""
    model = MaskedAutoencoder(SMALL, decoder_dim=16).eval()
    raw = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    order = torch.randperm(6)[None]
    data = model.data_preprocessor({"inputs": raw, "data_samples": {"order": order, "img_path": ["a.png"]}})
    target = model._targets(data["inputs"])[0]
    monkeypatch.setattr(model, "decode", lambda *_: target.transpose(1, 2).unflatten(2, (3, 2)))
    (found,) = model(**data, mode="predict")
    assert found.loss == 0
    assert torch.equal(found.reconstruction.round().to(torch.uint8), raw[0])
    image, seen, predicted, pasted = panels(found)
    assert np.array_equal(predicted, image)
    assert np.array_equal(pasted, image)
    assert not np.array_equal(seen, image)


def test_each_validation_draws_and_the_report_shows_which(tool: Any, digits: Path, tmp_path: Path) -> None:
    options = [f"data_root={digits / 'imagenet'}", "model.backbone.depths=(1,1,1,1)", "model.backbone.dims=(8,8,8,16)"]
    options += ["batch.size=8", "train_cfg.max_epochs=2", "train_dataloader.num_workers=0", "model.decoder_dim=16"]
    ended = tool("train.py", CONFIG, "--work-dir", tmp_path, "--cfg-options", *options, "val_dataloader.num_workers=0")
    assert ended.code == 0, ended.err
    drawn = sorted(one.name for one in (tmp_path / "pictures").glob("*.png"))
    assert 1 <= len(drawn) <= 8
    assert json.loads((tmp_path / "pictures/validation.json").read_text()) == {"step": 10}
    page = render_training_report(read_run(tmp_path), tmp_path)
    assert "In the validation after step 10." in page
    assert ">held-out data<" in page  # the curve beside the training's
    assert page.count("data:image/jpeg") == len(drawn)
    assert not (tmp_path / "class_scores.json").exists()

    ended = tool("test.py", CONFIG, tmp_path / "epoch_2.pth", "--work-dir", tmp_path, "--cfg-options", *options)
    assert ended.code == 0, ended.err
    page = render_training_report(read_run(tmp_path), tmp_path)
    assert "In the test." in page
    assert "In the validation" not in page
