"""Real handwriting on real photographs: small data sets in the formats of ImageNet, COCO and ADE20K.

The ink is the 1,797 handwritten 8x8 digits and the ground the two photographs (a Chinese temple, a flower)
that scikit-learn carries inside its package, so nothing is downloaded. Training and validation share neither
a source digit nor a piece of a photograph. (The source does not say who wrote which digit, so one writer's
digits may be in both.) Every picture is drawn from a generator seeded with (seed, set, split, index): asking
for more pictures never changes the earlier ones.

Layout under the root::

    imagenet/{train,val}/<class>/*.png                      one digit per 48x48 picture
    coco/{train2017,val2017}/*.jpg                          scenes of several digits, 160x160
    coco/annotations/instances_{train,val}2017.json
    ade/images/{training,validation}/*.jpg                  the same scenes
    ade/annotations/{training,validation}/*.png             0 ignored, 1 background, 2..11 zero..nine
    digits.json                                             what made it; its presence means "complete"
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from backbones.errors import UserError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEGMENTATION_CLASSES = ("background", *CLASSES)
SPLITS = ("train", "val")
STAMP = "digits.json"

IMAGE_SIZE = 48  # pixels, pictures of one digit
SCENE_SIZE = 160  # pixels, scenes of several digits

_VERSION = 2  # of the drawing: raise it with every change that alters a byte of the output
_TRAIN_SHARE = 0.7  # of the source digits of each class, and of the columns of each photograph
_IMAGES, _SCENES = 0, 1  # the two random streams
_FIRST_ID = {"train": 1, "val": 500_001}  # COCO image ids are unique over the splits, whatever their sizes

_IMAGE_HEIGHTS = (30.0, 46.0)
_SCENE_HEIGHTS = (22.0, 52.0)
_CROWD_HEIGHTS = (13.0, 17.0)
_MAX_DIGITS = 8
_MIN_VISIBLE = 0.5  # share of its ink that every digit of a scene keeps
_MAX_BOX_OVERLAP = 0.4  # of the smaller box: two strokes may cross, two digits may not lie on each other
_PLACING_TRIES = 12
_INK_TRIES = 24
_GROUND = 100.0  # brightest mean luminance of a background, 0..255
_CLEAR = 110.0  # contrast of ink that will do: difference of luminance plus 0.3 of that of colour, 0..387

# What COCO has now and then, at fixed indices so that small sets have them too: (period, first index).
_CROWD_EVERY = (33, 5)
_EMPTY_EVERY = (50, 7)
_GREY_EVERY = (40, 11)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG
_CONTOUR_SCALE = 4

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """What one split is drawn from.

    Attributes:
        glyphs: By class the source digits (N, 8, 8), about 0 for paper and 1 for ink.
        photos: The split's pieces of the photographs (H, W, 3).
    """

    glyphs: list[Floats]
    photos: list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Instance:
    """One annotated digit, or one crowd of digits of a class.

    Attributes:
        label: 0..9.
        mask: (size, size), what of it can be seen.
        crowd: Whether it is a region of digits not told apart.
    """

    label: int
    mask: Mask
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture (size, size, 3) or, grey, (size, size), uint8, and its instances from back to front."""

    image: npt.NDArray[np.uint8]
    instances: list[Instance]


def split_sources(seed: int) -> dict[str, npt.NDArray[np.intp]]:
    """Divide scikit-learn's digits between the splits, class by class.

    Args:
        seed: The data set's seed.

    Returns:
        For each of "train" and "val" the indices into ``load_digits()``; together they are all of them.
    """
    labels = load_digits().target
    rng = np.random.default_rng(seed)
    parts: dict[str, list[npt.NDArray[np.intp]]] = {split: [] for split in SPLITS}
    for label in range(len(CLASSES)):
        indices = rng.permutation(np.flatnonzero(labels == label))
        cut = round(_TRAIN_SHARE * len(indices))
        parts["train"].append(indices[:cut])
        parts["val"].append(indices[cut:])
    return {split: np.concatenate(chunks) for split, chunks in parts.items()}


