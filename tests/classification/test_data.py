"""Folder data sets and the classification transform."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import ClassBalancedDataset
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data.transforms import RandomResizedCropAndInterpolation

from analysis.benchmark.loading import timm_transform
from backbones import UserError
from classification.data import CROP_ASPECT_RATIOS, ClassificationTransform, FolderDataset, random_crop
from classification.decode import read_rgb
from engine.checkpoint.rng import RandomState, seeded

PACK: list[dict[str, Any]] = [dict(type="ClassificationTransform", size=32)]


def image(path: Path, mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def dataset(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), split: str = "train", every: int = 1
) -> FolderDataset:
    return FolderDataset(str(root), split, dict(classes=classes), PACK, every)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat/b.png", "cat/a.JPG", "cat/deeper/c.jpeg", "dog/d.webp"):
        image(tmp_path / "train" / name)
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    (tmp_path / "train/readme.txt").write_text("no class")
    return tmp_path


def test_folder_dataset_labels_follow_the_order_of_the_classes(pets: Path) -> None:
    for classes in (("cat", "dog"), ("dog", "cat")):
        found = dataset(pets, classes)
        assert len(found) == 4
        for i in range(4):
            info = found.get_data_info(i)
            assert Path(info["img_path"]).relative_to(pets / "train").parts[0] == classes[info["gt_label"]]


def test_folder_dataset_lists_images_in_sorted_order_from_any_depth(pets: Path) -> None:
    found = dataset(pets)
    names = [Path(found.get_data_info(i)["img_path"]).name for i in range(len(found))]
    assert names == ["a.JPG", "b.png", "c.jpeg", "d.webp"]


def test_folder_dataset_can_be_balanced(pets: Path) -> None:
    balanced = ClassBalancedDataset(dataset(pets), oversample_thr=0.5)
    names = [Path(balanced.get_data_info(i)["img_path"]).name for i in range(len(balanced))]
    assert names == ["a.JPG", "b.png", "c.jpeg", "d.webp", "d.webp"]  # by the root of 0.5 / 0.25, rounded up


def test_classification_transform_packs_a_sample(pets: Path) -> None:
    item = dataset(pets)[3]
    assert (item["inputs"].shape, item["inputs"].dtype) == ((3, 32, 32), torch.uint8)
    assert item["label"] == 1
    assert item["img_path"].endswith("d.webp")


def test_folder_dataset_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image folder .*train"):
        dataset(tmp_path)


@pytest.mark.parametrize(
    "classes, message",
    [
        (("cat", "dog", "newt"), "2 class folders, 3 classes in the config; no folder 'newt'"),
        (("cat",), "2 class folders, 1 classes in the config; folder 'dog' is not in classes"),
        (("Cat", "dog"), "no folder 'Cat'"),
    ],
)
def test_folder_dataset_refuses_folders_that_differ_from_the_classes(
    pets: Path, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        dataset(pets, classes)


def test_folder_dataset_refuses_a_class_without_an_image(pets: Path) -> None:
    (pets / "train/dog/d.webp").unlink()
    with pytest.raises(UserError, match=r"dog' holds no image \(\.jpg"):
        dataset(pets)


def test_folder_dataset_of_a_list(pets: Path) -> None:
    (pets / "some.txt").write_text("cat/deeper/c.jpeg\n\ndog/d.webp \n", encoding="utf-8-sig")
    settings = {"data_root": str(pets), "split": "train", "metainfo": {"classes": ("cat", "dog")}, "pipeline": PACK}
    part = FolderDataset(**settings, ann_file="some.txt")
    taken = [Path(part.get_data_info(i)["img_path"]).name for i in range(len(part))]
    assert taken == ["c.jpeg", "d.webp"]
    assert len(FolderDataset(**settings, ann_file=str(pets / "some.txt"), every=2)) == 2
    (pets / "some.txt").write_text("dog/d.webp\ncat/gone.png\n")
    with pytest.raises(UserError, match=r"some\.txt: 'cat/gone\.png' is no image of a class in "):
        FolderDataset(**settings, ann_file="some.txt")
    (pets / "some.txt").write_text("dog/d.webp\n")
    assert len(FolderDataset(**settings, ann_file="some.txt", test_mode=True)) == 1
    with pytest.raises(UserError, match=r"cat' holds no image"):
        FolderDataset(**settings, ann_file="some.txt")
    (pets / "some.txt").write_bytes("dog/ü".encode("utf-16"))
    for name, message in (("some.txt", r"is no text in UTF-8"), ("none.txt", r"is no file with a line <class>/")):
        with pytest.raises(UserError, match=message):
            FolderDataset(**settings, ann_file=name)


def test_folder_dataset_every_keeps_a_part_of_each_class(tmp_path: Path) -> None:
    for name, count in (("cat", 7), ("dog", 4), ("newt", 1)):
        for i in range(count):
            image(tmp_path / f"train/{name}/{i}.png")
    part = dataset(tmp_path, ("cat", "dog", "newt"), every=3)
    taken = [Path(part.get_data_info(i)["img_path"]) for i in range(len(part))]
    assert [f"{path.parent.name}/{path.stem}" for path in taken] == [
        "cat/0",
        "cat/3",
        "cat/6",
        "dog/0",
        "dog/3",
        "newt/0",
    ]
    with pytest.raises(UserError, match=r"dataset\.every=0: 10 takes every tenth"):
        dataset(tmp_path, every=0)


SAVED = {
    "RGB": "rgb.png",
    "L": "grey.png",
    "LA": "grey_alpha.png",
    "RGBA": "alpha.png",
    "P": "palette.png",
    "1": "bits.png",
    "CMYK": "print.jpg",
    "I;16": "deep.png",
}


def grey(mode: str, path: Path) -> Path:
    """An image of 60 x 45 pixels, all of them middle grey (white in the mode with one bit)."""
    if mode == "I;16":
        picture = Image.fromarray(np.full((45, 60), 128 * 257, np.uint16))
    elif mode == "CMYK":
        picture = Image.new("CMYK", (60, 45), (0, 0, 0, 127))
    elif mode in ("LA", "RGBA"):
        picture = Image.new(mode, (60, 45), (128,) * (len(mode) - 1) + (77,))
    elif mode == "1":
        picture = Image.new("1", (60, 45), 1)
    elif mode == "P":
        picture = Image.new("RGB", (60, 45), (128, 128, 128)).quantize()
    else:
        picture = Image.new("RGB", (60, 45), (128, 128, 128)).convert(mode)
    picture.save(path)
    assert Image.open(path).mode == mode
    return path


@pytest.mark.parametrize("training", [False, True], ids=["test", "train"])
@pytest.mark.parametrize("mode", SAVED)
def test_classification_transform_of_every_kind_of_image(mode: str, training: bool, tmp_path: Path) -> None:
    path = grey(mode, tmp_path / SAVED[mode])
    packed = ClassificationTransform(24, training)({"img_path": str(path), "gt_label": 1})
    pixels = packed["inputs"]
    assert (tuple(pixels.shape), pixels.dtype) == ((3, 24, 24), torch.uint8)
    level = 255 if mode == "1" else 128
    assert (pixels.int() - level).abs().max() <= 2


@pytest.mark.parametrize("size", [(20, 300), (300, 20), (8, 8), (1, 1)], ids=str)
def test_classification_transform_of_every_size_of_image(size: tuple[int, int], tmp_path: Path) -> None:
    path = image(tmp_path / "odd.png", size=size)
    for training in (False, True):
        packed = ClassificationTransform(40, training, "rand-m9-mstd0.5-inc1")({"img_path": str(path)})
        assert tuple(packed["inputs"].shape) == (3, 40, 40)
        assert packed["label"] == -1


def test_center_crop_keeps_the_centre_or_everything(tmp_path: Path) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 75:125] = 255
    Image.fromarray(pixels).save(tmp_path / "stripe.png")
    stripe = {"img_path": str(tmp_path / "stripe.png")}
    whole = ClassificationTransform(100, crop_ratio=1.0)(stripe)["inputs"]
    squeezed = whole[0, 0].int()  # all 200 columns in 100
    assert (squeezed[40:60] > 250).all()
    assert (torch.cat([squeezed[:35], squeezed[65:]]) < 5).all()
    near = ClassificationTransform(100, crop_ratio=0.5)(stripe)["inputs"]
    assert (near[:, :, 4:-4] > 250).all()


def test_augmented_crop_is_random_and_center_crop_is_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(random).save(tmp_path / "noise.png")
    noise = {"img_path": str(tmp_path / "noise.png")}
    plain = ClassificationTransform(32)
    assert torch.equal(plain(noise)["inputs"], plain(noise)["inputs"])
    augmented = ClassificationTransform(32, training=True, rand_augment="rand-m9-mstd0.5-inc1")
    assert not torch.equal(augmented(noise)["inputs"], augmented(noise)["inputs"])


def test_augmented_crop_without_flips(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    never = ClassificationTransform(32, training=True, scale=(0.9, 1.0), flip=0.0)
    always = ClassificationTransform(32, training=True, scale=(0.9, 1.0), flip=1.0)
    for _ in range(4):
        rows = [one({"img_path": str(tmp_path / "ramp.png")})["inputs"][0, 16].int() for one in (never, always)]
        assert rows[0][-1] > rows[0][0]
        assert rows[1][-1] < rows[1][0]


def test_augmented_crop_gives_the_pixels_of_timms_loader(tmp_path: Path) -> None:
    """Crop, flip, RandAugment and jitter make the same random choices and leave the same random states."""
    path = str(tmp_path / "flower.jpg")
    Image.fromarray(load_sample_image("flower.jpg")).save(path, quality=92)
    settings: dict[str, Any] = dict(rand_augment="rand-m9-mstd0.5-inc1", scale=(0.08, 0.9), flip=0.4)
    for jitter in (0.0, 0.3):
        ours = ClassificationTransform(224, True, **settings, color_jitter=jitter)
        theirs = timm_transform(224, **settings, color_jitter=jitter)
        far = 0
        for seed in range(40):
            with seeded(seed):
                found = ours({"img_path": path})["inputs"]
                after = RandomState.capture()
            with seeded(seed):
                expected = theirs(read_rgb(path))
                end = RandomState.capture()
            assert after.python == end.python
            assert np.array_equal(after.numpy[1], end.numpy[1])
            assert torch.equal(after.torch, end.torch)
            difference = (found.int() - expected.int()).abs()
            # Solarizing, posterizing and sharpening make more of a level.
            assert difference.float().mean() < 0.5
            far += int((difference > 3).sum())
        assert far < 0.002 * 40 * expected.numel()


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.75, 1.0), (0.9, 0.9)])
def test_random_crop_is_timms(scale: tuple[float, float]) -> None:
    """Also where ten attempts fail, as in narrow and in flat images."""
    for size in ((48, 48), (375, 500), (500, 375), (40, 400), (400, 40), (1000, 3), (3, 1000), (30, 41), (2, 2)):
        picture = torch.empty(1, 1, 1).expand(3, *size)
        for seed in range(50):
            with seeded(seed):
                found, after = random_crop(picture, scale), random.getstate()
            with seeded(seed):
                expected = RandomResizedCropAndInterpolation.get_params(picture, scale, CROP_ASPECT_RATIOS)
                assert random.getstate() == after
            if all(expected[2:]):  # of one without a pixel ours has one
                assert found == expected


def test_choose_crop_has_at_least_one_pixel(tmp_path: Path) -> None:
    path = str(tmp_path / "few.png")
    transform = ClassificationTransform(8, training=True)
    for size in ((1, 1), (1, 3), (2, 1)):
        Image.new("RGB", size, (10, 20, 30)).save(path)
        for seed in range(30):
            with seeded(seed):
                pixels = transform({"img_path": path})["inputs"]
            assert (pixels == torch.tensor([10, 20, 30])[:, None, None]).all()


def test_augmented_crop_flips_with_the_given_probability(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    transform = ClassificationTransform(16, training=True, scale=(0.5, 1.0), flip=0.3)
    with seeded(0):
        rows = [transform({"img_path": str(tmp_path / "ramp.png")})["inputs"][0, 8].int() for _ in range(400)]
    assert sum(bool(row[0] > row[-1]) for row in rows) == pytest.approx(120, abs=30)


def test_read_rgb_equals_pillow(tmp_path: Path) -> None:
    """The paper's numbers are measured with Pillow's pixels; only training takes short cuts."""
    path = str(tmp_path / "flower.jpg")
    Image.fromarray(load_sample_image("flower.jpg")).save(path, quality=92)
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((int(73 * 640 / 427), 73), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 64) / 2), round((73 - 64) / 2)
    expected = np.asarray(resized.crop((left, top, left + 64, top + 64)))
    found = ClassificationTransform(64)({"img_path": path})["inputs"]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_augmented_crop_is_contiguous(tmp_path: Path) -> None:
    """Laid out like the batch, which makes collating ten times faster."""
    path = image(tmp_path / "a.jpg", size=(80, 60))
    for flip in (0.0, 1.0):
        transform = ClassificationTransform(32, True, "rand-m9-mstd0.5-inc1", flip=flip)
        for seed in range(30):
            with seeded(seed):
                assert transform({"img_path": str(path)})["inputs"].is_contiguous()


def test_color_jitter_applies_in_training_only(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 120, 150)).save(tmp_path / "plain.png")
    plain = {"img_path": str(tmp_path / "plain.png")}
    still = ClassificationTransform(32, training=True)
    jittered = ClassificationTransform(32, training=True, color_jitter=0.4)
    assert len({tuple(still(plain)["inputs"][:, 0, 0].tolist()) for _ in range(5)}) == 1
    assert len({tuple(jittered(plain)["inputs"][:, 0, 0].tolist()) for _ in range(5)}) == 5
    tested = ClassificationTransform(32, color_jitter=0.4)
    assert torch.equal(tested(plain)["inputs"], ClassificationTransform(32)(plain)["inputs"])


def test_classification_transform_can_be_pickled() -> None:
    transform = ClassificationTransform(32, training=True, rand_augment="rand-m9-mstd0.5-inc1")
    pickle.loads(pickle.dumps(transform))


@pytest.mark.parametrize(("crop_ratio", "cut"), [(1.0, False), (0.875, True)])
def test_center_crop_with_ratio_one_keeps_the_whole_image(crop_ratio: float, cut: bool, tmp_path: Path) -> None:
    pixels = np.zeros((60, 100, 3), dtype=np.uint8)
    pixels[:, :10] = (255, 0, 0)  # a stripe at the side, which a centre crop of the square loses
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    packed = ClassificationTransform(size=48, crop_ratio=crop_ratio)({"img_path": str(tmp_path / "wide.png")})
    assert packed["inputs"].shape == (3, 48, 48)
    assert bool((packed["inputs"][0] > 200).any()) is not cut
