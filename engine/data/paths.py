"""File names from annotation files and folders: found, compared and confined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

# Files and folders that systems leave beside images, besides those that begin with a dot: macOS, Synology, Windows.
SYSTEM_NAMES = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system has made: its images are no data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_files(folder: str, hidden: list[str], unreadable: list[OSError] | None = None) -> list[str]:
    """Paths of the files in a folder, at any depth; links are followed, each real folder is read once.

    Args:
        folder: Folder to search.
        hidden: List that receives the paths of hidden files and folders, which are skipped.
        unreadable: List that receives the errors of folders that cannot be read.
    """
    root = os.path.realpath(folder)
    files, seen = [], {root}
    for directory, folders, names in os.walk(
        folder, onerror=None if unreadable is None else unreadable.append, followlinks=True
    ):
        hidden += [os.path.join(directory, name) for name in (*folders, *names) if is_hidden(name)]
        files += [os.path.join(directory, name) for name in names if not is_hidden(name)]
        candidates = sorted(name for name in folders if not is_hidden(name))
        folders.clear()
        for name in candidates:
            real = os.path.realpath(os.path.join(directory, name))
            if real not in seen and not root.startswith(real.rstrip(os.sep) + os.sep):  # no link that goes round
                seen.add(real)
                folders.append(name)
    return files


def hidden_note(where: str, paths: Sequence[str]) -> list[str]:
    """A line about hidden files and folders that were skipped; no line if there are none.

    Args:
        where: Data in which they are.
        paths: Their paths.
    """
    names = ", ".join(sorted({os.path.basename(path) for path in paths})[:3])
    return [f"{len(paths):,} hidden files and folders of {where} are skipped ({names})"] if paths else []


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
