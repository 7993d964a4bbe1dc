"""Image files on disk: whether one is complete, and what its header says, without decoding it."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from backbones.bands import ChannelCountError, decode_bands
from backbones.errors import DataError, first_line, printable
from backbones.file_kinds import SIGNATURE_BYTES, describe_content, truncation
from backbones.files import describe_special, open_file
from engine.data.orientation import ORIENTATION_TAG, SIDEWAYS_ORIENTATIONS, Size
from engine.data.stored_image import StoredImage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# Of pictures that are not read: animations, drawings, formats of phones, raw data of cameras.
OTHER_SUFFIXES = (
    *(".gif", ".apng", ".svg", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jfif", ".jpe", ".pgm", ".pnm"),
    *(".tga", ".psd", ".exr", ".hdr", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
HEAD_BYTES, TAIL_BYTES = 65536, 4096  # read from a file whose pixels are not needed
LABEL_MODES = ("L", "P", "1", "I;16", "I")  # Pillow's modes of one channel of whole numbers
OPENCV_MAX_PIXELS = 2**30  # OpenCV refuses to decode more
MAX_LABEL_VALUES = 300  # distinct values kept of one label image
# Exceptions of Pillow's readers for damaged files.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, Image.DecompressionBombError)


class DamagedImageError(DataError):
    """An image file that cannot be decoded to a picture; the message is one line that names it.

    Attributes:
        path: Image file; empty after torch has made the error anew from the message of a worker's error.
        reason: Description of the damage.
    """

    path = ""
    reason = ""

    @classmethod
    def of(cls, path: str | Path, reason: str) -> DamagedImageError:
        """Create the error for a file; the reason continues a sentence that starts with the file."""
        error = cls(f"{printable(path)}: {reason}")
        error.path, error.reason = str(path), reason
        return error


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of an image file, from its header, beginning and end.

    Attributes:
        problem: Kind and description of the damage; ``None`` for a readable file.
        digest: Hash of size, beginning and end of the file; equal for copies.
        format: Pillow's name of the format.
        size: Stored width and height in pixels, before any rotation.
        mode: Pillow's mode.
        bits: Bits per channel.
        orientation: EXIF orientation, 1 for upright.
        frames: Number of pictures; 2 stands for more than one.
        transparent: Whether there is an alpha channel or a transparent colour.
        value_counts: Number of pixels of each value, for a label image whose values were asked for.
        values: Smallest and largest value of an image with a stated number of channels.
    """

    problem: tuple[str, str] | None = None
    digest: int = 0
    format: str = ""
    size: Size = (0, 0)
    mode: str = ""
    bits: int = 8
    orientation: int = 1
    frames: int = 1
    transparent: bool = False
    value_counts: dict[int, int] | None = None
    values: tuple[float, float] = (0, 255)

    @property
    def upright_size(self) -> Size:
        """Width and height after the rotation by EXIF orientation."""
        return self.size[::-1] if self.orientation in SIDEWAYS_ORIENTATIONS else self.size


