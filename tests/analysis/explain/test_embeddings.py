"""The map and the neighbours of embeddings, against scikit-learn and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from analysis.explain.embeddings import main_class, nearest_images, principal_axes


def test_principal_axes_are_those_of_scikit_learn() -> None:
    features = torch.randn(20, 6) * torch.tensor([5.0, 3, 1, 1, 1, 1]) + 7
    places, shares = principal_axes(features)
    expected = PCA(2).fit(features.double().numpy())
    assert shares.tolist() == pytest.approx(expected.explained_variance_ratio_.tolist())
    theirs = expected.transform(features.double().numpy())
    assert np.abs(places.numpy()) == pytest.approx(np.abs(theirs))
    for axis in range(2):
        assert abs(np.corrcoef(places[:, axis].numpy(), theirs[:, axis])[0, 1]) == pytest.approx(1)
    assert (places.gather(0, places.abs().argmax(0, keepdim=True)) > 0).all()  # the same picture every time


def test_features_that_are_all_the_same_have_no_variance() -> None:
    places, shares = principal_axes(torch.ones(5, 4))
    assert places.abs().max() == 0
    assert shares.tolist() == [0, 0]


def test_the_nearest_have_the_largest_cosine_and_an_image_is_not_its_own_neighbour() -> None:
    features = torch.tensor([[1.0, 0], [10, 1], [0, 2], [-3, 0]])
    assert [index for index, _ in nearest_images(torch.tensor([2.0, 0]), features)] == [0, 1, 2, 3]
    found = nearest_images(features[0], features, [0])
    assert [index for index, _ in found] == [1, 2, 3]
    assert [cosine for _, cosine in found] == pytest.approx([10 / 101**0.5, 0, -1])


@pytest.mark.parametrize(
    ("found", "label"), [([4], 4), ([], None), ([2, 3, 3], 3), ([2, 3], None), ([-1], None), ([1, 1, 2, 2, 3], None)]
)
def test_the_class_of_an_image_is_that_of_most_of_its_objects(found: list[int], label: int | None) -> None:
    assert main_class(found) == label
