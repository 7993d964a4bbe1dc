"""How well frozen features tell classes apart: nearest neighbours and a linear classifier on a backbone as it is.

Both judge a pre-training without the choices of a fine-tuning. The features are the backbone's pooled vectors of images
prepared as in a test.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from backbones.errors import CheckpointError, ConfigError, DataError
from engine.config.building import build

# Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, section 3.4.
TEMPERATURE = 0.07
NEIGHBOURS = (10, 20, 100)
WEIGHT_DECAYS = tuple(10.0**power for power in range(-6, 1))
HOLD_OUT = 5  # every fifth training image chooses the weight decay
NEWTON_STEPS = 200
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ProbeResult:
    """What frozen features reach on validation images.

    Attributes:
        train_images: Number of images with labels.
        val_images: Number of images that are judged.
        features: Length of a feature vector.
        knn: Top-1 accuracy in per cent of the weighted vote of k neighbours, for each k.
        linear: Top-1 accuracy in per cent of the linear classifier.
        weight_decay: Weight decay of the linear classifier, chosen on a fifth of the training images.
        weights: Report in words of the weights that were loaded.
    """

    train_images: int
    val_images: int
    features: int
    knn: dict[int, float]
    linear: float
    weight_decay: float
    weights: str

    def as_text(self) -> str:
        """The result as lines for people."""
        votes = ", ".join(f"{accuracy:.2f} (k = {k})" for k, accuracy in self.knn.items())
        return (
            f"{self.weights}\n"
            f"{self.train_images} images with labels, {self.val_images} judged, {self.features} features\n"
            f"k-NN top-1: {votes}\n"
            f"linear top-1: {self.linear:.2f} (weight decay {self.weight_decay:g})"
        )


def probe(cfg: Config, neighbours: Sequence[int] = NEIGHBOURS) -> ProbeResult:
    """Judge the backbone of a classifier's config.

    Args:
        cfg: Resolved config with training and validation data; ``model.backbone.weights`` names what is judged.
        neighbours: Numbers of neighbours; a number above that of the training images counts as all.

    Raises:
        ConfigError: If the config is no classifier's, or a number of neighbours is below 1.
        DataError: If there are too few training images.
        CheckpointError: If the weights give features that are not finite.
    """
    if cfg.model.get("type") != "ImageClassifier":
        raise ConfigError(
            f"model.type={cfg.model.get('type')!r}: the features of an ImageClassifier's backbone are judged"
        )
    if wrong := [k for k in neighbours if k < 1]:
        raise ConfigError(f"--neighbours {wrong[0]}: 1 or more are needed")
    model = build(MODELS, cfg.model, "model", cfg.default_scope)
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # no list of all initial tensors
    model.init_weights()
    model = model.to(get_device()).eval()
    found = []
    for split in ("train", "val"):
        loader = {
            **cfg.val_dataloader,
            "dataset": {**cfg[f"{split}_dataloader"].dataset, "pipeline": cfg.test_pipeline},
        }
        found.append(extract_features(model, Runner.build_dataloader(loader)))
    (train, labels), (val, truth) = found
    if len(train) < HOLD_OUT:
        raise DataError(
            f"{len(train)} training images are too few to judge features by: at least {HOLD_OUT} are needed"
        )
    if broken := sum(int((~part.isfinite()).any(1).sum()) for part in (train, val)):
        raise CheckpointError(f"the features of {broken} images are not finite: the weights are of a run that diverged")
    votes = {k: knn_accuracy(train, labels, val, truth, min(k, len(train))) for k in neighbours}
    decay = best_weight_decay(train, labels)
    linear = linear_accuracy(train, labels, val, truth, decay)
    weights = str(model.backbone.load_report or "random weights: model.backbone.weights names no file")
    return ProbeResult(len(train), len(val), train.shape[1], votes, linear, decay, weights)


@torch.no_grad()
def extract_features(model: Any, loader: Any) -> tuple[Tensor, Tensor]:
    """Features, float32 ``(N, C)`` on the CPU, and labels, int64 ``(N,)``.

    Args:
        model: An :class:`classification.model.ImageClassifier` in evaluation mode.
        loader: Loader of its images.
    """
    features, labels = [], []
    for batch in loader:
        images = model.data_preprocessor(batch, False)["inputs"]
        features.append(model.backbone(images).float().cpu())
        labels.append(batch["label"])
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(train: Tensor, labels: Tensor, val: Tensor, truth: Tensor, k: int) -> float:
    """Top-1 accuracy in per cent of the vote of the k most similar images, weighted by ``exp(cosine / 0.07)``.

    Args:
        train: Features, ``(N, C)``.
        labels: Classes, ``(N,)``.
        val: Features that are judged, ``(M, C)``.
        truth: Their classes, ``(M,)``.
        k: Number of neighbours.
    """
    classes = int(torch.cat([labels, truth]).max()) + 1
    train, right = F.normalize(train, dim=1), 0
    for rows, wanted in zip(F.normalize(val, dim=1).split(ROWS_AT_ONCE), truth.split(ROWS_AT_ONCE), strict=True):
        similarity, nearest = (rows @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).exp())
        right += int((votes.argmax(1) == wanted).sum())
    return 100 * right / len(val)


def best_weight_decay(train: Tensor, labels: Tensor) -> float:
    """The weight decay with which four fifths of the training images predict the last fifth best."""
    held = torch.arange(len(train)) % HOLD_OUT == 0
    parts = (train[~held], labels[~held], train[held], labels[held])
    return max(WEIGHT_DECAYS, key=lambda decay: linear_accuracy(*parts, decay))


def linear_accuracy(train: Tensor, labels: Tensor, val: Tensor, truth: Tensor, weight_decay: float) -> float:
    """Top-1 accuracy in per cent of a linear classifier on standardised features, trained to convergence by L-BFGS.

    Args:
        train: Features, ``(N, C)``.
        labels: Classes, ``(N,)``.
        val: Features that are judged, ``(M, C)``.
        truth: Their classes, ``(M,)``.
        weight_decay: Factor of half the sum of squared weights in the loss.
    """
    std, mean = torch.std_mean(train, 0)
    train, val = ((one - mean) / std.clamp_min(1e-6) for one in (train, val))
    weight = torch.zeros(int(labels.max()) + 1, train.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=NEWTON_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(train, weight, bias), labels) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return 100 * float((F.linear(val, weight, bias).argmax(1) == truth).float().mean())
