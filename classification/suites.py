"""The public suites of robustness for classifiers of ImageNet-1K: layouts as downloaded, checks, preprocessing.

Class subsets come with timm (``timm/data/_info``) and are compared with the counts that the authors print.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from timm.data import ImageNetInfo

from backbones.errors import ConfigError, DataError
from backbones.files import read_text_file
from classification.data import class_folders, list_images
from classification.robustness import BorderlessTransform, WarpInputs, real_labels, timm_info
from engine.config.classes import class_names
from engine.config.datasets import inner_datasets
from engine.data.image_files import inspect_image
from engine.task import ImageSet, RobustnessSpec, RobustnessSuite

TRANSFORM = "ClassificationTransform"
C_SIDE = 224  # pixels, of ImageNet-C and -C-bar
WARP_SIDE = 384  # pixels from which the released code warps to the square (facebookresearch/ConvNeXt, datasets.py:78)
CROP_RATIO = 0.875
# The largest fraction that cuts nothing off the short side: with 1.0 the image is warped to the square instead.
SHORT_SIDE_RATIO = 0.9999
BORDER = 2  # pixels, red, of ObjectNet (abarbu/objectnet-template-pytorch, objectnet_pytorch_dataloader.py:57)
STRIDE = 32  # of the last stage: sizes of the network's input are multiples of it
RESOLUTION_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
MAX_PROBLEMS = 3  # of one kind that are listed one by one
VALIDATION_IMAGES = 50_000
OBJECTNET_CLASSES, OBJECTNET_OVERLAP = 313, 113

CORRUPTIONS_OF_C = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
# facebookresearch/augmentation-corruption, imagenet_c_bar/imagenet_c_bar.csv. Its generator names the folders of the
# severities by these values, the downloads by 1 to 5.
VALUES_OF_C_BAR = {
    "blue_noise_sample": (0.8, 1.6, 2.4, 4, 5.6),
    "plasma_noise": (4.75, 7, 8.5, 9.25, 10),
    "checkerboard_cutout": (2, 3, 4, 5, 6),
    "cocentric_sine_waves": (3, 5, 8, 9, 10),
    "single_frequency_greyscale": (1, 1.5, 2, 4.5, 5),
    "brownish_noise": (1, 2, 3, 4, 5),
    "caustic_refraction": (2.35, 3.2, 4.9, 6.6, 9.15),
    "inverse_sparkles": (1, 2, 4, 9, 10),
    "sparkles": (1, 2, 3, 5, 6),
    "perlin_noise": (4.6, 5.2, 5.8, 7.6, 8.8),
}
# rgeirhos/texture-vs-shape, code/helper/human_categories.py:118-149.
_NO_DOGS = {192, 204, 227, 242, 251, 258, 260, 264}
_NO_BIRDS = {9, 17, 21, *range(25, 80), 84, 85, 86, 97, *range(101, 127), 134}
SHAPE_CATEGORIES: dict[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": (294, 295, 296, 297),
    "bicycle": (444, 671),
    "bird": tuple(index for index in range(8, 146) if index not in _NO_BIRDS),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": tuple(range(281, 287)),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": tuple(index for index in range(152, 269) if index not in _NO_DOGS),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}

AS_CONFIG = {
    "config": "the test pipeline of the config",
    "crop": "timm's: resize of the short side, centre crop of 0.875, of all from 384 pixels on",
    "warp": "resize to the square without a crop",
}
AS_C = {
    "as-is": "the images as they are, warped to the square if the network's input is not of 224 pixels",
    "resize": "resize to 256 and centre crop, as AugMix's code does; cuts off a quarter of the published images",
}


def imagenet_names() -> list[str]:
    """The 1,000 WordNet ids in the order of the labels."""
    return list(ImageNetInfo("imagenet-1k").label_names())


def subset(name: str) -> list[int]:
    """Positions of the 200 classes of ImageNet-A (``a``) or ImageNet-R (``r``).

    Raises:
        DataError: If the lists of the installed timm contradict each other.
    """
    indices = [int(line) for line in timm_info(f"imagenet_{name}_indices.txt").split()]
    ids, names = timm_info(f"imagenet_{name}_synsets.txt").split(), imagenet_names()
    if len(set(indices)) != 200 or [names[index] for index in indices] != ids:
        raise DataError(f"timm's lists of the classes of ImageNet-{name.upper()} contradict each other: install timm")
    return sorted(indices)


def not_imagenet(cfg: Config) -> str | None:
    """Why the suites of ImageNet are of no use for a config; ``None`` for a classifier of ImageNet-1K."""
    if list(class_names(cfg.classes)) != imagenet_names():
        return "it is for classifiers of ImageNet-1K, classes='imagenet-1k'"
    return no_crop(cfg)


def no_crop(cfg: Config) -> str | None:
    """Why preprocessing cannot be derived from a config; ``None`` if its test pipeline crops colour images."""
    steps = inner_datasets(cfg.test_dataloader.dataset)[0].get("pipeline") or []
    found = [step for step in steps if step["type"] == TRANSFORM]
    if len(found) != 1 or found[0].get("channels") is not None:
        return f"preprocessing is derived from one {TRANSFORM} for colours in the test pipeline"
    return None


def _settings(cfg: Config) -> tuple[int, float]:
    """Size and crop ratio of the config's test pipeline."""
    steps = inner_datasets(cfg.test_dataloader.dataset)[0].pipeline
    step = next(step for step in steps if step["type"] == TRANSFORM)
    return step["size"], step.get("crop_ratio", CROP_RATIO)


