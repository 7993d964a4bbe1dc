"""Panoptic data in COCO's format: a JSON file that lists the segments of each image, and PNGs in which their ids are.

Source: Kirillov et al., "Panoptic Segmentation", 2019; https://cocodataset.org/#format-data, section 4. Nothing here
needs the package panopticapi, without which mmdet's own parts for this format do not work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets import CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCOPanoptic
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import DATASETS, TRANSFORMS

from backbones.errors import DataError
from detection.annotations import category_ids, read_annotations
from engine.data.image_files import read_stored_values
from engine.data.paths import leads_outside

VOID_LABEL = 255  # in label maps: pixels without a segment


def read_segments(path: str) -> np.ndarray:
    """Read the ids of the segments from a PNG: red + 256 green + 65,536 blue, int32, (H, W); 0 is no segment.

    Raises:
        DamagedImageError: If the file is missing, or cannot be decoded.
        DataError: If it has no three channels.
    """
    pixels = read_stored_values(path)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise DataError(f"{path}: is no RGB image of 8 bits, whose colours are the ids of segments")
    return pixels.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def segment_colours(ids: np.ndarray) -> np.ndarray:
    """Pixels of a PNG, uint8, (H, W, 3), of the ids of segments, (H, W), as :func:`read_segments` reads them."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


class OrderedCOCOPanoptic(COCOPanoptic):
    """Panoptic COCO API whose category look-up keeps the order of the names.

    Args:
        annotation_file: Path of the annotation file.
    """

    def __init__(self, annotation_file: str) -> None:
        super().__init__()
        self.dataset = read_annotations(annotation_file)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs
        for entry in self.dataset["annotations"]:
            self.imgs[entry["image_id"]]["segm_file"] = entry["file_name"]

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        """Category ids in the order of ``cat_names``."""
        return category_ids(self.dataset["categories"], cat_names)


@DATASETS.register_module()
class CocoPanoptic(CocoPanopticDataset):
    """mmdet's panoptic COCO with categories in the order of the classes and file names confined to their folders.

    The PNG of an image is the one that its annotation names. Segments of other categories are pixels without a segment.
    Takes the arguments of ``CocoPanopticDataset``.
    """

    COCOAPI = OrderedCOCOPanoptic

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> Any:
        """Read an image's entry of the annotation file.

        Raises:
            DataError: If a file name leads out of the folders of images and PNGs, or the image has no PNG.
        """
        image = raw_data_info["raw_img_info"]
        for prefix, key in (("img", "file_name"), ("seg", "segm_file")):
            folder, name = self.data_prefix.get(prefix) or "", image[key]
            if leads_outside(folder, name):
                raise DataError(f"{self.ann_file}: file name {name!r} leads out of {folder!r}")
        known = [one for one in raw_data_info["raw_ann_info"] if one["category_id"] in self.cat2label]
        info: dict[str, Any] = super().parse_data_info({"raw_img_info": image, "raw_ann_info": known})
        info["seg_map_path"] = f"{self.data_prefix.get('seg') or ''}/{image['segm_file']}"
        return info

    def filter_data(self) -> list[dict[str, Any]]:
        """Drop images that are too small and, if ``filter_cfg`` says so, those without a thing.

        Raises:
            DataError: If none is left.
        """
        kept: list[dict[str, Any]] = super().filter_data()
        if not kept:
            raise DataError(
                f"{self.ann_file}: none of its {len(self.data_list)} images is left to train on: they are smaller than "
                f"filter_cfg.min_size, or have no thing of the classes ({self.filter_cfg})"
            )
        return kept


@TRANSFORMS.register_module()
class LoadPanoptic(LoadAnnotations):
    """Loads boxes and masks of the things, and a label map of all classes, from the PNG of the segments.

    Pixels without a segment have :data:`VOID_LABEL`. A crowd is in the label map alone.
    """

    def __init__(self) -> None:
        super().__init__(with_bbox=True, with_mask=True, with_seg=True)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load what the entry of the image lists; nothing for an image without annotations.

        Raises:
            DataError: If the PNG has another size than the image, or lacks a listed segment.
        """
        if not results.get("seg_map_path"):
            return results
        path, segments = results["seg_map_path"], results["segments_info"]
        ids = read_segments(path)
        if ids.shape != (results["height"], results["width"]):
            raise DataError(
                f"{path} is {ids.shape[1]} x {ids.shape[0]}, its image {results['width']} x {results['height']}"
            )
        labels, masks = np.full(ids.shape, VOID_LABEL, np.uint8), []
        for segment in segments:
            mask = ids == segment["id"]
            if not mask.any():
                raise DataError(f"{path}: no pixel is of segment {segment['id']}, which the annotation file lists")
            labels[mask] = segment["category"]
            if segment["is_thing"]:
                masks.append(mask.astype(np.uint8))
        things = results["instances"]
        results["gt_bboxes"] = HorizontalBoxes(
            np.array([one["bbox"] for one in things], np.float32).reshape(-1, 4), dtype=None
        )
        results["gt_bboxes_labels"] = np.array([one["bbox_label"] for one in things], np.int64)
        results["gt_ignore_flags"] = np.zeros(len(things), bool)
        results["gt_masks"] = BitmapMasks(masks, *ids.shape)
        results["gt_seg_map"] = labels
        results["ignore_index"] = VOID_LABEL
        return results
