"""Predicted segments of one image in Python, and files in COCO's panoptic results format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import Tensor

from detection.panoptic import segment_colours
from detection.panoptic_metric import predicted_segments
from detection.results import CocoResults, server_set_name
from engine.prediction.images import NamedImage
from engine.prediction.predictor import Prediction
from engine.prediction.result_files import write_json_file, write_json_lists, write_png, write_zip

PANOPTIC_NAME = "panoptic"  # name of the JSON file and of the folder of PNGs


class PanopticPrediction(Prediction):
    """What a panoptic model predicts for an image.

    Attributes:
        segments: Number of the segment of each pixel, (H, W), int64; its class is in ``segment_classes``, and a number
            that is not there is no segment.
        segment_classes: Position of the class of each segment, by its number.
    """

    @property
    def segments(self) -> Tensor:
        segments: Tensor = self.sample.pred_panoptic_seg.sem_seg[0]
        return segments

    @property
    def segment_classes(self) -> dict[int, int]:
        return predicted_segments(self.segments.numpy(), len(self.classes))


class PanopticResults(CocoResults):
    """Writes ``panoptic.json`` and ``panoptic/<image>.png`` in COCO's panoptic results format.

    The colours of a PNG are the ids of its segments, from 1, red + 256 green + 65,536 blue; the JSON file lists for
    each image ``segments_info`` with ``id`` and ``category_id`` (https://cocodataset.org/#format-results). For images
    that are not those of the test data, ``images.json`` lists their ids, names and sizes.

    Args:
        request: Config, folder and choices.
    """

    options = ()

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the PNG of an image; returns its entry."""
        predicted = sample["pred_panoptic_seg"]["sem_seg"][0].cpu().numpy()
        ids, numbers = list(self.categories), np.zeros(predicted.shape, np.int64)
        segments = []
        for number, (value, label) in enumerate(predicted_segments(predicted, len(ids)).items(), 1):
            mask = predicted == value
            numbers[mask] = number
            segments.append({"id": number, "category_id": ids[label], "area": int(mask.sum())})
        name = self.name(sample, image)
        write_png(self.place(f"{PANOPTIC_NAME}/{name}", ".png"), segment_colours(numbers))
        image_id = sample["img_id"] if image is None else self.image_id(image)
        return {"id": image_id, **self.entry(sample, image), "png": f"{name}.png", "segments_info": segments}

    def finish(self, records: Iterable[Any]) -> None:
        """Write the JSON files."""
        numbered = list(self.numbered(records))
        annotations = (
            {"image_id": record["id"], "file_name": record["png"], "segments_info": record["segments_info"]}
            for record in numbered
        )
        write_json_lists(self.folder / f"{PANOPTIC_NAME}.json", {}, "annotations", annotations)
        if not self.request.test_data:
            write_json_file(self.folder / "images.json", self.listed(numbered))


def pack_panoptic(folder: Path, method: str, cfg: Config) -> list[Path]:
    """Pack panoptic results as COCO's server takes them: a JSON file and a folder of PNGs in one zip.

    Args:
        folder: Folder of :class:`PanopticResults`.
        method: Name of the method.
        cfg: Resolved config.

    Source: https://cocodataset.org/#upload
    """
    name = f"panoptic_{server_set_name(cfg)}_{method}_results"
    pngs = sorted((folder / PANOPTIC_NAME).rglob("*.png"))
    inside = [(path, f"{name}/{path.relative_to(folder / PANOPTIC_NAME)}") for path in pngs]
    return [write_zip(folder / f"{name}.zip", [(folder / f"{PANOPTIC_NAME}.json", f"{name}.json"), *inside])]


def list_panoptic_images(dataset: Any) -> None:
    """Have the settings of a data set list images alone, in place."""
    dataset.type = "CocoInstances"
    dataset.get("data_prefix", {}).pop("seg", None)