def _crop_ratio(cfg: Config, protocol: str) -> float:
    size, ratio = _settings(cfg)
    centre = CROP_RATIO if size < WARP_SIDE else SHORT_SIDE_RATIO
    return {"crop": centre, "resize": CROP_RATIO, "warp": 1.0, "as-is": 1.0, "config": ratio}[protocol]


def preprocessing(cfg: Config, protocol: str) -> str:
    """Describe in words what happens to an image, and whether that is what the paper's numbers stand for."""
    (size, _), ratio = _settings(cfg), _crop_ratio(cfg, protocol)
    if protocol == "as-is" and size == C_SIDE:
        return "224 pixels as they are"
    if ratio == 1.0:
        what = f"warped to {size} x {size} without a crop"
    else:
        short = "all" if ratio == SHORT_SIDE_RATIO else f"{ratio:g}"
        what = f"short side resized to {int(size / ratio)}, centre crop of {size} x {size} ({short} of it)"
    papers = 1.0 if size >= WARP_SIDE or protocol in AS_C else CROP_RATIO
    return what if ratio == papers else f"{what}; not the paper's"


def _pipeline(cfg: Config, protocol: str, border: int = 0) -> list[dict[str, Any]]:
    """The config's test pipeline with the crop of a protocol."""
    size, ratio = _settings(cfg)[0], _crop_ratio(cfg, protocol)
    changed: dict[str, Any] = {"type": TRANSFORM, "size": size, "crop_ratio": ratio}
    if border:
        changed = {**changed, "type": BorderlessTransform.__name__, "border": border}
    steps = inner_datasets(cfg.test_dataloader.dataset)[0].pipeline
    return [changed if step["type"] == TRANSFORM else dict(step) for step in steps]


def _folders(cfg: Config, place: Path, split: str, protocol: str, folders: Sequence[str], border: int = 0) -> Any:
    return {
        "type": "SomeFolders",
        "folders": list(folders),
        "data_root": str(place),
        "split": split,
        "metainfo": {"classes": imagenet_names()},
        "pipeline": _pipeline(cfg, protocol, border),
        "test_mode": True,
    }


def _one_set(name: str, split: str, classes: str | None, cfg: Config, place: Path, protocol: str) -> list[ImageSet]:
    """A suite of one folder of class folders, named by WordNet ids."""
    evaluator = {"type": "RobustnessMetric", "classes": subset(classes) if classes else None}
    return [ImageSet(name, _folders(cfg, place, split, protocol, imagenet_names()), evaluator)]


def _v2_sets(cfg: Config, place: Path, protocol: str) -> list[ImageSet]:
    """ImageNetV2, whose folders are the labels: in numerical order, not in that of the text."""
    folders = [str(label) for label in range(len(imagenet_names()))]
    return [ImageSet("v2", _folders(cfg, place, "", protocol, folders), {"type": "RobustnessMetric"})]


def severity_folder(place: Path, severity: int, value: float | None) -> str:
    """Name of the folder of a severity: 1 to 5, or the value where only that exists.

    Args:
        place: Folder of a corruption.
        severity: Severity from 1 to 5.
        value: Value that a generator names the folder by, ``None`` for none.
    """
    by_value = f"{value:.2f}" if value is not None else ""
    values = value is not None and (place / by_value).is_dir()
    # By value only if the folders are named so: "2" may be the value of the first and the number of the second.
    return by_value if values and not (place / str(severity)).is_dir() else str(severity)


