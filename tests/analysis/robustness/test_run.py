"""The whole evaluation on made suites: values against the model run by hand, keeping and making again, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from analysis.robustness.corruptions import corrupt, image_seed
from analysis.robustness.scores import ALEXNET_ERRORS
from classification.data import CenterCrop
from classification.robustness import BorderlessTransform
from classification.suites import CORRUPTIONS_OF_C, VALUES_OF_C_BAR, imagenet_names, subset
from tests.classification.objectnet import objectnet_mappings

ROOT = Path(__file__).resolve().parents[3]
NAMES = imagenet_names()
SIZE = 32
CONFIG = """
_base_ = [{bases!r} + "/classification.py", {bases!r} + "/imagenet1k.py", {bases!r} + "/runtime.py"]
data_root = {data!r}
model = dict(
    type="ImageClassifier",
    num_classes="from_classes",
    backbone=dict(type="convnext_atto", depths=[1, 1, 1, 1], dims=[8, 8, 8, 16], init_std=0.3),
)
train_pipeline = [dict(type="ClassificationTransform", size=32, training=True)]
test_pipeline = [dict(type="ClassificationTransform", size=32, crop_ratio=0.875)]
val_dataloader = dict(num_workers=0, batch_size=4)
batch = dict(size=4, per_gpu=4, lr_rule="linear")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(type="EpochLoop", max_epochs=1)
work_dir = {work!r}
"""


def picture(path: Path, seed: int, side: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, weights, validation images of three classes, and suites of one image for a class."""
    folder = tmp_path_factory.mktemp("made")
    for index in range(6):
        picture(folder / "imagenet/val" / NAMES[index % 3] / f"ILSVRC2012_val_{index + 2:08d}.JPEG", index)
    for seed, index in enumerate(subset("a")[:4]):
        picture(folder / "suites/imagenet-a" / NAMES[index] / "a.png", 10 + seed)
    for seed, index in enumerate(subset("r")[:3]):
        picture(folder / "suites/imagenet-r" / NAMES[index] / "a.png", 40 + seed)
    for seed, index in enumerate((2, 999)):
        picture(folder / "suites/sketch" / NAMES[index] / "a.png", 50 + seed)
    objectnet = objectnet_mappings(folder / "suites/objectnet-1.0", 113)
    for seed, name in enumerate(("object_0", "object_7", "object_300")):  # the last one has no class of ImageNet
        picture(objectnet / "images" / name / "a.png", 60 + seed)
    for seed, name in enumerate(("2", "10", "100")):
        picture(folder / "suites/imagenetv2-matched-frequency-format-val" / name / "a.png", 20 + seed)
    for corruption in CORRUPTIONS_OF_C:
        for severity in range(1, 6):
            place = folder / "suites/ImageNet-C" / corruption / str(severity) / NAMES[0]
            picture(place / "a.png", len(corruption) + severity, 224)
    for corruption, values in VALUES_OF_C_BAR.items():
        for value in values:
            place = folder / "suites/imagenet-c-bar" / corruption / f"{value:.2f}" / NAMES[0]
            picture(place / "a.png", len(corruption) + int(value), 224)
    bases = str(ROOT / "configs/_base_")
    data, work = str(folder / "imagenet"), str(folder / "run")
    (folder / "tiny.py").write_text(CONFIG.format(bases=bases, data=data, work=work).replace("[{", "["))
    torch.manual_seed(0)
    model = network(folder)
    teach(model, folder)
    torch.save({"state_dict": model.state_dict()}, folder / "tiny.pth")
    return folder