def load_material(seed: int) -> dict[str, Material]:
    """Ink and ground of each split, "train" and "val", with nothing in common."""
    digits = load_digits()
    glyphs = np.stack([_sharpen((image / 16).astype(np.float32)) for image in digits.images])
    china, flower = load_sample_images().images
    # The last columns are held out. Mirrored, those of the temple are as rich as the rest, not mere sky.
    photos = [china[:, ::-1], flower]
    material = {}
    for split, sources in split_sources(seed).items():
        by_class = [glyphs[sources[digits.target[sources] == label]] for label in range(len(CLASSES))]
        cuts = [round(_TRAIN_SHARE * photo.shape[1]) for photo in photos]
        pieces = [p[:, :cut] if split == "train" else p[:, cut:] for p, cut in zip(photos, cuts, strict=True)]
        material[split] = Material(by_class, pieces)
    return material


def _sharpen(glyph: Floats) -> Floats:
    """Set the cells of a glyph (8, 8) apart from their neighbours' mean.

    The source is 32x32 strokes averaged to 8x8: thin strokes are faint there and narrow holes nearly full.
    Without this zeros break and eights close when they are enlarged.
    """
    blurred = cv2.blur(glyph, (3, 3), borderType=cv2.BORDER_CONSTANT)
    return (2 * glyph - blurred).astype(np.float32)


def _rng(seed: int, stream: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, SPLITS.index(split), index])


def _background(rng: np.random.Generator, photos: list[npt.NDArray[np.uint8]], size: int) -> Floats:
    """A crop of a photograph, (size, size, 3) in 0..255, with its own exposure, contrast and tint."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.uniform(0.6, 1.2) * size)
    top = rng.integers(photo.shape[0] - side + 1)
    left = rng.integers(photo.shape[1] - side + 1)
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    mean = crop.mean(axis=(0, 1))
    # Darker and softer than the photographs: bright ink has to be legible on the sky and on golden ornaments.
    exposure = min(rng.uniform(0.6, 1.1), _GROUND / float(mean @ _LUMA))
    tinted = (mean * exposure * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    return np.clip(tinted + (crop - mean) * rng.uniform(0.5, 0.9), 0, 255)


def _render(rng: np.random.Generator, glyph: Floats, height: float, centre: tuple[float, float], size: int) -> Floats:
    """Write an 8x8 glyph into an empty (size, size) picture.

    Args:
        rng: Chooses slant, rotation, width and thickness of the stroke.
        glyph: (8, 8), about 0 for paper and 1 for ink.
        height: Of the glyph, in pixels.
        centre: (x, y) in pixels.
        size: Of the picture.

    Returns:
        The cover of each pixel by ink, 0..1, with edges about one and a half pixels wide; 0.5 is the outline.
    """
    scale = height / glyph.shape[0]
    angle = np.deg2rad(rng.uniform(-12, 12))
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[rng.uniform(0.8, 1.1), rng.uniform(-0.2, 0.2)], [0, 1]])
    linear = scale * rotate @ slant
    middle = np.full(2, (glyph.shape[0] - 1) / 2)
    matrix = np.column_stack([linear, np.array(centre) - linear @ middle])
    cover = cv2.warpAffine(glyph, matrix, (size, size), flags=cv2.INTER_CUBIC)
    # The outline runs about half-way from paper to ink, and enlarged ink climbs by 1/scale per pixel there.
    outline = rng.uniform(0.38, 0.52)
    half_edge = min(0.75 / scale, outline)  # no wider: the cover must be 0 where there is no ink
    ramp = np.clip((cover - outline) / (2 * half_edge) + 0.5, 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def _ink(rng: np.random.Generator, ground: Floats) -> Floats:
    """A bright colour (3,) in 0..255 that stands out from nearly all of the ground (h, w, 3), in luminance too."""
    step = max(1, len(ground) // 10)  # about a hundred samples tell enough
    samples = ground[::step, ::step].reshape(-1, 1, 3)
    inks = rng.uniform((0, 0, 170), (180, 200, 256), (1, _INK_TRIES, 3)).astype(np.uint8)
    inks = cv2.cvtColor(inks, cv2.COLOR_HSV2RGB).astype(np.float32)
    apart = inks - samples
    contrast = apart @ _LUMA + 0.3 * np.linalg.norm(apart, axis=-1)
    tenth = len(samples) // 10
    contrast = np.partition(contrast, tenth, axis=0)[tenth]
    # The first that is clear enough rather than the clearest: that would always be white.
    chosen = np.argmax(contrast >= _CLEAR) if contrast.max() >= _CLEAR else np.argmax(contrast)
    return inks[0, chosen]


def _paint(rng: np.random.Generator, canvas: Floats, cover: Floats) -> None:
    """Paint a digit's cover (size, size) onto the canvas (size, size, 3), in place."""
    left, top, width, height = box_of(cover > 0)
    box = slice(top, top + height), slice(left, left + width)
    alpha = (cover[box] * rng.uniform(0.85, 1))[..., None]
    canvas[box] += alpha * (_ink(rng, canvas[box]) - canvas[box])


