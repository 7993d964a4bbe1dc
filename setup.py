"""Adds to pyproject.toml a dependency whose address is that of a folder here, which the file cannot state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setuptools import Distribution, setup

STAND_IN = Path(__file__).resolve().parent / "tools/opencv_stand_in"


class DistributionWithoutGui(Distribution):
    """A distribution that answers what its dependencies ask of ``opencv-python`` with an empty package."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        """Read pyproject.toml, and add the stand-in to its dependencies."""
        super().parse_config_files(*args, **kwargs)
        self.install_requires.append(f"opencv-python @ {STAND_IN.as_uri()}")


setup(distclass=DistributionWithoutGui)