@torch.no_grad()
def teach(model: Any, folder: Path) -> None:
    """Give the head weights by which the logits of some images are what is wanted of each."""
    one, two, three, four = subset("a")[:4]
    first, second, third = subset("r")[:3]
    not_r = next(index for index in subset("a") if index not in subset("r"))
    suites, outside = folder / "suites", next(index for index in range(1000) if index not in subset("a"))
    v2 = suites / "imagenetv2-matched-frequency-format-val"
    wanted: list[tuple[Path, float, dict[int, float]]] = [
        (suites / "imagenet-a" / NAMES[one] / "a.png", 0.875, {one: 1}),
        (suites / "imagenet-a" / NAMES[two] / "a.png", 0.875, {two: 1, outside: 2}),  # right among the subset alone
        (suites / "imagenet-a" / NAMES[three] / "a.png", 0.875, {one: 1}),
        (suites / "imagenet-a" / NAMES[four] / "a.png", 0.875, {two: 1}),
        (suites / "ImageNet-C/fog/2" / NAMES[0] / "a.png", 1.0, {0: 1}),
        (v2 / "2/a.png", 0.875, {2: 1}),
        (v2 / "10/a.png", 0.875, {3: 1}),  # what text order would take for right
        (v2 / "100/a.png", 0.875, {100: 1}),
        (suites / "imagenet-r" / NAMES[first] / "a.png", 0.875, {first: 1, not_r: 2}),  # right among the subset alone
        (suites / "imagenet-r" / NAMES[second] / "a.png", 0.875, {second: 1}),
        (suites / "imagenet-r" / NAMES[third] / "a.png", 0.875, {first: 1}),
        (suites / "sketch" / NAMES[2] / "a.png", 0.875, {2: 1}),
        (suites / "sketch" / NAMES[999] / "a.png", 0.875, {998: 1}),
    ]
    taught = [(CenterCrop(SIZE, crop_ratio)(str(image)), values) for image, crop_ratio, values in wanted]
    taught += [(without_border(suites, "object_0"), {500: 1}), (without_border(suites, "object_7"), {8: 1})]
    features, targets = [], torch.zeros(len(taught), 1000)
    for row, (pixels, values) in enumerate(taught):
        features.append(model.backbone(normalised(model, pixels))[0])
        for index, value in values.items():
            targets[row, index] = value
    model.head.weight.copy_((torch.linalg.pinv(torch.stack(features)) @ targets).T)


def without_border(suites: Path, name: str) -> torch.Tensor:
    """Pixels of an image of ObjectNet, uint8 (3, 32, 32)."""
    path = str(suites / "objectnet-1.0/images" / name / "a.png")
    pixels: torch.Tensor = BorderlessTransform(SIZE, 0.875, 2)({"img_path": path})["inputs"]
    return pixels


def network(folder: Path) -> Any:
    """The config's model, with the weights in the file if it is there."""
    import classification  # noqa: F401

    backbone = dict(type="convnext_atto", depths=[1, 1, 1, 1], dims=[8, 8, 8, 16], init_std=0.3)
    model = MODELS.build(dict(type="ImageClassifier", num_classes=1000, backbone=backbone))
    if (folder / "tiny.pth").exists():
        model.load_state_dict(torch.load(folder / "tiny.pth")["state_dict"])
    return model.eval()


