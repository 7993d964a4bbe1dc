"""From a folder of one's own to a result, for each task, by the commands that are printed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.own_data import objects, photographs, scenes

SHORT = ("--network", "convnext_atto", "--batch", 2, "--epochs", 1)
# An untrained detector finds a hundred objects in any image, a segmentor's head is wide: less of both is enough here.
SMALL: dict[str, list[str]] = {
    "classification": [],
    "detection": [
        *("model.test_cfg.rpn.max_per_img=20", "model.test_cfg.rcnn.max_per_img=2"),
        "model.train_cfg.rcnn.sampler.num=32",
    ],
    "segmentation": ["model.decode_head.channels=8", "model.auxiliary_head.channels=8"],
}
DATA: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str, str]] = {
    # Data, what has to be said, an image, and a score.
    "classification": (photographs, ("--train", "Übung"), "Prüfung/ant hill", "top1"),
    "detection": (objects, ("--train", "Lehre (final).json"), "Bilder Probe/Foto 1 2.PNG", "segm_mAP"),
    "segmentation": (scenes, ("--classes", "Straße, Baum,sky"), "val set/Fotos/Straße 1.JPG", "mIoU"),
}


@pytest.mark.parametrize("task", DATA)
def test_from_a_folder_to_a_result(task: str, tool: Any, tmp_path: Path) -> None:
    make, stated, images, score = DATA[task]
    data, config, folder = make(tmp_path / "Meine Daten"), tmp_path / "Mein Versuch.py", tmp_path / "run"
    ended = tool("new_experiment.py", task, "--data", data, "--out", config, *stated, *SHORT)
    assert (ended.code, ended.err) == (0, "")
    *_, check, dry, start = (shlex.split(line)[1:] for line in ended.out.splitlines())
    assert start == ["tools/train.py", str(config)]
    assert dry == [*start, "--dry-run"]
    assert check == ["tools/check_data.py", str(config)]
    small = ("--cfg-options", *SMALL[task]) if SMALL[task] else ()
    place = ("--work-dir", folder, *small)
    for command in (check[1:], dry[1:], [*start[1:], *place]):
        name = "check_data.py" if command == check[1:] else "train.py"
        ended = tool(name, *command)
        assert ended.code == 0, ended.err
    (weights,) = folder.glob("epoch_1.pth")
    ended = tool("test.py", config, weights, *place)
    assert ended.code == 0, ended.err
    assert score in json.loads((folder / "test.json").read_text())["metrics"]
    ended = tool("predict.py", config, weights, data / images, "--out", tmp_path / "seen", *small)
    assert ended.code == 0, ended.err
    assert any((tmp_path / "seen").iterdir())


def test_errors_are_one_line(tool: Any, tmp_path: Path) -> None:
    data = photographs(tmp_path / "data")
    for options, message in (
        (("--data", data), "error: Which is for training: 'Prüfung', 'Übung'? Say it by --train"),
        (("--data", tmp_path / "nowhere"), "error: --data "),
        (
            ("--data", data, "--train", "Ubung"),
            "error: --train Ubung: the data has 'Prüfung', 'Übung'; name one of them",
        ),
    ):
        ended = tool("new_experiment.py", "classification", "--out", tmp_path / "own.py", *options)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(message)
        assert len(ended.err.splitlines()) == 1
        assert not (tmp_path / "own.py").exists()
    ended = tool("new_experiment.py", "detection", "--data", data, "--out", tmp_path / "own.py", "--batch", 0)
    assert ended.code == 2
    assert ended.err.endswith("error: --batch: at least 1\n")
