"""tools/probe.py: features of a trained file, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = "configs/classification/digits.py"


def test_a_probe_prints_and_writes_both_accuracies(tool: Any, digits: Path, tmp_path: Path) -> None:
    written = tmp_path / "probe.json"
    options = [f"data_root={digits / 'imagenet'}", "model.backbone.depths=(1,1,1,1)", "model.backbone.dims=(8,8,8,16)"]
    ended = tool("probe.py", CONFIG, "--neighbours", "1", "10000", "--json", str(written), "--cfg-options", *options)
    assert ended.code == 0, ended.err
    assert "k-NN top-1:" in ended.out
    assert "linear top-1:" in ended.out
    found = json.loads(written.read_text())
    assert found["features"] == 16
    assert set(found["knn"]) == {"1", "10000"}
    assert 0 <= found["linear"] <= 100


def test_too_few_images_and_a_file_that_cannot_be_written_are_named(tool: Any, digits: Path, tmp_path: Path) -> None:
    options = ["--cfg-options", f"data_root={digits / 'imagenet'}", "model.backbone.depths=(1,1,1,1)"]
    options += ["model.backbone.dims=(8,8,8,16)"]
    (tmp_path / "file").write_text("no folder")
    ended = tool("probe.py", CONFIG, "--json", tmp_path / "file/probe.json", *options)
    assert ended.code == 2
    assert "probe.json' cannot be written (" in ended.err.splitlines()[-1]
    classes = sorted(one.name for one in (digits / "imagenet/train").iterdir())[:2]
    for name in classes:
        for split in ("train", "val"):
            (tmp_path / "few" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "few" / split / name).symlink_to(digits / "imagenet" / split / name)
    few = [f"data_root={tmp_path / 'few'}", f"classes={tuple(classes)}".replace(" ", "")]
    ended = tool("probe.py", CONFIG, *options, *few, "train_dataloader.dataset.every=1000")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == (
        "error: 2 training images are too few to judge features by: at least 5 are needed"
    )


def test_what_is_no_classifier_is_named(tool: Any, digits: Path) -> None:
    config = "configs/pretraining/fcmae_digits.py"
    ended = tool("probe.py", config, "--cfg-options", f"data_root={digits / 'imagenet'}")
    assert ended.code == 2
    assert "model.type='MaskedAutoencoder'" in ended.err