def normalised(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels, uint8 (3, 32, 32), as the network gets them, (1, 3, 32, 32)."""
    return model.data_preprocessor({"inputs": pixels[None], "label": torch.zeros(1), "img_path": [""]})["inputs"]


@torch.no_grad()
def logits_of(folder: Path, pixels: torch.Tensor) -> np.ndarray:
    """Logits of pixels, uint8 (3, 32, 32), by the model alone."""
    model = network(folder)
    return model(normalised(model, pixels))[0].numpy()


def logits(folder: Path, image: Path, crop_ratio: float) -> np.ndarray:
    """Logits of an image, by timm's transform and the model alone."""
    return logits_of(folder, CenterCrop(SIZE, crop_ratio)(str(image)))


Evaluate = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.fixture(scope="module")
def evaluate(made: Path, tool: Any) -> Evaluate:
    """Runs the tool; returns how it ended, and ``robustness.json``."""

    def run(*arguments: object, work: str = "run") -> tuple[Any, dict[str, Any]]:
        options = ("--data", made / "suites", "--work-dir", made / work)
        done = tool("robustness.py", made / "tiny.py", made / "tiny.pth", *options, *arguments)
        file = made / work / "robustness/robustness.json"
        return done, json.loads(file.read_text()) if file.is_file() else {}

    return run


@pytest.fixture(scope="module")
def first(evaluate: Evaluate) -> tuple[Any, dict[str, Any]]:
    suites = ("clean", "c", "cbar", "a", "r", "sketch", "v2", "real", "objectnet", "shape", "resolution")
    return evaluate("--suites", *suites, "--no-data-check")


def test_all_suites_that_are_there_have_a_score(first: tuple[Any, dict[str, Any]], made: Path) -> None:
    done, content = first
    assert done.code == 0, done.err
    public = ("c", "cbar", "a", "r", "sketch", "v2", "objectnet")
    assert set(content["suites"]) == {*public, "clean", "real", "resolution"}
    assert len(content["sets"]) == 1 + 75 + 50 + 6 + 2
    kinds = {name: one["kind"] for name, one in content["suites"].items()}
    assert kinds == {
        **dict.fromkeys(public, "released"),
        **dict.fromkeys(("clean", "real", "resolution"), "test data"),
    }
    (absent,) = content["absent"]
    assert absent.startswith("shape: Cue conflict (shape against texture) is not in ")
    assert "suites/style-transfer-preprocessed-512'; get it from rgeirhos/texture-vs-shape" in absent
    assert f"absent: {absent}" in done.out
    assert "data check: a: " in done.out
    captions = [one["caption"] for one in content["worst"] if one["caption"].startswith("a: ")]
    assert any(f"a: a.png, {NAMES[subset('a')[2]]}, said {NAMES[subset('a')[0]]} (" in one for one in captions)
    page = (made / "run/robustness/report.html").read_text()
    words = ("ImageNet-C (released)", "severity (0: clean)", "glass_blur", "absent: shape", "<figure>", "incomplete")
    for one in words:
        assert one in page
    table = done.out[done.out.rindex("this checkpoint") :]
    assert table.count("\n") >= 1


@pytest.mark.parametrize(("name", "images"), [("a", 4), ("r", 3)])
def test_a_subset_is_scored_over_its_own_logits(
    name: str, images: int, first: tuple[Any, dict[str, Any]], made: Path
) -> None:
    classes, right, right_of_all = subset(name), 0, 0
    for index in classes[:images]:
        scores = logits(made, made / f"suites/imagenet-{name}" / NAMES[index] / "a.png", 0.875)
        right += classes[int(np.argmax(scores[classes]))] == index
        right_of_all += int(np.argmax(scores)) == index
    assert right >= 2
    assert right_of_all == right - 1
    found = first[1]["suites"][name]["scores"]
    assert (found["top1"], found["images"]) == (pytest.approx(100 * right / images), images)


def test_sketch_and_objectnet_are_scored_by_their_labels(first: tuple[Any, dict[str, Any]], made: Path) -> None:
    assert first[1]["suites"]["sketch"]["scores"]["top1"] == 50
    said = [int(np.argmax(logits_of(made, without_border(made / "suites", name)))) for name in ("object_0", "object_7")]
    assert said == [500, 8]  # one of the two classes of the first folder, none of the other's
    found = first[1]["suites"]["objectnet"]["scores"]
    assert (found["images"], found["top1"]) == (2, 50)
    assert found["top1_of_all"] == pytest.approx(100 / 3)


def test_images_of_c_are_scored_as_they_are(first: tuple[Any, dict[str, Any]], made: Path) -> None:
    place = made / "suites/ImageNet-C/fog/2" / NAMES[0] / "a.png"
    scores = logits(made, place, 1.0)  # of 32 pixels: the whole image, nothing cut off
    file = json.loads((made / "run/robustness/sets/c/fog/2.json").read_text())
    assert int(np.argmax(scores)) == 0
    assert file["metrics"]["top1"] == 100
    errors = first[1]["suites"]["c"]["scores"]["errors"]
    assert (len(errors), {len(five) for five in errors.values()}) == (15, {5})
    assert errors["fog"][1] == 0
    by_hand = np.mean([np.mean(five) / ALEXNET_ERRORS[name] for name, five in errors.items()])
    assert first[1]["suites"]["c"]["scores"]["mce"] == pytest.approx(100 * by_hand)
    assert "mce" not in first[1]["suites"]["cbar"]["scores"]


def test_folders_of_v2_are_numbers(first: tuple[Any, dict[str, Any]], made: Path) -> None:
    assert first[1]["suites"]["v2"]["scores"]["top1"] == pytest.approx(200 / 3)


def test_the_same_command_goes_on_and_other_weights_are_evaluated_again(
    first: tuple[Any, dict[str, Any]], evaluate: Evaluate, made: Path
) -> None:
    kept = made / "run/robustness/sets"
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}
    (kept / "c/fog/2.json").unlink()
    (kept / "c/fog/3.json").write_text('{"digest": "of other weights"}')
    (kept / "c/fog/4.json").write_text('{"dig')  # damaged
    done, content = evaluate("--suites", "clean", "c", "--no-data-check")
    assert done.code == 0, done.err
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"2.json", "3.json", "4.json"}
    assert done.out.count("kept from before") == 76 - 3
    assert "c/fog/3: the result that is there is of other weights, data or settings: made again" in done.out
    assert content["sets"]["c/fog/2"] == first[1]["sets"]["c/fog/2"]
    done, _ = evaluate("--suites", "a", "--protocol", "a=warp", "--no-data-check")
    assert "a: the result that is there is of other weights" in done.out
    assert "kept from before" not in done.out


