"""COCO-format data whose labels follow the config's ``classes``, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import Resize
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import DATA_SAMPLERS, DATASETS, MODELS, TRANSFORMS
from mmengine.dataset import force_full_init
from torch.utils.data import Sampler

from backbones.channels import ChannelStatistics
from backbones.errors import DataError
from detection.annotation_file import AnnotationFile
from detection.annotations import add_categories, category_ids, fill_areas, read_annotations
from engine.data.image_files import DamagedImageError
from engine.data.paths import leads_outside
from engine.data.shards.unpacked import ArchivePlace, find_archive


@MODELS.register_module()
class AnyChannelsDetDataPreprocessor(ChannelStatistics, DetDataPreprocessor):
    """mmdet's ``DetDataPreprocessor`` with mean and deviation of any number of channels."""


@TRANSFORMS.register_module()
class CheckedResize(Resize):
    """mmdet's ``Resize`` that names an image of which no pixel is left, such as 400 x 1 at a longer side of 160."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize the image with its boxes and masks.

        Raises:
            DamagedImageError: If no pixel is left of the image.
        """
        try:
            resized: dict[str, Any] = super().transform(results)
        except cv2.error as error:
            height, width = results["img"].shape[:2]
            reason = f"has {width} x {height} pixels, of which none is left at the size {self.scale}"
            raise DamagedImageError.of(results.get("img_path", "an image"), reason) from error
        return resized


class AnnotatedImages(Sequence[dict[str, Any]]):
    """Entries of images with their annotations, as ``CocoDataset.parse_data_info`` takes them.

    Args:
        file: The annotation file.
        rows: Rows of the images in it.
    """

    def __init__(self, file: AnnotationFile, rows: np.ndarray) -> None:
        self.file, self.rows = file, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Entries of an index, newly read; those of a slice as such a sequence."""
        if isinstance(index, slice):
            return AnnotatedImages(self.file, self.rows[index])
        row = int(self.rows[index])
        assert self.file.images is not None
        image, objects = self.file.images[row], self.file.objects_of(row)
        fill_areas({"images": [image], "annotations": objects})
        return {"raw_img_info": {**image, "img_id": image["id"]}, "raw_ann_info": objects}


class OrderedCOCO(COCO):
    """COCO API whose category look-up keeps the order of the names, and which computes areas that are not stated.

    Args:
        annotation_file: Path of the annotation file; ``None`` for an empty set.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = read_annotations(annotation_file)
            self.createIndex()
            self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def createIndex(self) -> None:
        """Complete the annotations, and index them."""
        fill_areas(self.dataset)
        super().createIndex()

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        """Category ids in the order of ``cat_names``."""
        return category_ids(self.dataset["categories"], cat_names)


class CompletedCOCO(OrderedCOCO):
    """COCO API with a category without objects for each class that the file lacks."""

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        """Category ids in the order of ``cat_names``."""
        add_categories(self.dataset, cat_names)
        self.cats = {category["id"]: category for category in self.dataset["categories"]}
        return super().get_cat_ids(cat_names)


@DATASETS.register_module()
class CocoInstances(CocoDataset):
    """mmdet's COCO data set with categories in the order of the classes and file names confined to their folder.

    Takes the arguments of ``CocoDataset``, and:

    Args:
        data_prefix: Folder of the images, ``img``.
        partial_classes: Whether the annotation file may lack some of the classes, as a part of a ``ConcatDataset`` may
            and the file of a test (``test_mode``).
    """

    COCOAPI = OrderedCOCO
    data_list: Any

    def __init__(
        self,
        *args: Any,
        data_prefix: Mapping[str, str] | None = None,
        partial_classes: bool = False,
        **kwargs: Any,
    ) -> None:
        if partial_classes or kwargs.get("test_mode"):
            self.COCOAPI = CompletedCOCO
        super().__init__(*args, data_prefix={"img": "", **(data_prefix or {})}, **kwargs)

    def load_data_list(self) -> Any:
        """List the images; an entry of the annotation file is read when its image is asked for.

        Raises:
            DataError: If the file lacks a class, an entry lacks what COCO requires, or a name leads out of the folder.
        """
        if self.proposal_file is not None:  # mmdet adds the proposals to a list of its own
            return super().load_data_list()
        self.serialize_data = False
        self.annotations = AnnotationFile(self.ann_file)
        self.annotations.refuse_faults()
        for name in self.annotations.paths:
            self._refuse_outside(name)
        categories, classes = self.annotations.categories, self.metainfo["classes"]
        if issubclass(self.COCOAPI, CompletedCOCO):
            add_categories({"categories": categories}, classes)
        self.cat_ids = category_ids(categories, classes)
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        return AnnotatedImages(self.annotations, self.annotations.image_rows())

    @force_full_init
    def get_data_info(self, idx: int) -> Any:
        """Annotated sample of an index."""
        if self.serialize_data:
            return super().get_data_info(idx)
        info = self.parse_data_info(self.data_list[int(idx)])
        info["sample_idx"] = idx if idx >= 0 else len(self) + idx
        return info

    def _refuse_outside(self, name: str) -> None:
        if leads_outside(self.data_prefix["img"], name):
            raise DataError(f"{self.ann_file}: file name {name!r} leads out of {self.data_prefix['img']!r}")

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> Any:
        """Read an image's entry of the annotation file.

        Raises:
            DataError: If its file name leads out of the folder of the images.
        """
        name = raw_data_info["raw_img_info"]["file_name"]
        self._refuse_outside(name)
        info = super().parse_data_info(raw_data_info)
        stored = self._archive.file(name) if self._archive is not None else None
        return info if stored is None else {**info, "img_path": stored}

    @cached_property
    def _archive(self) -> ArchivePlace | None:
        return find_archive(self.data_prefix["img"])

    def filter_data(self) -> list[dict[str, Any]]:
        """Drop images that are too small and, if ``filter_cfg`` says so, those without an object.

        Raises:
            DataError: If none is left.
        """
        kept: Any = super().filter_data() if self.serialize_data else self._filtered()
        if not len(kept):
            raise DataError(
                f"{self.ann_file}: none of its {len(self.data_list)} images is left to train on: they are smaller than "
                f"filter_cfg.min_size, or have no object of the classes ({self.filter_cfg})"
            )
        return kept

    def _filtered(self) -> AnnotatedImages:
        images: AnnotatedImages = self.data_list
        if self.test_mode or self.filter_cfg is None:
            return images
        sides, rows = self.annotations.sides(), images.rows
        kept = sides[rows].min(1) >= self.filter_cfg.get("min_size", 0)
        if self.filter_cfg.get("filter_empty_gt", False):
            kept &= self.annotations.rows_with(self.cat_ids)[rows]
        return AnnotatedImages(self.annotations, rows[kept])


@DATA_SAMPLERS.register_module()
class AspectRatioBatches(AspectRatioBatchSampler):
    """Full batches of either landscape or portrait images.

    mmdet's ``AspectRatioBatchSampler`` with ``drop_last`` yields one batch less in some processes than in others,
    although its length is the same everywhere; the processes then wait for each other forever at the end of the epoch.

    Args:
        sampler: Sampler of the indices of this process.
        batch_size: Images per batch.
    """

    def __init__(self, sampler: Sampler, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield ``len(sampler) // batch_size`` batches."""
        return (batch for batch in super().__iter__() if len(batch) == self.batch_size)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size