def _to_pixels(canvas: Floats) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)


def compose_image(seed: int, split: str, index: int, material: Material) -> tuple[int, npt.NDArray[np.uint8]]:
    """Draw a picture of one digit: its label and (IMAGE_SIZE, IMAGE_SIZE, 3) pixels.

    Classes take turns, and so do the source digits within a class.
    """
    rng = _rng(seed, _IMAGES, split, index)
    turn, label = divmod(index, len(CLASSES))
    glyphs = material.glyphs[label]
    canvas = _background(rng, material.photos, IMAGE_SIZE)
    height = rng.uniform(*_IMAGE_HEIGHTS)
    x, y = rng.uniform(height / 2 - 0.5, IMAGE_SIZE - height / 2 - 0.5, 2)
    _paint(rng, canvas, _render(rng, glyphs[turn % len(glyphs)], height, (x, y), IMAGE_SIZE))
    return label, _to_pixels(canvas)


def _crowd(rng: np.random.Generator, material: Material, canvas: Floats) -> Instance:
    """Paint a tight cluster of small digits of one class; its mask is the whole region they fill."""
    label = int(rng.integers(len(CLASSES)))
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(3, 5))
    pitch = rng.uniform(*_CROWD_HEIGHTS)
    left = rng.uniform(pitch, SCENE_SIZE - columns * pitch)
    top = rng.uniform(pitch, SCENE_SIZE - rows * pitch)
    union = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    for row in range(rows):
        for column in range(columns):
            glyph = rng.choice(material.glyphs[label])
            x, y = np.array([left + column * pitch, top + row * pitch]) + rng.uniform(-0.25, 0.25, 2) * pitch
            cover = _render(rng, glyph, pitch * rng.uniform(0.95, 1.1), (x, y), SCENE_SIZE)
            _paint(rng, canvas, cover)
            union |= (cover > 0).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))
    return Instance(label, cv2.morphologyEx(union, cv2.MORPH_CLOSE, kernel).astype(bool), crowd=True)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """The tight box (x, y, width, height) in pixels of a mask that is not empty, as COCO writes boxes."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)


def _box_overlap(first: Mask, second: Mask) -> float:
    """The intersection of the two masks' boxes over the smaller box."""
    x1, y1, w1, h1 = box_of(first)
    x2, y2, w2, h2 = box_of(second)
    width = min(x1 + w1, x2 + w2) - max(x1, x2)
    height = min(y1 + h1, y2 + h2) - max(y1, y2)
    return max(width, 0) * max(height, 0) / min(w1 * h1, w2 * h2)


def _place(
    rng: np.random.Generator, material: Material, earlier: list[tuple[Instance, int]]
) -> tuple[int, Floats] | None:
    """Find a place for one more digit that leaves the earlier ones legible.

    Args:
        rng: Chooses class, size and place.
        material: Of the split.
        earlier: Each earlier instance with the pixels it had before anything covered it.

    Returns:
        Label and cover (SCENE_SIZE, SCENE_SIZE), or None where the scene is too full.
    """
    label = int(rng.integers(len(CLASSES)))
    glyph = rng.choice(material.glyphs[label])
    for _ in range(_PLACING_TRIES):
        height = float(np.exp(rng.uniform(*np.log(_SCENE_HEIGHTS))))  # log-uniform: small ones are as welcome
        x, y = rng.uniform(height / 2 - 0.5, SCENE_SIZE - height / 2 - 0.5, 2)
        cover = _render(rng, glyph, height, (x, y), SCENE_SIZE)
        mask = cover > 0.5
        hides = any((other.mask & ~mask).sum() < _MIN_VISIBLE * whole for other, whole in earlier)
        if not hides and all(_box_overlap(other.mask, mask) <= _MAX_BOX_OVERLAP for other, _ in earlier):
            return label, cover
    return None