def test_an_image_that_was_replaced_inside_of_its_class_folder_is_seen(evaluate: Evaluate, made: Path) -> None:
    command = ("--suites", "a", "v2", "--no-data-check")
    evaluate(*command, work="replaced")
    place = made / "suites/imagenet-a" / NAMES[subset("a")[0]] / "a.png"
    content, folder = place.read_bytes(), place.parent.stat().st_mtime_ns
    picture(place, 99)
    assert place.parent.stat().st_mtime_ns == folder  # which says nothing of the files in it
    done, _ = evaluate(*command, work="replaced")
    assert done.code == 0, done.err
    assert "a: the result that is there is of other weights, data or settings: made again" in done.out
    assert done.out.count("kept from before") == 1  # v2
    place.write_bytes(content)


def test_an_incomplete_suite_is_refused(evaluate: Evaluate) -> None:
    done, _ = evaluate("--suites", "a", work="refused")
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert line.startswith("error: a: ")
    assert "196 class folders wrong, lacks " in line
    assert line.endswith("complete the suite; --no-data-check evaluates what is there")
    assert "images, 7,500 are expected" in done.out


def test_a_suite_needs_no_validation_images(evaluate: Evaluate, made: Path) -> None:
    options = ("--suites", "a", "v2", "--no-data-check", "--cfg-options", "data_root=nowhere")
    done, content = evaluate(*options, work="without")
    assert done.code == 0, done.err
    assert set(content["suites"]) == {"a", "v2"}
    done, _ = evaluate("--suites", "clean", "--cfg-options", "data_root=nowhere", work="without")
    assert done.code == 2
    assert "test data: 'nowhere' does not exist" in done.err


def test_averaged_weights_on_crops_and_on_corruptions_as_the_authors_made_them(made: Path, tool: Any) -> None:
    torch.manual_seed(1)
    averaged = network(made / "no weights")
    torch.nn.init.normal_(averaged.head.weight)
    weights = torch.load(made / "tiny.pth")
    torch.save({**weights, "ema_state_dict": averaged.state_dict()}, made / "with_average.pth")
    how = ("--ema", "--protocol", "authors", "crop", "--suites", "clean", "c", "--data", made / "nowhere")
    settings = ("test_pipeline.0.crop_ratio=1.0", "val_dataloader.dataset.every=2")
    options = ("--work-dir", made / "averaged", "--no-data-check", "--cfg-options", *settings)
    done = tool("robustness.py", made / "tiny.py", made / "with_average.pth", *how, *options)
    assert done.code == 0, done.err
    kept = made / "averaged/robustness_ema/sets"
    image = f"val/{NAMES[0]}/ILSVRC2012_val_00000002.JPEG"
    cropped = CenterCrop(SIZE, 0.875)(str(made / "imagenet" / image))
    photograph = CenterCrop(224, 0.875)(str(made / "imagenet" / image)).permute(1, 2, 0).numpy()
    for name, pixels in {
        "clean": cropped,
        "c/snow/4": warped_corruption(photograph, "snow", 4, image),
        "c/gaussian_noise/1": warped_corruption(photograph, "gaussian_noise", 1, image),
    }.items():
        with torch.no_grad():
            expected = averaged(normalised(averaged, pixels))[0].softmax(0)
        worst = json.loads((kept / f"{name}.json").read_text())["details"]["worst"]
        (found,) = [one for one in worst if one["image"].endswith(image)]
        assert found["predicted"] == int(expected.argmax()) != 0
        assert found["confidence"] == pytest.approx(float(expected.max()), rel=1e-4)


def warped_corruption(photograph: np.ndarray, name: str, severity: int, image: str) -> torch.Tensor:
    """A corruption of 224 x 224 pixels in the size of the network's input, uint8 (3, 32, 32)."""
    pixels = corrupt(photograph, name, severity, image_seed(image, name, severity))
    small = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suites", "sketsh"), "--suites sketsh: classification has no such suite; nearest: sketch"),
        (("--suites", "a", "--protocol", "rotate"), "--protocol rotate: no suite that is evaluated has it; there are"),
        (("--suites", "a", "--protocol", "c=resize"), "--protocol c=resize: no suite that is evaluated has it"),
        (("--tta",), "--tta: the config has no tta_pipeline and tta_model"),
        (
            ("--no-data-check", "--cfg-options", "val_dataloader.dataset.indices=2"),
            "config does not build: test_dataloader.dataset: FolderDataset has no argument 'indices'",
        ),
        (("--suites", "shape", "--no-data-check"), "no suite can be evaluated: shape: Cue conflict (shape against"),
        (("--work-dir", "/dev/null/x"), "work_dir '/dev/null/x' cannot be written: choose another with --work-dir"),
    ],
)
def test_wrong_arguments_are_named(evaluate: Evaluate, arguments: tuple[str, ...], message: str) -> None:
    done, _ = evaluate(*arguments, work="wrong")
    assert done.code == 2
    assert done.err.strip().startswith(f"error: {message}"), done.err
