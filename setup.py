"""Adds to an editable install a dependency on a folder beside it, whose address pyproject.toml cannot state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setuptools import Distribution, setup

from build_backend import is_editable

STAND_IN = Path(__file__).resolve().parent / "tools/opencv_stand_in"


class DistributionWithoutGui(Distribution):
    """A distribution that answers what its dependencies ask of ``opencv-python`` with an empty package."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        """Read pyproject.toml, and add the stand-in to the dependencies of an editable install."""
        super().parse_config_files(*args, **kwargs)
        if is_editable():  # a wheel goes to places where there is no such folder
            self.install_requires.append(f"opencv-python @ {STAND_IN.as_uri()}")


setup(distclass=DistributionWithoutGui)
