"""Data checks: order, limits, images that splits share, and the check before a training."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

import classification  # noqa: F401
from backbones.errors import DataError, UserError
from engine.data import check as data_check
from engine.data import preflight
from engine.data.check import check_datasets, evenly_spread
from engine.data.checker import DAMAGE_KINDS, PILLOW_MAX_PIXELS, DataFile, DatasetChecker
from engine.data.findings import DataCheckResult, DataFinding
from engine.data.image_files import OPENCV_MAX_PIXELS, ImageInfo
from engine.data.paths import leads_outside
from engine.data.preflight import (
    DATA_CHECK_FILE,
    check_before_test,
    check_before_training,
    check_data_paths,
    data_fingerprint,
)

CLASSES = ("cat", "dog")
LOGGER = logging.getLogger("preflight")


def pictures(folder: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(random.integers(0, 255, (16, 20, 3), np.uint8)).save(folder / f"{i:02}.png")


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    root = tmp_path / "pets"
    for number, (split, count) in enumerate((("train", 20), ("val", 5))):
        for i, name in enumerate(CLASSES):
            pictures(root / split / name, count, 10 * number + i)

    def loader(split: str) -> dict[str, Any]:
        metainfo = dict(classes=CLASSES)
        return dict(
            dataset=dict(type="FolderDataset", data_root=str(root), split=split, metainfo=metainfo, pipeline=[])
        )

    return Config(
        dict(
            default_scope="mmengine",
            work_dir=str(tmp_path / "work"),
            train_dataloader=loader("train"),
            val_dataloader=loader("val"),
            test_dataloader=loader("val"),
        )
    )


def test_a_misspelt_path_is_told_the_names_beside_it(cfg: Config, tmp_path: Path) -> None:
    cfg.train_dataloader.dataset.split = "trian"
    with pytest.raises(DataError, match=r"trian' does not exist \(looked from .*\); nearest: train$"):
        check_data_paths(cfg, ("train",))
    cfg.train_dataloader.dataset.data_root = str(tmp_path / "nowhere" / "pets")
    with pytest.raises(DataError, match=r"pets' does not exist \(looked from .*\); see 'Bring your data'"):
        check_data_paths(cfg, ("train",))


def root(cfg: Config) -> Path:
    return Path(cfg.train_dataloader.dataset.data_root)


def begin(cfg: Config, caplog: Any, resume: bool = False) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        check_before_training(cfg, LOGGER, resume)
    return caplog.messages


def test_check_before_training_logs_one_line_for_sound_data(cfg: Config, caplog: Any) -> None:
    (line,) = begin(cfg, caplog)
    assert line.startswith("data check: 0 errors, 0 warnings; looked at val images all 10, train images all 40 in")
    written = json.loads((Path(cfg.work_dir) / DATA_CHECK_FILE).read_text())
    assert (written["errors"], written["findings"]) == (0, [])


def test_check_datasets_inspects_equal_splits_once(cfg: Config) -> None:
    assert list(check_datasets(cfg, ("train", "val", "test")).inspected) == ["val images", "train images"]
    cfg.test_dataloader.dataset.split = "train"
    assert list(check_datasets(cfg, ("train", "val", "test")).inspected) == [
        "val images",
        "test images",
        "train images",
    ]


def test_check_datasets_finds_the_same_in_several_processes(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    (root(cfg) / "train/cat/03.png").write_bytes(b"")
    (root(cfg) / "val/dog/03.png").write_text("notes")
    alone = check_datasets(cfg, ("train", "val"), workers=1)
    monkeypatch.setattr(data_check, "MIN_PARALLEL_FILES", 1)
    monkeypatch.setattr(data_check, "FILES_PER_TASK", 3)
    together = check_datasets(cfg, ("train", "val"), workers=2)
    assert [item.kind for item in alone.findings] == ["no image", "empty image"]
    assert (together.findings, together.inspected) == (alone.findings, alone.inspected)


@pytest.mark.parametrize("workers", [1, 2])
def test_check_datasets_stops_after_its_time_and_says_so(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(data_check, "MIN_PARALLEL_FILES", 1)
    monkeypatch.setattr(data_check, "FILES_PER_TASK", 4)
    found = check_datasets(cfg, ("train", "val"), seconds=0.0, workers=workers)
    assert found.inspected["train images"][0] < 40
    assert "of 40" in found.summary()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000])
def test_evenly_spread_covers_any_prefix_evenly(count: int) -> None:
    order = list(evenly_spread(count))
    assert sorted(order) == list(range(count))
    beginning = sorted(order[: count // 10])
    assert all(after - before < 0.25 * count for before, after in pairwise(beginning))


def test_check_datasets_reports_a_killed_process(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: str, decode: bool, values: bool, channels: Any = None) -> ImageInfo:
        import os

        os._exit(9)

    monkeypatch.setattr(data_check, "MIN_PARALLEL_FILES", 1)
    monkeypatch.setattr(data_check, "inspect_image", killed)
    with pytest.raises(UserError, match="process of the data check was killed"):
        check_datasets(cfg, ("val",), workers=2)


def test_check_datasets_finds_validation_images_in_the_training_data(cfg: Config) -> None:
    shutil.copy(root(cfg) / "val/cat/01.png", root(cfg) / "train/cat/another name.png")
    (item,) = check_datasets(cfg, ("train", "val")).findings
    assert (item.level, item.kind, item.split) == ("error", "val in train", "val")
    assert item.file.endswith("val/cat/01.png")
    assert "train/cat/another name.png" in item.problem


def test_check_datasets_warns_of_few_copies_among_many(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_check, "MAX_COPIED_FRACTION", 0.1)
    shutil.copy(root(cfg) / "val/cat/01.png", root(cfg) / "train/cat/copy.png")
    assert [item.level for item in check_datasets(cfg, ("train", "val")).findings] == ["warning"]


def test_check_datasets_follows_links_between_splits(cfg: Config) -> None:
    shutil.rmtree(root(cfg) / "val")
    (root(cfg) / "val").symlink_to(root(cfg) / "train")
    items = check_datasets(cfg, ("train", "val")).findings
    assert len(items) == 40
    assert {(item.level, item.problem) for item in items} == {("error", "is in the training data too")}


def test_check_before_training_tolerates_few_damaged_training_images(cfg: Config, caplog: Any) -> None:
    for i in range(10):
        (root(cfg) / f"train/cat/{i:02}.png").write_bytes(b"")
    messages = begin(cfg, caplog)
    assert "warning (10 in train)" in messages[0]
    assert "another image takes its place" in messages[0]
    assert "0 errors, 10 warnings" in messages[-1]
    (root(cfg) / "train/cat/10.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"00\.png: is empty .* \(the first of 11 errors .*data_check\.json"):
        begin(cfg, caplog)


def test_check_before_training_stops_at_a_damaged_validation_image(cfg: Config, caplog: Any) -> None:
    (root(cfg) / "val/cat/01.png").unlink()
    (root(cfg) / "val/cat/01.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"^\S+/val/cat/01\.png: is missing; .*--no-data-check") as caught:
        begin(cfg, caplog)
    assert "\n" not in str(caught.value)
    assert len(json.loads((Path(cfg.work_dir) / DATA_CHECK_FILE).read_text())["findings"]) == 1


def test_check_before_training_tolerates_damaged_images_alone(cfg: Config, caplog: Any) -> None:
    """Not whatever else has a kind that begins with the word ``empty``, ``missing`` or ``no``."""
    for path in (root(cfg) / "train/cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds no image"):
        begin(cfg, caplog)
    assert {f"{word} {role}" for word in ("no", "empty") for role in ("image", "labels")} <= set(DAMAGE_KINDS)
    assert not {"no objects", "no files", "no images", "empty class", "unreadable folder"} & set(DAMAGE_KINDS)


def test_check_before_test_checks_the_test_data_alone(cfg: Config, caplog: Any) -> None:
    (root(cfg) / "train/cat/00.png").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        check_before_test(cfg, LOGGER)
    assert [message.split(";")[0] for message in caplog.messages] == ["data check: 0 errors, 0 warnings"]
    (root(cfg) / "val/cat/00.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"00\.png: is empty .*test_data_check\.json; --no-data-check tests all"):
        check_before_test(cfg, LOGGER)
    assert not (Path(cfg.work_dir) / DATA_CHECK_FILE).exists()


def test_check_before_training_skips_unchanged_data_on_resume(cfg: Config, caplog: Any) -> None:
    begin(cfg, caplog)
    (line,) = begin(cfg, caplog, resume=True)
    assert "those of the check before" in line
    assert "looked at" in begin(cfg, caplog, resume=False)[-1]
    before = data_fingerprint(cfg)
    cfg.val_dataloader.dataset.every = 2
    assert data_fingerprint(cfg) != before
    assert "looked at" in begin(cfg, caplog, resume=True)[-1]
    (root(cfg) / "val/new").touch()
    assert "looked at" in begin(cfg, caplog, resume=True)[-1]
    (Path(cfg.work_dir) / DATA_CHECK_FILE).write_text("{")
    assert "looked at" in begin(cfg, caplog, resume=True)[-1]


def test_check_before_training_repeats_a_failed_check(cfg: Config, caplog: Any) -> None:
    (root(cfg) / "val/cat/01.png").write_bytes(b"")
    for resume in (False, True):
        with pytest.raises(UserError):
            begin(cfg, caplog, resume)


def test_check_before_training_raises_in_all_processes(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def other_rank(found: list[Any]) -> None:
        assert found == [None]
        found[0] = DataError("a.jpg: is missing")

    monkeypatch.setattr(preflight, "is_main_process", lambda: False)
    monkeypatch.setattr(preflight, "broadcast_object_list", other_rank)
    monkeypatch.setattr(preflight, "check_datasets", None)  # it does not look itself
    with pytest.raises(UserError, match=r"a\.jpg: is missing"):
        begin(cfg, caplog)


@DATASETS.register_module()
class PlainImages(BaseDataset):
    """A data set without a checker of its own."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"img_path": str(path)} for path in sorted(Path(self.data_root).glob("*.png"))]


