"""Which images are predicted, and the name of each among the files that are written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backbones.errors import ConfigError, DataError
from engine.data.image_files import IMAGE_SUFFIXES, OTHER_SUFFIXES
from engine.data.paths import hidden_note, list_files

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image to predict.

    Attributes:
        path: Image file.
        file: Path below the folder that all images have in common, with ``/`` between folders.
        name: The same without suffix, or with it where that would be another image's too; of what is written for it.
    """

    path: Path
    file: str
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def unread_images(
    paths: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES, left_out: Path | None = None
) -> dict[Path, str]:
    """Pictures in folders that :func:`find_images` passes over for their format, each with the reason in a line."""
    reasons = {
        suffix: f"is not read, as {suffix} is none of {', '.join(suffixes)}: convert it to JPEG or PNG"
        for suffix in (*OTHER_SUFFIXES, ".npy")
        if suffix not in suffixes
    } | dict.fromkeys(VIDEO_SUFFIXES, "is a video in a folder of images, and not read: name the file itself")
    found = (one for path in paths if path.is_dir() for one in _files_below(path, left_out, []))
    return {
        one: reasons[one.suffix.lower()].replace(one.suffix.lower(), one.suffix, 1)
        for one in found
        if one.suffix.lower() in reasons and one.is_file()
    }


def find_images(
    paths: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES, left_out: Path | None = None
) -> list[Path]:
    """Images at paths: files, and all images of some suffixes in folders at any depth, without hidden ones.

    Args:
        paths: Files and folders.
        suffixes: Suffixes of images.
        left_out: Folder whose files do not count, that of what is written.

    Raises:
        ConfigError: If a path is that folder, or lies in it.
        DataError: If there is none at a path.
    """
    return list(dict.fromkeys(image for path in paths for image in _images_at(path, suffixes, left_out)))


def _files_below(folder: Path, left_out: Path | None, hidden: list[str]) -> list[Path]:
    """The files of a folder in sorted order, folder by folder, those of the folder itself first."""
    paths = [Path(name) for name in list_files(str(folder), hidden)]
    if left_out is not None:
        outside = left_out.absolute()
        paths = [path for path in paths if outside not in path.absolute().parents]
    return sorted(paths, key=lambda path: (path.parent.parts, path.name))


def _images_at(path: Path, suffixes: tuple[str, ...], left_out: Path | None) -> list[Path]:
    if left_out is not None and path.exists():
        holds = path if path.is_dir() else path.parent
        if left_out.resolve() in (place := holds.resolve(), *place.parents):
            raise ConfigError(
                f"the drawings would lie among the images in {str(holds)!r}: choose another folder with --out, not one "
                "that holds them"
            )
    if path.is_file():
        return [path]
    hidden: list[str] = []
    found = _files_below(path, left_out, hidden) if path.is_dir() else []
    images = [one for one in found if one.suffix.lower() in suffixes]
    shown = [name for name in hidden if Path(name).suffix.lower() in suffixes]
    for line in hidden_note(str(path), shown):
        print(line)
    if not images:
        others = Counter(one.suffix for one in unread_images([path], suffixes, left_out))
        beside = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        raise DataError(
            f"{str(path)!r} is neither an image nor a folder with images ({', '.join(suffixes)})"
            + (f"; it has {beside}: convert them to JPEG or PNG, and name videos themselves" if others else "")
        )
    return images


def name_images(images: Sequence[Path], given: Iterable[Path] = ()) -> list[NamedImage]:
    """A name for each image that no other has, with the sub-folders in which it lies.

    Args:
        images: Image files.
        given: Files and folders that were asked for; names are relative to the folder that these have in common.
    """
    folders = [path if path.is_dir() else path.parent for path in given or images]
    common = os.path.commonpath([folder.absolute() for folder in folders])
    files = [Path(os.path.relpath(image.absolute(), common)) for image in images]
    stems, whole = Counter(file.with_suffix("") for file in files), set(files)
    parents = {folder for file in files for folder in file.parents}
    named, taken = [], set()
    for image, file in zip(images, files, strict=True):
        stem = file.with_suffix("")
        name = (stem if stems[stem] == 1 and stem not in whole else file).as_posix()
        one = NamedImage(image, file.as_posix(), name)
        if one.is_video and Path(name) in parents:  # which may have images of the names of its frames
            one = replace(one, name=one.file)
        while one.name in taken:
            one = replace(one, name=f"{one.name}_")
        taken.add(one.name)
        named.append(one)
    return named
