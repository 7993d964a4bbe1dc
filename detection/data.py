"""COCO-format data whose labels follow the config's ``classes``, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from backbones.errors import UserError


def category_ids(coco: Any, names: Sequence[str]) -> list[int]:
    """Category ids of an annotation file in the order of ``names``.

    The usual look-up answers in the file's order and leaves out what it does not know: labels would then be permuted or
    shifted without a word.

    Args:
        coco: A COCO API object (pycocotools or faster-coco-eval).
        names: Class names.

    Raises:
        UserError: If the file lacks a name.
    """
    ids = {category["name"]: category["id"] for category in coco.dataset["categories"]}
    absent = [name for name in names if name not in ids]
    if absent:
        raise UserError(
            f"classes: {len(absent)} of {len(names)} are no category of the annotation file ({absent[0]!r}...); "
            f"it has {len(ids)}: {', '.join(list(ids)[:5])}..."
        )
    return [ids[name] for name in names]


class OrderedCOCO(COCO):
    """COCO API that finds categories in the order asked for."""

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        """Ids of ``cat_names`` in their order."""
        return category_ids(self, cat_names)


@DATASETS.register_module()
class CocoInstances(CocoDataset):
    """mmdet's COCO data set with checked, ordered categories."""

    COCOAPI = OrderedCOCO
