"""What goes wrong with images and label PNGs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset

from engine.data.check import Checker, Job, checks, escapes
from engine.data.image_files import IMAGE_SUFFIXES, Seen
from segmentation.data import IGNORE

ENOUGH = 50  # label images from which on what none of them shows is worth a word
SHOWN = 6  # classes
IGNORED = 0.01  # of the pixels: less may be a seam
MENDS = {
    "colour": "store class numbers in one channel (grey or palette), not colours",
    "one too high": "set reduce_zero_label=True in the data set and in LoadLabels",
    "ignored zero": "set reduce_zero_label=False in the data set and in LoadLabels, or store 'not labelled' as 0",
}


@checks(BaseSegDataset)
class LabelChecker(Checker):
    """Checks pairs of image and label PNG: partners, sizes, and values against the classes."""

    def jobs(self) -> list[Job]:
        """Pair the files, and list them."""
        self._sizes: dict[str, tuple[str, Seen]] = {}
        self._pixels: Counter[int] = Counter()
        self._files: Counter[int] = Counter()
        self._wrong: dict[str, list[int]] = {}
        self._counted = 0
        self._read_rule()
        folders = [self._folder("img_path"), self._folder("seg_map_path")]
        suffixes = [self.dataset.get("img_suffix", ".jpg"), self.dataset.get("seg_map_suffix", ".png")]
        stems = self._listed(*folders) if self.dataset.get("ann_file") else self._paired(folders, suffixes)
        jobs = [Job(os.path.join(folders[0], f"{stem}{suffixes[0]}"), key=stem) for stem in stems]
        return jobs + [Job(os.path.join(folders[1], f"{stem}{suffixes[1]}"), "labels", key=stem) for stem in stems]

    def _folder(self, prefix: str) -> str:
        return os.path.join(self.dataset.get("data_root") or "", self.dataset.get("data_prefix", {}).get(prefix) or "")

    def _read_rule(self) -> None:
        """What the pipeline makes of a stored value."""
        self.classes: tuple[str, ...] = tuple(self.dataset.metainfo["classes"])
        steps = [step for step in self.dataset.get("pipeline", []) if step["type"] in ("LoadLabels", "LoadAnnotations")]
        step: Mapping[str, Any] = steps[0] if steps else {}
        self.reduce = bool(self.dataset.get("reduce_zero_label", False))
        self.unlabelled = step.get("unlabelled")
        stated = step.get("reduce_zero_label")
        if stated is not None and bool(stated) != self.reduce:
            what = f"reduce_zero_label is {self.reduce} of the data set and {stated} of {step['type']}"
            self.error("reduce_zero_label", "config", what, "set them alike")

    def _paired(self, folders: list[str], suffixes: list[str]) -> list[str]:
        found = []
        for folder, suffix, what in zip(folders, suffixes, ("images", "labels"), strict=True):
            names = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]
            found.append({name.removesuffix(suffix) for name in names if name.endswith(suffix)})
            if not found[-1]:
                self.error("no files", folder, f"holds no {suffix} file", f"bring the {what}, or set their suffix")
            for name in sorted(names):
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.endswith(suffix):
                    path = os.path.join(folder, name)
                    self.warn(f"other {what}", path, f"is not read: {what} end in {suffix}", "convert or rename it")
        images, labels = found
        for stem in sorted(images - labels):
            file = os.path.join(folders[0], f"{stem}{suffixes[0]}")
            self.error("image without labels", file, "has no labels", f"bring {stem}{suffixes[1]}, or take it out")
        for stem in sorted(labels - images):
            file = os.path.join(folders[1], f"{stem}{suffixes[1]}")
            self.error("labels without image", file, "has no image", f"bring {stem}{suffixes[0]}, or take it out")
        return sorted(images & labels)

    def _listed(self, images: str, labels: str) -> list[str]:
        path = os.path.join(self.dataset.get("data_root") or "", self.dataset.ann_file)
        stems = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        for stem, count in Counter(stems).items():
            if count > 1:
                self.warn("listed twice", path, f"{stem!r} stands {count} times", "leave one")
        kept = []
        for stem in dict.fromkeys(stems):
            if escapes(images, stem) or escapes(labels, stem):
                self.error("path", path, f"{stem!r} leads out of the folder", "name files inside of it")
            else:
                kept.append(stem)
        return kept

    def counts_values(self, job: Job) -> bool:
        """Labels are worth decoding."""
        return job.role == "labels"

    def saw(self, job: Job, seen: Seen) -> None:
        """Judge a file, and the pair once both of it were seen."""
        super().saw(job, seen)
        if seen.problem is not None:
            return
        if job.role == "labels":
            self._judge_labels(job, seen)
        other = self._sizes.pop(job.key, None)
        if other is None:
            self._sizes[job.key] = (job.path, seen)
            return
        labels, image = ((job.path, seen), other)[:: 1 if job.role == "labels" else -1]
        if labels[1].size != image[1].upright:
            turned = labels[1].size == image[1].size
            why = f" when its EXIF orientation {image[1].orientation} has turned it" if turned else ""
            sizes = ["{} x {}".format(*size) for size in (labels[1].size, image[1].upright)]
            what = f"is {sizes[0]}, its image {image[0]} is {sizes[1]}{why}"
            mend = "save the image as its labels lie, without the tag" if turned else "make labels of the image's size"
            self.error("size of labels", labels[0], what, mend)

    def _judge_labels(self, job: Job, seen: Seen) -> None:
        if seen.mode not in ("L", "P", "1", "I;16"):
            self.error("coloured labels", job.path, f"is a label image with {seen.mode} pixels", MENDS["colour"])
            return
        if seen.form == "JPEG":
            self.error("JPEG labels", job.path, "is a JPEG, which blurs class numbers", "make the labels again as PNG")
            return
        if seen.values is None:
            return
        self._counted += 1
        self._pixels.update(seen.values)
        self._files.update(list(seen.values))
        meant = {self._class_of(value) for value in seen.values}
        if None in meant:
            self._wrong[job.path] = sorted(value for value in seen.values if self._class_of(value) is None)
        elif meant == {IGNORE}:
            self.warn("nothing labelled", job.path, "has no labelled pixel", "take it out, or label it")

    def _class_of(self, value: int) -> int | None:
        """Class of a stored value, 255 for "not labelled", ``None`` for what stands for nothing."""
        if value in (IGNORE, self.unlabelled) or (self.reduce and value == 0):
            return IGNORE
        index = value - int(self.reduce)
        return index if 0 <= index < len(self.classes) else None

    def finish(self, complete: bool) -> None:
        """Judge the values of all labels together."""
        if not self._counted:
            return
        self._judge_wrong_values()
        self._judge_ignored_zero(complete)
        self._judge_masks()
        present = {self._class_of(value) for value in self._pixels}
        if present == {IGNORE}:
            self.error("nothing labelled", self._folder("seg_map_path"), "no pixel is labelled", "check the labels")
        self._note_shares()
        absent = [name for index, name in enumerate(self.classes) if index not in present]
        if absent and self.split == "train" and complete and present - {IGNORE, None}:
            what = f"{len(absent)} of {len(self.classes)} classes have no pixel: {', '.join(absent[:5])}"
            self.warn("class without pixels", self._folder("seg_map_path"), what, "check the order of classes")

    def _note_shares(self) -> None:
        """A person sees at once that a third of the pixels are hardly poles; no rule does."""
        total = sum(self._pixels.values())
        shares: Counter[int | None] = Counter()
        for value, pixels in self._pixels.items():
            shares[self._class_of(value)] += pixels
        ignored = shares.pop(IGNORE, 0) / total
        wrong = shares.pop(None, 0) / total
        most = ", ".join(
            f"{self.classes[i]} {count / total:.0%}" for i, count in shares.most_common(SHOWN) if i is not None
        )
        parts = [f"most are {most}" if most else "", f"{ignored:.0%} are not labelled"]
        parts += [f"{wrong:.1%} stand for no class"] if wrong else []
        which = f"pixels in {self._counted:,} of the {self.split} labels"
        self.notes.append(f"{which}: {', '.join(part for part in parts if part)}")

    def _judge_wrong_values(self) -> None:
        if not self._wrong:
            return
        classes = len(self.classes)
        setting = f"{classes} classes, reduce_zero_label={self.reduce}"
        found = {value for values in self._wrong.values() for value in values}
        mend = "check classes, or set unlabelled of LoadLabels"
        if not self.reduce and found == {classes} and 0 not in self._pixels:
            mend = f"values count from 1: {MENDS['one too high']}"
        for path, values in sorted(self._wrong.items()):
            others = f" (also {', '.join(map(str, values[1:6]))})" if len(values) > 1 else ""
            what = f"label value {values[0]}{others} stands for no class ({setting})"
            self.error("label value", path, what, mend)

    def _judge_ignored_zero(self, complete: bool) -> None:
        """Values 0 to N-1 for N classes, of which 0 is ignored, are all one class too low."""
        stored = {value for value in self._pixels if value not in (IGNORE, self.unlabelled)}
        share = self._pixels[0] / max(1, sum(self._pixels.values()))
        if not self.reduce or stored != set(range(len(self.classes))) or share < IGNORED:
            return
        what = f"values 0 to {len(self.classes) - 1} stand for {len(self.classes)} classes and 0, {share:.0%} of the "
        what += f"pixels, is ignored: {self.classes[0]!r} would be learnt from value 1"
        if complete or self._counted >= ENOUGH:
            self.error("reduce_zero_label", self._folder("seg_map_path"), what, MENDS["ignored zero"])
        else:
            self.warn("reduce_zero_label", self._folder("seg_map_path"), what, MENDS["ignored zero"])

    def _judge_masks(self) -> None:
        """Masks of 0 and 255, as drawing programs store them, hold nothing but "not labelled" beside 0."""
        stored = {value for value in self._pixels if value != self.unlabelled}
        if stored == {0, IGNORE} and len(self.classes) > 1:
            what = "all values are 0 and 255, which means 'not labelled': no other class is ever seen"
            self.error("masks of 0 and 255", self._folder("seg_map_path"), what, "store classes as 0, 1, 2...")