def compose_scene(seed: int, split: str, index: int, material: Material) -> Scene:
    """Draw a scene of up to eight digits; a later digit hides what it covers of the earlier ones.

    Every digit is placed before it is painted, so nothing painted goes without its annotation.
    """
    rng = _rng(seed, _SCENES, split, index)
    canvas = _background(rng, material.photos, SCENE_SIZE)
    placed: list[tuple[Instance, int]] = []
    count = int(rng.integers(1, _MAX_DIGITS + 1))
    if _happens(_EMPTY_EVERY, index):
        count = 0
    elif _happens(_CROWD_EVERY, index):
        crowd = _crowd(rng, material, canvas)
        placed.append((crowd, int(crowd.mask.sum())))
        count -= 1
    for _ in range(count):
        found = _place(rng, material, placed)
        if found is None:
            continue
        label, cover = found
        mask = cover > 0.5
        placed = [(Instance(o.label, o.mask & ~mask, o.crowd), whole) for o, whole in placed]
        placed.append((Instance(label, mask), int(mask.sum())))
        _paint(rng, canvas, cover)
    image = _to_pixels(canvas)
    if _happens(_GREY_EVERY, index):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    return Scene(image, [instance for instance, _ in placed])


def _happens(every: tuple[int, int], index: int) -> bool:
    period, first = every
    return index % period == first


def label_map(instances: list[Instance], size: int = SCENE_SIZE) -> npt.NDArray[np.uint8]:
    """ADE20K's form of a scene, (size, size): 0 ignored, 1 background, 2..11 the digits.

    Ignored are crowds and the pixel around each digit, where ink and photograph are mixed.
    """
    labels = np.ones((size, size), np.uint8)
    digits = np.zeros((size, size), np.uint8)
    for instance in instances:
        if instance.crowd:
            labels[instance.mask] = 0
        else:
            digits[instance.mask] = 1
    labels[cv2.dilate(digits, np.ones((3, 3), np.uint8)).astype(bool)] = 0
    for instance in instances:
        if not instance.crowd:
            labels[instance.mask] = 2 + instance.label
    return labels


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """COCO polygons [x1, y1, x2, y2, ...] of a mask, one for each connected part.

    A polygon list is a union of areas and cannot say "hole", but a zero has one: a hole is joined to its
    outline by a bridge walked there and back, which encloses nothing.

    Args:
        mask: (height, width).

    Returns:
        One polygon of at least four points per part, in pixels, (0, 0) being the corner of the first pixel.
    """
    # Contours run through the centres of the border pixels, half a pixel inside the area: a stroke of two
    # would lose half of itself. Enlarged, the loss is an eighth, and a lone pixel is still a square.
    size = mask.shape[1] * _CONTOUR_SCALE, mask.shape[0] * _CONTOUR_SCALE
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons: dict[int, npt.NDArray[np.int32]] = {}
    holes: list[tuple[int, npt.NDArray[np.int32]]] = []
    for index, contour in enumerate(contours):
        points = cv2.approxPolyDP(contour, 0.35 * _CONTOUR_SCALE, closed=True)[:, 0].astype(np.int32)
        parent = int(hierarchy[0, index, 3])
        if parent < 0:
            polygons[index] = points
        else:
            holes.append((parent, points))
    for parent, hole in holes:
        polygons[parent] = _bridge(polygons[parent], hole)
    return [((points + 0.5) / _CONTOUR_SCALE).ravel().tolist() for points in polygons.values()]


