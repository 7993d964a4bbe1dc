"""k-NN and linear classifier on features whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classification.probe import best_weight_decay, knn_accuracy, linear_accuracy


def clusters(images: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Features around one direction for each of three classes, of which the last two have unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 100.0, 0, 0], [0, 0, 0.01, 0]])
    noise = spread * torch.randn(images, 4, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 1.0])
    return centres[labels] + noise + 5.0, labels


def test_a_vote_is_weighted_by_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    val, truth = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    # exp(1 / 0.07) against twice exp(0.8 / 0.07): 17.4 to 2, whichever the number of neighbours.
    assert [knn_accuracy(train, labels, val, truth, k) for k in (1, 3, 4)] == [100.0] * 3
    near = torch.tensor([[1.0, 0.0], [0.999, 0.04], [0.999, -0.04], [-1.0, 0.0]])
    assert knn_accuracy(near, labels, val, truth, 3) == 0.0


def test_the_scale_of_a_feature_does_not_matter_to_a_linear_classifier() -> None:
    (train, labels), (val, truth) = clusters(90, 0.5, 0), clusters(300, 0.5, 1)
    scales = torch.tensor([1e-3, 1.0, 1e3, 1.0])
    plain = linear_accuracy(train, labels, val, truth, 0.1)
    assert 50 < plain < 100
    assert linear_accuracy(train * scales, labels, val * scales, truth, 0.1) == pytest.approx(plain, abs=0.5)


def test_noise_gets_more_weight_decay_than_a_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = clusters(60, 1.0, 0)
    noisy = torch.cat([features, torch.randn(60, 200, generator=generator)], 1)
    assert best_weight_decay(noisy, labels) > best_weight_decay(*clusters(60, 0.05, 0))


@pytest.mark.parametrize("images", [257, 512])
def test_many_images_are_judged_piece_by_piece(images: int) -> None:
    train, (val, truth) = clusters(30, 0.0, 0), clusters(images, 0.0, 1)
    assert knn_accuracy(*train, val - 5.0, truth, 1) >= 0
    assert linear_accuracy(*train, val, truth, 1e-6) == 100.0
