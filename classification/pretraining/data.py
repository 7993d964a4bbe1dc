"""Images without labels, and the random order of their units from which masks are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS, TRANSFORMS

from backbones.base import PYRAMID_STRIDES
from backbones.channels import ChannelStatistics, stated_channels
from backbones.errors import ConfigError, DataError
from classification.data import ClassificationTransform, list_images
from engine.config.schema import is_whole
from engine.data.image_files import image_suffixes

UNIT = PYRAMID_STRIDES[-1]  # pixels


@MODELS.register_module()
class AnyChannelsImgDataPreprocessor(ChannelStatistics, ImgDataPreprocessor):
    """mmengine's ``ImgDataPreprocessor`` with mean and deviation of any number of channels."""


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All images of a folder, at any depth, such as ImageNet's without its classes.

    Args:
        data_root: Folder.
        split: Sub-folder; the whole folder by default.
        hold_out: Hold out every n-th image, in sorted order, for validation; 0 for none.
        held_out: Whether these are the images held out, not the others.
        every: Use every n-th of the images, for studies on a part of the data.
        metainfo: Not used; configs give it to every data set.
        pipeline: Configs of the transforms; the first one receives ``img_path``.
        test_mode: Argument of mmengine.

    Raises:
        ConfigError: If ``hold_out`` or ``every`` is no such number.
        DataError: If there is no image.
    """

    def __init__(
        self,
        data_root: str,
        pipeline: list[dict[str, Any]],
        split: str = "",
        hold_out: int = 0,
        held_out: bool = False,
        every: int = 1,
        metainfo: dict[str, Any] | None = None,
        test_mode: bool = False,
    ) -> None:
        if not is_whole(every, 1):
            raise ConfigError(f"dataset.every={every}: 10 takes every tenth image, 1 takes all")
        if not is_whole(hold_out, 0) or hold_out == 1 or (held_out and not hold_out):
            raise ConfigError(f"dataset.hold_out={hold_out}: 20 holds out every twentieth image, 0 holds out none")
        self.split, self.hold_out, self.held_out, self.every = split, hold_out, held_out, every
        self.channels = stated_channels(pipeline)
        super().__init__(data_root=data_root, metainfo=metainfo, pipeline=pipeline, test_mode=test_mode)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images in sorted order."""
        paths = chosen_images(self.data_root, self.split, self.hold_out, self.held_out, self.channels)
        return [{"img_path": path} for path in paths[:: self.every]]


def chosen_images(
    data_root: str,
    split: str,
    hold_out: int,
    held_out: bool,
    channels: int | None = None,
    others: list[str] | None = None,
    unreadable: list[OSError] | None = None,
    hidden: list[str] | None = None,
) -> list[str]:
    """Sorted paths of the images of a :class:`UnlabelledImages`.

    Args:
        data_root: Folder.
        split: Its sub-folder.
        hold_out: Every n-th image is held out.
        held_out: Whether these are wanted, or the others.
        channels: Number of channels that are read; ``None`` for colour images.
        others: Like the next two, a list that :func:`classification.data.list_images` fills.
        unreadable: For folders that cannot be read.
        hidden: For hidden files and folders.

    Raises:
        DataError: If there is no folder, or no image for this part.
    """
    root = Path(data_root) / split
    if not root.is_dir():
        raise DataError(f"no image folder {str(root)!r}: put the images there, or set data_root")
    suffixes = image_suffixes(channels)
    images = sorted(list_images(root, others, unreadable, hidden, suffixes))
    chosen = [path for number, path in enumerate(images) if not hold_out or (number % hold_out == 0) == held_out]
    if not chosen:
        part = f", of which every {hold_out}th is held out" if hold_out else ""
        number = "1 image" if len(images) == 1 else f"{len(images)} images"
        raise DataError(f"{str(root)!r} holds {number} ({', '.join(suffixes)}){part}: too few")
    return chosen


@TRANSFORMS.register_module()
class MaskedImageTransform:
    """Load ``img_path`` as ``inputs``, uint8 ``(3, size, size)``, with a random ``order`` of its 32 x 32 units.

    With a number of ``channels`` they are float32 ``(channels, size, size)``, with the values of the file.

    The order is drawn where the crop is, so that both depend only on the seed of the run, the epoch and the image. A
    test has the same order for the same image, whatever the seed: losses of validations can be compared.

    Args:
        size: Side of the network's input in pixels, a multiple of 32.
        training: Whether to draw crop, flip and order; otherwise the crop is the centre.
        scale: Range of the random crop's area, as fractions of the image.
        crop: Further arguments of :class:`classification.data.ClassificationTransform`.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(self, size: int, training: bool = False, scale: tuple[float, float] = (0.2, 1.0), **crop: Any) -> None:
        if not is_whole(size, 1) or size % UNIT:
            raise ConfigError(f"MaskedImageTransform.size={size!r}: a multiple of {UNIT} is needed, the side of a unit")
        self.training, self.units = training, (size // UNIT) ** 2
        self.load = ClassificationTransform(size, training, scale=scale, **crop).load

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Load, transform and pack one image.

        Raises:
            DamagedImageError: If the file cannot be decoded.
        """
        path = sample["img_path"]
        pixels = self.load(path)
        generator = None if self.training else torch.Generator().manual_seed(int(sample.get("sample_idx", 0)))
        order = torch.randperm(self.units, generator=generator)
        return {"inputs": pixels, "data_samples": {"order": order, "img_path": path}}
