"""The six lines of docs/zoo.md with each base that the page lists: a plan, a loss, a step and a prediction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.registry import init_default_scope

from analysis.config_flops import count_config
from analysis.dry_run import dry_run
from analysis.zoo.catalog import tasks_by_package
from analysis.zoo.trial import try_model
from engine.config.load import load_config
from engine.config.world import Launch

PAGE = (Path(__file__).resolve().parents[3] / "docs/zoo.md").read_text(encoding="utf-8")
SIX_LINES = re.search(r"## Your favourite head.*?```python\n(.*?)```", PAGE, re.DOTALL)
BASES = re.findall(r"^\| [^|]+ \| `(mm\w+::\S+)` \|$", PAGE, re.MULTILINE)
# A head behind a pyramid, and heads that read single maps.
FEW = ("mmdet::atss/atss_r50_fpn_1x_coco.py", "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py")


@pytest.mark.parametrize("base", [base if base in FEW else pytest.param(base, marks=pytest.mark.zoo) for base in BASES])
def test_six_lines_are_an_experiment(base: str, tmp_path: Path) -> None:
    assert SIX_LINES is not None
    text = SIX_LINES[1]
    assert len(text.splitlines()) == 6
    changes = {"mmdet::atss/atss_r50_fpn_1x_coco.py": base, "convnext_tiny": "convnext_atto"}
    changes[', weights="convnext_atto.pth"'] = ""
    package, _, name = base.partition("::")
    if package == "mmseg":
        changes |= {'["detection"]': '["segmentation"]', '"coco"': '"ade20k"'}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "own.py"
    file.write_text(text)
    resolved = load_config(file, launch=Launch())
    (memory,) = [line for line in dry_run(resolved, Launch()) if line.startswith("memory")]
    assert "activations of 2 images" in memory
    assert count_config(file).flops > 1e9
    init_default_scope(package)
    outcome = try_model(resolved.cfg.model, name.partition("/")[0], tasks_by_package()[package])
    assert not outcome.reason, outcome.trace


def test_the_page_lists_heads() -> None:
    assert len(BASES) == 14
    assert {*FEW} <= {*BASES}
