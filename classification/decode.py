"""Decoding of image files: the whole picture for evaluation, or a crop at the network's input size for training.

Decoding is most of the cost of training data, so crops take the short cuts that leave pixels unchanged. Baseline and
progressive JPEGs are decoded by libjpeg-turbo, and PNGs without extras by libpng, straight into the array that is
resized (the pixels are Pillow's), and PyTorch's resampling of bytes differs from Pillow's by one level at most.
Decoding large pictures at a reduced scale was tried and gains nothing: most of the time goes into the entropy code,
which is decoded in full anyway.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from backbones.errors import first_line
from engine.data.image_files import PILLOW_ERRORS, DamagedImageError, read_image_bytes, undecodable_reason

Crop = tuple[int, int, int, int]  # top, left, height, width

START_OF_FRAME_MARKERS = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended, progressive
# Markers of the segments that Pillow accepts without further checks, with their minimum lengths.
PLAIN_SEGMENTS = {
    **dict.fromkeys(START_OF_FRAME_MARKERS, 11),
    **dict.fromkeys((0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE), 2),  # Huffman and quantization tables, restart interval, comment
    **dict.fromkeys((0xFFE0, 0xFFEE), 9),  # JFIF, Adobe
}
START_OF_SCAN_MARKER = 0xFFDA
_SEGMENT_HEADER = struct.Struct(">HH")  # marker, length
_FRAME_HEADER = struct.Struct(">BHHB")  # bits, height, width, channels
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_START = PNG_SIGNATURE + b"\0\0\0\rIHDR"  # with length and name of the first chunk
PLAIN_PNG_COLOURS = (0, 2)  # grey, RGB
_PNG_HEADER = struct.Struct(">II5B")  # width, height, bits, colours; compression, filters, interlacing
_PNG_CHUNK = struct.Struct(">I4s")  # length, name
_PNG_LENGTH_BYTES = 4  # of a chunk, which its checksum leaves out
_PNG_CHECKSUM = struct.Struct(">I")


def read_rgb(path: str) -> Image.Image:
    """Decode an image file of any kind to RGB with 8 bits per channel.

    Args:
        path: Image file.

    Raises:
        DamagedImageError: If the file cannot be decoded.
    """
    with _open_image(path, read_image_bytes(path)) as image:
        return _to_rgb(image)


def read_crop(path: str, choose_crop: Callable[[Tensor], Crop], size: int) -> np.ndarray:
    """Crop an image file and resize the crop to a square by antialiased bicubic resampling.

    Args:
        path: Image file of any kind.
        choose_crop: Function from the image ``(3, H, W)`` to a crop in its pixels.
        size: Side of the output in pixels.

    Returns:
        Image ``(size, size, 3)``, uint8, within one level of
        ``read_rgb(path).crop(...).resize((size, size), BICUBIC)``.

    Raises:
        DamagedImageError: If the file cannot be decoded.
    """
    pixels = _decode(path, read_image_bytes(path))
    top, left, height, width = choose_crop(pixels.permute(2, 0, 1))
    # Contiguous with the channels last: only then the result is too. NumPy takes and turns parts faster than torch.
    part = np.ascontiguousarray(pixels.numpy()[top : top + height, left : left + width])
    channels_last = torch.from_numpy(part.reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    resized: Tensor = interpolate(channels_last, (size, size), mode="bicubic", antialias=True)
    return resized.numpy()[0].transpose(1, 2, 0)


def is_plain_jpeg(content: bytes) -> bool:
    """Whether a file is a grey or RGB JPEG that Pillow is certain to open.

    The segments are read up to the first scan, in a tenth of the time that Pillow needs to open the file. With other
    segments than ``PLAIN_SEGMENTS``, such as EXIF, colour profiles or further pictures, only Pillow can tell: it parses
    them and may refuse them, while libjpeg ignores them.

    Args:
        content: Bytes of the whole file.
    """
    plain, place = False, 2
    try:
        while (segment := _SEGMENT_HEADER.unpack_from(content, place))[0] != START_OF_SCAN_MARKER:
            marker, length = segment
            if length < PLAIN_SEGMENTS.get(marker, math.inf):
                return False
            if marker in START_OF_FRAME_MARKERS:
                bits, height, width, channels = _FRAME_HEADER.unpack_from(content, place + 4)
                fits = 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
                plain = fits and bits == 8 and channels in (1, 3)
            place += 2 + length
    except struct.error:  # the file ends here
        return False
    return plain and content.startswith(b"\xff\xd8")


def is_plain_png(content: bytes) -> bool:
    """Whether a file is a grey or RGB PNG of 8 bits, not interlaced, whole, and with nothing but its pixels.

    Of these libpng and Pillow give the same pixels. What else a file may have, such as a transparent colour or a
    profile, Pillow judges in its own way, and libpng would print what it thinks of a wrong checksum.

    Args:
        content: Bytes of the whole file.
    """
    if not content.startswith(PNG_START):
        return False
    whole, place, names = memoryview(content), len(PNG_SIGNATURE), []
    try:
        while place < len(content):
            length, name = _PNG_CHUNK.unpack_from(content, place)
            names.append(name)
            end = place + _PNG_CHUNK.size + length
            if _PNG_CHECKSUM.unpack_from(content, end)[0] != zlib.crc32(whole[place + _PNG_LENGTH_BYTES : end]):
                return False
            place = end + _PNG_CHECKSUM.size
        width, height, bits, colours, *ways = _PNG_HEADER.unpack_from(content, len(PNG_START))
    except struct.error:  # the file ends here
        return False
    fits = 0 < width * height <= (Image.MAX_IMAGE_PIXELS or math.inf)
    plain = fits and bits == 8 and colours in PLAIN_PNG_COLOURS and not any(ways)
    return plain and names[-1] == b"IEND" and set(names[1:-1]) == {b"IDAT"}


def _decode(path: str, content: bytes) -> Tensor:
    """Decode the content of an image file to ``(H, W, 3)``, uint8."""
    for is_plain, decode in ((is_plain_jpeg, _decode_jpeg), (is_plain_png, _decode_png)):
        if is_plain(content) and (pixels := decode(content)) is not None:
            return pixels
    with _open_image(path, content) as image:
        jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
        pixels = _decode_jpeg(content) if jpeg else None
        # Pillow copies an image that is RGB already.
        rgb = image if image.mode == "RGB" else _to_rgb(image)
        return torch.from_numpy(np.array(rgb)) if pixels is None else pixels


@contextmanager
def _open_image(path: str, content: bytes) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels; errors inside of the context become a ``DamagedImageError``."""
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
        raise DamagedImageError.of(path, undecodable_reason(content)) from error
    except PILLOW_ERRORS as error:
        raise DamagedImageError.of(path, f"cannot be decoded: {first_line(error)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _decode_jpeg(content: bytes) -> Tensor | None:
    """Decode a JPEG to ``(H, W, 3)``, uint8; ``None`` where Pillow has to decide whether it is damaged.

    torchvision refuses whatever Pillow refuses; OpenCV does not and would return a half grey picture.
    """
    return _decoded(decode_jpeg, content)


def _decode_png(content: bytes) -> Tensor | None:
    """Decode a PNG in the same way as a JPEG."""
    return _decoded(decode_png, content)


def _decoded(decode: Callable[..., Tensor], content: bytes) -> Tensor | None:
    try:
        # A copy of the bytes, since a tensor cannot be read-only.
        return decode(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).permute(1, 2, 0)
    except RuntimeError:
        return None