def _corrupted_sets(
    suite: str, corruptions: Mapping[str, Sequence[float] | None], cfg: Config, place: Path, protocol: str
) -> list[ImageSet]:
    names = imagenet_names()
    return [
        ImageSet(
            f"{suite}/{corruption}/{severity}",
            _folders(cfg, place / corruption, folder, protocol, names),
            {"type": "RobustnessMetric"},
        )
        for corruption, values in corruptions.items()
        for severity in range(1, 6)
        for folder in [severity_folder(place / corruption, severity, values[severity - 1] if values else None)]
    ]


def _test_data(name: str, real: bool, cfg: Config, place: Path, protocol: str) -> list[ImageSet]:
    """The config's own test data, with its labels or those of ReaL."""
    dataset = cfg.test_dataloader.dataset.to_dict()
    for one in inner_datasets(dataset):
        one["pipeline"] = _pipeline(cfg, protocol)
    return [ImageSet(name, dataset, {"type": "RobustnessMetric", "real": real, "keep_confidences": not real})]


def _resolution_sets(cfg: Config, place: Path, protocol: str) -> list[ImageSet]:
    """The test data at sizes from half to one and a half of the network's input, in steps of the total stride."""
    size = _settings(cfg)[0]
    sides = sorted({max(STRIDE, round(size * factor / STRIDE) * STRIDE) for factor in RESOLUTION_FACTORS})
    sets = []
    for side in sides:
        dataset = cfg.test_dataloader.dataset.to_dict()
        for one in inner_datasets(dataset):
            steps = _pipeline(cfg, protocol)
            one["pipeline"] = [{**step, "size": side} if step["type"] == TRANSFORM else step for step in steps]
        sets.append(ImageSet(f"resolution/{side}", dataset, {"type": "RobustnessMetric"}))
    return sets


def _shape_sets(cfg: Config, place: Path, protocol: str) -> list[ImageSet]:
    folders = sorted(SHAPE_CATEGORIES)
    evaluator = {"type": "CueConflictMetric", "categories": SHAPE_CATEGORIES}
    return [ImageSet("shape", _folders(cfg, place, "", protocol, folders), evaluator)]


def objectnet_overlap(place: Path) -> dict[str, list[int]]:
    """Classes of ImageNet that are right for each folder of ObjectNet that overlaps with it.

    Args:
        place: Folder ``objectnet-1.0`` of the download, with ``images/`` and ``mappings/``.

    Raises:
        DataError: If a file of ``mappings/`` is missing or does not name 113 overlapping classes.
    """
    try:
        folders, to_imagenet, positions = (
            json.loads(read_text_file(place / "mappings" / f"{name}.json"))
            for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k", "pytorch_to_imagenet_2012_id")
        )
        lines = read_text_file(place / "mappings/imagenet_to_label_2012_v2").splitlines()
        position = {int(number): int(index) for index, number in positions.items()}
        index = {line.strip(): position[number] for number, line in enumerate(lines)}
        folder_of = {label: folder for folder, label in folders.items()}
        found = {folder_of[label]: [index[name] for name in names.split("; ")] for label, names in to_imagenet.items()}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DataError(f"{str(place / 'mappings')!r}: the class mappings cannot be read: {reason}") from error
    if len(found) != OBJECTNET_OVERLAP or len({one for classes in found.values() for one in classes}) < len(found):
        raise DataError(
            f"{str(place / 'mappings')!r}: {len(found)} classes overlap with ImageNet, {OBJECTNET_OVERLAP} are expected"
        )
    return found


def _objectnet_sets(cfg: Config, place: Path, protocol: str) -> list[ImageSet]:
    overlap = objectnet_overlap(place)
    images = place / "images"
    total = sum(len(list_images(images / folder)) for folder in class_folders(images, ()))
    dataset = _folders(cfg, place, "images", protocol, list(overlap), BORDER)
    return [ImageSet("objectnet", dataset, {"type": "RobustnessMetric", "groups": [*overlap.values()], "total": total})]