def _bridge(outline: npt.NDArray[np.int32], hole: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Splice a hole (M, 2) into an outline (N, 2) where they are nearest: (N + M + 2, 2)."""
    distance = np.square(outline[:, None] - hole[None]).sum(axis=-1)
    at, start = np.unravel_index(distance.argmin(), distance.shape)
    loop = np.concatenate([hole[start:], hole[: start + 1]])
    return np.concatenate([outline[: at + 1], loop, outline[at:]])


def mask_to_rle(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a mask (height, width): down the columns, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    return {"counts": np.diff([0, *turns, mask.size]).tolist(), "size": list(mask.shape)}


def _coco_annotation(instance: Instance, image_id: int, number: int) -> dict[str, Any]:
    """One entry of "annotations"; its id is unique over both splits."""
    segmentation = mask_to_rle(instance.mask) if instance.crowd else mask_to_polygons(instance.mask)
    return {
        "id": 100 * image_id + number,
        "image_id": image_id,
        "category_id": 1 + instance.label,
        "bbox": list(box_of(instance.mask)),
        "area": int(instance.mask.sum()),
        "iscrowd": int(instance.crowd),
        "segmentation": segmentation,
    }


def _write_images(root: Path, split: str, count: int, seed: int, material: Material) -> None:
    folders = [root / "imagenet" / split / name for name in CLASSES]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(count):
        label, pixels = compose_image(seed, split, index, material)
        Image.fromarray(pixels).save(folders[label] / f"{split}_{index:06d}.png", compress_level=3)


def _write_scenes(root: Path, split: str, scenes: Iterator[Scene]) -> None:
    ade_split = {"train": "training", "val": "validation"}[split]
    coco, annotations = root / "coco" / f"{split}2017", root / "coco" / "annotations"
    ade, labels = root / "ade" / "images" / ade_split, root / "ade" / "annotations" / ade_split
    for folder in (coco, annotations, ade, labels):
        folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, Any] = {
        "info": {"description": "Handwritten digits on photographs", "version": str(_VERSION)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(CLASSES, 1)
        ],
    }
    for index, scene in enumerate(scenes):
        image_id = _FIRST_ID[split] + index
        height, width = scene.image.shape[:2]
        name, ade_name = f"{image_id:012d}.jpg", f"ADE_{split}_{index + 1:08d}"
        Image.fromarray(scene.image).save(coco / name, quality=92)
        shutil.copyfile(coco / name, ade / f"{ade_name}.jpg")
        Image.fromarray(label_map(scene.instances)).save(labels / f"{ade_name}.png")
        listed["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        listed["annotations"] += [_coco_annotation(o, image_id, n) for n, o in enumerate(scene.instances, 1)]
    (annotations / f"instances_{split}2017.json").write_text(json.dumps(listed))


def read_stamp(root: Path) -> dict[str, Any] | None:
    """What made the data set at ``root`` (generator, version, seed, counts), or None where there is none."""
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.get("generator") == __name__ else None


def make_digits(
    root: Path,
    *,
    seed: int = 0,
    train_images: int = 6000,
    val_images: int = 1000,
    train_scenes: int = 480,
    val_scenes: int = 120,
) -> None:
    """Write the three data sets under ``root``, unless the same ones are there already.

    They appear all at once: the work is done beside the root, in ``<root>.partial``. A data set that was made
    with other arguments is replaced; a folder that holds anything else is left alone.

    Args:
        root: Folder to make.
        seed: Not negative; decides everything that is drawn and which digits are held out.
        train_images: Pictures of one digit to train on.
        val_images: Pictures of one digit held out.
        train_scenes: Scenes to train on.
        val_scenes: Scenes held out.

    Raises:
        UserError: The seed is negative, ``root`` holds something else, or it cannot be written.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: give 0 or more")
    images = {"train": train_images, "val": val_images}
    scenes = {"train": train_scenes, "val": val_scenes}
    stamp = {"generator": __name__, "version": _VERSION, "seed": seed, "images": images, "scenes": scenes}
    root = Path(root).resolve()  # beside a link's target, not beside the link: renaming needs one file system
    if read_stamp(root) == stamp:
        return
    try:
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is a file: give a folder to make the digits in")
        if root.is_dir() and read_stamp(root) is None and any(root.iterdir()):
            raise UserError(f"{root} holds other files: give a new or an empty folder to make the digits in")
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        material = load_material(seed)
        for split in SPLITS:
            own = material[split]
            _write_images(partial, split, images[split], seed, own)
            drawn = (compose_scene(seed, split, index, own) for index in range(scenes[split]))
            _write_scenes(partial, split, drawn)
        (partial / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        _replace(root, partial)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the digits to {root} ({reason}): give another folder") from error


def _replace(root: Path, new: Path) -> None:
    """Put ``new`` in the place of ``root``, which is complete or absent whenever this is interrupted."""
    stale = root.with_name(root.name + ".stale")
    shutil.rmtree(stale, ignore_errors=True)
    if root.exists():
        root.rename(stale)
    new.rename(root)
    shutil.rmtree(stale, ignore_errors=True)
