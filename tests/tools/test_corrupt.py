"""``tools/corrupt.py`` as a person runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis.robustness.corruptions import corrupt, image_seed


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "a/b").mkdir(parents=True)
    ramp = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    colours = np.stack([2 * ramp, 255 - ramp, ramp // 2 * 3], axis=-1)
    Image.fromarray(colours).save(folder / "a/b/one.JPEG", quality=95)
    Image.fromarray(colours[::-1]).save(folder / "two.png")
    Image.fromarray(ramp).save(folder / "grey.png")
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_copies_lie_as_in_imagenet_c_and_are_those_of_the_function(tool: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["corrupt.py", images, out, "--names", "snow", "pixelate", "--severities", "2", "5", "--png"]
    done = tool(*command)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{out}: 12 files written, 0 were there, 4 sets\n"
    names = {"a/b/one.png", "two.png", "grey.png"}
    assert files(out) == {"corrupt.json"} | {
        f"{c}/{s}/{n}" for c in ("snow", "pixelate") for s in (2, 5) for n in names
    }
    original = np.array(Image.open(images / "two.png"))
    expected = corrupt(original, "snow", 5, image_seed("two.png", "snow", 5))
    assert np.array_equal(np.array(Image.open(out / "snow/5/two.png")), expected)
    # Some are made again: one that is gone, one that is empty and those of a changed image.
    (out / "snow/5/two.png").unlink()
    (out / "snow/2/grey.png").write_bytes(b"")
    os.utime(images / "a/b/one.JPEG", (2e9, 2e9))
    again = tool(*command, "--workers", "1")
    assert again.out == f"{out}: 6 files written, 6 were there, 4 sets\n"
    assert np.array_equal(np.array(Image.open(out / "snow/5/two.png")), expected)
    other = tool(*command[:-1])
    assert other.code == 2
    assert "give those options or another folder" in other.err


def test_as_the_authors_did(tool: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tool("corrupt.py", images, out, "--names", "cbar", "--severities", "1", "--crop", "32").code == 0
    assert len(files(out)) == 1 + 10 * 3
    with Image.open(out / "sparkles/1/a/b/one.JPEG") as copy:
        assert (copy.size, copy.format, copy.mode) == ((32, 32), "JPEG", "RGB")
        assert copy.quantization[0][0] == 5  # 16 at quality 50


@pytest.mark.parametrize("side", [-1, 100_000])
def test_a_crop_has_a_size_that_fits_into_memory(tool: Any, images: Path, tmp_path: Path, side: int) -> None:
    failed = tool("corrupt.py", images, tmp_path / "out", "--crop", side)
    assert failed.code == 2
    assert failed.err.splitlines()[-1].endswith(f"--crop {side}: a side from 1 to 4096 pixels, or 0 for whole images")


def test_damaged_images_are_listed_and_the_others_copied(tool: Any, images: Path, tmp_path: Path) -> None:
    content = (images / "a/b/one.JPEG").read_bytes()
    (images / "cut.jpg").write_bytes(content[:-30])
    (images / "text.png").write_text("no image")
    (images / "a/moving.GIF").write_bytes(b"GIF89a")
    done = tool("corrupt.py", images, tmp_path / "out", "--names", "contrast", "--severities", "1")
    assert done.code == 1
    first, last = done.out.splitlines()
    assert first.startswith("1 images of other formats are not copied, the first is ")
    assert first.endswith("in/a/moving.GIF: convert them to JPEG or PNG")
    assert last.endswith("3 files written, 0 were there, 1 sets")
    lines = done.err.splitlines()
    assert lines[0] == "2 images could not be read:"
    assert "cut.jpg: is cut off after" in lines[1]
    assert "text.png: cannot be decoded" in lines[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["IN", "OUT", "--names", "fogg"], "error: unknown corruption 'fogg'; nearest: fog"),
        (["IN", "OUT", "--severities", "0"], "error: severity 0 of gaussian_noise: must be 1, 2, 3, 4 or 5"),
        (["IN", "IN/out"], "whose images are copied: give another folder"),
        (["IN/a", "IN/two.png"], "two.png cannot be written: File exists"),
        (["OUT", "IN"], "is not a folder: give the folder of the images"),
        (["IN/empty", "OUT"], "error: no image in "),
        (["IN/same", "OUT"], "would be copied to one file: rename one of them"),
    ],
)
def test_errors_are_one_line(tool: Any, images: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (images / "empty").mkdir()
    (images / "same").mkdir()
    for suffix in ("png", "jpg"):
        Image.new("RGB", (9, 9)).save(images / f"same/x.{suffix}")
    places = [text.replace("IN", str(images)).replace("OUT", str(tmp_path / "out")) for text in arguments]
    failed = tool("corrupt.py", *places)
    assert (failed.code, failed.out) == (2, "")
    (line,) = failed.err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
