"""File names from annotation files and folders, compared and confined."""

from __future__ import annotations

import os
from functools import lru_cache


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def real_path(path: str) -> str:
    """Path by which files of different splits can be compared: symbolic links to folders are followed."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)


def leads_outside(folder: str, name: str) -> bool:
    """Whether a file name of an annotation file, relative to the folder of the files, leads out of that folder."""
    if ".." not in name and not os.path.isabs(name):
        return False
    root, inside = os.path.abspath(folder or "."), os.path.abspath(os.path.join(folder, name))
    return inside == root or not inside.startswith(root.rstrip(os.sep) + os.sep)
