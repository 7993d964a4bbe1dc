"""Pictures out of image files: whole, as evaluation wants them, or a crop at the size of the network's input.

Reading is most of what training data costs, so a crop takes the short ways that leave its pixels as they are. Baseline
and progressive JPEGs are decoded by libjpeg-turbo straight into the array that is resized (the same pixels as
Pillow's), and PyTorch's resampling of bytes differs from Pillow's by one level at most. Decoding large pictures at a
reduced scale was tried and gains nothing: most of the time goes into the entropy code, which is read whole anyway.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from backbones.errors import first_line
from engine.data.image_files import PILLOW_ERRORS, DamagedImageError, read_image_bytes

Crop = tuple[int, int, int, int]

FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # markers of a JPEG's segment with the size: baseline, extended, progressive
# Segments that Pillow takes as they are on opening, if they are as long as this.
PLAIN_SEGMENTS = {
    **dict.fromkeys(FRAMES, 11),
    **dict.fromkeys((0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE), 2),  # code and quantization tables, restarts, comment
    **dict.fromkeys((0xFFE0, 0xFFEE), 9),  # JFIF, Adobe
}
START_OF_SCAN = 0xFFDA
SEGMENT = struct.Struct(">HH").unpack_from  # marker and length
FRAME = struct.Struct(">BHHB").unpack_from  # bits, height, width and channels


def read_rgb(path: str) -> Image.Image:
    """Three channels of 8 bits, from any kind of image file.

    Raises:
        DamagedImageError: If it gives no picture.
    """
    with _opened(path, read_image_bytes(path)) as image:
        return _rgb(image)


def read_crop(path: str, draw: Callable[[Tensor], Crop], side: int) -> np.ndarray:
    """Cut a rectangle out of an image file and resize it to a square by antialiased bicubic resampling.

    Args:
        path: Any kind of image file.
        draw: From the picture ``(3, H, W)`` to top, left, height and width in its pixels.
        side: Of the result, in pixels.

    Returns:
        ``(side, side, 3)``, uint8. Within one level of ``read_rgb(path).crop(...).resize((side, side), BICUBIC)``.

    Raises:
        DamagedImageError: If the file gives no picture.
    """
    pixels = _pixels(path, read_image_bytes(path))
    top, left, height, width = draw(pixels.permute(2, 0, 1))
    # In one piece, and the channels last in memory: only then is the result too.
    part = pixels[None, top : top + height, left : left + width].contiguous().permute(0, 3, 1, 2)
    resized: Tensor = interpolate(part, (side, side), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def is_plain_jpeg(content: bytes) -> bool:
    """Whether a file is a JPEG of grey or of three colours that Pillow opens for sure.

    Its segments are walked up to the first scan, in a tenth of the time of opening it. Only Pillow can tell where there
    are others than ``PLAIN_SEGMENTS``, such as EXIF, colour profiles and further pictures: it reads them on opening and
    may refuse them, libjpeg does not look at them.

    Args:
        content: Of the whole file.
    """
    plain, place = False, 2
    try:
        while (segment := SEGMENT(content, place))[0] != START_OF_SCAN:
            marker, length = segment
            if length < PLAIN_SEGMENTS.get(marker, math.inf):
                return False
            if marker in FRAMES:
                bits, height, width, channels = FRAME(content, place + 4)
                few = 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
                plain = few and bits == 8 and channels in (1, 3)
            place += 2 + length
    except struct.error:  # the file ends here
        return False
    return plain and content.startswith(b"\xff\xd8")


def _pixels(path: str, content: bytes) -> Tensor:
    """Of any kind of image file: ``(H, W, 3)``, uint8."""
    if is_plain_jpeg(content) and (pixels := _decoded(content)) is not None:
        return pixels
    with _opened(path, content) as image:
        jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
        pixels = _decoded(content) if jpeg else None
        return torch.from_numpy(np.array(_rgb(image))) if pixels is None else pixels


@contextmanager
def _opened(path: str, content: bytes) -> Iterator[Image.Image]:
    """An image of which no pixel is decoded yet; what goes wrong with it is told in one line."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode in ("I", "F"):
                raise DamagedImageError.of(
                    path, "has 32-bit pixels, whose black and white are not known: convert to 8 bits"
                )
            yield image
    except DamagedImageError:
        raise
    except UnidentifiedImageError as error:
        raise DamagedImageError.of(path, "cannot be decoded: it is damaged, or no image") from error
    except PILLOW_ERRORS as error:
        raise DamagedImageError.of(path, f"cannot be decoded: {first_line(error)}") from error


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
