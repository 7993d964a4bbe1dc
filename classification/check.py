"""What goes wrong with a folder of class folders."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from classification.data import FolderDataset, class_folders, folders_differ, list_images
from engine.data.check import Checker, Job, checks, nearest
from engine.data.image_files import Seen

FEW = 2  # images of a class


@checks(FolderDataset)
class FolderChecker(Checker):
    """Checks a :class:`~classification.data.FolderDataset`: its folders against the classes, and its images."""

    turns = False

    def jobs(self) -> list[Job]:
        """Compare folders with classes, and list the images."""
        classes = self.dataset.metainfo["classes"]
        root = Path(self.dataset.data_root) / self.dataset.split
        self._seen_in: dict[int, tuple[str, str]] = {}
        if not root.is_dir():
            self.error("folder", str(root), "is no folder", "put the classes' folders there, or set data_root")
            return []
        if differ := folders_differ(root, classes):
            self._name_differences(root, classes, differ)
        if len(classes) == 1 and self.split == "train":
            what = f"there is one class, {classes[0]!r}: nothing to tell apart"
            self.error("one class", str(root), what, "put each class into a folder of its own")
        names = [name for name in sorted(os.listdir(root)) if not name.startswith(".")]
        loose = [path for path in (os.path.join(root, name) for name in names) if os.path.isfile(path)]
        for path in loose:
            self.warn("loose file", path, "lies beside the class folders and is not read", "move it into one")
        every = self.dataset.get("every", 1)
        folders = class_folders(root)
        return [job for name in classes if name in folders for job in self._class_jobs(root, name, every)]

    def _name_differences(self, root: Path, classes: tuple[str, ...], differ: str) -> None:
        folders = sorted(class_folders(root))
        mend = "set classes to the folders' names"
        self.error("classes", str(root), differ, mend)
        for name in sorted(set(classes) - set(folders)):
            near = nearest(name, folders)
            self.error("class without a folder", f"{root}{os.sep}{name}", f"class {name!r} has no folder{near}", mend)
        for name in sorted(set(folders) - set(classes)):
            near = nearest(name, classes)
            self.error("folder without a class", str(root / name), f"folder {name!r} is no class{near}", mend)

    def _class_jobs(self, root: Path, name: str, every: int) -> list[Job]:
        others: list[str] = []
        unreadable: list[OSError] = []
        images = sorted(list_images(root / name, others, unreadable))
        for error in unreadable:
            self.error("unreadable folder", str(error.filename), f"cannot be read: {error.strerror}", "mend its rights")
        for path in others:
            self.warn("no image by its name", path, "is not read", "convert it to JPEG or PNG, or take it out")
        if not images:
            self.error("empty class", str(root / name), "holds no image", "bring its images, or take it out of classes")
        elif len(images) < FEW and self.split == "train":
            self.warn("small class", str(root / name), f"holds {len(images)} image", "few examples teach little")
        return [Job(image, key=name) for image in images[::every]]

    def saw(self, job: Job, seen: Seen) -> None:
        """Judge an image; the same in two classes can be only one of them."""
        super().saw(job, seen)
        if seen.problem is not None:
            return
        first = self._seen_in.setdefault(seen.digest, (job.key, job.path))
        if first[0] != job.key:
            what = f"has the content of {first[1]}, of class {first[0]!r}"
            self.warn("one image in two classes", job.path, what, "take one of them out")

    def finish(self, complete: bool) -> None:
        """Say once where most files were passed over: one line of many equal ones is easily missed."""
        suffixes = Counter(
            os.path.splitext(item.file)[1] or "no suffix" for item in self.found if item.kind == "no image by its name"
        )
        for suffix, count in suffixes.items():
            images = len(self.paths)
            if count > images:
                what = f"{count:,} files with {suffix} are not read, {images:,} images are"
                self.error("images not read", str(self.dataset.data_root), what, "convert them to JPEG or PNG")
