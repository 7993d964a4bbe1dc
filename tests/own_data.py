"""Small data sets with the names that people's files have: spaces, other scripts, upper case, any folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 72)  # width, height


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """A photograph of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def labels(path: Path, *values: int, size: tuple[int, int] = SIZE) -> Path:
    """A label image of stripes of values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.repeat(np.array(values, np.uint8), 8), size[0])
    Image.fromarray(np.tile(row, (size[1], 1))).save(path)
    return path


def photographs(root: Path, splits: tuple[str, ...] = ("Übung", "Prüfung"), images: int = 4) -> Path:
    """Two classes of photographs in folders of splits."""
    for number, split in enumerate(splits):
        for index, name in enumerate(("Käfer groß", "ant hill")):
            for image in range(images):
                picture(root / split / name / f"Bild {image}.JPG", 100 * number + 10 * index + image)
    return root


def objects(root: Path, masks: bool = True, splits: tuple[str, ...] = ("Lehre", "Probe")) -> Path:
    """Objects of two categories: an annotation file of any name and a folder of images for each split."""
    for number, split in enumerate(splits):
        images, annotations = [], []
        for image in range(4):
            name = f"Foto {number} {image}.PNG"
            picture(root / f"Bilder {split}" / name, 10 * number + image)
            images.append({"id": image, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            for index, category in enumerate((7, 3)):
                x, y, width, height = 8 + 40 * index, 10, 30, 40
                box = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": 0}
                box |= {"bbox": [x, y, width, height], "area": width * height}
                if masks:
                    box["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
                annotations.append(box)
        categories = [{"id": 7, "name": "Füchse"}, {"id": 3, "name": "red kite"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split} (final).json").write_text(json.dumps(content), encoding="utf-8")
    return root


def scenes(root: Path, values: tuple[int, ...] = (0, 1, 2), label_end: str = "_Maske.png") -> Path:
    """Photographs and label images of stripes, in folders of splits."""
    for number, split in enumerate(("train set", "val set")):
        for image in range(4):
            picture(root / split / "Fotos" / f"Straße {image}.JPG", 10 * number + image)
            labels(root / split / "Masken" / f"Straße {image}{label_end}", *values)
    return root