def _check_folders(place: Path, expected: Sequence[str], images: int | None) -> Iterator[str]:
    """Compare class folders with names, and the number of images with that of the authors."""
    if not place.is_dir():
        yield f"{str(place)!r} is no folder"
        return
    folders = class_folders(place, ())
    for what, names in (("lacks", set(expected) - folders), ("is no class of the suite:", folders - set(expected))):
        if names:
            first = ", ".join(sorted(names)[:MAX_PROBLEMS])
            yield f"{str(place)!r}: {len(names)} class folders wrong, {what} {first}"
    found = sum(len(list_images(place / name)) for name in folders & set(expected))
    if images is not None and found != images:
        yield f"{str(place)!r} holds {found:,} images, {images:,} are expected"


def _check_set(split: str, expected: Callable[[], Sequence[str]], images: int, cfg: Config, place: Path) -> list[str]:
    return list(_check_folders(place / split, expected(), images))


def _check_corrupted(
    corruptions: Mapping[str, Sequence[float] | None], side: int, cfg: Config, place: Path
) -> list[str]:
    """Check every corruption at every severity: class folders, number of images, and the size of the first image."""
    problems, names = [], imagenet_names()
    for corruption, values in corruptions.items():
        if not (place / corruption).is_dir():
            problems.append(f"{str(place)!r} lacks the corruption {corruption!r}")
            continue
        for severity in range(1, 6):
            name = severity_folder(place / corruption, severity, values[severity - 1] if values else None)
            folder = place / corruption / name
            problems += _check_size(folder, side)
            problems += _check_folders(folder, names, VALIDATION_IMAGES)
    return problems


def _check_size(folder: Path, side: int) -> Iterator[str]:
    """Check the first image in a folder of class folders."""
    for name in sorted(class_folders(folder, ())) if folder.is_dir() else ():
        for image in sorted(list_images(folder / name))[:1]:
            info = inspect_image(image)
            if info.problem:
                yield f"{image!r} {info.problem[1]}"
            elif info.size != (side, side):
                yield f"{str(folder)!r}: images are {info.size[0]} x {info.size[1]} pixels, not {side} x {side}"
            return


def _check_test_data(names: bool, cfg: Config, place: Path) -> list[str]:
    """Check the validation images of ImageNet; for ReaL their names too, without which it has no labels.

    Raises:
        DataError: If ReaL's labels cannot be found.
    """
    if not_imagenet(cfg):
        return []  # other data of one's own has no known counts
    root = inner_datasets(cfg.test_dataloader.dataset)[0]
    folder = Path(root.get("data_root") or ".", root.get("split") or "")
    for name in sorted(class_folders(folder, ())) if names and folder.is_dir() else ():
        for image in list_images(folder / name):
            real_labels(os.path.basename(image))
    return list(_check_folders(folder, imagenet_names(), VALIDATION_IMAGES))


def _check_objectnet(cfg: Config, place: Path) -> list[str]:
    try:
        objectnet_overlap(place)
    except DataError as error:
        return [str(error)]
    images = place / "images"
    found = len(class_folders(images, ())) if images.is_dir() else 0
    return [] if found == OBJECTNET_CLASSES else [f"{str(images)!r}: {found} class folders, not {OBJECTNET_CLASSES}"]


def _check_shape(cfg: Config, place: Path) -> list[str]:
    return list(_check_folders(place, sorted(SHAPE_CATEGORIES), 1280))


def _subset_names(name: str) -> list[str]:
    names = imagenet_names()
    return [names[index] for index in subset(name)]


def _numbers() -> list[str]:
    return [str(label) for label in range(len(imagenet_names()))]


def _suite(title: str, folder: str | None, source: str, sets: Any, check: Any, **settings: Any) -> RobustnessSuite:
    defaults: dict[str, Any] = {"protocols": AS_CONFIG, "preprocessing": preprocessing, "score": "top1"}
    defaults["unfit"] = not_imagenet
    return RobustnessSuite(title, folder, source, sets=sets, check=check, **(defaults | settings))


