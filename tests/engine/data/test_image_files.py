"""Complete and damaged image files of every format: told apart by inspection, refused by loading."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from classification.data import read_rgb
from engine.data.image_files import DamagedImageError, LoadCheckedImage, inspect_image

SUFFIXES = ("jpg", "png", "webp", "bmp", "gif", "tif", "ppm")


def photograph(side: int = 96) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side + 10, 3), np.uint8))


def saved(folder: Path, name: str, image: Image.Image | None = None, **options: Any) -> Path:
    (image or photograph()).save(folder / name, **options)
    return folder / name


def cut(path: Path, end: int) -> Path:
    path.write_bytes(path.read_bytes()[:end])
    return path


def loaders() -> list[Any]:
    return [lambda path: LoadCheckedImage()({"img_path": str(path)})["img"], lambda path: read_rgb(str(path))]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inspect_image_reads_the_properties_of_complete_files(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, f"a.{suffix}")
    seen = inspect_image(str(path), decode=True)
    assert seen.problem is None
    assert (seen.size, seen.bits, seen.frames, seen.transparent) == ((106, 96), 8, 1, False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inspect_image_finds_truncation_without_decoding(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, f"a.{suffix}")
    cut(path, int(0.7 * path.stat().st_size))
    assert inspect_image(str(path)).problem is not None
    for load in loaders():
        with pytest.raises(DamagedImageError, match=rf"a\.{suffix}: "):
            load(path)


@pytest.mark.parametrize("name, options", [("a.jpg", {}), ("b.jpg", {"progressive": True}), ("a.png", {})])
@pytest.mark.parametrize("lost", [2, 13, 400])
def test_inspect_image_reads_the_last_bytes(tmp_path: Path, name: str, options: dict[str, Any], lost: int) -> None:
    """Pillow takes a PNG without its end chunk for complete."""
    path = saved(tmp_path, name, **options)
    cut(path, -lost)
    assert inspect_image(str(path)).problem[0] == "truncated image"
    for load in loaders():
        with pytest.raises(DamagedImageError, match="is cut off after"):
            load(path)


def test_truncation_is_not_hidden_by_a_complete_thumbnail(tmp_path: Path) -> None:
    thumbnail = saved(tmp_path, "thumbnail.jpg", photograph(16)).read_bytes()
    path = saved(tmp_path, "a.jpg")
    content = path.read_bytes()
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path.write_bytes(content[:2] + segment + content[2:])
    assert inspect_image(str(path)).problem is None
    assert inspect_image(str(cut(path, -2))).problem[0] == "truncated image"


def test_truncation_ignores_bytes_after_the_end_marker(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jpg")
    for more in (bytes(5000), b"camera's notes"):
        path.write_bytes(path.read_bytes() + more)
        assert inspect_image(str(path)).problem is None
        assert all(np.asarray(load(path)).shape == (96, 106, 3) for load in loaders())


@pytest.mark.parametrize(
    "content, kind", [(b"", "empty image"), (b"These are notes.\n", "no image"), (bytes(4000), "no image")]
)
def test_inspect_image_of_files_without_an_image(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert inspect_image(str(path)).problem[0] == kind
    for load in loaders():
        with pytest.raises(DamagedImageError, match=r"a\.jpg: "):
            load(path)


def test_inspect_image_of_missing_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    assert inspect_image(str(tmp_path / "absent.jpg")).problem == ("missing image", "is missing")
    assert inspect_image("a\0b.jpg").problem[0] == "missing image"
    assert inspect_image(str(tmp_path / "folder.jpg")).problem[0] == "unreadable image"
    for load in loaders():
        with pytest.raises(DamagedImageError, match=r"absent\.jpg: is missing"):
            load(tmp_path / "absent.jpg")
        with pytest.raises(DamagedImageError, match=r"folder\.jpg: cannot be read"):
            load(tmp_path / "folder.jpg")


def test_inspect_image_finds_damage_inside_a_file_by_decoding(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    assert inspect_image(str(path)).problem is None
    assert inspect_image(str(path), decode=True).problem[0] == "damaged image"
    for load in loaders():
        with pytest.raises(DamagedImageError, match="cannot be decoded"):
            load(path)


def test_inspect_image_reads_headers(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = inspect_image(str(saved(tmp_path, "turned.jpg", exif=exif)))
    assert (turned.orientation, turned.size, turned.upright_size) == (6, (106, 96), (96, 106))
    turned = inspect_image(str(saved(tmp_path, "turned.tif", exif=exif)))
    assert (turned.orientation, turned.size, turned.upright_size) == (6, (106, 96), (96, 106))
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert inspect_image(str(saved(tmp_path, "deep.png", deep))).bits == 16
    assert inspect_image(str(saved(tmp_path, "deep.tif", deep))).bits == 16
    cv2.imwrite(str(tmp_path / "colours.png"), np.full((8, 8, 3), 40_000, np.uint16))
    assert inspect_image(str(tmp_path / "colours.png")).bits == 16
    assert inspect_image(str(saved(tmp_path, "print.jpg", photograph().convert("CMYK")))).mode == "CMYK"
    assert inspect_image(str(saved(tmp_path, "clear.png", photograph().convert("RGBA")))).transparent
    frames = [photograph(), photograph().rotate(90)]
    assert inspect_image(str(saved(tmp_path, "film.gif", save_all=True, append_images=frames[1:]))).frames == 2
    huge = inspect_image(str(saved(tmp_path, "huge.png", Image.new("1", (20_000, 10_000)))))
    assert (huge.problem, huge.size) == (None, (20_000, 10_000))


def test_inspect_image_gives_copies_the_same_digest(tmp_path: Path) -> None:
    one, copy, other = (saved(tmp_path, f"{name}.png") for name in "abc")
    other.write_bytes(other.read_bytes() + b"\0")
    digests = [inspect_image(str(path)).digest for path in (one, copy, other)]
    assert digests[0] == digests[1] != digests[2]


def test_inspect_image_counts_label_values(tmp_path: Path) -> None:
    labels = Image.fromarray(np.array([[0, 7, 7], [255, 7, 0]], np.uint8))
    assert inspect_image(str(saved(tmp_path, "l.png", labels)), values=True).value_counts == {0: 2, 7: 3, 255: 1}
    assert inspect_image(str(saved(tmp_path, "colours.png")), values=True).value_counts is None


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, kind: Any) -> None:
    """Pillow would clip them at 255, which makes a white or a black image."""
    path = saved(tmp_path, "a.tif", Image.fromarray(np.linspace(0, 60_000, 64).reshape(8, 8).astype(kind)))
    assert inspect_image(str(path)).bits == 32
    for load in loaders():
        with pytest.raises(DamagedImageError, match="32-bit pixels"):
            load(path)


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404 Not Found</html>", "web page"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "video"),
        (b"%PDF-1.7\n" + bytes(99), "PDF document"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    problem = inspect_image(str(path)).problem
    assert problem is not None
    assert problem[0] == "no image"
    assert kind in problem[1]
    for load in loaders():
        with pytest.raises(DamagedImageError, match=rf"a\.jpg: cannot be decoded: it is .*{kind}"):
            load(path)


def test_backslashes_in_the_name_of_a_missing_file(tmp_path: Path) -> None:
    """Annotation files written on Windows."""
    saved(tmp_path, "a.png")
    path = f"{tmp_path}/..\\{tmp_path.name}\\a.png"
    assert "backslashes, which separate folders on Windows" in inspect_image(path).problem[1]
    for load in loaders():
        with pytest.raises(DamagedImageError, match="backslashes"):
            load(path)
    assert inspect_image(str(tmp_path / "b.png")).problem == ("missing image", "is missing")


@pytest.mark.parametrize("values", [False, True])
def test_an_image_that_every_reader_refuses_for_its_size_is_not_decoded(tmp_path: Path, values: bool) -> None:
    """A PNG of 60,000 x 60,000 grey pixels by its header, of which hardly any follow."""
    path = tmp_path / "a.png"
    content = saved(tmp_path, "a.png", Image.new("L", (8, 8))).read_bytes()
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:])
    seen = inspect_image(str(path), decode=True, values=values)
    assert (seen.problem, seen.size) == (None, (60_000, 60_000))
