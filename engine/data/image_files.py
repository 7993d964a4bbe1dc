"""Image files as they lie on a disk: whether one is whole, and what its header says, without decoding it."""

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

from backbones.errors import UserError, first_line, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
ORIENTATION = 0x0112  # tag of EXIF
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
HEAD, TAIL = 65536, 4096  # bytes that are read of a file whose pixels are not asked for
MOST_VALUES = 300  # of one label image that are kept
# What Pillow raises for files that are damaged, each from another of its readers.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, Image.DecompressionBombError)
PPM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")

Whole = Callable[[], bytes]


class DamagedImage(UserError):
    """An image file that gives no picture; the message is one line that names it."""

    @classmethod
    def of(cls, path: str | Path, reason: str) -> DamagedImage:
        """The error of one file.

        Args:
            path: The file.
            reason: What is wrong with it.
        """
        error = cls(f"{printable(path)}: {reason}")
        error.path, error.reason = str(path), reason
        return error

    path = ""
    reason = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at one file gave.

    Attributes:
        problem: Kind and description of what keeps it from being read; ``None`` for a readable one.
        digest: Of its size, beginning and end: files of one content have one.
        form: Format, as Pillow names it.
        size: Stored width and height in pixels.
        mode: Pillow's mode.
        bits: Per channel.
        orientation: EXIF's, 1 for upright.
        frames: Number of pictures; 2 stands for more than one.
        transparent: Whether it has an alpha channel or a transparent colour.
        values: Pixels per value, of a label image whose values were asked for.
    """

    problem: tuple[str, str] | None = None
    digest: int = 0
    form: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    bits: int = 8
    orientation: int = 1
    frames: int = 1
    transparent: bool = False
    values: dict[int, int] | None = None

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after turning by EXIF's orientation, as mmcv reads images."""
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size


