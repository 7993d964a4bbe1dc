"""Small sound data of the three tasks, what can happen to files, and the one form that every answer has."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from backbones import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = {
    "classifier": CONFIGS / "classification/digits.py",
    "detector": CONFIGS / "detection/mask_rcnn_digits.py",
    "segmentor": CONFIGS / "segmentation/upernet_digits.py",
}
FORMAT = {"classifier": "imagenet", "detector": "coco", "segmentor": "ade"}
TASKS = tuple(CONFIG)


@contextmanager
def refused(*needles: object) -> Iterator[None]:
    """What is inside ends with one line that has all these words."""
    with pytest.raises(UserError) as caught:
        yield
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    for needle in needles:
        assert str(needle) in line, line


def tried(function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """What a call gives, and an empty line; or ``None`` and the one line that it ends with."""
    try:
        return function(*args), ""
    except UserError as error:
        (line,) = str(error).splitlines()
        return None, line


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that none was changed, added or lost."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A picture of noise: its files are large enough to be cut off anywhere."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    memory = io.BytesIO()
    image.save(memory, form, **options)
    return memory.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is huge and has next to no pixels: its decoder would ask for all the memory first."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def _image(array: np.ndarray | None = None) -> Image.Image:
    return Image.fromarray(pixels() if array is None else array)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _frames(form: str, **options: Any) -> bytes:
    return encoded(_image(), form, save_all=True, append_images=[_image(pixels(seed=1))], **options)


def _sixteen_bits(suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels().astype(np.uint16) * 257)[1].tobytes()


def _middle_lost(content: bytes) -> bytes:
    """With the beginning and the end of a whole file, and noise between."""
    noise = np.random.default_rng(1).integers(0, 255, len(content), np.uint8).tobytes()
    return content[:60] + noise[60:-30] + content[-30:]


# Files that give no picture, and a word of what is said about each.
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "0 bytes.jpg": (lambda: b"", "is empty (0 bytes)"),
    "0 bytes.png": (lambda: b"", "is empty (0 bytes)"),
    "one byte.jpg": (lambda: b"\xff", "cannot be decoded"),
    "half.jpg": (lambda: encoded(_image(), "JPEG")[:700], "is cut off after 700 bytes"),
    "header alone.jpg": (lambda: encoded(_image(), "JPEG")[:20], "is cut off after 20 bytes"),
    "without its last byte.jpg": (lambda: encoded(_image(), "JPEG")[:-1], "is cut off after"),
    "half.png": (lambda: encoded(_image(), "PNG")[:900], "is cut off after 900 bytes"),
    "header alone.png": (lambda: encoded(_image(), "PNG")[:33], "is cut off after 33 bytes"),
    "half.webp": (lambda: encoded(_image(), "WEBP", lossless=True)[:500], "is cut off: 500 of"),
    "half.bmp": (lambda: encoded(_image(), "BMP")[:500], "is cut off: 500 of"),
    "noise inside.png": (lambda: _middle_lost(encoded(_image(), "PNG")), "cannot be decoded"),
    "text.jpg": (lambda: b"These are notes, no picture.\n", "cannot be decoded"),
    "page.png": (lambda: b"<!DOCTYPE html><html>404 Not Found</html>", "cannot be decoded"),
    "json.jpg": (lambda: json.dumps({"a": 1}).encode(), "cannot be decoded"),
    "zeros.jpg": (lambda: bytes(5000), "cannot be decoded"),
    "huge.png": (lambda: png_header(60_000, 60_000), "cannot be decoded"),
}
# Files that give a picture, if an unusual one.
UNUSUAL: dict[str, Callable[[], bytes]] = {
    "1x1.png": lambda: encoded(_image(pixels(1, 1)), "PNG"),
    "one row.png": lambda: encoded(_image(pixels(1, 300)), "PNG"),
    "grey.jpg": lambda: encoded(_image().convert("L"), "JPEG"),
    "bilevel.png": lambda: encoded(_image().convert("1"), "PNG"),
    "palette.png": lambda: encoded(_image().convert("P"), "PNG"),
    "alpha.png": lambda: encoded(_image().convert("RGBA"), "PNG"),
    "grey and alpha.png": lambda: encoded(_image().convert("LA"), "PNG"),
    "16 bit grey.png": lambda: encoded(_image(pixels()[..., 0].astype(np.uint16) * 257), "PNG"),
    "16 bit colours.png": lambda: _sixteen_bits(".png"),
    "16 bit colours.tif": lambda: _sixteen_bits(".tif"),
    "CMYK.jpg": lambda: encoded(_image().convert("CMYK"), "JPEG"),
    "turned.jpg": lambda: encoded(_image(), "JPEG", exif=_exif(6)),
    "progressive.jpg": lambda: encoded(_image(), "JPEG", progressive=True),
    "animated.webp": lambda: _frames("WEBP"),
    "animated.png": lambda: _frames("PNG"),
    "a PNG by content.jpg": lambda: encoded(_image(), "PNG"),
    "a GIF by content.jpg": lambda: _frames("GIF"),
    "blanks and ünïcode ☃.jpg": lambda: encoded(_image(), "JPEG"),
    "a new\nline.jpg": lambda: encoded(_image(), "JPEG"),
}
