"""Public suites on made folders: classes, order, preprocessing, checks, and the metrics by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from timm.data.transforms_factory import create_transform

from backbones.errors import ConfigError, DataError
from classification.robustness import (
    BorderlessTransform,
    CueConflictMetric,
    RobustnessMetric,
    SomeFolders,
    WarpInputs,
    real_labels,
)
from classification.suites import (
    SHAPE_CATEGORIES,
    SUITES,
    VALUES_OF_C_BAR,
    corrupt_input,
    imagenet_names,
    objectnet_overlap,
    preprocessing,
    severity_folder,
    subset,
)
from engine.config.load import load_config
from engine.config.world import Launch
from tests.classification.objectnet import objectnet_mappings

ROOT = Path(__file__).resolve().parents[2]
NAMES = imagenet_names()


def config(size: int, **settings: Any) -> Config:
    step = dict(type="ClassificationTransform", size=size, **settings)
    dataset = dict(type="FolderDataset", data_root="data", split="val", pipeline=[step])
    return Config(dict(classes="imagenet-1k", test_dataloader=dict(dataset=dataset)))


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# --- classes ---------------------------------------------------------------------------------------------------------


def test_the_subsets_are_those_of_the_authors() -> None:
    # From the lists in eval.py of hendrycks/natural-adv-examples and hendrycks/imagenet-r: the first and last classes.
    assert (len(subset("a")), subset("a")[:3], subset("a")[-1]) == (200, [6, 11, 13], 988)
    assert (len(subset("r")), subset("r")[:3], subset("r")[-1]) == (200, [1, 2, 4], 988)
    assert subset("a") != subset("r")


def test_the_shape_categories_are_as_many_as_in_the_source() -> None:
    counts = {name: len(classes) for name, classes in SHAPE_CATEGORIES.items()}
    assert len(counts) == 16
    assert (counts["bird"], counts["dog"], counts["bottle"], counts["airplane"]) == (49, 109, 7, 1)


def test_real_labels_are_found_by_the_name_of_the_file() -> None:
    assert real_labels("ILSVRC2012_val_00000002.JPEG") == [970, 795]
    assert real_labels("ILSVRC2012_val_00000001.JPEG") == []  # left out by ReaL
    for name in ("ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG", "n01440764_1.JPEG", "2.JPEG"):
        with pytest.raises(DataError, match="ReaL's labels are found by the names"):
            real_labels(name)


def test_folders_of_v2_are_labels_in_numerical_order(tmp_path: Path) -> None:
    for label in ("10", "2", "999", "0"):
        picture(tmp_path / label / "a.png")
    (one,) = SUITES["v2"].sets(config(32), tmp_path, "config")
    settings = {key: value for key, value in one.dataset.items() if key != "type"}
    dataset = SomeFolders(**settings)
    found = {
        Path(dataset.get_data_info(i)["img_path"]).parent.name: dataset.get_data_info(i)["gt_label"] for i in range(4)
    }
    assert found == {"0": 0, "2": 2, "10": 10, "999": 999}


def test_labels_of_named_folders_are_positions_among_all_classes(tmp_path: Path) -> None:
    name = NAMES[subset("a")[3]]
    picture(tmp_path / name / "a.png")
    (one,) = SUITES["a"].sets(config(32), tmp_path, "config")
    dataset = SomeFolders(**{key: value for key, value in one.dataset.items() if key != "type"})
    assert dataset.get_data_info(0)["gt_label"] == subset("a")[3]
    assert one.evaluator == {"type": "RobustnessMetric", "classes": subset("a")}


# --- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnext_tiny_in1k_300e", "short side resized to 256, centre crop of 224 x 224 (0.875 of it)"),
        ("convnext_base_in22k_ft_in1k_384", "warped to 384 x 384 without a crop"),
        ("convnext_xlarge_in22k_ft_in1k_384", "warped to 384 x 384 without a crop"),
    ],
)
def test_the_configs_preprocess_as_the_paper(name: str, words: str) -> None:
    cfg = load_config(ROOT / f"configs/classification/{name}.py", None, Launch(), training=False).cfg
    assert preprocessing(cfg, "config") == words
    assert SUITES["a"].unfit(cfg) is None


def test_what_is_not_the_papers_is_said() -> None:
    assert preprocessing(config(384), "config").endswith("not the paper's")
    assert preprocessing(config(384), "crop") == (
        "short side resized to 384, centre crop of 384 x 384 (all of it); not the paper's"
    )
    assert preprocessing(config(224), "warp") == "warped to 224 x 224 without a crop; not the paper's"
    assert preprocessing(config(224), "as-is") == "224 pixels as they are"
    assert preprocessing(config(384), "as-is") == "warped to 384 x 384 without a crop"
    assert preprocessing(config(224), "resize").endswith("(0.875 of it); not the paper's")


def test_images_of_c_are_not_resized(tmp_path: Path) -> None:
    picture(tmp_path / "fog/3" / NAMES[7] / "a.png", size=(224, 224))
    sets = {one.name: one for one in SUITES["c"].sets(config(224), tmp_path, "as-is")}
    assert len(sets) == 75
    dataset = SomeFolders(**{key: value for key, value in sets["c/fog/3"].dataset.items() if key != "type"})
    pixels = dataset[0]["inputs"].permute(1, 2, 0).numpy()
    assert (pixels == np.array(Image.open(tmp_path / "fog/3" / NAMES[7] / "a.png"))).all()
    assert dataset[0]["label"] == 7


def test_the_whole_short_side_is_cropped_as_timm_does(tmp_path: Path) -> None:
    path = picture(tmp_path / NAMES[0] / "a.png", size=(500, 400))
    (one,) = SUITES["sketch"].sets(config(384), tmp_path, "crop")
    dataset = SomeFolders(**{key: value for key, value in one.dataset.items() if key != "type"})
    settings = dict(input_size=384, use_prefetcher=True, interpolation="bicubic", crop_pct=1.0, crop_mode="center")
    expected = create_transform(**settings)(Image.open(path))
    assert (dataset[0]["inputs"].numpy() == np.asarray(expected)).all()


def test_the_border_is_cut_off_before_the_crop(tmp_path: Path) -> None:
    pixels = np.zeros((36, 36, 3), np.uint8)
    pixels[:] = (255, 0, 0)
    pixels[2:-2, 2:-2] = (0, 90, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    inputs = BorderlessTransform(size=32, crop_ratio=1.0, border=2)({"img_path": str(tmp_path / "a.png")})["inputs"]
    assert (inputs.amax((1, 2)).tolist(), inputs.amin((1, 2)).tolist()) == ([0, 90, 0], [0, 90, 0])


def test_a_corruption_stands_behind_the_crop() -> None:
    step = {"type": "CorruptImage"}
    crop = {"type": "ClassificationTransform", "size": 384, "crop_ratio": 1.0}
    assert corrupt_input([crop], step, "input") == [crop, step]
    at_224 = {**crop, "size": 224, "crop_ratio": 0.875}
    assert corrupt_input([crop], step, "authors") == [at_224, step, {"type": "WarpInputs", "size": 384}]
    assert corrupt_input([{**crop, "size": 224}], step, "authors") == [at_224, step]
    with pytest.raises(ConfigError, match="corrupted behind ClassificationTransform, which it does not have"):
        corrupt_input([{"type": "LoadImageFromFile"}], step, "input")
    warped = WarpInputs(8)({"inputs": torch.full((3, 4, 4), 9, dtype=torch.uint8), "label": 1})
    assert warped["label"] == 1
    assert warped["inputs"].tolist() == torch.full((3, 8, 8), 9, dtype=torch.uint8).tolist()


# --- checks ----------------------------------------------------------------------------------------------------------


def test_counts_and_class_folders_are_checked(tmp_path: Path) -> None:
    names = [NAMES[index] for index in subset("a")]
    for name in names[1:]:
        picture(tmp_path / name / "a.png", size=(2, 2))
    picture(tmp_path / "n99999999" / "a.png")
    lacks, foreign, count = SUITES["a"].check(config(32), tmp_path)
    assert lacks.endswith(f"1 class folders wrong, lacks {names[0]}")
    assert foreign.endswith("1 class folders wrong, is no class of the suite: n99999999")
    assert count.endswith("holds 199 images, 7,500 are expected")


def test_missing_corruptions_and_other_sizes_are_found(tmp_path: Path) -> None:
    picture(tmp_path / "fog/1" / NAMES[0] / "a.png", size=(256, 256))
    problems = SUITES["c"].check(config(224), tmp_path)
    assert sum("lacks the corruption" in line for line in problems) == 14
    assert any(line.endswith("fog/1': images are 256 x 256 pixels, not 224 x 224") for line in problems)
    assert any("fog/2' is no folder" in line for line in problems)


def test_severities_of_c_bar_are_found_by_number_or_value(tmp_path: Path) -> None:
    for name in ("2.35", "3.20", "1", "2"):
        (tmp_path / "generated" / name).mkdir(parents=True) if "." in name else (tmp_path / "downloaded" / name).mkdir(
            parents=True
        )
    values = VALUES_OF_C_BAR["caustic_refraction"]
    assert [severity_folder(tmp_path / "generated", i + 1, values[i]) for i in (0, 1)] == ["2.35", "3.20"]
    assert [severity_folder(tmp_path / "downloaded", i + 1, values[i]) for i in (0, 1)] == ["1", "2"]


def test_the_overlap_of_objectnet_is_read_from_its_objectnet_mappings(tmp_path: Path) -> None:
    found = objectnet_overlap(objectnet_mappings(tmp_path / "whole", 113))
    assert (len(found), found["object_0"], found["object_7"]) == (113, [0, 500], [7])
    with pytest.raises(DataError, match="112 classes overlap with ImageNet, 113 are expected"):
        objectnet_overlap(objectnet_mappings(tmp_path / "less", 112))
    with pytest.raises(DataError, match="the class mappings cannot be read: FileNotFoundError"):
        objectnet_overlap(tmp_path)


# --- metrics ---------------------------------------------------------------------------------------------------------


def sample(label: int, scores: list[float], path: str = "a.png") -> dict[str, Any]:
    return {"img_path": path, "gt_label": label, "scores": torch.tensor(scores)}


def test_a_subset_decides_among_its_classes_alone() -> None:
    # The most probable class, 0, is not of the subset: right among 1 and 3.
    samples = [sample(3, [0.6, 0.1, 0.0, 0.3]), sample(1, [0.6, 0.1, 0.0, 0.3])]
    metric = RobustnessMetric(classes=[1, 3], keep_confidences=True)
    metric.process(None, samples)
    assert metric.evaluate(2)["top1"] == 50
    assert metric.details["confidences"] == [0.75, 0.75]
    assert metric.details["right"] == [True, False]
    assert [(one["right"], one["predicted"]) for one in metric.details["worst"]] == [([1], 3)]
    every = RobustnessMetric()
    every.process(None, samples)
    assert every.evaluate(2)["top1"] == 0


def test_one_of_several_labels_is_right_and_images_without_any_do_not_count() -> None:
    metric = RobustnessMetric(real=True)
    scores = [0.0] * 1000
    scores[795] = 1.0
    for number in (1, 2, 3):  # none, [970, 795], [230, 231]
        metric.process(None, [sample(0, scores, f"val/ILSVRC2012_val_{number:08d}.JPEG")])
    found = metric.evaluate(3)
    assert (found["top1"], found["images"]) == (50, 2)


def test_a_group_of_classes_is_right_for_a_label_and_the_scorer_divides_by_all() -> None:
    metric = RobustnessMetric(groups=[[0, 2], [1]], total=8)
    metric.process(None, [sample(0, [0.1, 0.2, 0.7]), sample(1, [0.1, 0.2, 0.7])])
    found = metric.evaluate(2)
    assert (found["top1"], found["top1_of_all"]) == (50, 12.5)
    assert [(one["right"], one["predicted"]) for one in metric.details["worst"]] == [([1], 2)]


@pytest.mark.parametrize("classes, names", [(3, ["top1", "images"]), (6, ["top1", "top5", "images"])])
def test_the_best_five_of_few_classes_are_no_score(classes: int, names: list[str]) -> None:
    metric = RobustnessMetric()
    metric.dataset_meta = {"classes": tuple("abcdef"[:classes])}
    metric.process(None, [sample(0, [1 / classes] * classes)])
    assert list(metric.evaluate(1)) == names


def test_an_evaluation_without_labels_is_refused() -> None:
    metric = RobustnessMetric(real=True)
    metric.process(None, [sample(0, [1.0], "ILSVRC2012_val_00000001.JPEG")])
    with pytest.raises(DataError, match="no image of the set has a label"):
        metric.evaluate(1)


def test_shape_bias_leaves_out_images_whose_cues_agree() -> None:
    metric = CueConflictMetric({"cat": [0], "dog": [1, 2], "car": [3]})
    # The mean of the dog's two classes counts, not their sum or the largest.
    for path, scores in (
        ("cat1-dog2.png", [0.5, 0.4, 0.1, 0.0]),  # shape
        ("car10-cat3.png", [0.6, 0.4, 0.0, 0.0]),  # texture
        ("dog1-car2.png", [0.9, 0.0, 0.1, 0.0]),  # neither
        ("cat1-cat2.png", [0.9, 0.0, 0.1, 0.0]),  # no conflict
    ):
        metric.process(None, [sample(0, scores, path)])
    found = metric.evaluate(4)
    assert (found["shape"], found["texture"], found["images"], found["shape_bias"]) == (1, 1, 3, 50)
    metric.process(None, [sample(0, [0.9, 0.0, 0.1, 0.0], "dog1-car2.png")])
    assert math.isnan(metric.evaluate(1)["shape_bias"])  # nothing was decided for shape or texture
    with pytest.raises(DataError, match="the name is not <shape><n>-<texture><n>"):
        metric.process(None, [sample(0, [1.0, 0, 0, 0], "bird1-cat1.png")])
