"""A guard for the names of this project's packages, which are everyday words: ``engine``, ``detection``, ``demo``.

It is a module of its own at the top, under a name that nobody else takes, so that every package can ask it first.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGES = ("backbones", "engine", "classification", "detection", "segmentation", "demo", "analysis")
_INSTALLED = ("site-packages", "dist-packages")


def place_of(package: str) -> Path | None:
    """File that Python takes for a package, or folder of one without ``__init__.py``, imported or not.

    Args:
        package: Name of a package, without dots.

    Returns:
        Its path; ``None`` if there is none.
    """
    module = sys.modules.get(package)
    found = module if module is not None else find_spec(package)
    file = getattr(found, "__file__", None) or getattr(found, "origin", None)
    folders = getattr(found, "__path__", None) or getattr(found, "submodule_search_locations", None)
    place = file or next(iter(folders or ()), None)
    return Path(place).resolve() if place else None


def refuse_namesakes(*packages: str) -> None:
    """Raise an error if another module is found under the name of one of this project's packages.

    A package calls it for those that it imports before it imports them.

    Args:
        packages: Names of packages of this project.

    Raises:
        ImportError: The message names the other file and what to do.
    """
    for package in packages:
        found = place_of(package)
        if found is None or found == ROOT / package / "__init__.py":
            continue
        if any(part in _INSTALLED for part in found.parts):
            advice = "uninstall the package that brought it, or use an environment of your own for this project"
        else:
            advice = "rename it, or start Python where its folder is not on the path"
        raise ImportError(
            f"'import {package}' finds {str(found)!r} instead of this project's {str(ROOT / package)!r}: {advice}"
        )
