"""Sizes of images as the network gets them: the pipeline of a data set is run on blank pictures of their sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope

from backbones.channels import COLOUR_CHANNELS, stated_channels
from backbones.errors import ConfigError
from engine.checkpoint.rng import seeded
from engine.data.image_files import DamagedImageError
from engine.data.orientation import Size

TOO_SMALL = "image too small"  # kind of finding
LARGE_SIZE = (640, 480)
SMALL_SIDE, LONG_RATIO = 128, 8  # images with a shorter side, or of a longer shape, may become too small


class NetworkInput:
    """The way of images from a data set to the network.

    Args:
        cfg: Resolved config of the run.
        dataset: Config of the data set.
        training: Whether images are padded as in training, not as in testing.
        annotations: Function from a width and height to what the transforms of the task need besides a picture.
    """

    def __init__(
        self, cfg: Config, dataset: ConfigDict, training: bool, annotations: Callable[[Size], dict[str, Any]]
    ) -> None:
        self.cfg, self.dataset, self.training, self.annotations = cfg, dataset, training, annotations

    @cached_property
    def min_side(self) -> int:
        """Smallest side in pixels that the backbone takes, 0 where it does not say."""
        backbone = dict((self.cfg.get("model") or {}).get("backbone") or {})
        backbone.pop("weights", None)
        if "type" not in backbone:
            return 0
        with MODELS.switch_scope_and_registry(self.cfg.get("default_scope")) as registry, torch.device("meta"):
            known = registry.get(backbone["type"]) is not None
            return getattr(registry.build(backbone), "min_image_side", 0) if known else 0

    @cache  # noqa: B019 - lives as long as its check
    def problem(self, size: Size) -> tuple[str, str] | None:
        """Kind and description of the reason why an image of a width and height is too small, if it is."""
        small = min(size) < SMALL_SIDE or max(size) > LONG_RATIO * min(size)
        return self._shortage(size) if small else None

    def refuse_small_output(self, place: str) -> None:
        """Refuse transforms, such as a crop, that leave less of a large image than the network takes.

        Args:
            place: Dotted key of the pipeline, for the message.

        Raises:
            ConfigError: If they do.
        """
        found = self._shortage(LARGE_SIZE)
        if found is not None and found[0] == TOO_SMALL:
            fix = "enlarge the sizes of its transforms, for a segmentor model.data_preprocessor.size too"
            raise ConfigError(f"{place}: an image of {LARGE_SIZE[0]} x {LARGE_SIZE[1]} {found[1]}: {fix}")

    def _shortage(self, size: Size) -> tuple[str, str] | None:
        """Kind and description of what is wrong with a size, from the transforms."""
        if not self.min_side:
            return None
        if self.training and self.cfg.model.get("data_preprocessor", {}).get("batch_augments"):  # some pad or resize
            return None
        try:
            width, height = self.padded(self.after_pipeline(size))
        except DamagedImageError as error:  # training replaces such an image
            return "damaged image", error.reason
        except Exception:  # a transform that needs more than a blank picture
            return None
        needed = f"of which it needs {self.min_side} x {self.min_side}"
        reached = f"reaches the network with {width} x {height} pixels, {needed}"
        return (TOO_SMALL, reached) if min(width, height) < self.min_side else None

    def after_pipeline(self, size: Size, seed: int = 0) -> Size:
        """Width and height of an image of a size after the transforms, whose random choices follow from a seed."""
        width, height = size
        loading = (LoadImageFromFile, LoadAnnotations)
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope), seeded(seed):
            with TRANSFORMS.switch_scope_and_registry(self.cfg.default_scope) as registry:
                kept = [step for step in self.dataset.pipeline if not issubclass(registry.get(step.type), loading)]
            if len(kept) == len(self.dataset.pipeline):
                raise ConfigError("the pipeline does not load images by LoadImageFromFile")
            channels = stated_channels(self.dataset.pipeline) or COLOUR_CHANNELS
            blank = np.zeros((height, width, channels)[: 2 + (channels > 1)], np.uint8)
            sample: dict[str, Any] = Compose(kept)(
                {
                    **{"img": blank, "img_shape": (height, width), "img_path": "an image", "img_id": 0},
                    **{"ori_shape": (height, width), "scale_factor": (1.0, 1.0), **self.annotations(size)},
                }
            )
        height, width = sample["inputs"].shape[-2:]
        return width, height

    def padded(self, size: Size) -> Size:
        """Width and height of an image after the padding by mmdet's or mmseg's data preprocessor."""
        preprocessor = self.cfg.model.get("data_preprocessor") or {}
        settings = preprocessor if self.training else preprocessor.get("test_cfg") or {}
        divisor = preprocessor.get("pad_size_divisor") or settings.get("size_divisor") or 1
        least = settings.get("size") or (0, 0)
        width, height = (
            math.ceil(max(side, floor) / divisor) * divisor for side, floor in zip(size, least[::-1], strict=True)
        )
        return width, height
