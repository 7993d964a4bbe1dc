"""Reading of images with any number of channels."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from backbones.bands import ChannelCountError, as_picture, decode_bands

FIVE = np.random.default_rng(0).integers(0, 60000, (8, 9, 5)).astype(np.uint16)
GREY = FIVE[..., 0]


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pillow(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        tiff(FIVE, planarconfig="contig"),
        tiff(FIVE, planarconfig="contig", compression="zlib", predictor=True),
        tiff(FIVE, planarconfig="contig", bigtiff=True),
        tiff(np.moveaxis(FIVE, -1, 0), planarconfig="separate"),
        tiff(np.moveaxis(FIVE, -1, 0)),  # a page for each band
        tiff(FIVE),  # a page for each row, as tifffile writes an array (H, W, C) by default
        npy(FIVE),
        npy(np.asfortranarray(FIVE)),
        npy(FIVE.astype(np.float64)),
        npy(FIVE.astype(np.int32)),
    ],
    ids=["pixels", "deflate", "big", "planes", "pages", "rows", "npy", "fortran", "double", "int"],
)
def test_five_bands_keep_values_and_order(content: bytes) -> None:
    image = decode_bands(content, 5)
    assert image.dtype == np.float32
    assert np.array_equal(image, FIVE)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "npy", "float TIFF", "int TIFF"])
def test_grey_of_more_than_8_bits_keeps_its_values(form: str) -> None:
    kind = {"float TIFF": np.float32, "int TIFF": np.int32}.get(form, np.uint16)
    array = GREY.astype(kind)
    content = npy(array) if form == "npy" else pillow(Image.fromarray(array), form.rpartition(" ")[2])
    assert np.array_equal(decode_bands(content, 1), GREY)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_colours_become_grey(form: str) -> None:
    image = decode_bands(pillow(Image.new("RGB", (9, 8), (200, 10, 30)), form), 1)
    assert (image.shape, image.dtype) == ((8, 9), np.uint8)
    assert abs(int(image[4, 4]) - 69) <= 1  # 0.299 R + 0.587 G + 0.114 B


@pytest.mark.parametrize(
    "content",
    [
        *(pillow(Image.new("RGBA", (9, 8), (200, 10, 30, 77)), form) for form in ("PNG", "TIFF")),
        pillow(Image.new("RGBA", (9, 8), (200, 10, 30, 77)), "WEBP", lossless=True),
        pillow(Image.new("RGBA", (9, 8), (200, 10, 30, 77)), "TIFF", compression="tiff_lzw"),
    ],
    ids=["png", "tiff", "webp", "lzw"],
)
def test_colours_with_alpha_are_rgba(content: bytes) -> None:
    image = decode_bands(content, 4)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [200, 10, 30, 77]


def test_alpha_of_16_bits_keeps_its_values() -> None:
    stored = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(FIVE[..., :4]), cv2.COLOR_RGBA2BGRA))[1]
    assert np.array_equal(decode_bands(stored.tobytes(), 4), FIVE[..., :4])


@pytest.mark.parametrize(
    ("content", "channels", "message"),
    [
        (tiff(FIVE, planarconfig="contig"), 4, r"has 5 channels, model\.backbone\.in_channels is 4"),
        (tiff(FIVE, planarconfig="contig"), 1, r"has 5 channels, .* is 1"),
        (pillow(Image.new("RGB", (9, 8)), "PNG"), 4, r"has 3 channels, .* is 4"),
        (pillow(Image.new("L", (9, 8)), "PNG"), 2, r"has 1 channel, .* is 2"),
        (npy(np.moveaxis(FIVE, -1, 0)), 5, r"has 9 channels, .* is 5 \(an array of 5 x 8 x 9: .* the last axis\)"),
    ],
)
def test_another_number_of_channels(content: bytes, channels: int, message: str) -> None:
    with pytest.raises(ChannelCountError, match=message):
        decode_bands(content, channels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world", "no image"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (npy(FIVE)[:-5], "cannot be decoded"),
        (tiff(FIVE, planarconfig="contig")[:-50], "cannot be decoded"),
        (npy(np.array([{}], object)), "cannot be decoded"),
        (npy(np.full((8, 9, 5), np.nan)), "360 values that are not finite"),
        (npy(np.zeros((8, 9, 5), complex)), "type complex128: numbers"),
        (npy(np.zeros((2, 8, 9, 5))), "an array of 2 x 8 x 9 x 5: height x width x channels"),
        (npy(np.zeros((0, 9, 5))), "an array of 0 x 9 x 5"),
    ],
)
def test_what_is_no_image_of_numbers(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        decode_bands(content, 5)
    assert "\n" not in str(caught.value)


def test_a_compression_that_is_not_read_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise KeyError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    content = tiff(FIVE, planarconfig="contig")
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", refuse)
    with pytest.raises(ValueError, match=r"not read here \(COMPRESSION\.LZW\): save it uncompressed or by deflate"):
        decode_bands(content, 5)


def test_pictures_to_look_at() -> None:
    grey = as_picture(np.array([[0, 128], [255, 3]], np.uint8))
    assert grey.tolist() == [[[value] * 3 for value in row] for row in [[0, 128], [255, 3]]]
    bands = as_picture(decode_bands(npy(FIVE), 5))
    assert (bands.shape, bands.dtype) == ((8, 9, 3), np.uint8)
    assert bands.min() == 0
    assert bands.max() == 255
    order = np.argsort(FIVE[..., 1].ravel())  # the second band is green
    assert (np.diff(bands[..., 1].ravel()[order].astype(int)) >= 0).all()
    assert not as_picture(np.full((4, 4, 2), 7.0, np.float32)).any()  # one value alone