SUITES = {
    "clean": _suite(
        "Test data",
        None,
        "the test data of the config",
        partial(_test_data, "clean", False),
        partial(_check_test_data, False),
        unfit=no_crop,
    ),
    "resolution": _suite(
        "Test data at other sizes of the network's input",
        None,
        "the test data of the config",
        _resolution_sets,
        partial(_check_test_data, False),
        unfit=no_crop,
    ),
    "c": _suite(
        "ImageNet-C",
        "imagenet-c",
        "Zenodo record 2235448, hendrycks/robustness: unpack blur, digital, noise and weather into one folder",
        partial(_corrupted_sets, "c", dict.fromkeys(CORRUPTIONS_OF_C)),
        partial(_check_corrupted, dict.fromkeys(CORRUPTIONS_OF_C), C_SIDE),
        protocols=AS_C,
        corrupted=True,
    ),
    "cbar": _suite(
        "ImageNet-C-bar",
        "imagenet-c-bar",
        "facebookresearch/augmentation-corruption: download, or its generator imagenet_c_bar/make_imagenet_c_bar.py",
        partial(_corrupted_sets, "cbar", VALUES_OF_C_BAR),
        partial(_check_corrupted, VALUES_OF_C_BAR, C_SIDE),
        protocols=AS_C,
        corrupted=True,
    ),
    "a": _suite(
        "ImageNet-A",
        "imagenet-a",
        "hendrycks/natural-adv-examples: imagenet-a.tar",
        partial(_one_set, "a", "", "a"),
        partial(_check_set, "", partial(_subset_names, "a"), 7_500),
    ),
    "r": _suite(
        "ImageNet-R",
        "imagenet-r",
        "hendrycks/imagenet-r: imagenet-r.tar",
        partial(_one_set, "r", "", "r"),
        partial(_check_set, "", partial(_subset_names, "r"), 30_000),
    ),
    "sketch": _suite(
        "ImageNet-Sketch",
        "sketch",
        "HaohanWang/ImageNet-Sketch: ImageNet-Sketch.zip, which holds sketch/",
        partial(_one_set, "sketch", "", None),
        partial(_check_set, "", imagenet_names, 50_889),
    ),
    "v2": _suite(
        "ImageNetV2, matched frequency",
        "imagenetv2-matched-frequency-format-val",
        "modestyachts/ImageNetV2: imagenetv2-matched-frequency.tar.gz",
        _v2_sets,
        partial(_check_set, "", _numbers, 10_000),
    ),
    "real": _suite(
        "ImageNet-1K, validation, with the labels of ReaL",
        None,
        "the validation images in the config's data_root; the labels come with timm",
        partial(_test_data, "real", True),
        partial(_check_test_data, True),
    ),
    "objectnet": _suite(
        "ObjectNet, the 113 classes of ImageNet",
        "objectnet-1.0",
        "objectnet.dev: objectnet-1.0.zip, with its folders images/ and mappings/",
        _objectnet_sets,
        _check_objectnet,
    ),
    "shape": _suite(
        "Cue conflict (shape against texture)",
        "style-transfer-preprocessed-512",
        "rgeirhos/texture-vs-shape: stimuli/style-transfer-preprocessed-512",
        _shape_sets,
        _check_shape,
        score="shape_bias",
    ),
}


def corrupt_input(
    pipeline: Sequence[Mapping[str, Any]], step: Mapping[str, Any], protocol: str
) -> list[Mapping[str, Any]]:
    """Put a corruption behind the crop: of the network's input, or of 224 pixels that are warped to it afterwards.

    Args:
        pipeline: Test pipeline with one :class:`~classification.data.ClassificationTransform`.
        step: Step that changes ``inputs``.
        protocol: ``input``, or ``authors`` for the size at which ImageNet-C was made.

    Raises:
        ConfigError: If there is no such transform.
    """
    changed: list[Mapping[str, Any]] = []
    for one in pipeline:
        if one["type"] != TRANSFORM:
            changed.append(one)
        elif protocol == "authors" and one["size"] != C_SIDE:
            changed += [{**one, "size": C_SIDE, "crop_ratio": CROP_RATIO}, step]
            changed.append({"type": WarpInputs.__name__, "size": one["size"]})
        elif protocol == "authors":
            changed += [{**one, "crop_ratio": CROP_RATIO}, step]
        else:
            changed += [one, step]
    if len(changed) == len(pipeline):
        raise ConfigError(f"test_pipeline: images are corrupted behind {TRANSFORM}, which it does not have")
    return changed


CLASSIFIER_ROBUSTNESS = RobustnessSpec(
    suites=SUITES,
    place_corruption=corrupt_input,
    protocols={
        "input": "corruptions of the network's input, after resize and crop",
        "authors": "corruptions of a centre crop of 224 pixels, as ImageNet-C was made, warped to the network's input",
    },
    located=False,
    evaluator={"type": "RobustnessMetric"},
    error_of="top1",
)