def read_image_bytes(path: str, backend_args: dict[str, Any] | None = None) -> bytes:
    """Read an image file and check that it is complete.

    Decoders turn some truncated files into pictures with a grey or black lower part, without an error.

    Args:
        path: File, image in a shard, or an address that mmengine's file backends know.
        backend_args: Arguments of the file backend.

    Raises:
        DamagedImageError: If the file is missing, empty or truncated.
    """
    if not isinstance(path, StoredImage) and (special := describe_special(path)):
        raise DamagedImageError.of(path, special)
    try:
        content = _read_all(path, backend_args)
    except FileNotFoundError as error:
        raise DamagedImageError.of(path, missing_reason(path)) from error
    except OSError as error:
        raise DamagedImageError.of(path, f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise DamagedImageError.of(path, "is empty (0 bytes)")
    if reason := truncation(content[:HEAD_BYTES], content[-TAIL_BYTES:], len(content), lambda: content):
        raise DamagedImageError.of(path, reason)
    return content


def _read_all(path: str, backend_args: dict[str, Any] | None) -> bytes:
    content: bytes
    if isinstance(path, StoredImage):
        return path.read()
    if backend_args is None and "://" not in path:  # mmengine's backends take longer than a small file
        with open(path, "rb", buffering=0) as file:
            return file.read()
    content = fileio.get(path, backend_args=backend_args)
    return content


def read_bands(path: str, channels: int, backend_args: dict[str, Any] | None = None) -> np.ndarray:
    """Read an image of any number of channels, see :func:`backbones.bands.decode_bands`.

    Raises:
        DamagedImageError: If the file is missing, truncated or cannot be decoded.
        DataError: If it has another number of channels.
    """
    content = read_image_bytes(path, backend_args)
    try:
        return decode_bands(content, channels)
    except ChannelCountError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    except (ValueError, MemoryError, cv2.error) as error:
        raise DamagedImageError.of(path, first_line(error)) from error


def image_suffixes(channels: int | None) -> tuple[str, ...]:
    """Suffixes of the files that are read as images of a number of channels, ``None`` for colour images."""
    return IMAGE_SUFFIXES if channels is None else (*IMAGE_SUFFIXES, ".npy")


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that refuses a truncated file and says in one line what is wrong with it.

    Registered in mmengine's root registry, so that configs of mmdet and mmseg find it by this name.

    Args:
        channels: Number of channels, read with the values of the file; ``None`` for colours of 8 bits.
        **settings: Arguments of ``LoadImageFromFile``.
    """

    def __init__(self, channels: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.channels = channels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load ``img_path``.

        Raises:
            DamagedImageError: If the file is missing, truncated or cannot be decoded.
            DataError: If it has another number of channels than stated.
        """
        path = results["img_path"]
        channels, backend_args = self.channels, self.backend_args
        image = self._read_colours(path) if channels is None else read_bands(path, channels, backend_args)
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _read_colours(self, path: str) -> np.ndarray:
        content = read_image_bytes(path, self.backend_args)
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        except (*PILLOW_ERRORS, cv2.error) as error:
            raise DamagedImageError.of(path, f"cannot be decoded: {first_line(error)}") from error
        if image is None:
            raise DamagedImageError.of(path, undecodable_reason(content, "damaged, of 32-bit pixels, or no image"))
        return image


def missing_reason(path: str) -> str:
    """Description of a file that does not exist."""
    if "\\" not in path:
        return "is missing"
    return "is missing: its name has backslashes, which separate folders on Windows alone; write / in the annotations"


def read_stored_values(path: str, backend_args: dict[str, Any] | None = None) -> np.ndarray:
    """Read an image file whose pixels are labels or ids: (H, W), or (H, W, C), with the values of the file.

    Args:
        path: Image file.
        backend_args: Arguments of mmengine's file backend.

    Raises:
        DamagedImageError: If the file is missing, truncated or cannot be decoded.
    """
    content = read_image_bytes(path, backend_args)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image)
    except UnidentifiedImageError as error:
        raise DamagedImageError.of(path, undecodable_reason(content)) from error
    except PILLOW_ERRORS as error:
        raise DamagedImageError.of(path, f"cannot be decoded: {first_line(error)}") from error


def undecodable_reason(content: bytes, guess: str = "damaged, or no image") -> str:
    """Description of a file that no decoder takes.

    Args:
        content: The file, or its beginning.
        guess: Guess for a file of no known other kind.
    """
    known = describe_content(content[:SIGNATURE_BYTES])
    return f"cannot be decoded: it {known or f'is {guess}'}"


def inspect_image(path: str, decode: bool = False, values: bool = False, channels: int | None = None) -> ImageInfo:
    """Read header, beginning and end of an image file.

    Args:
        path: Image file.
        decode: Whether to decode the pixels too, which finds damage inside the file.
        values: Whether to count the values of a label image, which decodes it.
        channels: Number of channels as which the image is read, and decoded; ``None`` for colour images.

    Returns:
        Properties of the image. Damage is part of them and never raised.
    """
    info = _inspect_header(path, decode and channels is None, values)
    damage = (info.problem or ("",))[0].partition(" ")[0]  # what Pillow does not know may be an image of many bands
    return info if channels is None or damage not in ("", "no", "damaged") else _inspect_bands(path, channels, info)


def _inspect_bands(path: str, channels: int, info: ImageInfo) -> ImageInfo:
    try:
        image = read_bands(path, channels)
    except DamagedImageError as error:
        return ImageInfo(("damaged image", error.reason))
    except DataError as error:
        return ImageInfo(("channels of image", str(error).removeprefix(f"{printable(path)}: ")))
    if info.problem or channels > 1:  # Pillow sees the first of the pages that hold the bands
        info = replace(info, size=image.shape[1::-1], frames=1)
    digest = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "big")
    extremes = float(image.min()), float(image.max())
    bands = replace(info, problem=None, digest=digest, values=extremes)
    return replace(bands, mode="RGB", bits=8, transparent=False)  # nothing is converted, nothing to warn about


