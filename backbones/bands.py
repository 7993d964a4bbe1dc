"""Reading images with another number of channels than three: grey, multi-band TIFF, NumPy arrays, colours with alpha.

Values are those in the file, whatever its bits: nothing is scaled. Bands keep the order of the file; colours are RGB.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
import tifffile
from PIL import Image

from backbones.errors import first_line
from backbones.file_kinds import SIGNATURE_BYTES, describe_content

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: files of more than 4 GiB
OPENCV_BANDS = 4  # in a TIFF that OpenCV reads
PICTURE_BANDS = 3
PICTURE_PERCENTILES = (1, 99)  # of the values that become black and white


class ChannelCountError(ValueError):
    """An image with another number of channels than asked for; the message continues a sentence about the file."""


def decode_bands(content: bytes, channels: int) -> np.ndarray:
    """Decode an image file of any number of channels.

    JPEG, WebP and the like become grey for one channel, turned by their EXIF orientation as OpenCV does; PNG and WebP
    with alpha have four, RGBA. A TIFF may hold its bands side by side, one after another, or as pages. Palettes are not
    resolved in TIFF.

    Args:
        content: Bytes of the file.
        channels: Number of channels.

    Returns:
        ``(H, W)`` for one channel, as OpenCV and the libraries have it, else ``(H, W, C)``; uint8 where the file has 8
        bits, else float32.

    Raises:
        ChannelCountError: If the file has another number of channels.
        ValueError: If the file cannot be decoded, or has values that are not finite; the message continues a sentence
            about the file.
    """
    if content.startswith(NPY_MAGIC):
        try:
            image = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise ValueError(f"cannot be decoded: {first_line(error)}") from error
    elif content.startswith(TIFF_MAGICS):
        image = _decode_tiff(content, channels)
    else:
        image = _decode_opencv(content, channels)
    if image is None:
        known = describe_content(content[:SIGNATURE_BYTES])
        raise ValueError(f"cannot be decoded: it {known or 'is damaged, or no image'}")
    return _checked(image, channels)


def _decode_opencv(content: bytes, channels: int) -> np.ndarray | None:
    """Grey for one channel, else the channels of the file with the colours in the order RGB; ``None`` if refused."""
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH if channels == 1 else cv2.IMREAD_UNCHANGED
    image: np.ndarray | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None or image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _decode_tiff(content: bytes, channels: int) -> np.ndarray:
    """The first series of a TIFF with the bands last; grey by OpenCV, compressions that tifffile lacks by Pillow."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page, by_opencv = file.pages[0], file.pages[0].samplesperpixel <= OPENCV_BANDS
            if channels == 1 and by_opencv and (image := _decode_opencv(content, channels)) is not None:
                return image
            axes = file.series[0].axes
            image = file.series[0].asarray()
    except Exception as error:  # tifffile raises many kinds for damaged files
        if "imagecodecs" in str(error):
            if by_opencv and page.bitspersample == 8:  # Pillow has no colours of 16 bits; OpenCV multiplies by alpha
                return np.asarray(Image.open(io.BytesIO(content)))
            what = str(error).strip("\"'<").partition(":")[0]
            raise ValueError(
                f"is compressed in a way that is not read here ({what}): save it uncompressed or by deflate"
            ) from error
        raise ValueError(f"cannot be decoded: {first_line(error)}") from error
    # tifffile.imwrite takes an array (H, W, C) for H pages of W x C if it is not told otherwise.
    last = image.ndim == 3 and image.shape[0] != channels == image.shape[2]
    return np.moveaxis(image, 0, -1) if image.ndim == 3 and axes.endswith("YX") and not last else image


def _checked(image: np.ndarray, channels: int) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    shape = " x ".join(map(str, image.shape))
    if image.ndim != 3 or not image.size:
        raise ValueError(f"holds an array of {shape or 'a single value'}: height x width x channels is needed")
    if image.shape[2] != channels:
        first = image.shape[0] == channels
        turned = f" (an array of {shape}: the channels have to be the last axis)" if first else ""
        number = f"{image.shape[2]} channel{'s' if image.shape[2] > 1 else ''}"
        raise ChannelCountError(f"has {number}, model.backbone.in_channels is {channels}{turned}")
    if image.dtype.kind not in "buif":
        raise ValueError(f"holds values of the type {image.dtype}: numbers are needed")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ValueError(f"has {count:,} values that are not finite (NaN or Inf): set them to a number, such as 0")
    image = image.astype(np.uint8 if image.dtype.kind == "b" or image.dtype == np.uint8 else np.float32)
    return np.ascontiguousarray(image[..., 0] if channels == 1 else image)


def as_picture(image: np.ndarray) -> np.ndarray:
    """A picture to look at: one channel, or two, in grey, of several the first three as red, green and blue.

    Args:
        image: Result of :func:`decode_bands`; values of more than 8 bits are scaled, each band by itself.

    Returns:
        uint8, ``(H, W, 3)``.
    """
    bands = image[..., None] if image.ndim == 2 else image
    bands = bands[..., :PICTURE_BANDS] if bands.shape[2] >= PICTURE_BANDS else bands[..., :1]
    if bands.dtype != np.uint8:
        low, high = (np.percentile(bands, share, axis=(0, 1)) for share in PICTURE_PERCENTILES)
        bands = (255 * (bands - low) / np.maximum(high - low, 1e-12)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(bands, (*bands.shape[:2], PICTURE_BANDS)))
