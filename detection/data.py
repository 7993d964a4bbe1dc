"""COCO-format data whose labels follow the config's ``classes``, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Sampler

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


@DATA_SAMPLERS.register_module()
class AspectRatioBatches(AspectRatioBatchSampler):
    """Batches of landscape or of portrait images, all of them full.

    mmdet's sampler with ``drop_last`` loses a full batch of left-overs in some processes and not in others, although it
    announces the same length everywhere; these then wait for each other at the end of the epoch for ever.

    Args:
        sampler: Gives the indices of this process.
        batch_size: Images per batch.
    """

    def __init__(self, sampler: Sampler, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield ``len(sampler) // batch_size`` batches."""
        return (batch for batch in super().__iter__() if len(batch) == self.batch_size)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size
