"""ObjectNet's class mappings, made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def objectnet_mappings(folder: Path, overlap: int) -> Path:
    """Class mappings of ObjectNet with that many overlapping classes, ImageNet's ids being shuffled."""
    ids = np.random.default_rng(0).permutation(1000).tolist()
    lines = [""] * 1000
    for index, number in enumerate(ids):
        lines[number] = f"name {index}"
    objects = {f"Object {i}": f"name {i}" for i in range(overlap)}
    objects["Object 0"] = "name 0; name 500"
    content = {
        "folder_to_objectnet_label": {f"object_{i}": f"Object {i}" for i in range(313)},
        "objectnet_to_imagenet_1k": objects,
        "pytorch_to_imagenet_2012_id": {str(index): number for index, number in enumerate(ids)},
    }
    (folder / "mappings").mkdir(parents=True)
    for name, value in content.items():
        (folder / f"mappings/{name}.json").write_text(json.dumps(value))
    (folder / "mappings/imagenet_to_label_2012_v2").write_text("\n".join(lines))
    return folder
