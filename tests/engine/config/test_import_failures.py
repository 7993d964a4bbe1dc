"""Modules of ``custom_imports`` that cannot be imported: the line says which, why, and what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbones import UserError
from engine.config.load import load_config
from engine.config.world import Launch

DIGITS = Path(__file__).resolve().parents[3] / "configs/classification/digits.py"


@pytest.mark.parametrize(
    "module, text, line",
    [
        ("absent_module_of_test", None, "custom_imports: Failed to import absent_module_of_test: it is neither in"),
        ("engine.absent_module", None, "custom_imports: Failed to import engine.absent_module: it is neither in"),
        (
            "needs_package",
            "import absent_package.part",
            "package 'absent_package' is missing: pip install absent_package",
        ),
        ("needs_named", "import osgeo", "package 'osgeo' is missing: pip install gdal"),
        ("needs_part", "import torch.absent_part", "ModuleNotFoundError: No module named 'torch.absent_part'"),
        ("needs_name", "from torch import absent_name", "ImportError: cannot import name 'absent_name' from 'torch'"),
    ],
)
def test_why_a_module_is_not_imported(
    module: str, text: str | None, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    if text is not None:
        (tmp_path / f"{module}.py").write_text(text)
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = [{str(DIGITS)!r}]\ncustom_imports = dict(imports=[{module!r}])\n")
    with pytest.raises(UserError) as caught:
        load_config(config, None, Launch())
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("pip install" in str(caught.value)) == ("pip install" in line)
