"""The embedded data: true to the formats, the same every time, nothing shared between the splits."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from backbones.errors import UserError
from demo import dataset, drawing
from demo.dataset import SEGMENTATION_CLASSES, make_digits
from demo.drawing import DIGIT_CLASSES
from demo.formats import mask_to_polygons

SMALL = {"train_images": 20, "val_images": 10, "train_scenes": 12, "val_scenes": 12}
TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_digits.py"
ADE = {"train": "training", "val": "validation"}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    make_digits(root, **SMALL)
    return root


@pytest.fixture(scope="module")
def material() -> dict[str, drawing.Material]:
    return drawing.load_material(0)


@pytest.fixture(scope="module", params=drawing.DIGIT_SPLITS)
def scenes(request, made, material) -> tuple[Path, str, dict, list[drawing.DigitScene]]:
    """A split's annotation file, its content, and the scenes it was made from."""
    split = request.param
    drawn = [drawing.compose_scene(0, split, i, material[split]) for i in range(SMALL[f"{split}_scenes"])]
    path = made / "coco" / "annotations" / f"instances_{split}2017.json"
    return path, split, json.loads(path.read_text()), drawn


def test_two_runs_are_byte_identical(made, tmp_path):
    make_digits(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(made)


@pytest.mark.parametrize("cores", [1, 3])
def test_any_number_of_processes_draws_the_same(made, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(dataset, "usable_cores", lambda: cores)
    monkeypatch.setattr(dataset, "IMAGES_PER_PART", 7)
    monkeypatch.setattr(dataset, "SCENES_PER_PART", 5)
    make_digits(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(made)


def test_drawing_needs_no_torch():
    code = "import sys, demo.dataset; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TOOL.parents[1])


def test_another_seed_draws_and_holds_out_something_else(made, tmp_path):
    make_digits(tmp_path / "other", seed=1, **SMALL)
    other, first = contents(tmp_path / "other"), contents(made)
    assert other.keys() == first.keys()
    pictures = [name for name in first if Path(name).suffix in (".png", ".jpg") and "annotations" not in name]
    assert all(other[name] != first[name] for name in pictures)
    assert set(drawing.split_sources(0)["val"]) != set(drawing.split_sources(1)["val"])


def test_more_pictures_leave_the_earlier_ones_as_they_are(made, tmp_path):
    make_digits(tmp_path / "more", train_images=30, val_images=12, train_scenes=14, val_scenes=15)
    more, first = contents(tmp_path / "more"), contents(made)
    pictures = [name for name in first if Path(name).suffix in (".png", ".jpg")]
    assert all(more[name] == first[name] for name in pictures)


def test_splits_share_no_source_digit_and_are_stratified():
    labels = load_digits().target
    parts = drawing.split_sources(0)
    assert sorted(np.concatenate([parts["train"], parts["val"]])) == list(range(len(labels)))
    for label in range(10):
        share = (labels[parts["train"]] == label).sum() / (labels == label).sum()
        assert share == pytest.approx(0.7, abs=0.01)


def test_splits_are_drawn_from_their_own_digits_and_pieces_of_the_photographs(material):
    source = load_digits()
    for split, indices in drawing.split_sources(0).items():
        for label, glyphs in enumerate(material[split].glyphs):
            own = source.images[indices[source.target[indices] == label]]
            expected = [drawing._sharpen((image / 16).astype(np.float32)) for image in own]
            np.testing.assert_array_equal(glyphs, expected)
    for train, val in zip(material["train"].photos, material["val"].photos):
        assert not np.shares_memory(train, val)
        assert train.shape[1] + val.shape[1] == 640
        assert min(*train.shape[:2], *val.shape[:2]) >= 1.2 * drawing.SCENE_SIZE


def test_folders_of_images_have_every_class_equally_often(made):
    for split in drawing.DIGIT_SPLITS:
        folders = sorted((made / "imagenet" / split).iterdir())
        assert [f.name for f in folders] == sorted(DIGIT_CLASSES)
        for folder in folders:
            files = list(folder.iterdir())
            assert len(files) == SMALL[f"{split}_images"] // 10
            for file in files:
                with Image.open(file) as image:
                    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 48))


def test_every_digit_stands_out_from_its_ground(material):
    for index in range(40):
        rng = np.random.default_rng(index)
        ground = drawing._background(rng, material["train"].photos, drawing.DIGIT_IMAGE_SIZE)
        canvas = ground.copy()
        cover = drawing._render(rng, material["train"].glyphs[index % 10][0], 30, (24, 24), drawing.DIGIT_IMAGE_SIZE)
        drawing._paint(rng, canvas, cover)
        inked = cover > 0.9
        assert np.linalg.norm((canvas - ground)[inked], axis=-1).mean() > 50
        assert (canvas == ground)[cover == 0].all()
        assert (cover == 0).mean() > 0.5


@pytest.mark.parametrize("reader", [pycocotools.coco.COCO, faster_coco_eval.COCO])
def test_coco_readers_decode_the_very_masks_that_were_painted(scenes, reader):
    path, _, _, drawn = scenes
    coco = reader(str(path))
    images = sorted(coco.imgs)
    assert len(images) == len(drawn)
    for image_id, scene in zip(images, drawn):
        annotations = coco.loadAnns(coco.getAnnIds([image_id]))
        assert len(annotations) == len(scene.instances)
        for annotation, instance in zip(annotations, scene.instances):
            decoded = coco.annToMask(annotation).astype(bool)
            iou = (decoded & instance.mask).sum() / (decoded | instance.mask).sum()
            assert iou >= 0.97
            assert annotation["area"] == instance.mask.sum()
            assert annotation["category_id"] == 1 + instance.label
            assert annotation["iscrowd"] == int(instance.crowd)


def test_coco_boxes_are_tight_and_in_the_picture(scenes):
    _, _, listed, drawn = scenes
    instances = [instance for scene in drawn for instance in scene.instances]
    assert len(instances) == len(listed["annotations"])
    for annotation, instance in zip(listed["annotations"], instances):
        x, y, w, h = annotation["bbox"]
        inside = instance.mask[y : y + h, x : x + w]
        assert inside.sum() == instance.mask.sum() > 0
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert inside.shape == (h, w)


def test_coco_json_has_the_customary_entries(scenes):
    path, split, listed, drawn = scenes
    assert set(listed) == {"info", "licenses", "images", "annotations", "categories"}
    assert [(c["id"], c["name"]) for c in listed["categories"]] == list(enumerate(DIGIT_CLASSES, 1))
    assert len({a["id"] for a in listed["annotations"]}) == len(listed["annotations"])
    for entry, scene in zip(listed["images"], drawn):
        with Image.open(path.parents[1] / f"{split}2017" / entry["file_name"]) as image:
            assert image.format == "JPEG"
            assert image.size == (entry["width"], entry["height"]) == (160, 160)
            assert image.mode == ("RGB" if scene.image.ndim == 3 else "L")
    for annotation in listed["annotations"]:
        if annotation["iscrowd"]:
            assert sum(annotation["segmentation"]["counts"]) == 160 * 160
        else:
            assert annotation["segmentation"]
            assert all(len(p) >= 6 and len(p) % 2 == 0 for p in annotation["segmentation"])


def test_there_are_crowds_empty_and_grey_scenes(scenes):
    _, _, listed, drawn = scenes
    with_digits = {a["image_id"] for a in listed["annotations"]}
    assert sum(entry["id"] not in with_digits for entry in listed["images"]) == 1
    crowds = [a for a in listed["annotations"] if a["iscrowd"]]
    assert len(crowds) == 1
    assert 400 < crowds[0]["area"] < 160 * 160 / 4
    assert sum(scene.image.ndim == 2 for scene in drawn) == 1
    assert max(len(scene.instances) for scene in drawn) <= 8


def test_labels_agree_with_the_masks_outside_the_ignored_ring(scenes):
    path, split, listed, drawn = scenes
    root = path.parents[2]
    assert ("background", *DIGIT_CLASSES) == SEGMENTATION_CLASSES
    for index, (entry, scene) in enumerate(zip(listed["images"], drawn), 1):
        name = f"ADE_{split}_{index:08d}"
        coco_image = root / "coco" / f"{split}2017" / entry["file_name"]
        ade_image = root / "ade" / "images" / ADE[split] / f"{name}.jpg"
        assert ade_image.read_bytes() == coco_image.read_bytes()
        with Image.open(root / "ade" / "annotations" / ADE[split] / f"{name}.png") as image:
            assert image.mode == "L"
            labels = np.array(image)
        ink = np.zeros(labels.shape, bool)
        crowd = np.zeros(labels.shape, bool)
        for instance in scene.instances:
            if instance.crowd:
                crowd |= instance.mask
            else:
                assert (labels[instance.mask] == 2 + instance.label).all()
                ink |= instance.mask
        assert set(np.unique(labels[~ink])) <= {0, 1}
        assert (labels[crowd & ~ink] == 0).all()
        padded = np.pad(ink, 1)
        near = np.any([np.roll(padded, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
        assert ((labels == 0) == ((near[1:-1, 1:-1] | crowd) & ~ink)).all()


def test_masks_are_disjoint_and_never_a_mere_rest(material):
    for index in range(30):
        instances = drawing.compose_scene(0, "train", index, material["train"]).instances
        total = np.sum([instance.mask for instance in instances], axis=0) if instances else np.zeros(1)
        assert total.max() <= 1
        assert all(instance.mask.sum() >= 30 for instance in instances)


def test_a_half_hidden_digit_is_not_hidden_further(material):
    block = np.zeros((drawing.SCENE_SIZE, drawing.SCENE_SIZE), bool)
    block[40:120, 40:120] = True
    touched = []
    for whole in (block.sum(), 2 * block.sum()):
        earlier = [(drawing.Instance(0, block), int(whole))]
        found = [drawing._place(np.random.default_rng(i), material["train"], earlier) for i in range(60)]
        touched.append(sum(bool((place[1][block] > 0.5).any()) for place in found if place is not None))
    assert touched[0] > 0
    assert touched[1] == 0


def test_images_take_every_source_digit_of_a_class_in_turn(material, monkeypatch):
    used = []
    render = drawing._render
    monkeypatch.setattr(drawing, "_render", lambda rng, glyph, *rest: used.append(glyph) or render(rng, glyph, *rest))
    count = len(material["val"].glyphs[3])
    for turn in range(count + 1):
        assert drawing.compose_image(0, "val", 10 * turn + 3, material["val"])[0] == 3
    np.testing.assert_array_equal(used, [*material["val"].glyphs[3], used[0]])


@pytest.mark.parametrize(
    "rows",
    [
        ["#"],
        ["#..", ".#.", "..#"],  # touching at corners only
        ["#####", "#...#", "#.#.#", "#...#", "#####"],  # a part in a hole
        ["#######", "#.#.#.#", "#######"],  # several holes
        ["##..##", "##..##", "......", "######"],  # several parts, at the edges
    ],
)
def test_polygons_of_awkward_shapes(rows):
    shape = np.array([[cell == "#" for cell in row] for row in rows])
    mask = np.kron(shape, np.ones((3, 3), bool)) if shape.size > 1 else np.pad(shape, 2)
    for candidate in (mask, np.pad(mask, 4)):
        polygons = mask_to_polygons(candidate)
        assert all(len(polygon) >= 6 for polygon in polygons)
        coco = pycocotools.coco.COCO()
        coco.imgs = {1: {"height": candidate.shape[0], "width": candidate.shape[1]}}
        decoded = coco.annToMask({"image_id": 1, "segmentation": polygons}).astype(bool)
        np.testing.assert_array_equal(decoded, candidate)


def test_a_finished_data_set_is_not_made_again(tmp_path, monkeypatch):
    make_digits(tmp_path / "d", **SMALL)
    before = contents(tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "load_material", lambda seed: pytest.fail("made again"))
        make_digits(tmp_path / "d", **SMALL)
    assert contents(tmp_path / "d") == before
    make_digits(tmp_path / "d", **{**SMALL, "val_images": 20})
    assert len(list((tmp_path / "d" / "imagenet" / "val").rglob("*.png"))) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_data_of_the_first_version_is_still_valid(made, tmp_path):
    """Its stamp names the module that drew it then."""
    assert dataset.read_stamp(made)["generator"] == "engine.digits"
    (tmp_path / "d").mkdir()
    stamp = {"generator": "another", "version": 2}
    (tmp_path / "d" / "digits.json").write_text(json.dumps(stamp))
    with pytest.raises(UserError, match="holds other files"):
        make_digits(tmp_path / "d", **SMALL)


def test_an_interrupted_run_is_made_again(made, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_write_scenes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_digits(tmp_path / "d", **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["d.partial"]
    make_digits(tmp_path / "d", **SMALL)
    assert contents(tmp_path / "d") == contents(made)
    (tmp_path / "d.stale").mkdir()  # left by a run interrupted while it replaced an older data set
    (tmp_path / "d.stale" / "old").write_text("")
    make_digits(tmp_path / "d", **{**SMALL, "train_images": 10})
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_bad_arguments_get_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        make_digits(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        make_digits(tmp_path / "file" / "digits")
    with pytest.raises(UserError, match="holds other files"):
        make_digits(tmp_path / "mine")
    with pytest.raises(UserError, match="negative"):
        make_digits(tmp_path / "d", seed=-1)
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "photo.jpg").read_text() == "mine"


def test_the_tool_ends_with_code_two_and_one_line_on_a_bad_root(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["make_digits.py", "--root", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_the_tool_says_what_is_where(tmp_path, monkeypatch, capsys):
    make_digits(tmp_path / "d", **SMALL)
    monkeypatch.setattr(dataset.make_digits, "__kwdefaults__", {"seed": 0, **SMALL})
    monkeypatch.setattr(sys, "argv", ["make_digits.py", "--root", str(tmp_path / "d")])
    runpy.run_path(str(TOOL), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path / 'd' / 'imagenet'}: 20 training and 10 validation images"
    assert said[2] == f"{tmp_path / 'd' / 'ade'}: 12 training and 12 validation scenes"
