"""A video is read, predicted frame by frame and written as another one; what is none is named in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from backbones.errors import MachineError
from engine.prediction.folder import Output, SkippedImagesError, predict_images
from engine.prediction.images import find_images, name_images
from engine.prediction.video import VideoFile, written_video
from tests.engine.prediction.test_folder import Predicting, work  # noqa: F401  (fixture)

FRAMES = 5


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "films/a.mp4"
    path.parent.mkdir()
    with written_video(path, 10.0) as video:
        for number in range(FRAMES):
            video.add(np.full((48, 64, 3), 40 * number, np.uint8))
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    while (found := capture.read())[0]:
        frames.append(found[1])
    return frames


def run(work: Predicting, given: list[Path], out: Path, **settings: Any) -> list[Path]:  # noqa: F811
    images = name_images(find_images(given), given)
    output = Output(out, **{"result_format": "json", "pictures": False, **settings})
    return list(predict_images(work.cfg, work.model, SimpleNamespace(), images, output))


def test_frames_are_predicted_in_batches_and_drawn(
    work: Predicting,  # noqa: F811
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(cfg: Any, visualizer: Any, sample: Any, target: Path, truth: bool) -> None:
        picture = cv2.imread(sample.img_path)
        cv2.imwrite(str(target), np.vstack([picture, np.zeros_like(picture)]))

    monkeypatch.setattr("engine.prediction.folder.draw_sample", draw)
    still = sorted(work.images.rglob("*.png"))[0]
    _, drawn = run(work, [still, film], tmp_path / "out", pictures=True, batch=2)
    assert drawn == tmp_path / "out/films/a.mp4"
    frames = frames_of(drawn)
    assert len(frames) == FRAMES
    assert frames[0].shape == (96, 64, 3)
    assert [int(frame[:40].mean()) for frame in frames] == pytest.approx([0, 40, 80, 120, 160], abs=6)
    listed = json.loads((tmp_path / "out/results/predictions.json").read_text())["images"]
    assert [one["file_name"] for one in listed] == [
        "images/a/0.png",
        *(f"films/a.mp4/{number:06d}" for number in range(1, FRAMES + 1)),
    ]
    monkeypatch.setattr("engine.prediction.folder.predict_batch", None)  # a second program has nothing to do
    assert run(work, [still, film], tmp_path / "out", pictures=True, batch=2) == []


def test_what_is_no_video_is_named(work: Predicting, film: Path, tmp_path: Path) -> None:  # noqa: F811
    text, cut = tmp_path / "text.avi", tmp_path / "cut.mp4"
    text.write_text("no video")
    cut.write_bytes(film.read_bytes()[:400])
    with pytest.raises(SkippedImagesError) as caught:
        run(work, [text, cut, film], tmp_path / "out")
    line = "cannot be read as a video: damaged, or in a codec that OpenCV lacks"
    assert caught.value.skipped == {text: line, cut: line}
    assert str(caught.value).startswith(f"2 of 3 images were skipped, the first is {str(text)!r}: cannot be read as a")


def write_less_than_counted(path: Path) -> None:
    with written_video(path, 25.0) as video:
        for _ in range(2):
            video.add(np.zeros((16, 16, 3), np.uint8))
        video.count += 1  # a frame for which there was no room


def test_a_video_that_is_not_written_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"2 of 3 frames of a video were written: make room there"):
        write_less_than_counted(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
    VideoFile(tmp_path / "b.mp4", 25.0).close()  # nothing was added