def read_image_bytes(path: str, backend_args: dict[str, Any] | None = None) -> bytes:
    """Read an image file that is there to its end.

    Decoders make a picture with a grey or black lower part of some files that were cut off, and say nothing.

    Args:
        path: File, or an address that mmengine's file backends know.
        backend_args: For these.

    Raises:
        DamagedImage: If it is absent, empty or cut off.
    """
    try:
        content: bytes = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise DamagedImage.of(path, "is missing") from error
    except OSError as error:
        raise DamagedImage.of(path, f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise DamagedImage.of(path, "is empty (0 bytes)")
    if reason := cut_off(content[:HEAD], content[-TAIL:], len(content), lambda: content):
        raise DamagedImage.of(path, reason)
    return content


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that refuses a truncated file and says in one line what is wrong with it.

    Registered in mmengine's root registry, so that configs of mmdet and mmseg find it by this name.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load ``img_path``.

        Raises:
            DamagedImage: If the file is absent, cut off or cannot be decoded.
        """
        path = results["img_path"]
        content = read_image_bytes(path, self.backend_args)
        try:
            image = self._decode(content)
        except (*PILLOW_ERRORS, cv2.error) as error:
            raise DamagedImage.of(path, f"cannot be decoded: {first_line(error)}") from error
        if image is None:
            raise DamagedImage.of(path, "cannot be decoded: it is damaged, of 32-bit pixels, or no image")
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _decode(self, content: bytes) -> np.ndarray | None:
        return mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)


def cut_off(head: bytes, tail: bytes, size: int, whole: Whole) -> str | None:
    """Whether a file ends before its picture does, as far as that can be seen without decoding.

    Args:
        head: Its first bytes.
        tail: Its last bytes.
        size: How many it has.
        whole: Reads all of it; called for the few files whose end is not in the last bytes.

    Returns:
        What is wrong, or ``None``.
    """
    if head.startswith(b"\xff\xd8"):
        # Cameras and disks add zeros behind the end marker; a marker elsewhere is searched in the whole.
        ended = tail.rstrip(b"\0").endswith(b"\xff\xd9") or _jpeg_ends(whole())
        return None if ended else f"is cut off after {size:,} bytes: the end marker of a JPEG is absent"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        ended = b"IEND\xaeB`\x82" in tail or b"IEND\xaeB`\x82" in whole()
        return None if ended else f"is cut off after {size:,} bytes: the end chunk of a PNG is absent"
    if head.startswith((b"GIF87a", b"GIF89a")):
        ended = tail.rstrip(b"\0").endswith(b"\0;")
        return None if ended else f"is cut off after {size:,} bytes: the end marker of a GIF is absent"
    wanted = _stated_length(head)
    return f"is cut off: {size:,} of {wanted:,} bytes" if wanted > size else None


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end marker follows the first scan; the thumbnail in front of it has one of its own."""
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
    """Bytes that a file of fixed layout should have, 0 where that is not known."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8
    if head.startswith(b"BM") and len(head) >= 34 and int.from_bytes(head[30:34], "little") == 0:
        width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
        bits = int.from_bytes(head[28:30], "little")
        return int.from_bytes(head[10:14], "little") + abs(height) * ((abs(width) * bits + 31) // 32 * 4)
    if match := PPM.match(head):
        width, height, top = (int(match[i]) for i in (2, 3, 4))
        return match.end() + width * height * (3 if match[1] == b"6" else 1) * (2 if top > 255 else 1)
    return 0


def look_at(path: str, decode: bool = False, values: bool = False) -> Seen:
    """Look at an image file: its beginning, its end and its header.

    Args:
        path: The file.
        decode: Decode the pixels too, which finds damage in their midst.
        values: Count the values of a label image, which decodes it.

    Returns:
        What was seen; never raises for what a file holds.
    """
    try:
        with open(path, "rb") as file:
            return _look(file, decode, values)
    except FileNotFoundError:
        return Seen(("missing image", "is missing"))
    except OSError as error:  # permissions, a folder in its place, a disk that fails
        return Seen(("unreadable image", f"cannot be read: {error.strerror or error}"))
    except ValueError as error:  # a name that cannot be a file's
        return Seen(("missing image", f"is no name of a file: {error}"))


def _look(file: BinaryIO, decode: bool, values: bool) -> Seen:
    size = os.fstat(file.fileno()).st_size
    if not size:
        return Seen(("empty image", "is empty (0 bytes)"))
    head = file.read(HEAD)
    tail = head[-TAIL:]
    if size > HEAD:
        file.seek(-TAIL, os.SEEK_END)
        tail = file.read()
    digest = hashlib.blake2b(head + tail + size.to_bytes(8, "big"), digest_size=8).digest()

    def whole() -> bytes:
        file.seek(0)
        return file.read()

    if reason := cut_off(head, tail, size, whole):
        return Seen(("truncated image", reason))
    file.seek(0)
    with _any_size(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about metadata
        try:
            with Image.open(file) as image:
                return _described(image, head, size, int.from_bytes(digest, "big"), decode, values)
        except UnidentifiedImageError:
            return Seen(("no image", f"is no image (it begins with {head[:8]!r})"))
        except (*PILLOW_ERRORS, MemoryError) as error:
            return Seen(("damaged image", f"cannot be decoded: {first_line(error)}"))


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow would refuse to say how large a huge image is."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _described(image: Image.Image, head: bytes, size: int, digest: int, decode: bool, values: bool) -> Seen:
    if image.format == "TIFF" and (reason := _tiff_cut_off(image, size)):
        return Seen(("truncated image", reason))
    # Without EXIF in front of the pixels, Pillow would decode a PNG to look for it behind them.
    exif = image.getexif() if "exif" in image.info or image.format == "TIFF" else {}
    counted = None
    frames = 2 if getattr(image, "is_animated", False) else 1
    mode, transparent = image.mode, "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if values and mode in ("L", "P", "1", "I;16"):
        found, pixels = np.unique(np.asarray(image), return_counts=True)
        counted = dict(zip(found[:MOST_VALUES].astype(int).tolist(), pixels[:MOST_VALUES].tolist(), strict=True))
    elif decode or values:
        image.load()
    return Seen(
        digest=digest,
        form=image.format or "",
        size=image.size,
        mode=mode,
        bits=_bits(image, head, mode),
        orientation=int(exif.get(ORIENTATION, 1) or 1),
        frames=frames,
        transparent=transparent,
        values=counted,
    )


def _bits(image: Image.Image, head: bytes, mode: str) -> int:
    if mode.startswith(("I", "F")):
        return 16 if mode.startswith("I;16") else 32
    if image.format == "PNG" and len(head) > 24:
        return max(8, head[24])
    if image.format == "TIFF":
        return max(8, *np.ravel(image.tag_v2.get(258, 8)).tolist())  # type: ignore[attr-defined]
    return 8


def _tiff_cut_off(image: Image.Image, size: int) -> str | None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    for starts, lengths in ((273, 279), (324, 325)):  # of strips, of tiles
        ends = [at + length for at, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)]
        if ends and max(ends) > size:
            return f"is cut off: {size:,} of {max(ends):,} bytes"
    return None