def _inspect_header(path: str, decode: bool, values: bool) -> ImageInfo:
    try:
        if isinstance(path, StoredImage):
            content = path.read()
            return _inspect_file(io.BytesIO(content), len(content), decode, values)
        with open_file(path) as file:
            return _inspect_file(file, os.fstat(file.fileno()).st_size, decode, values)
    except FileNotFoundError:
        return ImageInfo(("missing image", missing_reason(path)))
    except OSError as error:  # permissions, a folder in its place, a disk that fails
        return ImageInfo(("unreadable image", f"cannot be read: {error.strerror or error}"))
    except DataError as error:  # a shard that has changed
        return ImageInfo(("unreadable image", str(error).partition(": ")[2]))
    except ValueError as error:  # a name that cannot be a file's
        return ImageInfo(("missing image", f"is no name of a file: {error}"))


def _inspect_file(file: BinaryIO, size: int, decode: bool, values: bool) -> ImageInfo:
    if not size:
        return ImageInfo(("empty image", "is empty (0 bytes)"))
    head = file.read(HEAD_BYTES)
    tail = head[-TAIL_BYTES:]
    if size > HEAD_BYTES:
        file.seek(-TAIL_BYTES, os.SEEK_END)
        tail = file.read()
    digest = hashlib.blake2b(head + tail + size.to_bytes(8, "big"), digest_size=8).digest()

    def read_all() -> bytes:
        file.seek(0)
        return file.read()

    if reason := truncation(head, tail, size, read_all):
        return ImageInfo(("truncated image", reason))
    file.seek(0)
    with _unlimited_pixels(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about metadata
        try:
            with Image.open(file) as image:
                return _image_info(image, head, size, int.from_bytes(digest, "big"), decode, values)
        except UnidentifiedImageError:
            known = describe_content(head[:SIGNATURE_BYTES])
            return ImageInfo(("no image", known or f"is no image (it begins with {head[:8]!r})"))
        except (*PILLOW_ERRORS, MemoryError) as error:
            return ImageInfo(("damaged image", f"cannot be decoded: {first_line(error)}"))


@contextmanager
def _unlimited_pixels() -> Iterator[None]:
    """Lift Pillow's limit, which would hide the size of a huge image."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _image_info(image: Image.Image, head: bytes, size: int, digest: int, decode: bool, values: bool) -> ImageInfo:
    if image.format == "TIFF" and (reason := _tiff_truncation(image, size)):
        return ImageInfo(("truncated image", reason))
    value_counts, readable = None, image.width * image.height <= OPENCV_MAX_PIXELS  # decoding more may take all memory
    frames = 2 if getattr(image, "is_animated", False) else 1
    mode, transparent = image.mode, "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if values and mode in LABEL_MODES and readable:
        labels, pixels = np.unique(np.asarray(image), return_counts=True)
        kept = slice(MAX_LABEL_VALUES)
        value_counts = dict(zip(labels[kept].astype(int).tolist(), pixels[kept].tolist(), strict=True))
    elif (decode or values) and readable:
        image.load()
    return ImageInfo(
        digest=digest,
        format=image.format or "",
        size=_stored_size(image),
        mode=mode,
        bits=_bits(image, head, mode),
        orientation=_orientation(image),
        frames=frames,
        transparent=transparent,
        value_counts=value_counts,
    )


def _stored_size(image: Image.Image) -> Size:
    if image.format != "TIFF":
        return image.size
    width, height = (image.tag_v2[tag] for tag in (256, 257))  # type: ignore[attr-defined]
    return width, height  # Pillow's size of a TIFF is that of the upright picture


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 for upright; not the one in XMP data, which decoders do not read."""
    if image.format == "TIFF":
        value = image.tag_v2.get(ORIENTATION_TAG)  # type: ignore[attr-defined]
    else:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        value = exif.get(ORIENTATION_TAG)
    return value if value in range(1, 9) else 1


def _bits(image: Image.Image, head: bytes, mode: str) -> int:
    if mode.startswith(("I", "F")):
        return 16 if mode.startswith("I;16") else 32
    if image.format == "PNG" and len(head) > 24:
        return max(8, head[24])
    if image.format == "TIFF":
        return max(8, *np.ravel(image.tag_v2.get(258, 8)).tolist())  # type: ignore[attr-defined]
    return 8


def _tiff_truncation(image: Image.Image, size: int) -> str | None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    for starts, lengths in ((273, 279), (324, 325)):  # of strips, of tiles
        ends = [at + length for at, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)]
        if ends and max(ends) > size:
            return f"is cut off: {size:,} of {max(ends):,} bytes"
    return None
