"""Data check of images and label PNGs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from backbones.arguments import parameters_of
from engine.data.checker import DATA_CHECKERS, DataFile, DatasetChecker, orientation_cause, repeated
from engine.data.image_files import LABEL_MODES, ImageInfo, image_suffixes
from engine.data.orientation import Size
from engine.data.paths import hidden_note, leads_outside
from engine.data.shards.unpacked import named_files, read_data_file
from segmentation.data import IGNORE_INDEX, as_suffixes, names_by_stem, read_labels, without_suffix

MAX_TRIED_PIXELS = 16_000_000  # of an image that is sent through the pipeline
MIN_LABEL_FILES = 50  # inspected label images that are taken for all of them
MAX_LISTED_CLASSES = 6
MAX_PADDING = 0.5  # of what the network gets in training, even of the largest image
MAX_IGNORED_FRACTION = 0.5  # of the pixels; more are worth a warning (ADE20K and Cityscapes: a tenth)
MIN_IGNORED_FRACTION = 0.01  # of the pixels; less may be borders between objects
LABEL_FIXES = {
    "32 bits": "save the class numbers with 8 bits: Image.fromarray(labels.astype('uint8'))",
    "colour": "store class numbers in one channel (grey or palette), not colours",
    "one too high": "set reduce_zero_label=True in the config",
    "ignored zero": "set reduce_zero_label=False in the config, or store 'not labelled' as 0",
}


@DATA_CHECKERS.register(BaseSegDataset)
class LabelChecker(DatasetChecker):
    """Checks pairs of image and label PNG: partners, sizes, and values against the classes."""

    def list_files(self) -> list[DataFile]:
        """Pair images and labels, and list them."""
        self._unpaired: dict[str, tuple[str, ImageInfo]] = {}  # first inspected file of a pair, by stem
        self._pixels: Counter[int] = Counter()  # of each stored value
        self._wrong_values: dict[str, list[int]] = {}  # by label file
        self._label_files = self._empty_files = 0
        self._image_sizes: dict[Size, str] = {}  # an image of each size
        self._read_label_settings()
        folders = [self._folder("img_path"), self._folder("seg_map_path")]
        suffixes = [self._setting("img_suffix"), self._setting("seg_map_suffix")]
        self._hidden: dict[str, list[str]] = {folder: [] for folder in folders}
        self._files = {folder: named_files(folder, self._hidden[folder]) or {} for folder in folders}
        names = [self._names(*pair) for pair in zip(folders, suffixes, strict=True)]
        listed = self.dataset.get("ann_file")
        stems = self._read_stems(*folders) if listed else self._pair_files(folders, suffixes, names)
        images, labels = (
            {stem: self._path(folder, found.get(stem, [stem + as_suffixes(suffix)[0]])[0]) for stem in stems}
            for folder, suffix, found in zip(folders, suffixes, names, strict=True)
        )
        files = [DataFile(images[stem], key=stem) for stem in stems]
        return files + [DataFile(labels[stem], "labels", key=stem) for stem in stems]

    def _setting(self, name: str) -> Any:
        """What the config states of the data set, or else its class, as ADE20K's does."""
        with DATASETS.switch_scope_and_registry(self.cfg.get("default_scope")) as registry:
            parameters, _ = parameters_of(registry.get(self.dataset.type))
        return self.dataset.get(name, parameters[name].default)

    def _names(self, folder: str, suffix: str | Sequence[str]) -> dict[str, list[str]]:
        """Names of the files of a folder by their stems."""
        found = names_by_stem(self._files[folder], suffix)
        for names in (names for names in found.values() if len(names) > 1):
            problem = f"has the stem of {names[1]}, so that both have the same labels"
            self.error("two images", os.path.join(folder, names[0]), problem, "remove one, or rename it")
        return found

    def _path(self, folder: str, name: str) -> str:
        return self._files[folder].get(name) or os.path.join(folder, name)

    def _folder(self, prefix: str) -> str:
        return os.path.join(self.dataset.get("data_root") or "", self.dataset.get("data_prefix", {}).get(prefix) or "")

    def _read_label_settings(self) -> None:
        """Read from the config how the pipeline turns a stored value into a class."""
        self.classes: tuple[str, ...] = tuple(self.dataset.metainfo["classes"])
        step: Mapping[str, Any] = next(iter(self.pipeline_steps(LoadAnnotations)), {})
        self.reduce = bool(self._setting("reduce_zero_label"))
        self.unlabelled = step.get("unlabelled")
        stated_values: Sequence[int] = step.get("label_values") or ()
        self.values = stated_values or range(int(self.reduce), len(self.classes) + int(self.reduce))
        self.ignored = {IGNORE_INDEX, self.unlabelled, *([0] if self.reduce else [])} - set(stated_values)
        stated = step.get("reduce_zero_label")
        if stated is not None and bool(stated) != self.reduce:
            problem = f"reduce_zero_label is {self.reduce} of the data set and {stated} of {step['type']}"
            self.error("reduce_zero_label", "config", problem, "set both to the same value")

    def _pair_files(
        self, folders: list[str], suffixes: list[str | Sequence[str]], stems: list[dict[str, list[str]]]
    ) -> list[str]:
        for folder, stated, found, role in zip(folders, suffixes, stems, ("images", "labels"), strict=True):
            self.notes += hidden_note(f"the {role} of the {self.split} data", self._hidden[folder])
            suffix = " or ".join(as_suffixes(stated))
            several = ", or state several: img_suffix=('.jpg', '.png')" if role == "images" else ""
            if not found:
                self.error("no files", folder, f"holds no {suffix} file", f"bring the {role}, or set their suffix")
            for name in sorted(self._files[folder]):
                if name.lower().endswith(image_suffixes(self.channels)) and without_suffix(name, stated) is None:
                    path = os.path.join(folder, name)
                    self.warn(
                        f"other {role}", path, f"is not read: {role} end in {suffix}", f"convert or rename it{several}"
                    )
        for own, other, kind, partner in (
            (0, 1, "image without labels", "labels"),
            (1, 0, "labels without image", "image"),
        ):
            for stem in sorted(stems[own].keys() - stems[other].keys()):
                file = os.path.join(folders[own], stems[own][stem][0])
                wanted = " or ".join(f"{stem}{suffix}" for suffix in as_suffixes(suffixes[other]))
                self.error(kind, file, f"has no {partner}", f"bring {wanted}, or remove it")
        return sorted(stems[0].keys() & stems[1].keys())

    def _read_stems(self, images: str, labels: str) -> list[str]:
        path = os.path.join(self.dataset.get("data_root") or "", self.dataset.ann_file)
        stems = [line.strip() for line in read_data_file(path).decode("utf-8-sig").splitlines() if line.strip()]
        for problem in repeated("", stems):
            self.warn("listed twice", path, problem, "keep one")
        astray = [one for one in dict.fromkeys(stems) if leads_outside(images, one) or leads_outside(labels, one)]
        for stem in astray:
            self.error("path", path, f"{stem!r} leads out of the folder", "name files inside of it")
        return [stem for stem in dict.fromkeys(stems) if stem not in astray]

    def read_size(self, path: str, role: str = "image") -> Size:
        """Width and height of an image as the pipeline reads it, or of labels as ``LoadLabels`` does."""
        if role == "image":
            return super().read_size(path)
        height, width = read_labels(path).shape
        return width, height

    def blank_annotations(self, size: Size) -> dict[str, Any]:
        """Labels of class 0."""
        return {"gt_seg_map": np.zeros(size[::-1], np.uint8), "seg_fields": ["gt_seg_map"]}

    def needs_values(self, file: DataFile) -> bool:
        """Whether the file is a label image."""
        return file.role == "labels"

    def check_file(self, file: DataFile, info: ImageInfo) -> None:
        """Check a file, and the pair of image and labels once both have been inspected."""
        super().check_file(file, info)
        if info.problem is not None:
            return
        if file.role == "image":
            self._image_sizes[self.size_as_read(info)] = file.path
        if file.role == "labels":
            self._check_labels(file, info)
        other = self._unpaired.pop(file.key, None)
        if other is None:
            self._unpaired[file.key] = (file.path, info)
        elif file.role == "labels":
            self._check_pair(file.path, info, *other)
        else:
            self._check_pair(*other, file.path, info)

    def _check_pair(self, labels_path: str, labels: ImageInfo, image_path: str, image: ImageInfo) -> None:
        labels_size, image_size = self.size_as_read(labels, "labels"), self.size_as_read(image)
        if self.orientation_left(labels, "labels") not in (1, self.orientation_left(image)):
            problem = f"has EXIF orientation {labels.orientation}, which is not applied to labels"
            self.warn(
                "EXIF orientation of labels", labels_path, problem, "save them without the tag, as the image is seen"
            )
        if labels_size == image_size:
            self.check_turned(image_path, image)
            return
        why, fix = orientation_cause(image, image_size, labels_size)
        sizes = ["{} x {}".format(*size) for size in (labels_size, image_size)]
        problem = f"is {sizes[0]}, its image {image_path} is {sizes[1]}{why}"
        self.error("size of labels", labels_path, problem, fix or "make both the same size")

    def _check_labels(self, file: DataFile, info: ImageInfo) -> None:
        if info.mode == "F":
            problem = "is a label image of 32-bit floating-point numbers, not of class numbers"
            self.error("32-bit labels", file.path, problem, LABEL_FIXES["32 bits"])
            return
        if info.mode not in LABEL_MODES:
            self.error("coloured labels", file.path, f"is a label image with {info.mode} pixels", LABEL_FIXES["colour"])
            return
        if info.format == "JPEG":
            self.error("JPEG labels", file.path, "is a JPEG, which blurs class numbers", "write the labels as PNG")
            return
        if info.mode == "I" and info.bits > 16:
            problem = "has labels of 32 bits, which are read as whole numbers"
            self.warn("32-bit labels", file.path, problem, LABEL_FIXES["32 bits"])
        if info.value_counts is None:
            return
        self._label_files += 1
        self._pixels.update(info.value_counts)
        classes = {self._class_of(value) for value in info.value_counts}
        if None in classes:
            self._wrong_values[file.path] = sorted(v for v in info.value_counts if self._class_of(v) is None)
        elif classes == {IGNORE_INDEX}:
            self._empty_files += 1
            self.warn("nothing labelled", file.path, "has no labelled pixel", "remove it, or label it")

    def _class_of(self, value: int) -> int | None:
        """Class index of a stored value, 255 for "not labelled", ``None`` for a value without a meaning."""
        if value in self.ignored:
            return IGNORE_INDEX
        return self.values.index(value) if value in self.values else None

    def finish(self, complete: bool) -> None:
        """Check the sizes of all images and the values of all labels together."""
        self._check_batches()
        self._check_padding()
        if not self._label_files:
            return
        self._check_wrong_values()
        self._check_ignored_zero(complete)
        self._check_masks(complete)
        present = {self._class_of(value) for value in self._pixels}
        if present == {IGNORE_INDEX}:
            self.error("nothing labelled", self._folder("seg_map_path"), "no pixel is labelled", "check the labels")
        self._note_class_shares()
        absent = [name for index, name in enumerate(self.classes) if index not in present]
        if absent and complete and present - {IGNORE_INDEX, None}:
            problem = f"{len(absent)} of {len(self.classes)} classes have no pixel: {', '.join(absent[:5])}"
            fix = "check the order of classes"
            if self.split != "train":
                fix += f"; without {self.split} labels of them, their IoU is 0 where they are found, else not counted"
            self.warn("class without pixels", self._folder("seg_map_path"), problem, fix)

    def _check_batches(self) -> None:
        """Check that images of a batch have one size after the transforms; ``SegDataPreProcessor`` stacks them."""
        loader = self.cfg.get(f"{self.split}_dataloader") or {}
        preprocessor = (self.cfg.get("model") or {}).get("data_preprocessor") or {}
        padded = self.split == "train" and preprocessor.get("size_divisor")
        if loader.get("batch_size", 1) < 2 or padded or "type" not in preprocessor:
            return
        by_area = self._tried_sizes()
        final: dict[Size, Size] = {}  # stored size of an image by its last size
        for size in dict.fromkeys((*by_area[:2], *by_area[-2:])):
            if not (tries := self._after_pipeline(size)):
                return
            for last in tries:
                final.setdefault(self.network_input.padded(last) if self.split == "train" else last, size)
        if len(final) > 1:
            (one, first), (other, second) = list(final.items())[:2]
            problem = f"becomes {one[0]} x {one[1]} pixels for the network, {self._image_sizes[second]} becomes "
            problem += f"{other[0]} x {other[1]}: a batch of {loader['batch_size']} needs one size"
            crop = "end with a RandomCrop of data_preprocessor.size, or without batch norms set batch.per_gpu=1"
            fix = crop if self.split == "train" else f"set {self.split}_dataloader.batch_size=1"
            self.error("sizes in a batch", self._image_sizes[first], problem, fix)

    def _check_padding(self) -> None:
        """Check that training images are not mostly padding, as with a crop of one's own below a library's size."""
        by_area = self._tried_sizes() if self.split == "train" else []
        if not by_area or not (tries := self._after_pipeline(by_area[-1])):
            return
        largest, last = by_area[-1], max(tries, key=prod)
        final = self.network_input.padded(last)
        share = 1 - prod(last) / prod(final)
        if share > MAX_PADDING:
            problem = f"becomes {last[0]} x {last[1]} pixels and is padded to {final[0]} x {final[1]}: {share:.0%} of "
            problem += "what the network computes is padding, which batch norms count too"
            fix = f"set model.data_preprocessor.size=({last[1]}, {last[0]}), or enlarge the crop"
            self.warn("mostly padding", self._image_sizes[largest], problem, fix)

    def _tried_sizes(self) -> list[Size]:
        """Stored sizes of the images that may be sent through the pipeline, by area."""
        return sorted(
            (size for size in self._image_sizes if prod(size) < MAX_TRIED_PIXELS), key=lambda size: (prod(size), size)
        )

    def _after_pipeline(self, size: Size) -> list[Size]:
        """Sizes of an image after three runs of the pipeline; none if a step needs more than a blank picture."""
        try:
            return [self.network_input.after_pipeline(size, seed) for seed in range(3)]
        except Exception:  # a step may refuse in any way
            return []

    def _note_class_shares(self) -> None:
        """Note which classes cover most pixels: people see at once what no rule finds, such as 30 % poles."""
        total = sum(self._pixels.values())
        shares: Counter[int | None] = Counter()
        for value, pixels in self._pixels.items():
            shares[self._class_of(value)] += pixels
        ignored, wrong = shares.pop(IGNORE_INDEX, 0) / total, shares.pop(None, 0) / total
        common = [(self.classes[i], n) for i, n in shares.most_common(MAX_LISTED_CLASSES) if i is not None]
        most = ", ".join(f"{name} {pixels / total:.0%}" for name, pixels in common)
        parts = [f"most are {most}"] if most else []
        parts += [f"{ignored:.{0 if ignored >= 0.01 else 2}%} are not labelled"] if ignored else []
        parts += [f"{wrong:.1%} stand for no class"] if wrong else []
        self.notes.append(f"pixels in {self._label_files:,} of the {self.split} labels: {', '.join(parts)}")
        use = "learnt" if self.split == "train" else "scored"
        if self._empty_files:
            empty = f"{self._empty_files:,} of {self._label_files:,} {self.split} labels have no labelled pixel"
            self.notes.append(f"{empty}: nothing is {use} there")
        if MAX_IGNORED_FRACTION < ignored < 1:
            problem = f"{ignored:.0%} of the pixels of the {self.split} labels are not labelled, nothing is {use} there"
            fix = "check unlabelled and reduce_zero_label if they should be a class"
            self.warn("pixels without a label", self._folder("seg_map_path"), problem, fix)

    def _check_wrong_values(self) -> None:
        classes = len(self.classes)
        setting = f"{classes} classes, reduce_zero_label={self.reduce}"
        found = {value for values in self._wrong_values.values() for value in values}
        fix = "check classes, or set unlabelled in the config"
        if not self.reduce and found == {classes} and 0 not in self._pixels:
            fix = f"values count from 1: {LABEL_FIXES['one too high']}"
        for path, values in sorted(self._wrong_values.items()):
            others = f" (also {', '.join(map(str, values[1:6]))})" if len(values) > 1 else ""
            self.error("label value", path, f"label value {values[0]}{others} stands for no class ({setting})", fix)

    def _check_ignored_zero(self, complete: bool) -> None:
        """Check for values 0 to N-1 of N classes while 0 is ignored: each is then one class too low."""
        count, stored = len(self.classes), {v for v in self._pixels if v not in (IGNORE_INDEX, self.unlabelled)}
        share = self._pixels[0] / max(1, sum(self._pixels.values()))
        if not self.reduce or stored != set(range(count)) or share < MIN_IGNORED_FRACTION:
            return
        problem = f"values 0 to {count - 1} stand for {count} classes and 0, {share:.0%} of the "
        problem += f"pixels, is ignored: {self.classes[0]!r} would be learnt from value 1"
        report = self.error if complete or self._label_files >= MIN_LABEL_FILES else self.warn
        report("reduce_zero_label", self._folder("seg_map_path"), problem, LABEL_FIXES["ignored zero"])

    def _check_masks(self, complete: bool) -> None:
        """Check for one class: in masks of 0 and 255, as drawing programs store them, 255 means "not labelled"."""
        stored = {value for value in self._pixels if value != self.unlabelled}
        if stored == {0, IGNORE_INDEX} and IGNORE_INDEX in self.ignored:
            problem = "all values are 0 and 255, which means 'not labelled': "
            problem += f"no other class than {self.classes[0]!r} is ever seen"
            fix = "store classes as 0, 1, 2..., or set label_values=(0, 255) in the config, with two classes"
            self.error("masks of 0 and 255", self._folder("seg_map_path"), problem, fix)
            return
        seen = {self._class_of(value) for value in self._pixels} - {IGNORE_INDEX}
        if (
            None not in seen
            and len(seen) == 1
            and self.split == "train"
            and (complete or self._label_files >= MIN_LABEL_FILES)
        ):
            problem = f"all labelled pixels are {self.classes[seen.pop() or 0]!r}: there is nothing to tell apart"
            fix = "label the rest as a class too, such as 'background', or export the labels again"
            self.error("one class", self._folder("seg_map_path"), problem, fix)
