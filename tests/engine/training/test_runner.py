"""The one runner of all tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from yapf.yapflib import yapf_api

from backbones.weights import read_checkpoint
from engine.config.load import load_config
from engine.config.world import Launch
from engine.run import train

CONFIG = Path(__file__).resolve().parents[3] / "configs/classification/digits.py"
SMALL = {
    **{"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 8, 8, 16], "batch.size": 10},
    **{"train_pipeline.0.size": 32, "test_pipeline.0.size": 32, "train_cfg.max_epochs": 2, "param_scheduler": []},
    **{f"{split}_dataloader.num_workers": 0 for split in ("train", "val")},
}


def test_the_config_is_laid_out_once(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log, work directory, curves and each checkpoint hold the same text."""
    lay_out, calls = yapf_api.FormatCode, list[str]()

    def counted(text: str, **settings: Any) -> Any:
        calls.append(text)
        return lay_out(text, **settings)

    monkeypatch.setattr(yapf_api, "FormatCode", counted)
    cfg = load_config(CONFIG, {**SMALL, "data_root": str(digits / "imagenet"), "work_dir": str(tmp_path)})
    train(cfg, Launch(), resume=False, data_check=False)
    assert len(calls) == 1
    written = (tmp_path / CONFIG.name).read_text()
    assert "max_epochs=2" in written
    assert read_checkpoint(str(tmp_path / "epoch_2.pth"))["meta"]["cfg"] == written
