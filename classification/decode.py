"""Pictures out of image files: whole, as evaluation wants them, or a crop at the size of the network's input.

Reading is most of what training data costs, so a crop takes the short ways that leave its pixels as they are. Baseline
and progressive JPEGs are decoded by libjpeg-turbo straight into the array that is resized (the same pixels as
Pillow's), and PyTorch's resampling of bytes differs from Pillow's by one level at most. Decoding large pictures at a
reduced scale was tried and gains nothing: most of the time goes into the entropy code, which is read whole anyway.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from backbones.errors import first_line
from engine.data.image_files import PILLOW_ERRORS, DamagedImage, read_image_bytes

Crop = tuple[int, int, int, int]


def read_rgb(path: str) -> Image.Image:
    """Three channels of 8 bits, from any kind of image file.

    Raises:
        DamagedImage: If it gives no picture.
    """
    with _opened(path, read_image_bytes(path)) as image:
        return _rgb(image)


def read_crop(path: str, draw: Callable[[Image.Image], Crop], side: int) -> np.ndarray:
    """Cut a rectangle out of an image file and resize it to a square by antialiased bicubic resampling.

    Args:
        path: Any kind of image file.
        draw: From an image, whose size alone is known yet, to top, left, height and width in its pixels.
        side: Of the result, in pixels.

    Returns:
        ``(side, side, 3)``, uint8. Within one level of ``read_rgb(path).crop(...).resize((side, side), BICUBIC)``.

    Raises:
        DamagedImage: If the file gives no picture.
    """
    content = read_image_bytes(path)
    with _opened(path, content) as image:
        top, left, height, width = draw(image)
        jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
        pixels = _decoded(content) if jpeg else None
        if pixels is None:
            pixels = torch.from_numpy(np.array(_rgb(image)))
    # In one piece, and the channels last in memory: only then is the result too.
    part = pixels[None, top : top + height, left : left + width].contiguous().permute(0, 3, 1, 2)
    resized: Tensor = interpolate(part, (side, side), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


@contextmanager
def _opened(path: str, content: bytes) -> Iterator[Image.Image]:
    """An image of which no pixel is decoded yet; what goes wrong with it is told in one line."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode in ("I", "F"):
                raise DamagedImage.of(path, "has 32-bit pixels, whose black and white are not known: convert to 8 bits")
            yield image
    except DamagedImage:
        raise
    except UnidentifiedImageError as error:
        raise DamagedImage.of(path, "cannot be decoded: it is damaged, or no image") from error
    except PILLOW_ERRORS as error:
        raise DamagedImage.of(path, f"cannot be decoded: {first_line(error)}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits, from any kind of image."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts 16-bit grey off at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _decoded(content: bytes) -> Tensor | None:
    """A JPEG's pixels ``(H, W, 3)``; ``None`` where Pillow is to say whether it is damaged.

    torchvision refuses all that Pillow refuses, which OpenCV does not: that would give a half grey picture.
    """
    try:
        # A copy of the file's bytes, since a tensor cannot be read-only.
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).permute(1, 2, 0)
    except RuntimeError:
        return None
