"""Image files on disk: whether one is complete, and what its header says, without decoding it."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from backbones.errors import DataError, first_line, printable
from backbones.file_kinds import SIGNATURE_BYTES, describe_content
from engine.data.orientation import ORIENTATION_TAG, SIDEWAYS_ORIENTATIONS, Size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
HEAD_BYTES, TAIL_BYTES = 65536, 4096  # read from a file whose pixels are not needed
LABEL_MODES = ("L", "P", "1", "I;16", "I")  # Pillow's modes of one channel of whole numbers
MAX_LABEL_VALUES = 300  # distinct values kept of one label image
# Exceptions of Pillow's readers for damaged files.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, Image.DecompressionBombError)
PPM_HEADER = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


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

    @property
    def upright_size(self) -> Size:
        """Width and height after the rotation by EXIF orientation."""
        return self.size[::-1] if self.orientation in SIDEWAYS_ORIENTATIONS else self.size


def read_image_bytes(path: str, backend_args: dict[str, Any] | None = None) -> bytes:
    """Read an image file and check that it is complete.

    Decoders turn some truncated files into pictures with a grey or black lower part, without an error.

    Args:
        path: File, or an address that mmengine's file backends know.
        backend_args: Arguments of the file backend.

    Raises:
        DamagedImageError: If the file is missing, empty or truncated.
    """
    try:
        content: bytes = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise DamagedImageError.of(path, missing_reason(path)) from error
    except OSError as error:
        raise DamagedImageError.of(path, f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise DamagedImageError.of(path, "is empty (0 bytes)")
    if reason := truncation(content[:HEAD_BYTES], content[-TAIL_BYTES:], len(content), lambda: content):
        raise DamagedImageError.of(path, reason)
    return content


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that refuses a truncated file and says in one line what is wrong with it.

    Registered in mmengine's root registry, so that configs of mmdet and mmseg find it by this name.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load ``img_path``.

        Raises:
            DamagedImageError: If the file is missing, truncated or cannot be decoded.
        """
        path = results["img_path"]
        content = read_image_bytes(path, self.backend_args)
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        except (*PILLOW_ERRORS, cv2.error) as error:
            raise DamagedImageError.of(path, f"cannot be decoded: {first_line(error)}") from error
        if image is None:
            raise DamagedImageError.of(path, undecodable_reason(content, "damaged, of 32-bit pixels, or no image"))
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def missing_reason(path: str) -> str:
    """Description of a file that does not exist."""
    if "\\" not in path:
        return "is missing"
    return "is missing: its name has backslashes, which separate folders on Windows alone; write / in the annotations"


def undecodable_reason(content: bytes, guess: str = "damaged, or no image") -> str:
    """Description of a file that no decoder takes.

    Args:
        content: The file, or its beginning.
        guess: Guess for a file of no known other kind.
    """
    known = describe_content(content[:SIGNATURE_BYTES])
    return f"cannot be decoded: it {known or f'is {guess}'}"


def truncation(head: bytes, tail: bytes, size: int, read_all: Callable[[], bytes]) -> str | None:
    """Whether a file ends before its picture does, as far as that shows without decoding.

    Args:
        head: First bytes of the file.
        tail: Last bytes of the file.
        size: Length of the file in bytes.
        read_all: Returns the whole file; called for the few files without an end marker in the last bytes.

    Returns:
        Description of the truncation, or ``None`` if there is none.
    """
    if head.startswith(b"\xff\xd8"):
        # Cameras and disks add zeros after the end marker; a marker elsewhere is searched in the whole file.
        ended = tail.rstrip(b"\0").endswith(b"\xff\xd9") or _jpeg_ends(read_all())
        return None if ended else f"is cut off after {size:,} bytes: the end marker of a JPEG is absent"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        ended = b"IEND\xaeB`\x82" in tail or b"IEND\xaeB`\x82" in read_all()
        return None if ended else f"is cut off after {size:,} bytes: the end chunk of a PNG is absent"
    if head.startswith((b"GIF87a", b"GIF89a")):
        ended = tail.rstrip(b"\0").endswith(b"\0;")
        return None if ended else f"is cut off after {size:,} bytes: the end marker of a GIF is absent"
    expected = _stated_length(head)
    return f"is cut off: {size:,} of {expected:,} bytes" if expected > size else None


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end marker follows the first scan; a thumbnail before the scan has an end marker of its own."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker == b"\xff":
            place += 1
            continue
        if marker == b"\xda":
            return content.find(b"\xff\xd9", place) >= 0
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _stated_length(head: bytes) -> int:
    """Length in bytes that the header of a WebP, BMP or PPM file states, 0 for other formats."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8
    if head.startswith(b"BM") and len(head) >= 34 and int.from_bytes(head[30:34], "little") == 0:
        width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
        bits = int.from_bytes(head[28:30], "little")
        return int.from_bytes(head[10:14], "little") + abs(height) * ((abs(width) * bits + 31) // 32 * 4)
    if match := PPM_HEADER.match(head):
        width, height, max_value = (int(match[i]) for i in (2, 3, 4))
        return match.end() + width * height * (3 if match[1] == b"6" else 1) * (2 if max_value > 255 else 1)
    return 0


def inspect_image(path: str, decode: bool = False, values: bool = False) -> ImageInfo:
    """Read header, beginning and end of an image file.

    Args:
        path: Image file.
        decode: Whether to decode the pixels too, which finds damage inside the file.
        values: Whether to count the values of a label image, which decodes it.

    Returns:
        Properties of the image. Damage is part of them and never raised.
    """
    try:
        with open(path, "rb") as file:
            return _inspect_file(file, decode, values)
    except FileNotFoundError:
        return ImageInfo(("missing image", missing_reason(path)))
    except OSError as error:  # permissions, a folder in its place, a disk that fails
        return ImageInfo(("unreadable image", f"cannot be read: {error.strerror or error}"))
    except ValueError as error:  # a name that cannot be a file's
        return ImageInfo(("missing image", f"is no name of a file: {error}"))


def _inspect_file(file: BinaryIO, decode: bool, values: bool) -> ImageInfo:
    size = os.fstat(file.fileno()).st_size
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
    value_counts = None
    frames = 2 if getattr(image, "is_animated", False) else 1
    mode, transparent = image.mode, "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if values and mode in LABEL_MODES:
        labels, pixels = np.unique(np.asarray(image), return_counts=True)
        kept = slice(MAX_LABEL_VALUES)
        value_counts = dict(zip(labels[kept].astype(int).tolist(), pixels[kept].tolist(), strict=True))
    elif decode or values:
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