def test_check_datasets_of_a_dataset_without_a_checker(cfg: Config) -> None:
    folder = root(cfg) / "train/cat"
    (folder / "04.png").write_bytes(b"")
    cfg.val_dataloader.dataset = ConfigDict(type="PlainImages", data_root=str(folder))
    found = check_datasets(cfg, ("val",))
    assert [item.kind for item in found.findings] == ["empty image"]
    assert found.inspected == {"val images": (20, 20)}
    cfg.val_dataloader.dataset.type = "NoSuchData"
    with pytest.raises(UserError, match="'NoSuchData' is no type of data set"):
        check_datasets(cfg, ("val",))


RED = dict(format="PNG", mode="RGB", size=(40, 30))


@pytest.mark.parametrize(
    "turns, seen, kind, level",
    [
        (True, dict(size=(50, 30)), "image size", "error"),
        (True, dict(orientation=6), "image size", "error"),
        (False, dict(orientation=6), "EXIF orientation", "warning"),
        (True, dict(bits=32, mode="F"), "32-bit image", "error"),
        (True, dict(bits=16), "16-bit image", "warning"),
        (True, dict(mode="CMYK"), "other colours", "warning"),
        (True, dict(transparent=True, mode="P"), "transparency", "warning"),
        (True, dict(frames=2), "several frames", "warning"),
        (True, dict(format="JPEG"), "name of another format", "warning"),
        (True, dict(), None, None),
        (True, dict(format="MPO", frames=2), "name of another format", "warning"),
    ],
)
def test_check_file_reports_unusual_images(
    turns: bool, seen: dict[str, Any], kind: str | None, level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = DatasetChecker("train", ConfigDict(), Config())
    monkeypatch.setattr(checker, "turns", lambda image_format, role="image": turns)
    checker.check_file(DataFile("a.png", stated_size=(40, 30)), ImageInfo(**{**RED, **seen}))
    assert [(item.kind, item.level) for item in checker.findings] == ([(kind, level)] if kind else [])


@pytest.mark.parametrize(
    "limit, size, level",
    [
        (OPENCV_MAX_PIXELS, (20_000, 10_000), "warning"),
        (PILLOW_MAX_PIXELS, (20_000, 10_000), "error"),
        (OPENCV_MAX_PIXELS, (40_000, 40_000), "error"),
        (PILLOW_MAX_PIXELS, (9_000, 6_000), "warning"),
        (OPENCV_MAX_PIXELS, (500, 7), "warning"),
        (OPENCV_MAX_PIXELS, (8, 8), None),
    ],
)
def test_check_file_reports_huge_and_tiny_images(limit: int, size: tuple[int, int], level: str | None) -> None:
    checker = DatasetChecker("train", ConfigDict(), Config())
    checker.max_pixels = limit
    checker.check_file(DataFile("a.png"), ImageInfo(**{**RED, "size": size}))
    assert [item.level for item in checker.findings] == ([level] if level else [])


@pytest.mark.parametrize(
    "name, out",
    [
        ("a.jpg", False),
        ("b/../a..jpg", False),
        ("../a.jpg", True),
        ("b/../../a.jpg", True),
        ("/etc/passwd", True),
        ("/data/images/a.jpg", False),
        ("/data/images2/a.jpg", True),
        ("../images2/a.jpg", True),
        ("..", True),
    ],
)
def test_leads_outside(name: str, out: bool) -> None:
    assert leads_outside("/data/images/", name) is out


def test_to_lines_fits_a_screen() -> None:
    items = [
        DataFinding("warning" if kind % 2 else "error", f"kind {kind}", "train", f"{kind}-{i}.jpg", "is odd", "fix it")
        for kind in range(40)
        for i in range(5)
    ]
    lines = DataCheckResult(items, {"train images": (500, 2000)}, 0.5).to_lines("all.json")
    assert len(lines) <= 25
    assert lines[0] == "error (5 in train): 0-0.jpg: is odd; fix it"
    assert [line.split()[0] for line in lines[:22]] == ["error"] * 20 + ["warning"] * 2
    assert lines[-2] == "and 18 more kinds: all.json"
    assert lines[-1] == (
        "100 errors, 100 warnings; looked at train images a sample of 500 of 2,000 in 0.5 s, 1,000 files/s"
    )
    few = DataCheckResult(items[:5], {}, 0.5).to_lines("all.json")
    assert few[1:4] == ["    also 0-1.jpg: is odd", "    also 0-2.jpg: is odd", "the others: all.json"]


def test_data_check_json_keeps_its_keys() -> None:
    result = DataCheckResult([DataFinding("error", "empty image", "train", "a.jpg", "is empty", "copy it")], {}, 0.5)
    (finding,) = result.to_dict()["findings"]
    assert finding == {
        "level": "error",
        "kind": "empty image",
        "split": "train",
        "file": "a.jpg",
        "what": "is empty",
        "fix": "copy it",
    }
