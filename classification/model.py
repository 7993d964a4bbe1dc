"""The classifier: backbone, pooled norm and linear head, with normalisation and mixing of images on the device."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from backbones.base import Backbone
from backbones.channels import COLOUR_CHANNELS
from backbones.errors import CheckpointError, ConfigError
from backbones.weights import find_head, read_checkpoint
from classification.class_lists import checked_rows
from engine.config.building import build

MAX_BYTE = 255.0  # largest pixel value of 8 bits


def _with_statistics(settings: dict[str, Any], channels: int) -> dict[str, Any]:
    """Settings of the preprocessor with mean and deviation for so many channels: for grey the averages of ImageNet's.

    Raises:
        ConfigError: If they are not stated, and the channels are neither colours nor grey.
    """
    if channels == COLOUR_CHANNELS or ("mean" in settings and "std" in settings):
        return settings
    if channels > 1:
        raise ConfigError(
            f"model.backbone.in_channels={channels}: state model.data_preprocessor mean and std with {channels} values "
            "each, as fractions of its max_value (255 by default, 1 to state them in the units of the pixels)"
        )
    averages = (sum(values) / COLOUR_CHANNELS for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return {**dict(zip(("mean", "std"), ((value,) for value in averages), strict=True)), **settings}


def preprocessor_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the preprocessor of a config's classifier, with what follows from its other settings.

    Raises:
        ConfigError: If it lacks mean and deviation for other channels than colours and grey.
    """
    model = cfg["model"]
    stated = {"num_classes": model["num_classes"], **(model.get("data_preprocessor") or {})}
    settings = {"type": "ClassificationPreprocessor", **stated}
    return _with_statistics(settings, model["backbone"].get("in_channels", COLOUR_CHANNELS))


