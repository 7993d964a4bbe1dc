"""Folder data sets (one folder per class, as ImageNet is laid out) and the paper's augmentation, by timm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from timm.data.auto_augment import posterize
from timm.data.transforms_factory import create_transform
from torchvision.transforms import ColorJitter

from backbones.errors import UserError
from engine.preflight import IMAGE_SUFFIXES


@DATASETS.register_module()
class FolderDataset(BaseDataset):
    """``data_root/<split>/<class>/<image>``, at any depth below the class.

    Args:
        data_root: Folder of the data set.
        split: Sub-folder, such as ``train`` or ``val``.
        metainfo: ``classes`` gives the names, and by their order the labels.
        pipeline: Transforms; the first one receives ``img_path`` and ``gt_label``.
        every: Take one in so many images of each class, in sorted order, for a study on a part of the data.

    Raises:
        UserError: If the folders and the classes differ, a class has no image, or ``every`` is no positive number.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        metainfo: dict[str, Any],
        pipeline: list[dict[str, Any]],
        every: int = 1,
    ) -> None:
        if every < 1:
            raise UserError(f"dataset.every={every}: 10 takes every tenth image of a class, 1 takes all")
        self.split, self.every = split, every
        super().__init__(data_root=data_root, metainfo=metainfo, pipeline=pipeline, serialize_data=True)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images in sorted order, with their labels."""
        root = Path(self.data_root) / self.split
        if not root.is_dir():
            raise UserError(f"no image folder {str(root)!r}: put the classes' folders there, or set data_root")
        classes = self.metainfo["classes"]
        folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
        absent, unknown = sorted(set(classes) - folders), sorted(folders - set(classes))
        if absent or unknown:
            counts = f"{len(folders)} class folders, {len(classes)} classes in the config"
            example = f"no folder {absent[0]!r}" if absent else f"folder {unknown[0]!r} is not in classes"
            raise UserError(f"{str(root)!r}: {counts}; {example}: set classes to the folders' names")
        samples = []
        for label, name in enumerate(classes):
            images = sorted(_images(root / name))
            if not images:
                raise UserError(f"{str(root / name)!r} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            samples += [{"img_path": image, "gt_label": label} for image in images[:: self.every]]
        return samples


def _images(folder: Path) -> list[str]:
    return [
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]


@TRANSFORMS.register_module()
class ClassificationTransform:
    """From ``img_path`` to ``inputs``: a uint8 tensor ``(3, size, size)``; the device normalises it.

    Args:
        size: Side of the square that the network sees, in pixels.
        training: Augment by random resized crop, flip and RandAugment, or take the centre crop.
        rand_augment: timm's description of RandAugment; ``rand-m9-mstd0.5-inc1`` is (9, 0.5) in Table 5 of the paper.
        crop_ratio: Share of the resized image that the centre crop keeps (0.875 at 224). With 1.0 nothing is cut off:
            the image is resized to the square, whatever its shape, as the released code does at 384.
        scale: Range of the area of the random crop.
        flip: Probability of a horizontal flip.
        color_jitter: Strength of random changes of brightness, contrast and saturation, after RandAugment; 0 for none.
    """

    def __init__(
        self,
        size: int,
        training: bool = False,
        rand_augment: str | None = None,
        crop_ratio: float = 0.875,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        color_jitter: float = 0.0,
    ) -> None:
        self.transform = create_transform(
            input_size=size,
            is_training=training,
            use_prefetcher=True,  # ends with uint8 tensors
            auto_augment=rand_augment,
            color_jitter=0.0,
            interpolation="bicubic",
            crop_pct=crop_ratio,
            crop_mode="squash" if crop_ratio == 1.0 else "center",
            scale=scale,
            hflip=flip,
        )
        for step in self.transform.transforms:
            for op in getattr(step, "ops", ()):  # of RandAugment
                if op.aug_fn is posterize:
                    op.aug_fn = _posterize
        if training and color_jitter:
            # Beside RandAugment timm leaves its own out, which would stand here, before the tensor is made.
            self.transform.transforms.insert(-1, ColorJitter(color_jitter, color_jitter, color_jitter))

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Read, transform and pack one image."""
        with Image.open(sample["img_path"]) as image:
            pixels: torch.Tensor = self.transform(_rgb(image))
        return {"inputs": pixels, "label": sample.get("gt_label", -1), "img_path": sample["img_path"]}


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's operation, down to the 0 bits that RandAugment asks for at magnitude 10: a black image.

    Magnitude 9 with a deviation of 0.5 gets there in one of 44 draws. Pillow 12 refuses it; before, it gave black too.
    """
    return image.point([0] * 256 * len(image.getbands())) if bits == 0 else posterize(image, bits)


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits, from any kind of image."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts 16-bit grey off at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
