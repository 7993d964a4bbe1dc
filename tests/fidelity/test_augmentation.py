"""Augmented pictures and test images are those of the released pipelines, for the same random draws.

The figures were made by running the released transforms on the pictures of ``tests/fidelity/pictures.py``, decoded
losslessly, with Pillow 13 and OpenCV 4.12 on both sides. They are means and standard deviations, which resampling on
another processor or by another version may move by less than the tolerances.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from PIL import Image

from tests.fidelity.pictures import labels, picture, summary
from tests.fidelity.released_configs import ROOT, resolved

LEVEL = 0.1  # tolerance on uint8 levels; here both sides agree within 0.01
NORMALISED = 0.005  # tolerance on normalised pixels, a quarter of a level; here both sides agree within 0.001

# facebookresearch/ConvNeXt: datasets.py, lines 50-73 (build_transform) with the defaults of main.py, lines 101-119, and
# timm 0.3.2: timm/data/transforms_factory.py, lines 44-126, on a picture of 500 x 375, before the conversion to a
# tensor. datasets.py of facebookresearch/ConvNeXt-V2 has the same lines. Seed of random, numpy and torch: means of
# red, green, blue, standard deviation, means of the quarters.
TRAIN_224 = {
    0: (111.776, 107.708, 115.37, 57.941, 109.738, 148.755, 63.757, 124.223),
    1: (142.378, 45.296, 101.952, 57.6, 112.376, 100.058, 93.843, 79.891),
    2: (123.05, 122.64, 118.37, 10.26, 115.1, 123.37, 117.06, 129.89),
    5: (151.9, 140.92, 164.04, 63.4, 124.47, 158.4, 155.91, 170.35),
    8: (49.31, 58.51, 56.54, 63.33, 4.64, 59.29, 55.28, 99.93),
    11: (156.55, 148.31, 163.23, 54.96, 162.73, 122.21, 185.66, 153.51),
    16: (194.46, 212.43, 223.3, 58.17, 224.15, 170.89, 242.66, 202.56),
    23: (174.85, 173.77, 179.24, 37.55, 176.07, 164.51, 188.54, 174.7),
}
# The same file, lines 75-96: resized to 256 and cropped at 224; not cropped from 384 on. By size of the input, then
# height and width of the picture.
VALIDATION = {
    (224, (375, 500)): (146.362, 138.5, 153.114, 57.09, 104.003, 148.875, 146.196, 184.893),
    (224, (500, 333)): (133.85, 156.472, 154.131, 54.788, 106.947, 151.457, 146.613, 187.585),
    (384, (375, 500)): (127.324, 124.509, 144.943, 70.287, 85.911, 142.866, 131.24, 169.017),
    (384, (500, 333)): (127.467, 124.186, 144.585, 70.603, 85.562, 135.654, 137.955, 169.146),
}
CLASSIFICATION_224 = (
    *("convnext_tiny_in1k_300e", "convnext_large_in22k_90e", "convnext_base_in22k_ft_in1k_224"),
    *("convnext_isotropic_small_in1k_300e", "convnextv2_base_fcmae_ft_in1k", "swin_tiny_in1k_300e"),
)
CLASSIFICATION_384 = ("convnext_base_in1k_ft_in1k_384", "convnext_xlarge_in22k_ft_in1k_384")

# facebookresearch/ConvNeXt: object_detection/configs/convnext/cascade_mask_rcnn_convnext_tiny_patch4_window7_mstrain_
# 480-800_giou_4conv1f_adamw_3x_coco_in1k.py, lines 90-127 (train_pipeline), which the other six configs repeat and
# SwinTransformer/Swin-Transformer-Object-Detection: configs/swin/mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_
# adamw_3x_coco.py has too; run by its mmdet 2.11.0: mmdet/datasets/pipelines/transforms.py and auto_augment.py. Seed of
# numpy: size before and after padding, whether flipped, the summary of the normalised pixels, the boxes, and the pixels
# of the masks.
DETECTION_TRAIN = {
    0: (
        ((640, 805), (640, 832), False),
        (0.119, 0.223, 0.759, 1.174, -0.394, 0.526, 0.328, 1.004),
        [[56.7, 117.4, 409.1, 580.5], [453.2, 18.2, 805.0, 249.7], [232.9, 315.9, 277.0, 348.9]],
        [162976, 80850, 1452],
    ),
    1: (
        ((736, 981), (736, 992), True),
        (0.063, 0.16, 0.725, 1.234, 0.497, -0.475, 0.955, 0.289),
        [[490.5, 147.2, 882.9, 662.4], [49.0, 36.8, 441.4, 294.4], [637.6, 368.0, 686.7, 404.8]],
        [201880, 101136, 1813],
    ),
    2: (
        ((544, 632), (544, 640), True),
        (0.288, 0.199, 0.849, 1.169, 0.528, -0.24, 0.98, 0.514),
        [[357.3, 110.2, 632.0, 495.8], [27.1, 27.5, 320.6, 220.4], [467.4, 275.4, 504.1, 303.0]],
        [105490, 56549, 999],
    ),
    3: (
        ((817, 800), (832, 800), False),
        (0.538, 0.221, 1.015, 1.15, 0.055, 0.591, 0.768, 0.951),
        [[0.0, 156.3, 249.0, 739.9], [304.5, 31.3, 748.6, 323.0], [26.9, 406.4, 82.4, 448.1]],
        [145750, 129356, 2352],
    ),
    7: (
        ((768, 1013), (768, 1024), True),
        (0.343, 0.623, 0.953, 1.016, 0.773, 0.0, 1.216, 0.57),
        [[524.4, 28.9, 1013.0, 744.2], [0.0, 0.0, 456.3, 233.3], [728.7, 335.5, 796.8, 386.6]],
        [349408, 106938, 3468],
    ),
}
# SwinTransformer/Swin-Transformer-Object-Detection: configs/_base_/datasets/coco_instance.py, lines 15-29
# (test_pipeline). Height and width of the picture: size before and after padding, summary.
DETECTION_TEST = {
    (480, 640): ((800, 1067), (800, 1088), (0.063, 0.16, 0.726, 1.235, -0.475, 0.497, 0.289, 0.953)),
    (427, 640): ((800, 1199), (800, 1216), (0.063, 0.156, 0.722, 1.237, -0.48, 0.514, 0.268, 0.951)),
    (640, 360): ((1333, 750), (1344, 768), (0.057, 0.151, 0.706, 1.242, -0.494, 0.341, 0.434, 0.936)),
}

# SwinTransformer/Swin-Transformer-Semantic-Segmentation: configs/_base_/datasets/ade20k.py, lines 7-18
# (train_pipeline), run by its mmseg 0.11.0: mmseg/datasets/pipelines/transforms.py; at 640 with the sizes of
# microsoft/unilm: beit/semantic_segmentation/configs/_base_/datasets/ade20k_640x640.py, lines 7-18 (read in its fork
# bozeklab/unilm), which the configs of facebookresearch/ConvNeXt: semantic_segmentation/configs/convnext name. The
# picture has 683 x 512 pixels; transform
# i of resizing, cropping, flipping and distorting has seed 100 s + i of numpy, and s decides the flip. Crop and s: size
# before cropping, summary of the normalised pixels, mean label (ignored ones as 0), ignored pixels.
SEGMENTATION_TRAIN = {
    (512, 0): ((677, 903), (0.43, 0.141, 0.724, 1.028, -0.239, 0.295, 0.483, 1.188), 78.9, 0),
    (512, 1): ((673, 898), (-1.369, -0.769, -0.635, 0.588, -0.945, -1.315, -0.563, -0.874), 79.3, 2809),
    (512, 2): ((983, 1311), (0.906, -0.367, 0.766, 0.871, -0.08, 0.375, 0.51, 0.935), 96.8, 0),
    (512, 3): ((602, 803), (-0.804, -0.12, -0.115, 1.095, -0.178, -0.944, 0.325, -0.587), 75.1, 2209),
    (640, 0): ((846, 1129), (0.173, 0.132, 0.581, 1.02, -0.372, 0.167, 0.318, 1.07), 80.0, 480),
    (640, 1): ((841, 1122), (-1.378, -0.796, -0.674, 0.578, -0.983, -1.359, -0.574, -0.883), 79.1, 4225),
}
# The same files, lines 19-33 (test_pipeline).
SEGMENTATION_TEST = {
    (512, (512, 683)): ((512, 683), (0.062, 0.163, 0.727, 1.249, -0.47, 0.499, 0.288, 0.952)),
    (512, (683, 512)): ((683, 512), (0.06, 0.166, 0.725, 1.249, -0.471, 0.391, 0.394, 0.952)),
    (512, (300, 1400)): ((439, 2048), (0.063, 0.168, 0.606, 1.258, -0.464, 0.566, 0.103, 0.908)),
    (640, (512, 683)): ((640, 854), (0.062, 0.162, 0.726, 1.233, -0.471, 0.499, 0.287, 0.951)),
    (640, (300, 1400)): ((549, 2560), (0.063, 0.168, 0.606, 1.258, -0.464, 0.566, 0.103, 0.908)),
}
SEGMENTOR = {512: "upernet_convnext_tiny_ade20k_160k", 640: "upernet_convnext_xlarge_in22k_ade20k_160k"}
RANDOM_STEPS = ("RandomResize", "RandomCrop", "RandomFlip", "PhotoMetricDistortion")


def saved(image: np.ndarray, folder: Path, name: str = "picture") -> str:
    path = folder / f"{name}.png"
    Image.fromarray(image).save(path)
    return str(path)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("seed", TRAIN_224)
def test_classifiers_train_on_the_released_crops(seed: int, tmp_path: Path) -> None:
    transform = TRANSFORMS.build(resolved(f"classification/{CLASSIFICATION_224[0]}").train_pipeline[0])
    seed_all(seed)
    pixels = transform({"img_path": saved(picture(375, 500), tmp_path)})["inputs"]
    assert pixels.shape == (3, 224, 224)
    assert summary(pixels.permute(1, 2, 0).numpy()) == pytest.approx(TRAIN_224[seed], abs=LEVEL)


@pytest.mark.parametrize(("size", "picture_size"), VALIDATION)
def test_classifiers_are_validated_on_the_released_crops(
    size: int, picture_size: tuple[int, int], tmp_path: Path
) -> None:
    name = {224: CLASSIFICATION_224, 384: CLASSIFICATION_384}[size][0]
    transform = TRANSFORMS.build(resolved(f"classification/{name}").test_pipeline[0])
    pixels = transform({"img_path": saved(picture(*picture_size), tmp_path)})["inputs"]
    assert summary(pixels.permute(1, 2, 0).numpy()) == pytest.approx(VALIDATION[size, picture_size], abs=LEVEL)


@pytest.mark.parametrize("names", [CLASSIFICATION_224, CLASSIFICATION_384], ids=["224", "384"])
def test_all_classifiers_have_one_augmentation(names: tuple[str, ...]) -> None:
    first = resolved(f"classification/{names[0]}")
    for name in names[1:]:
        cfg = resolved(f"classification/{name}")
        assert (cfg.train_pipeline, cfg.test_pipeline) == (first.train_pipeline, first.test_pipeline), name
    at_224 = resolved(f"classification/{CLASSIFICATION_224[0]}").train_pipeline[0]
    assert {**first.train_pipeline[0], "size": 224} == at_224


def test_random_erasing_has_the_released_statistics() -> None:
    cfg = resolved(f"classification/{CLASSIFICATION_224[0]}")
    preprocessor = MODELS.build(
        {
            "type": "ClassificationPreprocessor",
            "num_classes": 2,
            "erasing": cfg.model.data_preprocessor.erasing,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }
    )
    seed_all(0)
    batch = {"inputs": torch.full((500, 3, 224, 224), 255, dtype=torch.uint8), "label": torch.zeros(500).long()}
    erased, sides, noise = [], [], []
    for _ in range(8):
        inputs = preprocessor({**batch, "img_path": [""] * 500}, training=True)["inputs"]
        gone = inputs[:, 0] != 1
        for image, mask in zip(inputs, gone, strict=True):
            if mask.any():
                rows, columns = int(mask.any(1).sum()), int(mask.any(0).sum())
                erased.append(rows * columns / 224**2)
                sides.append(np.log(rows / columns))
                noise.append(image[:, mask].std().item())
    # facebookresearch/ConvNeXt: main.py, lines 114-119 (reprob 0.25, remode pixel, recount 1), run 8,000 times by
    # timm 0.3.2: timm/data/random_erasing.py, lines 68-86. Tolerances: four standard errors of a mean of this many.
    assert len(erased) / 4000 == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
    assert np.mean(erased) == pytest.approx(0.1755, abs=4 * 0.0907 / np.sqrt(900))
    assert np.std(erased) == pytest.approx(0.0907, abs=0.006)
    assert np.std(sides) == pytest.approx(0.691, abs=0.045)
    assert (min(erased) > 0.019, max(erased) < 0.336, np.abs(sides).max() < 1.21) == (True, True, True)
    assert np.mean(noise) == pytest.approx(1.0, abs=0.002)


@pytest.fixture
def mmdet_scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture
def mmseg_scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def objects(height: int, width: int) -> list[dict[str, Any]]:
    """Three rectangles as boxes and masks."""
    corners = np.array([[0.1, 0.2, 0.5, 0.9], [0.55, 0.05, 0.95, 0.4], [0.3, 0.5, 0.35, 0.55]])
    found = []
    for label, box in enumerate((corners * [width, height, width, height]).astype(np.float32)):
        mask = np.zeros((height, width), np.uint8, order="F")
        left, top, right, bottom = box.astype(int)
        mask[top:bottom, left:right] = 1
        code = pycocotools.mask.encode(mask)
        found.append(
            {
                "bbox": box.tolist(),
                "bbox_label": label,
                "ignore_flag": 0,
                "mask": {**code, "counts": code["counts"].decode()},
            }
        )
    return found


def detection_sample(pipeline: list[Any], size: tuple[int, int], folder: Path) -> dict[str, Any]:
    path = saved(picture(*size), folder)
    sample: dict[str, Any] = Compose(pipeline)(
        {"img_path": path, "img_id": 1, "height": size[0], "width": size[1], "instances": objects(*size)}
    )
    return sample


def as_batch(sample: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}


@pytest.mark.usefixtures("mmdet_scope")
@pytest.mark.parametrize("seed", DETECTION_TRAIN)
def test_detectors_train_on_the_released_images(seed: int, tmp_path: Path) -> None:
    cfg = resolved("detection/cascade_mask_rcnn_convnext_tiny_coco_3x")
    shapes, pixels, boxes, masks = DETECTION_TRAIN[seed]
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    seed_all(seed)
    sample = detection_sample(cfg.train_pipeline, (480, 640), tmp_path)
    batch = preprocessor(as_batch(sample), True)
    image = batch["inputs"][0].permute(1, 2, 0).numpy()
    found = batch["data_samples"][0]
    height, width = sample["inputs"].shape[1:]
    assert ((height, width), image.shape[:2], found.flip) == shapes
    assert summary(image[:height, :width]) == pytest.approx(pixels, abs=NORMALISED)
    assert not image[height:].any()
    assert not image[:, width:].any()
    assert found.gt_instances.bboxes.numpy() == pytest.approx(np.array(boxes), abs=0.051)
    assert found.gt_instances.labels.tolist() == [0, 1, 2]
    assert [int(mask.sum()) for mask in found.gt_instances.masks.masks] == masks


@pytest.mark.usefixtures("mmdet_scope")
@pytest.mark.parametrize("picture_size", DETECTION_TEST, ids=str)
def test_detectors_are_tested_on_the_released_images(picture_size: tuple[int, int], tmp_path: Path) -> None:
    cfg = resolved("detection/cascade_mask_rcnn_convnext_tiny_coco_3x")
    size, padded, pixels = DETECTION_TEST[picture_size]
    sample = detection_sample(cfg.test_pipeline, picture_size, tmp_path)
    image = MODELS.build(cfg.model.data_preprocessor)(as_batch(sample))["inputs"][0].permute(1, 2, 0).numpy()
    assert (sample["inputs"].shape[1:], image.shape[:2]) == (size, padded)
    assert summary(image[: size[0], : size[1]]) == pytest.approx(pixels, abs=NORMALISED)


def test_all_detectors_have_one_augmentation() -> None:
    first = resolved("detection/cascade_mask_rcnn_convnext_tiny_coco_3x")
    for path in sorted((ROOT / "configs/detection").glob("*_coco_3x.py")):
        cfg = resolved(f"detection/{path.stem}")
        assert (cfg.train_pipeline, cfg.test_pipeline) == (first.train_pipeline, first.test_pipeline), path.stem
        assert [cfg.model.data_preprocessor[key] for key in ("mean", "std", "bgr_to_rgb", "pad_size_divisor")] == [
            first.model.data_preprocessor[key] for key in ("mean", "std", "bgr_to_rgb", "pad_size_divisor")
        ]


def segmentation_sample(size: tuple[int, int], folder: Path) -> dict[str, Any]:
    return {
        "img_path": saved(picture(*size), folder),
        "seg_map_path": saved(labels(*size), folder, "labels"),
        "reduce_zero_label": True,
        "seg_fields": [],
    }


@pytest.mark.usefixtures("mmseg_scope")
@pytest.mark.parametrize(("crop", "seed"), SEGMENTATION_TRAIN)
def test_segmentors_train_on_the_released_crops(crop: int, seed: int, tmp_path: Path) -> None:
    cfg = resolved(f"segmentation/{SEGMENTOR[crop]}")
    size, pixels, mean_label, ignored = SEGMENTATION_TRAIN[crop, seed]
    sample = segmentation_sample((512, 683), tmp_path)
    for step in cfg.train_pipeline:
        if step.type in RANDOM_STEPS:
            np.random.seed(100 * seed + RANDOM_STEPS.index(step.type))
        sample = Compose([{**step, "prob": float(seed % 2)} if step.type == "RandomFlip" else step])(sample)
        if step.type == "RandomResize":
            assert sample["img"].shape[:2] == size
    batch = MODELS.build(cfg.model.data_preprocessor)(as_batch(sample), True)
    found = batch["data_samples"][0].gt_sem_seg.data[0].numpy()
    assert batch["inputs"].shape == (1, 3, crop, crop)
    assert summary(batch["inputs"][0].permute(1, 2, 0).numpy()) == pytest.approx(pixels, abs=NORMALISED)
    assert np.where(found == 255, 0, found).mean() == pytest.approx(mean_label, abs=0.051)
    assert (found == 255).sum() == ignored


@pytest.mark.usefixtures("mmseg_scope")
@pytest.mark.parametrize(("crop", "picture_size"), SEGMENTATION_TEST)
def test_segmentors_are_tested_on_the_released_images(crop: int, picture_size: tuple[int, int], tmp_path: Path) -> None:
    cfg = resolved(f"segmentation/{SEGMENTOR[crop]}")
    size, pixels = SEGMENTATION_TEST[crop, picture_size]
    sample = Compose(cfg.test_pipeline)(segmentation_sample(picture_size, tmp_path))
    image = MODELS.build(cfg.model.data_preprocessor)(as_batch(sample))["inputs"][0].permute(1, 2, 0).numpy()
    assert image.shape[:2] == size
    assert summary(image) == pytest.approx(pixels, abs=NORMALISED)
    assert sample["data_samples"].gt_sem_seg.shape == picture_size  # compared at the size of the annotation


def test_a_crop_with_one_dominant_class_is_drawn_again() -> None:
    cfg = resolved(f"segmentation/{SEGMENTOR[512]}")
    step = next(dict(step) for step in cfg.train_pipeline if step.type == "RandomCrop") | {"crop_size": (256, 256)}
    with DefaultScope.overwrite_default_scope("mmseg"):
        crop = Compose([step])
    annotation = np.full((512, 683), 4, np.uint8)
    annotation[:, 500:] = 8
    np.random.seed(0)
    shares = []
    for _ in range(400):
        found = crop({"img": picture(512, 683), "gt_seg_map": annotation, "seg_fields": ["gt_seg_map"]})["gt_seg_map"]
        shares.append(max(float((found == value).mean()) for value in (4, 8)))
    # Mean share of the more frequent class, and crops in which none of ten draws was below 0.75: 400 crops of a label
    # image of two classes, 500 and 183 columns wide, drawn from seed 0 of numpy.
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation: mmseg/datasets/pipelines/transforms.py, lines 497-567.
    assert np.mean(shares) == pytest.approx(0.6138, abs=1e-4)
    assert sum(share >= 0.75 for share in shares) == 10


@pytest.mark.parametrize("crop", SEGMENTOR)
def test_all_segmentors_of_one_crop_have_one_augmentation(crop: int) -> None:
    first = resolved(f"segmentation/{SEGMENTOR[crop]}")
    paths = sorted((ROOT / "configs/segmentation").glob("upernet_*_160k.py"))
    same = [path.stem for path in paths if ("in22k" in path.stem) == (crop == 640)]
    assert len(same) == {512: 13, 640: 6}[crop]
    for name in same:
        cfg = resolved(f"segmentation/{name}")
        assert (cfg.train_pipeline, cfg.test_pipeline) == (first.train_pipeline, first.test_pipeline), name
        assert cfg.model.data_preprocessor == first.model.data_preprocessor, name
