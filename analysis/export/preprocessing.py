"""How a config's tests bring an image file to the network: what an exported file says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from backbones.channels import COLOUR_CHANNELS, configured_channels, stated_channels
from engine.task import Shape, task_of

CLASSIFICATION_CROP_RATIO = 0.875  # of 224 pixels in 256, the custom on ImageNet
WHOLE_IMAGE_SIDE = 384  # from here on the released code squashes the whole image
RESIZES = ("Resize", "CheckedResize")
READERS = ("LoadCheckedImage", "LoadImageFromFile")
# Beginnings of the names of steps that leave images alone.
WITHOUT_EFFECT = ("Pack", "LoadLabels", "LoadAnnotations", "LoadPanoptic")


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the network's input, in this order.

    Attributes:
        exif_rotation: Whether the picture is turned as its EXIF orientation says.
        resize: ``shorter_side`` to ``resize_to[0]`` pixels, the longer one rounded down; ``within`` the longer and the
            shorter side in ``resize_to``, rounded to the nearest; ``exact`` for height and width ``resize_to``,
            whatever the shape; or ``none``.
        resize_to: Sizes in pixels.
        interpolation: Name as in Pillow, in lower case.
        antialias: Whether a smaller picture averages all its pixels, as in Pillow, or interpolates between four
            neighbours, as in OpenCV.
        crop: Height and width of the central crop.
        crop_ratio: ``crop`` over the resized shorter side, as stated.
        colour: Order of the channels, ``RGB`` or ``BGR``, or ``as in the files`` for another number than three.
        mean: Mean per channel of pixels in [0, 1], which is subtracted.
        std: Standard deviation per channel of pixels in [0, 1], by which it is divided.
        pad_multiple: Height and width are then padded to multiples of this, below and at the right.
        pad_value: Value of the padding.
        other_steps: Steps of the config's test pipeline that this does not describe.
    """

    exif_rotation: bool = False
    resize: str = "none"
    resize_to: tuple[int, ...] = ()
    interpolation: str = "bicubic"
    antialias: bool = True
    crop: Shape | None = None
    crop_ratio: float | None = None
    colour: str = "RGB"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    pad_multiple: int = 1
    pad_value: float = 0
    other_steps: tuple[str, ...] = ()

    def for_size(self, shape: Shape) -> Preprocessing:
        """For a network that takes images of one size, (H, W) in pixels, only."""
        if self.crop or (self.resize, self.resize_to) == ("exact", shape):
            return self
        return replace(self, resize="exact", resize_to=shape, pad_multiple=1)

    def as_dict(self) -> dict[str, Any]:
        """All attributes, mean and deviation with six digits."""
        return {**asdict(self), **{name: [round(x, 6) for x in getattr(self, name)] for name in ("mean", "std")}}

    def timm_settings(self, shape: Shape) -> dict[str, Any]:
        """The same in the words of timm's ``pretrained_cfg``, for a classifier of images of a size, (H, W)."""
        squash = self.resize == "exact"
        return {
            "input_size": (len(self.mean), *shape),
            "interpolation": self.interpolation,
            "crop_pct": 1.0 if squash else self.crop_ratio,
            "crop_mode": "squash" if squash else "center",
            "mean": self.mean,
            "std": self.std,
        }


def classification_resize(size: Shape, crop_ratio: float) -> dict[str, Any]:
    """Arguments of :class:`Preprocessing` for timm's evaluation transform, with which classifiers are tested.

    Args:
        size: Height and width of the network's input in pixels.
        crop_ratio: Fraction of the resized image that is kept; with 1 the whole image is squashed.
    """
    if crop_ratio == 1:
        return {"resize": "exact", "resize_to": size}
    side = math.floor(max(size) / crop_ratio)
    return {"resize": "shorter_side", "resize_to": (side,), "crop": size, "crop_ratio": crop_ratio}


def assumed_preprocessing(size: Shape) -> Preprocessing:
    """The custom on ImageNet, for a network that comes without a config.

    Args:
        size: Height and width of the network's input in pixels.
    """
    ratio = CLASSIFICATION_CROP_RATIO if max(size) < WHOLE_IMAGE_SIDE else 1.0
    return Preprocessing(**classification_resize(size, ratio))


def preprocessing_of(cfg: Config, model: BaseModel, shape: Shape | None) -> Preprocessing:
    """Read the test pipeline and the model's preprocessor.

    Args:
        cfg: Resolved config.
        model: Its model.
        shape: Height and width of the only size to export for, in pixels; ``None`` for the sizes of the pipeline.
    """
    found, others = _of_preprocessor(cfg, model)
    for step in cfg.test_dataloader.dataset.get("pipeline") or []:
        known = _of_step(step, shape)
        if known is None:
            others.append(step["type"])
        else:
            found |= known
    done = Preprocessing(**found, other_steps=tuple(others))
    return done if shape is None else done.for_size(shape)


def _of_step(step: Mapping[str, Any], shape: Shape | None) -> dict[str, Any] | None:
    """What a step of a test pipeline does, as arguments of :class:`Preprocessing`; ``None`` if that is not known."""
    name = step["type"]
    if name == "ClassificationTransform":
        size = shape or (step["size"], step["size"])
        resized = classification_resize(size, step.get("crop_ratio", CLASSIFICATION_CROP_RATIO))
        return {**resized, "exif_rotation": step.get("channels") == 1}
    if name in READERS and step.get("imdecode_backend", "cv2") == "cv2":
        return {"exif_rotation": step.get("color_type", "color") == "color" and step.get("channels", 1) == 1}
    if name in RESIZES and step.get("scale") is not None and step.get("backend", "cv2") == "cv2":
        scale, kept = step["scale"], step.get("keep_ratio", False)
        width, height = (scale, scale) if isinstance(scale, int) else scale  # the library writes width first
        where = {"resize": "within", "resize_to": (max(width, height), min(width, height))}
        resize = where if kept else {"resize": "exact", "resize_to": (height, width)}
        return {**resize, "interpolation": step.get("interpolation", "bilinear"), "antialias": False}
    return {} if name.startswith(WITHOUT_EFFECT) else None


def _of_preprocessor(cfg: Config, model: BaseModel) -> tuple[dict[str, Any], list[str]]:
    """Colours, normalisation and padding of the model's preprocessor; settings of its tests that are not described."""
    settings, module = cfg.model.get("data_preprocessor") or {}, model.data_preprocessor
    # Without normalisation the pixels stay in [0, 255], as with mean 0 and deviation 1.
    channels = configured_channels(cfg.model)
    mean, std = getattr(module, "mean", torch.zeros(1)), getattr(module, "std", torch.ones(1))
    tested = getattr(module, "test_cfg", {"size_divisor": getattr(module, "pad_size_divisor", 1)}) or {}
    colour = "RGB" if settings.get("bgr_to_rgb") else task_of(cfg).channel_order
    as_stored = channels != COLOUR_CHANNELS or stated_channels(cfg.test_dataloader.dataset.get("pipeline"))
    found = {
        "colour": "as in the files" if as_stored else colour,
        "mean": tuple((mean.flatten().expand(channels) / 255).tolist()),
        "std": tuple((std.flatten().expand(channels) / 255).tolist()),
        "pad_multiple": tested.get("size_divisor") or 1,
        "pad_value": getattr(module, "pad_value", 0),
    }
    return found, [f"data_preprocessor.test_cfg.{name}" for name in tested if name != "size_divisor"]
