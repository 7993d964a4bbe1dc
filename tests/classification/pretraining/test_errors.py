"""Numbers and pictures about the errors of a masked autoencoder, of a few images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from backbones.errors import DataError
from classification.pretraining.errors import NETWORK, ReconstructionErrors
from classification.pretraining.model import PREPROCESSOR
from classification.pretraining.patches import patch_targets, to_patches
from classification.pretraining.unit_errors import MEAN
from engine.prediction.error_analysis import AnalysisRequest
from tests.classification.pretraining.test_model import autoencoder

HIDDEN = torch.tensor([[True, False], [False, True]])


def analysis(**model: Any) -> ReconstructionErrors:
    return ReconstructionErrors(AnalysisRequest(Config({"model": model}), {"classes": ["image"]}))


def pixels(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def sample(path: str, share: float, seed: int = 0) -> dict[str, Any]:
    """An image of which a share of each hidden pixel is predicted: the loss is (1 - share) squared of the variance."""
    mean, std = (torch.tensor(PREPROCESSOR[name]).view(3, 1, 1) for name in ("mean", "std"))
    image = pixels(seed)
    target = patch_targets(to_patches(((image - mean) / std)[None], 32), True)[0][0]
    return {
        "inputs": image,
        "img_path": path,
        "hidden": HIDDEN,
        "predicted_units": (share * target[HIDDEN.flatten()]).half(),
        "loss": (1 - share) ** 2,
    }


def test_what_the_model_predicts_has_the_model_s_loss() -> None:
    model, found = autoencoder(data_preprocessor=PREPROCESSOR), analysis()
    order = torch.tensor([[3, 0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5]])
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = {"inputs": images, "data_samples": {"order": order, "img_path": ["a.png", "b.png"]}}
    with torch.no_grad():
        predicted = model.test_step(data)
    for index, (image, one) in enumerate(zip(images, predicted, strict=True)):
        found.add(index, {"inputs": image, **one.to_dict()})
    numbers = found.findings().numbers
    losses = [one.loss for one in predicted]
    assert numbers["predictors"][NETWORK]["loss"] == pytest.approx(np.mean(losses), rel=1e-3)  # 16 bits are saved
    assert numbers["loss"]["0"] == pytest.approx(min(losses), rel=1e-3)
    assert numbers["hidden_units"] == 8
    assert sum(one["units"] for one in numbers["by_contrast"]) == 8


def test_losses_are_told_apart_by_image_and_folder() -> None:
    found = analysis()
    for index, share in enumerate((0.9, 0.5, -0.5, 0.0)):
        found.add(index, sample(f"/data/val/{'cat' if index < 2 else 'dog'}/{index}.png", share, seed=index))
    done = found.findings()
    cat, dog = done.numbers["by_folder"]
    assert (cat["name"], cat["images"], dog["name"]) == ("cat", 2, "dog")
    assert cat["loss"] == pytest.approx((0.1**2 + 0.5**2) / 2, abs=1e-3)
    assert cat["explained"] == pytest.approx(100 - 100 * cat["loss"], abs=0.1)
    assert dog["explained"] == pytest.approx(100 - 50 * (1.5**2 + 1), abs=0.1)
    assert done.numbers["predictors"][MEAN] == {"loss": pytest.approx(1, abs=1e-3), "explained": 0}
    kinds = {one.index: dict(one.kinds) for one in done.images}
    assert list(kinds[0]) == list(kinds[1]) == ["low loss"]
    assert kinds[0]["low loss"] > kinds[1]["low loss"]  # the lowest comes first
    assert kinds[2] == pytest.approx({"high loss": 2.25, "worse than the mean of the unit": 1.25}, abs=3e-3)
    assert "high loss" in kinds[3]
    assert done.images[0].caption == "loss 0.010, explained 99.0 %, cat"
    assert done.images[0].classes == ["cat"]
    assert all(f"<td>{text}</td>" in done.sections["Loss"] for text in ("1.000", "0.0"))


def test_images_of_one_folder_have_no_table_of_folders() -> None:
    found = analysis()
    found.add(0, sample("/data/a.png", 0.5))
    done = found.findings()
    assert (done.numbers["by_folder"], done.sections["By folder"], done.images[0].classes) == ([], "", [])
    assert analysis().findings().numbers == {"image_count": 0}


def test_a_grid_of_places_has_a_number_where_units_were_hidden() -> None:
    found = analysis()
    found.add(0, sample("/data/a.png", 0.5))
    done = found.findings()
    (first, none), (other, last) = done.numbers["by_place"]
    assert (none, other) == (None, None)
    assert [first, last] == pytest.approx([0.25, 0.25], abs=1e-3)
    assert [one["name"] for one in done.numbers["by_visible_neighbours"]] == ["2 of 8"]
    assert done.sections["By place in the mask"].count("<td style=") == 4


def test_pixels_that_are_not_normalised_have_another_remark() -> None:
    texts = []
    for normalized in (True, False):
        found = analysis(normalize_patches=normalized)
        found.add(0, sample("/data/a.png", 0.5))
        sections = found.findings().sections
        texts.append(sections["By contrast"] + sections["Loss"])
    assert "The loss divides by the variance" in texts[0]
    assert "The loss does not divide by the contrast" in texts[1]
    assert "is taken from the image" in texts[1]


def test_an_image_is_right_where_the_network_is_better_than_what_needs_none() -> None:
    found = analysis()
    scores = [found.image_score(sample("a.png", share)) for share in (0.9, -0.2)]
    assert [(round(one.value), one.right) for one in scores if one] == [(99, True), (0, False)]
    even = {**sample("a.png", 0.5), "inputs": torch.full((3, 64, 64), 124, dtype=torch.uint8)}
    even["predicted_units"] = torch.zeros(2, 3072)
    grey = analysis(data_preprocessor={"type": "ImgDataPreprocessor", "mean": [0.0] * 3, "std": [1.0] * 3})
    assert grey.image_score(even) is None


def test_a_network_that_has_diverged_is_named() -> None:
    broken = sample("/data/a.png", 0.5)
    broken["predicted_units"][0, 0] = float("nan")
    with pytest.raises(DataError, match=r"^/data/a\.png: the prediction is not finite: the network has diverged$"):
        analysis().add(0, broken)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_show_the_image_and_its_error(channels: int) -> None:
    settings = {"type": "AnyChannelsImgDataPreprocessor", "mean": [100.0] * channels, "std": [50.0] * channels}
    image = torch.rand(channels, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    target = patch_targets(to_patches(((image - 100) / 50)[None], 32), True)[0][0][HIDDEN.flatten()]
    one = {"inputs": image.byte(), "img_path": "a.png", "hidden": HIDDEN, "predicted_units": target}
    picture = analysis(data_preprocessor=settings).draw(np.zeros((128, 256, 3), np.uint8), (1, 1), one)
    height = picture.shape[0] // 2
    title = height - 256
    gap = (picture.shape[1] - 3 * 256) // 2
    panels = [
        picture[row * height + title : (row + 1) * height, column * (256 + gap) :][:, :256].astype(int)
        for row in range(2)
        for column in range(3)
    ]
    whole, seen, predicted, in_place, blurred, error = panels
    spots = HIDDEN.repeat_interleave(128, 0).repeat_interleave(128, 1).numpy()
    inside = np.ones_like(spots)
    inside[120:136], inside[:, 120:136] = False, False  # where enlarging mixes units
    inner = spots & inside
    assert abs(whole - in_place).mean() < 3  # all of it was predicted
    assert (seen[inner] == 128).all()
    assert (predicted[~spots & inside] == 128).all()
    assert abs(whole - blurred)[inner].mean() > 20
    assert np.median(error[inner]) == 0
