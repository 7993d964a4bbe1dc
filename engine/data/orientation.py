"""EXIF orientation: whether a reader of images applies it, found out by letting it read one.

OpenCV 4.12 applies it to JPEG, PNG and TIFF (with ``color_type="unchanged"`` to TIFF alone), Pillow to TIFF alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from backbones.errors import UserError
from engine.launch.leftovers import process_folder

Size = tuple[int, int]  # width, height

ORIENTATION_TAG = 0x0112
SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)  # swap width and height
PROBE_SIZE: Size = (16, 8)


def applies_orientation(read_size: Callable[[str], Size], image_format: str) -> bool:
    """Whether a reader turns images of a format by their EXIF orientation; not if Pillow cannot write one to try.

    Args:
        read_size: Function from an image file to its width and height as the reader gives it.
        image_format: Pillow's name of the format.
    """
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = SIDEWAYS_ORIENTATIONS[1]
    written = "JPEG" if image_format == "MPO" else image_format  # an MPO is a JPEG followed by others
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        path = Path(folder) / f"probe.{written.lower()}"
        try:
            Image.new("L", PROBE_SIZE).save(path, format=written, exif=exif)
            return read_size(str(path)) == PROBE_SIZE[::-1]
        except (KeyError, OSError, ValueError, UserError):
            return False
