"""Videos: their frames one by one, and the drawn frames as another video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones.errors import MachineError
from backbones.files import atomic_write, describe_special
from engine.data.image_files import DamagedImageError

VIDEO_FORMAT = ".mp4"
VIDEO_CODEC = "mp4v"  # MPEG-4, part 2, which every build of OpenCV writes
USUAL_FRAME_RATE = 25.0  # frames per second, of a video that states none
WHOLE_SHARE = 0.9  # of the frames that a file states, which is an estimate in some formats


class Video:
    """The frames of a video file.

    Args:
        path: The file.

    Attributes:
        rate: Frames per second.

    Raises:
        DamagedImageError: If it cannot be read as a video.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        if special := describe_special(path):
            raise DamagedImageError.of(path, special)
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise DamagedImageError.of(path, "cannot be read as a video: damaged, or in a codec that OpenCV lacks")
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS) or USUAL_FRAME_RATE)

    def batches(self, size: int) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Frames with their numbers from 1, BGR, uint8, (H, W, 3), some at a time.

        Raises:
            DamagedImageError: If not a single one can be decoded.
        """
        try:
            frames = self._frames()
            while batch := list(islice(frames, size)):
                yield batch
            if not self.count:
                raise DamagedImageError.of(self.path, "has no frame that can be decoded")
            stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if self.count < WHOLE_SHARE * stated:
                print(f"{self.path}: {self.count} of its {stated} frames could be read, the file may be cut off")
        finally:
            self._capture.release()

    def _frames(self) -> Iterator[tuple[int, np.ndarray]]:
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            self.count += 1
            yield self.count, frame


class VideoFile:
    """A video that is written; its size is that of the first picture, to which others are resized.

    Args:
        path: The file, which ends in ``VIDEO_FORMAT``.
        rate: Frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.count = path, rate, 0
        self._writer: Any = None
        self._size = (0, 0)

    def add(self, picture: np.ndarray) -> None:
        """Add a picture, BGR, uint8, (H, W, 3)."""
        if self._writer is None:
            height, width = picture.shape[:2]
            self._size = (width - width % 2, height - height % 2)  # players want even sides
            codec = cv2.VideoWriter.fourcc(*VIDEO_CODEC)
            self._writer = cv2.VideoWriter(str(self.path), codec, self.rate, self._size)
        same = picture.shape[1::-1] == self._size
        resized = picture if same else cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(np.ascontiguousarray(resized))
        self.count += 1

    def close(self) -> None:
        """End the video.

        Raises:
            MachineError: If the file is not whole; OpenCV says nothing of a full disk.
        """
        if self._writer is None:
            return
        self._writer.release()
        written = int(cv2.VideoCapture(str(self.path)).get(cv2.CAP_PROP_FRAME_COUNT))
        if written != self.count:
            raise MachineError(
                f"{str(self.path.parent)!r}: {written} of {self.count} frames of a video were written: make room there"
            )


@contextmanager
def written_video(path: Path, rate: float) -> Iterator[VideoFile]:
    """A video file that is there once it is complete.

    Args:
        path: The file.
        rate: Frames per second.
    """
    with atomic_write(path, durable=False) as part:
        unfinished = part.with_name(f"{part.name}{VIDEO_FORMAT}")  # by its suffix OpenCV chooses the format
        try:
            video = VideoFile(unfinished, rate)
            yield video
            video.close()
            unfinished.replace(part)
        finally:
            unfinished.unlink(missing_ok=True)
