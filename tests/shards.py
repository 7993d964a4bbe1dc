"""The same images in class folders and in shards of every kind."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def class_folders_of_noise(root: Path, classes: Sequence[str], images: int = 4, split: str = "train") -> Path:
    """Class folders of small JPEGs, each image with its own noise."""
    generator = np.random.default_rng(0)
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(images):
            pixels = generator.integers(0, 256, (24 + number, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{number}.jpg")
    return root


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def images_of(root: Path, split: str = "train", classes: Sequence[str] = ()) -> list[tuple[int, Path]]:
    """Label, by default in sorted order, and path of each image of class folders, in an order that no shard sorts."""
    classes = classes or sorted(folder.name for folder in (root / split).iterdir())
    found = [(label, path) for label, name in enumerate(classes) for path in sorted((root / split / name).iterdir())]
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def samples(root: Path, label: str, split: str = "train", classes: Sequence[str] = ()) -> list[tuple[str, bytes]]:
    """Members of WebDataset samples with the label in ``cls`` or ``json``."""
    members = []
    for number, path in images_of(root, split, classes):
        members.append((path.name, path.read_bytes()))
        text = str(number) if label == "cls" else json.dumps({"label": number, "filename": path.name})
        members.append((f"{path.stem}.{label}", text.encode()))
    return members


def to_shards(kind: str, root: Path, target: Path, split: str = "train", classes: Sequence[str] = ()) -> Path:
    """Write the class folders of a split as two tars (``cls``, ``json``, ``folders``), a ``zip``, or ``parquet``."""
    target.mkdir(parents=True, exist_ok=True)
    if kind in ("cls", "json"):
        members = samples(root, kind, split, classes)
        half = len(members) // 4 * 2
        for number, part in enumerate((members[:half], members[half:])):
            write_tar(target / f"set-{split}-{number:04d}.tar", part)
    elif kind == "folders":
        members = [(f"{path.parent.name}/{path.name}", path.read_bytes()) for _, path in images_of(root, split)]
        for number, part in enumerate((members[:5], members[5:])):
            write_tar(target / f"set-{split}-{number}.tar", part)
    elif kind == "zip":
        with zipfile.ZipFile(target / "set.zip", "a", zipfile.ZIP_DEFLATED) as archive:
            for _, path in images_of(root, split):
                archive.write(path, f"set/{split}/{path.parent.name}/{path.name}")
    else:
        write_parquet(target / f"{split}-00000-of-00001.parquet", root, split)
    return target


def write_parquet(path: Path, root: Path, split: str = "train") -> None:
    """Write class folders as Hugging Face's datasets do, with the names of the classes."""
    import pyarrow
    from pyarrow import parquet

    classes = sorted(folder.name for folder in (root / split).iterdir())
    rows = images_of(root, split)
    image = [{"bytes": file.read_bytes(), "path": file.name} for _, file in rows]
    table = pyarrow.table({"image": image, "label": [number for number, _ in rows]})
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    parquet.write_table(table.replace_schema_metadata({"huggingface": info}), path, row_group_size=3)
