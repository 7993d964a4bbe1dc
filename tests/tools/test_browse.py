"""The page of a config's data, for each task, as a program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.pages import Page

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CLASSIFIER, DETECTOR = CONFIGS / "classification/digits.py", CONFIGS / "detection/mask_rcnn_digits.py"
CHROMIUM = shutil.which("chromium")
DRAWN = re.compile(r"epoch (\d): (\d+ x \d+)")


def browse(tool: Any, config: Path, data: Path, page: Path, *options: object) -> tuple[str, Page]:
    """What the tool prints, and its page."""
    ended = tool("browse.py", config, "--out", page, *options, "--cfg-options", f"data_root={data}", "batch.size=8")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"page: {page}"
    return ended.out, Page(page.read_text())


@pytest.mark.parametrize(
    ("config", "folder", "size", "images", "words"),
    [
        (CLASSIFIER, "imagenet", "48 x 48", 40, "Images of each class in all 40 images."),
        (DETECTOR, "coco", "160 x 160", 11, "with the strides and anchors that lie there."),
        (CONFIGS / "segmentation/upernet_digits.py", "ade", "128 x 128", 12, "Images of each class in all 12 images."),
        (CONFIGS / "pretraining/fcmae_digits.py", "imagenet", "96 x 96", 40, "6 of 9 units hidden"),
        (CONFIGS / "detection/mask2former_panoptic_digits.py", "coco", "160 x 160", 11, "Segments of each class"),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_three_draws_of_each_image_beside_the_original(
    tool: Any, digits: Path, tmp_path: Path, config: Path, folder: str, size: str, images: int, words: str
) -> None:
    out, page = browse(tool, config, digits / folder, tmp_path / "page.html", "--n", 3)
    assert out.splitlines()[0].startswith(f"train data: {images} images")
    assert page.tags.count("img") == 3 * 4
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    assert [number for number, _ in DRAWN.findall(page.words)] == ["1", "2", "3"] * 3
    assert {drawn for _, drawn in DRAWN.findall(page.words)} == {size}
    assert words in page.words
    # Eleven images in batches of 8 and two micro-batches are no training, and so have no rates; they can be looked at.
    assert ("learning rate" in page.words) != ("the last 3 images of an epoch do not divide" in page.words)
    assert str(digits) not in page.text


def test_the_same_command_writes_the_same_page_and_mixing_is_named(tool: Any, digits: Path, tmp_path: Path) -> None:
    mixing = ("--n", 4, "--cfg-options", f"data_root={digits / 'imagenet'}", "batch.size=8")
    mixing = (*mixing, "model.data_preprocessor.mixup=0.8")
    for name in ("one.html", "other.html"):
        ended = tool("browse.py", CLASSIFIER, "--out", tmp_path / name, *mixing)
        assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()
    assert re.search(r"\w+ 0\.\d\d \+ \w+ 0\.\d\d · epoch 1", (tmp_path / "one.html").read_text())


def test_what_is_odd_is_a_warning_on_the_page_and_in_the_terminal(tool: Any, digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits / "coco", data)
    file = data / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    for one in content["annotations"]:
        x, y, _, _ = one["bbox"]
        one.update(bbox=[x, y, 5, 6], area=30)
    file.write_text(json.dumps(content))
    out, page = browse(tool, DETECTOR, data, tmp_path / "page.html", "--n", 2)
    small = re.search(r"WARNING: (([\d,]+) of ([\d,]+) objects that were measured are under 8 px .*)", out)
    assert small is not None
    assert small[2] == small[3]
    assert small[1] in page.words
    assert re.search(r"WARNING: \d+ of 10 classes have fewer than 10 objects: \w+ \(\d\)", out)


def test_a_crop_that_leaves_little_is_a_warning(tool: Any, digits: Path, tmp_path: Path) -> None:
    options = ("--n", 4, "--cfg-options", f"data_root={digits / 'imagenet'}", "batch.size=8")
    ended = tool(
        "browse.py", CLASSIFIER, "--out", tmp_path / "page.html", *options, "train_pipeline.0.scale=(0.02,0.05)"
    )
    assert (ended.code, ended.err) == (0, "")
    found = re.search(r"WARNING: (\d+) of 12 draws have 90 % .* cropped away, the least leaves (\d\.\d) %", ended.out)
    assert found is not None
    assert found[1] == "12"
    assert float(found[2]) < 5.5


def test_images_of_some_classes_and_those_of_a_validation(tool: Any, digits: Path, tmp_path: Path) -> None:
    _, page = browse(tool, CLASSIFIER, digits / "imagenet", tmp_path / "page.html", "--classes", "two", "--n", 2)
    assert len(re.findall(r"^two · original", page.words, re.MULTILINE)) == 2
    _, page = browse(tool, CLASSIFIER, digits / "imagenet", tmp_path / "val.html", "--split", "val", "--n", 2)
    assert page.tags.count("img") == 4
    assert "epoch" not in page.words


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--n", 0), "browse.py: error: --n: at least 1"),
        (("--classes", "tow"), "error: --classes: 'tow' is none of the 10 classes; nearest: two"),
        (
            ("--out", "/dev/null/page.html"),
            "error: /dev/null/page.html cannot be written (File exists): choose another file with --out",
        ),
    ],
)
def test_bad_input_is_one_line(tool: Any, digits: Path, options: tuple[object, ...], line: str) -> None:
    ended = tool("browse.py", CLASSIFIER, *options, "--cfg-options", f"data_root={digits / 'imagenet'}", "batch.size=8")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == line


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_the_page_out_within_its_width(tool: Any, digits: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    browse(tool, DETECTOR, digits / "coco", page, "--n", 2)
    measure = "<script>document.title = [document.documentElement.scrollWidth, innerWidth]</script></body>"
    # An inner window of the width: Chromium's own is never narrower than 500 pixels.
    inner = tmp_path / "inner.html"
    inner.write_text(page.read_text().replace("</body>", measure))
    script = "onload = () => { document.title = frames[0].document.title }"
    outer = f'<iframe src="inner.html" width="{width}" height="900"></iframe><script>{script}</script>'
    (tmp_path / "outer.html").write_text(outer)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--allow-file-access-from-files", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/outer.html"], capture_output=True, text=True, timeout=300)
    found = re.search(r"<title>(\d+),(\d+)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    assert int(found[1]) <= int(found[2])
