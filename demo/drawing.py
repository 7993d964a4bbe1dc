"""Drawing of handwritten digits on photographs: pictures of one digit, and scenes of several.

The digits are the 1,797 handwritten 8x8 digits, the backgrounds pieces of the two photographs (a Chinese temple, a
flower) that scikit-learn carries inside its package, so nothing is downloaded. Training and validation share neither a
source digit nor a piece of a photograph. (The source does not tell the writers apart: digits of one writer may be in
both.) Every picture is drawn from a generator seeded with (seed, set, split, index): asking for more pictures never
changes the earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits, load_sample_images

DRAWING_VERSION = 3  # raise it with every change that alters a byte of the output
DIGIT_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_SPLITS = ("train", "val")
DIGIT_IMAGE_SIZE = 48  # pixels, pictures of one digit
SCENE_SIZE = 160  # pixels, scenes of several digits

_TRAIN_SHARE = 0.7  # of the source digits of each class, and of the columns of each photograph
_IMAGES, _SCENES = 0, 1  # the two random streams

_IMAGE_HEIGHTS = (30.0, 46.0)
_SCENE_HEIGHTS = (22.0, 52.0)
_CROWD_HEIGHTS = (13.0, 17.0)
_MAX_DIGITS = 8
_MIN_VISIBLE = 0.5  # share of its ink that every digit of a scene keeps
_MAX_BOX_OVERLAP = 0.4  # of the smaller box: two strokes may cross, two digits may not lie on each other
_PLACING_TRIES = 12
_INK_TRIES = 24
_MAX_BACKGROUND_LUMINANCE = 100.0  # mean of a background, 0..255
_MIN_CONTRAST = 110.0  # of ink: difference of luminance plus 0.3 of the difference of colour, 0..387

# Rare cases of COCO, at fixed indices so that small sets have them too: (period, first index).
_CROWD_EVERY = (33, 5)
_EMPTY_EVERY = (50, 7)
_GREY_EVERY = (40, 11)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """Source digits and photographs of one split.

    Attributes:
        glyphs: Source digits of each class, float, (N, 8, 8), about 0 for paper and 1 for ink.
        photos: Pieces of the photographs, uint8, (H, W, 3).
    """

    glyphs: list[Floats]
    photos: list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Instance:
    """One annotated digit, or one crowd of digits of a class.

    Attributes:
        label: Class, 0..9.
        mask: Visible pixels, (size, size).
        crowd: True for a region of several digits without separate masks.
    """

    label: int
    mask: Mask
    crowd: bool = False


@dataclass(frozen=True)
class DigitScene:
    """A picture (size, size, 3) or, grey, (size, size), uint8, and its instances from back to front."""

    image: npt.NDArray[np.uint8]
    instances: list[Instance]


def split_sources(seed: int) -> dict[str, npt.NDArray[np.intp]]:
    """Indices into ``load_digits()`` of the splits "train" and "val", class by class; together they are all of them."""
    labels = load_digits().target
    rng = np.random.default_rng(seed)
    parts: dict[str, list[npt.NDArray[np.intp]]] = {split: [] for split in DIGIT_SPLITS}
    for label in range(len(DIGIT_CLASSES)):
        indices = rng.permutation(np.flatnonzero(labels == label))
        cut = round(_TRAIN_SHARE * len(indices))
        parts["train"].append(indices[:cut])
        parts["val"].append(indices[cut:])
    return {split: np.concatenate(chunks) for split, chunks in parts.items()}


def load_material(seed: int) -> dict[str, Material]:
    """Source digits and photographs of the splits "train" and "val", with nothing in common."""
    digits = load_digits()
    glyphs = np.stack([_sharpen((image / 16).astype(np.float32)) for image in digits.images])
    china, flower = load_sample_images().images
    # The last columns are held out. Mirrored, those of the temple are as rich as the rest, not mere sky.
    photos = [china[:, ::-1], flower]
    material = {}
    for split, sources in split_sources(seed).items():
        by_class = [glyphs[sources[digits.target[sources] == label]] for label in range(len(DIGIT_CLASSES))]
        cuts = [round(_TRAIN_SHARE * photo.shape[1]) for photo in photos]
        pieces = [p[:, :cut] if split == "train" else p[:, cut:] for p, cut in zip(photos, cuts, strict=True)]
        material[split] = Material(by_class, pieces)
    return material


def _sharpen(glyph: Floats) -> Floats:
    """Set the cells of a glyph (8, 8) apart from their neighbours' mean.

    The source is 32x32 strokes averaged to 8x8: thin strokes are faint there and narrow holes nearly full.
    Without this zeros break and eights close when they are enlarged.
    """
    return (2 * glyph - cv2.blur(glyph, (3, 3), borderType=cv2.BORDER_CONSTANT)).astype(np.float32)


def _rng(seed: int, stream: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, DIGIT_SPLITS.index(split), index])


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
    exposure = min(rng.uniform(0.6, 1.1), _MAX_BACKGROUND_LUMINANCE / float(mean @ _LUMA))
    tinted = (mean * exposure * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    return np.clip(tinted + (crop - mean) * rng.uniform(0.5, 0.9), 0, 255)


def _render(rng: np.random.Generator, glyph: Floats, height: float, centre: tuple[float, float], size: int) -> Floats:
    """Coverage (size, size) by the ink of a glyph (8, 8), drawn this high around a centre (x, y), in pixels.

    Coverage is 0..1, with edges about one and a half pixels wide; 0.5 is the outline. Slant, rotation, width and
    thickness of the stroke are random.
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
    """A bright colour (3,) in 0..255 with contrast to nearly all of a background (h, w, 3), in luminance too."""
    step = max(1, len(ground) // 10)  # about a hundred samples tell enough
    samples = ground[::step, ::step].reshape(-1, 1, 3)
    inks = rng.uniform((0, 0, 170), (180, 200, 256), (1, _INK_TRIES, 3)).astype(np.uint8)
    inks = cv2.cvtColor(inks, cv2.COLOR_HSV2RGB).astype(np.float32)
    apart = inks - samples
    contrast = apart @ _LUMA + 0.3 * np.linalg.norm(apart, axis=-1)
    tenth = len(samples) // 10
    contrast = np.partition(contrast, tenth, axis=0)[tenth]
    # The first that is clear enough rather than the clearest: that would always be white.
    chosen = np.argmax(contrast >= _MIN_CONTRAST) if contrast.max() >= _MIN_CONTRAST else np.argmax(contrast)
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
    """Draw a picture of one digit: its label and (DIGIT_IMAGE_SIZE, DIGIT_IMAGE_SIZE, 3) pixels.

    Classes take turns, and so do the source digits within a class.
    """
    rng = _rng(seed, _IMAGES, split, index)
    turn, label = divmod(index, len(DIGIT_CLASSES))
    glyphs = material.glyphs[label]
    canvas = _background(rng, material.photos, DIGIT_IMAGE_SIZE)
    height = rng.uniform(*_IMAGE_HEIGHTS)
    x, y = rng.uniform(height / 2 - 0.5, DIGIT_IMAGE_SIZE - height / 2 - 0.5, 2)
    _paint(rng, canvas, _render(rng, glyphs[turn % len(glyphs)], height, (x, y), DIGIT_IMAGE_SIZE))
    return label, _to_pixels(canvas)


def _crowd(rng: np.random.Generator, material: Material, canvas: Floats) -> Instance:
    """Paint a tight cluster of small digits of one class; its mask is the whole region they fill."""
    label = int(rng.integers(len(DIGIT_CLASSES)))
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(3, 5))
    pitch = rng.uniform(*_CROWD_HEIGHTS)
    left = rng.uniform(pitch, SCENE_SIZE - columns * pitch)
    top = rng.uniform(pitch, SCENE_SIZE - rows * pitch)
    union = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    for row, column in np.ndindex(rows, columns):
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
    """Label and cover (SCENE_SIZE, SCENE_SIZE) of one more digit that leaves the earlier ones legible.

    Each earlier instance comes with its number of pixels before anything covered it; ``None`` if the scene is too full.
    """
    label = int(rng.integers(len(DIGIT_CLASSES)))
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


def compose_scene(seed: int, split: str, index: int, material: Material) -> DigitScene:
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
    return DigitScene(image, [instance for instance, _ in placed])


def _happens(every: tuple[int, int], index: int) -> bool:
    period, first = every
    return index % period == first
