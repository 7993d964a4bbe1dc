"""What is refused before anything is tested."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from analysis.errors import ErrorOptions, analyze_errors
from backbones.errors import ConfigError
from engine.config.load import Resolved
from engine.config.world import Launch


def test_a_task_without_an_analysis_is_refused(tmp_path: Path) -> None:
    cfg = Config({"model": {"type": "BaseModel"}, "default_scope": "mmengine", "work_dir": str(tmp_path / "work")})
    with pytest.raises(
        ConfigError, match=r"^custom task has no error analysis: its TaskSpec states none \(error_analysis\)$"
    ):
        analyze_errors(Resolved(cfg, None, ()), Launch(), "a.pth", ErrorOptions())
    assert not (tmp_path / "work").exists()
