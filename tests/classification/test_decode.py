"""Crops of image files: Pillow's pixels, and Pillow's verdict on damaged files, with less work."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from classification import decode
from classification.decode import read_crop, read_rgb
from engine.data.image_files import DamagedImageError

BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A photograph of 640 x 427 pixels."""
    return Image.fromarray(load_sample_image("china.jpg"))


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


def by_pillow(path: str, crop: decode.Crop, side: int) -> np.ndarray:
    top, left, height, width = crop
    part = read_rgb(path).crop((left, top, left + width, top + height))
    return np.asarray(part.resize((side, side), BICUBIC)).astype(int)


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "4:2:0": ("a.jpg", "RGB", {"quality": 90, "subsampling": 2}),
    "4:4:4": ("a.jpg", "RGB", {"quality": 95, "subsampling": 0}),
    "progressive": ("a.jpg", "RGB", {"progressive": True}),
    "not transformed": ("a.jpg", "RGB", {"keep_rgb": True}),
    "grey": ("a.jpg", "L", {}),
    "print": ("a.jpg", "CMYK", {}),
    "png": ("a.png", "RGB", {}),
    "palette": ("a.png", "P", {}),
    "transparent": ("a.webp", "RGBA", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_read_crop_is_within_a_level_of_pillow(kind: str, photograph: Image.Image, tmp_path: Path) -> None:
    name, mode, options = KINDS[kind]
    path = saved(tmp_path, name, photograph.crop((90, 80, 391, 280)).convert(mode), **options)
    for crop in ((0, 0, 200, 301), (17, 33, 120, 95), (150, 201, 50, 100), (60, 60, 64, 64)):
        found = read_crop(path, lambda picture, crop=crop: crop, 64)
        assert (found.shape, found.dtype, found.flags.c_contiguous) == ((64, 64, 3), np.uint8, True)
        difference = np.abs(found - by_pillow(path, crop, 64))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_read_crop_chooses_the_crop_from_the_decoded_image(name: str, photograph: Image.Image, tmp_path: Path) -> None:
    asked = []

    def draw(picture: Tensor) -> decode.Crop:
        asked.append(tuple(picture.shape))
        return 0, 0, 10, 10

    read_crop(saved(tmp_path, name, photograph), draw, 8)
    assert asked == [(3, 427, 640)]


def jpeg(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


PLAIN: dict[str, tuple[bool, str, dict[str, Any]]] = {
    "baseline": (True, "RGB", {}),
    "progressive": (True, "RGB", {"progressive": True}),
    "not transformed": (True, "RGB", {"keep_rgb": True}),
    "restarts and a comment": (True, "RGB", {"restart_marker_blocks": 2, "comment": "a temple"}),
    "grey": (True, "L", {}),
    "print": (False, "CMYK", {}),
    "turned": (False, "RGB", {"exif": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\0"}),
    "colour profile": (False, "RGB", {"icc_profile": b"profile"}),
    "several pictures": (False, "RGB", {"form": "MPO", "save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_is_plain_jpeg_of_kinds_of_jpegs(
    kind: str, photograph: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, mode, options = PLAIN[kind]
    content = jpeg(photograph.crop((90, 80, 190, 150)).convert(mode), **options)
    assert decode.is_plain_jpeg(content) is plain
    (tmp_path / "a.jpg").write_bytes(content)
    expected = by_pillow(str(tmp_path / "a.jpg"), (5, 10, 50, 60), 20)
    asked = []
    pillows = Image.open

    def opened(file: io.BytesIO) -> Image.Image:
        asked.append(file)
        return pillows(file)

    monkeypatch.setattr(Image, "open", opened)
    assert np.abs(read_crop(str(tmp_path / "a.jpg"), lambda picture: (5, 10, 50, 60), 20) - expected).max() <= 1
    assert bool(asked) is not plain


def test_is_plain_jpeg_refuses_other_content(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(photograph)
    frame = content.index(b"\xff\xc0")
    assert decode.is_plain_jpeg(content)
    assert not decode.is_plain_jpeg(b"\xff\xd9" + content[2:])
    for place, value in ((frame + 4, 12), (frame + 9, 2), (frame + 1, 0xC9), (5, 6), (2, 0)):  # bits, channels, ...
        assert not decode.is_plain_jpeg(content[:place] + bytes([value]) + content[place + 1 :])
    assert not any(decode.is_plain_jpeg(content[:size]) for size in range(frame))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photograph.width * photograph.height - 1)
    assert not decode.is_plain_jpeg(content)


def harmed(content: bytes, places: Sequence[int], count: int, seed: int) -> bytes:
    """The content with some bytes replaced."""
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(count):
        changed[draw.choice(places)] = draw.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize(("part", "count", "files"), [("header", 1, 150), ("tables and pixels", 8, 40)])
def test_read_crop_refuses_what_pillow_refuses(
    part: str, count: int, files: int, photograph: Image.Image, tmp_path: Path
) -> None:
    """Where Pillow decodes a damaged file all the same, the pixels are the same too."""
    content = jpeg(photograph.crop((200, 100, 320, 220)), quality=90)
    places = range(2, content.index(b"\xff\xda")) if part == "header" else range(200, len(content) - 40)
    path, side = str(tmp_path / "a.jpg"), 20
    seen = {"refused": 0, "read": 0}
    for seed in range(files):
        Path(path).write_bytes(harmed(content, places, count, seed))
        expected = refused = None
        try:
            expected = read_rgb(path)
        except DamagedImageError as error:
            refused = str(error)
        if expected is None:
            seen["refused"] += 1
            with pytest.raises(DamagedImageError) as raised:
                read_crop(path, whole, side)
            assert str(raised.value) == refused
        else:
            seen["read"] += 1
            resized = np.asarray(expected.resize((side, side), BICUBIC)).astype(int)
            assert np.abs(read_crop(path, whole, side) - resized).max() <= 1
    assert min(seen.values()) >= 3


PLAIN_PNGS: dict[str, tuple[bool, str, dict[str, Any]]] = {
    "colours": (True, "RGB", {}),
    "grey": (True, "L", {}),
    "not compressed": (True, "RGB", {"compress_level": 0}),
    "opacity": (False, "RGBA", {}),
    "palette": (False, "P", {}),
    "black and white": (False, "1", {}),
    "16 bits": (False, "I;16", {}),
    "a transparent colour": (False, "RGB", {"transparency": (1, 2, 3)}),
    "resolution": (False, "RGB", {"dpi": (72, 72)}),
    "colour profile": (False, "RGB", {"icc_profile": b"profile"}),
    "several pictures": (False, "RGB", {"save_all": True, "append_images": [Image.new("RGB", (100, 70))]}),
}


@pytest.mark.parametrize("kind", PLAIN_PNGS)
def test_is_plain_png_of_kinds_of_pngs(
    kind: str, photograph: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow is left out where nothing but pixels is in the file, and these are Pillow's."""
    plain, mode, options = PLAIN_PNGS[kind]
    part = photograph.crop((90, 80, 190, 150))
    pixels = np.asarray(part.convert("L"), np.uint16) * 257
    content = jpeg(Image.fromarray(pixels) if mode == "I;16" else part.convert(mode), "PNG", **options)
    assert decode.is_plain_png(content) is plain
    (tmp_path / "a.png").write_bytes(content)
    expected = np.asarray(read_rgb(str(tmp_path / "a.png")))
    if plain:
        monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(decode._decode("a.png", content).numpy(), expected)


def png(header: bytes, *data: bytes) -> bytes:
    """A PNG of the content of its first chunk and of those of its pixels, with right checksums."""
    chunks = [(b"IHDR", header), *((b"IDAT", one) for one in data), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(one)) + name + one + struct.pack(">I", zlib.crc32(name + one)) for name, one in chunks
    ]
    return b"".join([decode.PNG_SIGNATURE, *parts])


def test_is_plain_png_refuses_other_content(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(photograph.crop((0, 0, 40, 30)), "PNG")
    header, data = content[16:29], content[content.index(b"IDAT") + 4 : -16]
    assert content == png(header, data)
    assert decode.is_plain_png(png(header, data[:50], data[50:]))
    assert not any(decode.is_plain_png(content[:size]) for size in range(len(content)))
    assert not any(
        decode.is_plain_png(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        for place in range(len(content))
    )
    for place, value in ((8, 16), (9, 3), (9, 6), (10, 1), (11, 1), (12, 1), (3, 0), (7, 0)):  # bits, colours, ...
        changed = header[:place] + bytes([value]) + header[place + 1 :]
        assert decode.is_plain_png(png(changed, data)) is (changed == header)
    assert not decode.is_plain_png(png(header))
    assert not decode.is_plain_png(content + b"\0" * 12)
    assert not decode.is_plain_png(content + png(header, data)[33:])  # a second end
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    assert not decode.is_plain_png(content)


@pytest.mark.parametrize("part", ["header", "compressed", "rows", "cut off", "too long", "checksum"])
def test_read_crop_of_a_damaged_png_is_pillows(part: str, photograph: Image.Image, tmp_path: Path) -> None:
    content = jpeg(photograph.crop((200, 100, 240, 130)), "PNG")
    header, data = content[16:29], content[content.index(b"IDAT") + 4 : -16]
    rows, path = zlib.decompress(data), str(tmp_path / "a.png")
    verdicts = set()
    for seed in range(60):
        draw = random.Random(seed)
        made = {
            "header": lambda seed: png(harmed(header, (3, 7, *range(8, 13)), 1, seed), data),
            "compressed": lambda seed: png(header, harmed(data, range(len(data)), 3, seed)),
            "rows": lambda seed: png(header, zlib.compress(harmed(rows, range(0, len(rows), 121), 1, seed))),
            "cut off": lambda seed, draw=draw: png(header, data[: draw.randrange(len(data))]),
            "too long": lambda seed: png(header, zlib.compress(rows + bytes(seed)) + bytes(seed % 3)),
            "checksum": lambda seed: harmed(content, range(33, len(content) - 12), 1, seed),
        }[part](seed)
        Path(path).write_bytes(made)
        found: list[Any] = []
        for read in (lambda: np.asarray(read_rgb(path)), lambda made=made: decode._decode(path, made).numpy()):
            try:
                found.append(read())
            except DamagedImageError as error:
                found.append(str(error))
        assert np.array_equal(found[0], found[1])
        verdicts.add(isinstance(found[0], str))
    assert verdicts == {"cut off": {True}, "too long": {False}}.get(part, verdicts)


def whole(picture: Tensor) -> decode.Crop:
    return 0, 0, picture.shape[1], picture.shape[2]


def test_read_crop_refuses_a_truncated_file(photograph: Image.Image, tmp_path: Path) -> None:
    path = Path(saved(tmp_path, "a.jpg", photograph))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DamagedImageError, match="the end marker of a JPEG is absent"):
        read_crop(str(path), whole, 8)
