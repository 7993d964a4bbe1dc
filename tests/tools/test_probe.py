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


def test_what_is_no_classifier_is_named(tool: Any, digits: Path) -> None:
    config = "configs/pretraining/fcmae_digits.py"
    ended = tool("probe.py", config, "--cfg-options", f"data_root={digits / 'imagenet'}")
    assert ended.code == 2
    assert "model.type='MaskedAutoencoder'" in ended.err
