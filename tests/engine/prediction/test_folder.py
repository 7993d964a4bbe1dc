"""Predictions of a folder: the same in batches, by several processes and after a stop; what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image

from backbones.errors import ConfigError
from engine.config.building import build
from engine.config.load import load_config
from engine.prediction import folder as predicting
from engine.prediction.folder import Output, SkippedImagesError, predict_images
from engine.prediction.images import find_images, name_images
from engine.prediction.progress_files import DoneImages
from engine.prediction.visualize import predict_batch
from tests.engine.prediction.test_predictor import CONFIGS, small_settings
from tests.runs import forked


class Predicting:
    """A classifier of random weights, and images of two sizes in sub-folders."""

    def __init__(self, root: Path) -> None:
        self.cfg = load_config(CONFIGS / "classification/digits.py", {"work_dir": str(root), **small_settings()}).cfg
        init_default_scope(self.cfg.default_scope)
        torch.manual_seed(0)
        self.model = build(MODELS, self.cfg.model, "model").eval()
        self.images = root / "images"
        random = np.random.default_rng(0)
        for number in range(7):
            path = self.images / "abc"[number % 3] / f"{number // 3}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (40, 40 + number % 2, 3), np.uint8)).save(path)

    def run(self, out: Path, **settings: Any) -> list[Path]:
        images = name_images(find_images([self.images]), [self.images])
        output = Output(out, **{"result_format": "csv", "pictures": False, "data_check": False, **settings})
        return list(predict_images(self.cfg, self.model, None, images, output))


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Predicting]:
    before = dict(DefaultScope._instance_dict)
    yield Predicting(tmp_path)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def table(out: Path) -> str:
    return (out / "results/predictions.csv").read_text()


def test_an_interrupted_program_goes_on_and_nothing_is_predicted_twice(
    work: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.run(tmp_path / "whole")
    seen: list[int] = []

    def interrupted(model: Any, items: list[Any], collate: Any) -> Any:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(items))
        return predict_batch(model, items, collate)

    monkeypatch.setattr(predicting, "predict_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work.run(tmp_path / "out")
    assert not (tmp_path / "out/results/predictions.csv").exists()
    seen.append(0)
    work.run(tmp_path / "out")
    assert seen == [1, 1, 1, 0, 1, 1, 1, 1]
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    assert len(table(tmp_path / "out").splitlines()) == 8
    changed = work.images / "b/0.png"
    Image.new("RGB", (50, 50)).save(changed)
    work.run(tmp_path / "out")
    assert len(seen) == 9
    half = next((tmp_path / "out/.done").rglob("c/1.json"))
    half.write_text(half.read_text()[:20])  # as a power failure may leave it
    work.run(tmp_path / "out")
    assert len(seen) == 10
    assert not list((tmp_path / "out").rglob("*.part"))


def test_an_image_of_another_folder_is_no_copy_though_name_size_and_time_are_the_same(
    work: Predicting, tmp_path: Path
) -> None:
    work.run(tmp_path / "out")
    first, others = table(tmp_path / "out"), tmp_path / "others"
    for image in work.images.rglob("*.png"):
        other = others / image.relative_to(work.images)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(image.read_bytes())
        state = image.stat()
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    before, work.images = str(work.images), others
    work.run(tmp_path / "out")
    assert table(tmp_path / "out") == first.replace(before, str(others))


def test_names_that_are_no_text_are_in_all_files(work: Predicting, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(work.images) + b"/b\xff \n\xc3\xa9.png"))
    (work.images / "a/0.png").rename(odd)
    for name in ("csv", "json"):
        work.run(tmp_path / "out", result_format=name)
    listed = json.loads((tmp_path / "out/results/predictions.json").read_bytes().decode())["images"]
    assert os.fsencode(listed[0]["file_name"]) == b"b\xff \n\xc3\xa9.png"
    assert len(listed) == 7
    assert os.fsencode(odd) in (tmp_path / "out/results/predictions.csv").read_bytes()
    assert DoneImages(tmp_path / "out", "json").is_done(*name_images([odd]))


def test_several_processes_write_the_files_of_one(work: Predicting, tmp_path: Path) -> None:
    work.run(tmp_path / "one", batch=2)

    def share(rank: int) -> Any:
        def job() -> None:
            address = f"file://{tmp_path / 'meeting'}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
            work.run(tmp_path / "two", batch=2, rank=rank, processes=2)
            dist.destroy_process_group()

        return job

    forked(share(0), share(1))
    assert table(tmp_path / "two") == table(tmp_path / "one")


def test_batches_give_the_same_and_an_image_that_fails_fails_alone(
    work: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.run(tmp_path / "one", probabilities=True)
    sizes: list[int] = []

    def fails(model: Any, items: list[Any], collate: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 1 and len(sizes) < 3:
            raise RuntimeError("out of memory")
        return predict_batch(model, items, collate)

    monkeypatch.setattr(predicting, "predict_batch", fails)
    work.run(tmp_path / "four", batch=4, probabilities=True)
    assert sizes == [4, 1, 1, 1, 1, 3]
    one, four = (np.genfromtxt(table(tmp_path / name).splitlines()[1:], delimiter=",") for name in ("one", "four"))
    assert np.allclose(one[:, 4:], four[:, 4:], atol=2e-4)  # the table has four digits


def test_another_model_or_other_options_are_refused(work: Predicting, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work.run(out, source="first.pth")
    with pytest.raises(ConfigError, match=r"in this format with other options, \{.*\}: choose another folder with"):
        work.run(out, probabilities=True)
    work.run(out, result_format="json")
    work.model.head.weight.data += 1
    with pytest.raises(ConfigError, match=r"'.*out' has predictions of 'first\.pth', with other weights or settings"):
        work.run(out)


@pytest.mark.parametrize(
    "choices, line",
    [
        (dict(result_format="yolo"), "--format yolo: classification has csv, json"),
        (dict(min_score=0.5), "--min-score: --format csv of classification does not know it, leave it out"),
        (dict(min_score=1.5), "--min-score 1.5: scores are from 0 to 1"),
        (dict(batch=0), "--batch 0: at least one image"),
        (dict(result_format=None), "--no-pictures without --format: nothing would be written"),
        (dict(result_format=None, pictures=True, probabilities=True), "--probabilities is about the files of --format"),
    ],
)
def test_choices_that_cannot_be_are_refused(
    work: Predicting, tmp_path: Path, choices: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        work.run(tmp_path / "out", **choices)
    assert str(caught.value).startswith(line)


def test_a_full_disk_ends_it_and_leaves_no_half_file(
    work: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, room = Path.replace, [6]

    def full(self: Path, target: Any) -> Any:
        room[0] -= 1
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        work.run(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*.part"))
    monkeypatch.undo()
    work.run(tmp_path / "out")
    assert len(table(tmp_path / "out").splitlines()) == 8


def test_what_was_skipped_is_tried_again(work: Predicting, tmp_path: Path) -> None:
    broken = work.images / "b/0.png"
    sound = broken.read_bytes()
    broken.write_bytes(sound[:90])
    with pytest.raises(SkippedImagesError) as caught:
        work.run(tmp_path / "out")
    assert list(caught.value.skipped) == [broken]
    assert len(table(tmp_path / "out").splitlines()) == 7
    broken.write_bytes(sound)
    work.run(tmp_path / "out")
    assert len(table(tmp_path / "out").splitlines()) == 8