@MODELS.register_module()
class ClassificationPreprocessor(BaseDataPreprocessor):
    """Move a batch to the device, normalise it there from uint8, and apply random erasing and mixup in training.

    Args:
        num_classes: Length of the targets.
        mean: Mean of each channel, or one for all, as a fraction of ``max_value``.
        std: Standard deviation of each channel, or one for all, as a fraction of ``max_value``.
        max_value: Pixel value to which mean and deviation are relative: 255 for 8 bits, 65535 for 16 bits.
        erasing: Probability of random erasing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        label_smoothing: Probability mass spread over all classes.

    Raises:
        ConfigError: If a setting is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
        max_value: float = MAX_BYTE,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(non_blocking=True)
        for name, value, most in (
            ("erasing", erasing, 1),
            ("label_smoothing", label_smoothing, 1),
            ("mixup", mixup, math.inf),
            ("cutmix", cutmix, math.inf),
        ):
            if not 0 <= value <= most:
                raise ConfigError(f"data_preprocessor.{name}={value}: a number from 0 to {most} is needed")
        if max_value > 1 and max(*mean, *std) > 1:
            raise ConfigError(
                f"data_preprocessor: mean={tuple(mean)}, std={tuple(std)} are fractions of max_value={max_value}, up "
                f"to 1: divide them by {max_value}"
            )
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.register_buffer("mean", max_value * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", max_value * torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.erasing = erasing
        self.mix = (
            Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes) if mixup or cutmix else None
        )

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare a batch.

        Args:
            data: ``inputs`` uint8 ``(N, 3, H, W)``, float32 with another number of channels, ``label`` ``(N,)``,
                ``img_path``.
            training: Apply erasing and mixup, and return soft targets.

        Returns:
            ``inputs`` float32, and ``data_samples``: soft targets ``(N, num_classes)`` in training, else the
            unchanged labels and paths.
        """
        batch = self.cast_data({"inputs": data["inputs"], "label": data["label"]})
        inputs = batch["inputs"].to(memory_format=torch.channels_last)
        inputs = (inputs.float() - self.mean) / self.std
        if not training:
            return {"inputs": inputs, "data_samples": {"label": batch["label"], "img_path": data["img_path"]}}
        if self.erasing:
            inputs = RandomErasing(self.erasing, mode="pixel", device=inputs.device)(inputs)
        if self.mix is None:
            targets = F.one_hot(batch["label"], self.num_classes).float()
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        elif len(inputs) % 2:
            raise ConfigError(f"{len(inputs)} images per process: mixup pairs them, so batch.per_gpu has to be even")
        else:
            inputs, targets = self.mix(inputs, batch["label"])
        return {"inputs": inputs, "data_samples": targets}


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A registered backbone under a linear head.

    A head in the file of ``backbone.weights`` is loaded too if the number of classes is the same, as in the released
    fine-tuning; with another number the head keeps its initial values, unless ``head_mapping`` selects rows.

    Args:
        backbone: Config of a network with a pooled vector as output.
        num_classes: Outputs of the head.
        head_init_scale: Factor on the initial weights and bias of the head (0.001 for fine-tuning, Table 6); a loaded
            head is not scaled.
        head_mapping: Row in the head of ``backbone.weights`` for each class: ``wordnet`` from ImageNet-22K to 1K, a
            list, or a file with a JSON list or one number per line (timm's ``*_indices.txt``), or with the WordNet ids
            of that head. ``None``, in JSON ``null``, in lines ``new``: a new row, with initial weights.
        data_preprocessor: Settings of :class:`ClassificationPreprocessor`.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        head_init_scale: float = 1.0,
        head_mapping: str | Path | Sequence[int | None] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        own = {"backbone": backbone, "num_classes": num_classes, "data_preprocessor": data_preprocessor}
        super().__init__(build(MODELS, preprocessor_settings({"model": own}), "model.data_preprocessor"))
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.num_features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
        self.head_init_scale, self.head_mapping = head_init_scale, head_mapping

    def init_weights(self) -> None:
        """Initialise the parts that do so themselves; see :meth:`load_pretrained`."""
        self.load_pretrained()
        super().init_weights()

    def load_pretrained(self) -> None:
        """Load ``backbone.weights``, and the head in that file if it fits; once only.

        Raises:
            CheckpointError: If the file cannot be read or does not fit the backbone.
            ConfigError: If ``head_mapping`` does not fit the head in the file.
        """
        if not self.is_init and isinstance(self.backbone, Backbone) and self.backbone.weights is not None:
            self._load_weights(self.backbone, self.backbone.weights)
        elif not self.is_init and self.head_mapping is not None:
            raise ConfigError("head_mapping takes rows of the head in model.backbone.weights: give that file")

    def _load_weights(self, backbone: Backbone, source: str) -> None:
        """Load backbone and head from one reading of the file."""
        checkpoint = read_checkpoint(source, backbone.trust_weights)
        report = backbone.load_weights(checkpoint, source)
        head = self._load_head(find_head(checkpoint, source))
        backbone.load_report = replace(report, head=head)
        print_log(f"classifier's head {head} ({source})", logger="current", level=logging.INFO)

    def _load_head(self, found: tuple[Tensor, Tensor] | None) -> str:
        """Copy a head, ``(K', C)`` and ``(K',)``, as far as it fits; returns what was done, in words."""
        count = self.head.out_features
        if found is None:
            if self.head_mapping is not None:
                raise ConfigError(f"head_mapping: {self.backbone.weights!r} holds no head to take rows from")
            return f"new: the file has none, {count} classes here, initial weights x {self.head_init_scale:g}"
        weight, bias = found
        old = len(weight)
        if self.head_mapping is not None:
            rows = checked_rows(self.head_mapping, count, old)
            weight, bias = self._taken(rows, weight, bias)
            new = f", a new row for class {', '.join(str(i) for i, row in enumerate(rows) if row is None)}"
            done = f"mapped: {count - rows.count(None)} of {old} classes{new if None in rows else ''}"
        elif old != count:
            return f"re-initialised: {old} -> {count} classes, initial weights x {self.head_init_scale:g}"
        if weight.shape != self.head.weight.shape:
            theirs, ours = tuple(weight.shape), tuple(self.head.weight.shape)
            raise CheckpointError(
                f"checkpoint {self.backbone.weights!r} is of another network: head is {theirs}, here {ours}"
            )
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        return done if self.head_mapping is not None else f"loaded: {count} classes"

    def _taken(self, rows: Sequence[int | None], weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of an old head; the initial ones for ``None``."""
        if weight.shape[1] != self.head.in_features:
            return weight, bias  # of another network, which the caller says
        taken = [place for place, row in enumerate(rows) if row is not None]
        source = [row for row in rows if row is not None]
        weights, biases = self.head.weight.detach().clone(), self.head.bias.detach().clone()
        weights[taken], biases[taken] = weight[source].to(weights), bias[source].to(biases)
        return weights, biases

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Classify images ``(N, 3, H, W)``.

        Args:
            inputs: Normalised images.
            data_samples: Soft targets ``(N, K)`` for ``loss``; labels and paths for ``predict``.
            mode: ``tensor`` returns logits ``(N, K)``, ``loss`` the mean soft cross-entropy, ``predict`` an element per
                image with ``scores (K,)``, ``pred_label``, ``gt_label``, ``loss`` and ``img_path``.
        """
        logits = self.head(self.backbone(inputs))
        if mode == "tensor":
            return logits
        logits = logits.float()
        if mode == "loss":
            return {"loss": F.cross_entropy(logits, data_samples)}
        return self._predictions(logits, data_samples)

    @staticmethod
    def _predictions(logits: Tensor, samples: dict[str, Any]) -> list[BaseDataElement]:
        labels = samples["label"]
        # Images with label -1 have no label, and no loss.
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1).cpu()
        scores = logits.softmax(1).cpu()
        return [
            BaseDataElement(
                metainfo={"img_path": path},
                scores=score,
                pred_label=int(score.argmax()),
                gt_label=int(label),
                loss=float(loss),
            )
            for path, score, label, loss in zip(samples["img_path"], scores, labels.tolist(), losses, strict=True)
        ]
