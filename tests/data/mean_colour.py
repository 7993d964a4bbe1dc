"""A task of a user, all in one module: the mean colour of an image. ``tests/engine/test_task.py`` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS, VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image
from torch import Tensor, nn

from engine.data.checker import DATA_CHECKERS, DatasetChecker
from engine.task import ExportedNetwork, NamedClasses, Score, TaskSpec, TensorForward, register_task


class ColourSample(BaseDataElement):
    """The true and the predicted mean colour of an image, (3,) in 0..1."""


@DATASETS.register_module()
class ColourImages(BaseDataset):
    """All images in ``data_root/split``."""

    def __init__(self, split: str, **options: Any) -> None:
        self.split = split
        super().__init__(**options)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"img_path": str(path)} for path in sorted((Path(self.data_root) / self.split).glob("*.png"))]


@TRANSFORMS.register_module()
class ReadColour:
    """From ``img_path`` to a uint8 tensor (3, size, size) and the mean colour."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(item["img_path"]).convert("RGB").resize((self.size, self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        sample = ColourSample(metainfo={"img_path": item["img_path"]}, true_colour=pixels.float().mean((1, 2)) / 255)
        return {"inputs": pixels, "data_samples": sample}


@MODELS.register_module()
class ColourRegressor(BaseModel):
    """A backbone under a linear layer that predicts three numbers."""

    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__({"type": "ImgDataPreprocessor", "mean": [127.5] * 3, "std": [127.5] * 3})
        self.backbone = MODELS.build(backbone)
        self.colour = nn.Linear(self.backbone.num_features, 3)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        found = self.colour(self.backbone(inputs)).sigmoid()
        if mode == "tensor":
            return found
        if mode == "loss":
            return {"loss": F.mse_loss(found, torch.stack([one.true_colour for one in data_samples]).to(found))}
        for sample, colour in zip(data_samples, found.cpu(), strict=True):
            sample.found_colour = colour
        return data_samples


@METRICS.register_module()
class ColourError(BaseMetric):
    """The mean error of a colour, in percent."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        self.results += [(one["found_colour"] - one["true_colour"].cpu()).abs().mean().item() for one in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"other": 0.0, "colour_error": float(np.mean(results))}


@VISUALIZERS.register_module()
class ColourVisualizer(Visualizer):
    """Draws the predicted colour beside the image."""

    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: Any, out_file: str, margin: int = 0, **_: Any
    ) -> None:
        patch = np.full_like(image, 255 * data_sample.found_colour.numpy())[:, margin:]
        cv2.imwrite(out_file, np.hstack([image, patch])[..., ::-1])


@DATA_CHECKERS.register(ColourImages)
class ColourChecker(DatasetChecker):
    """Beside the images, the number of them."""

    def list_files(self) -> Any:
        files = super().list_files()
        if len(files) < 3:
            self.error("few images", self.dataset.data_root, f"has {len(files)} images", "add some")
        return files


def activations(model: ColourRegressor, images: Tensor) -> object:
    return model.backbone(images), model(images)


register_task(
    TaskSpec(
        name="mean colour",
        model_types=(ColourRegressor,),
        scores=(Score("error of the colour", "colour_error", 100),),
        scores_note="The error is the mean over the channels.",
        main_metric="colour_error",
        counted_parts=lambda model: "backbone and colour layer",
        activation_forward=activations,
        export_wrapper=lambda model: ExportedNetwork("colourist", TensorForward(model), ("colour",), "model."),
        named_classes={"channels": NamedClasses(lambda: ("red", "green", "blue"), 8)},
        sample_types={ColourSample: ()},
        draw_options={"margin": 2},
    )
)
