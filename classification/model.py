"""The classifier: backbone, pooled norm, linear head; mixing and normalisation on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from backbones.errors import UserError


@MODELS.register_module()
class ClassificationPreprocessor(BaseDataPreprocessor):
    """Bring a batch to the device, normalise it there from uint8, erase and mix it in training.

    Args:
        num_classes: Length of the targets.
        mean: Per-channel mean in [0, 1].
        std: Per-channel standard deviation in [0, 1].
        erasing: Probability of random erasing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        label_smoothing: Mass spread over all classes.
    """

    def __init__(
        self,
        num_classes: int,
        mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(non_blocking=True)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        self.erasing = erasing
        self.mix = (
            Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes) if mixup or cutmix else None
        )

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare a batch.

        Args:
            data: ``inputs`` uint8 ``(N, 3, H, W)``, ``label`` ``(N,)``, ``img_path``.
            training: Erase, mix and give soft targets.

        Returns:
            ``inputs`` float32, and ``data_samples``: soft targets ``(N, num_classes)`` in training, else labels and
            paths as they came.
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
            raise UserError(f"{len(inputs)} images per process: mixup pairs them, so batch.per_gpu has to be even")
        else:
            inputs, targets = self.mix(inputs, batch["label"])
        return {"inputs": inputs, "data_samples": targets}


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A registered backbone under a linear head.

    Args:
        backbone: Config of a network that gives a pooled vector.
        num_classes: Outputs of the head.
        head_init_scale: Factor on the head's initial weights and bias (0.001 for fine-tuning, Table 6).
        data_preprocessor: Settings of :class:`ClassificationPreprocessor`.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        head_init_scale: float = 1.0,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            {"type": "ClassificationPreprocessor", "num_classes": num_classes, **(data_preprocessor or {})}
        )
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.num_features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Classify images ``(N, 3, H, W)``.

        Args:
            inputs: Normalised images.
            data_samples: Soft targets ``(N, K)`` for ``loss``; labels and paths for ``predict``.
            mode: ``tensor`` gives logits ``(N, K)``, ``loss`` the mean soft cross-entropy, ``predict`` one element per
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
        # Images without a label (label -1) have no loss.
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
