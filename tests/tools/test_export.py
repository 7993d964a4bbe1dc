"""tools/export.py as people run it: what it prints and writes, and the one line where it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from analysis.export.formats import EXPORT_FORMATS
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from tests.programs import Ended

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = {
    "classifier": CONFIGS / "classification/digits.py",
    "segmentor": CONFIGS / "segmentation/upernet_digits.py",
}
SMALL = ("model.backbone.depths=[1,1,1,1]", "model.backbone.dims=[8,16,24,32]")
ROW = re.compile(
    r"^(random|photographs) +(\d+) x (\d+) x (\d+) +(\w+) +(\d\.\d\de[+-]\d\d) +(\d\.\d\de[+-]\d\d)$", re.M
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each config with a small backbone, and one of a registered classifier."""
    folder = tmp_path_factory.mktemp("checkpoints")
    files = {task: folder / f"{task}.pth" for task in (*CONFIG, "atto")}
    for task, path in files.items():
        options = [] if task == "atto" else [*SMALL]
        cfg = load_config(CONFIG.get(task, CONFIG["classifier"]), parse_options(options), Launch()).cfg
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            state = MODELS.build(cfg.model).state_dict()
        averages = {"steps": torch.tensor(1), **{f"module.{name}": value for name, value in state.items()}}
        torch.save({"state_dict": state, "ema_state_dict": averages}, path)
    return files


def rows(out: str) -> list[tuple[str, tuple[int, int, int], str, float]]:
    """The table: images, shape, output and relative difference."""
    return [
        (kind, (int(n), int(height), int(width)), output, float(relative))
        for kind, n, height, width, output, _, relative in ROW.findall(out)
    ]


@pytest.mark.parametrize(
    "task, name, output, sizes",
    [
        ("classifier", "onnx", "logits", ((48, 48), (85, 112))),
        ("segmentor", "torch_export", "scores", ((128, 128), (165, 192))),
    ],
)
def test_a_config(
    tool: Any, checkpoints: dict[str, Path], tmp_path: Path, task: str, name: str, output: str, sizes: Any
) -> None:
    out = tmp_path / f"x{EXPORT_FORMATS[name].suffix}"
    arguments = ("export.py", CONFIG[task], checkpoints[task], "--format", name, "--out", out, "--cfg-options", *SMALL)
    ended = tool(*arguments)
    assert (ended.code, ended.err) == (0, ""), ended.err
    first, second = sizes
    batches = [(kind, (n, *size)) for kind, n, size in (("random", 1, first), ("random", 3, second))]
    table = rows(ended.out)
    assert [row[:2] for row in table] == [*batches, *(("photographs", (2, *size)) for size in sizes)]
    assert all(row[2].startswith(output) and row[3] < 1e-5 for row in table)
    assert ended.out.splitlines()[-1] == str(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    least = 64 if name == "torch_export" else 32
    assert f"any N, H {least} or more, W {least} or more" in ended.out


def test_a_name_with_averages_maps_and_images_of_ones_own(
    tool: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    out, images = tmp_path / "x.safetensors", tmp_path / "images"
    images.mkdir()
    Image.linear_gradient("L").save(images / "one.png")
    options = ("--out-indices", 1, 3, "--shape", 64, 80, "--ema", "--images", images, "--out", out)
    ended = tool("export.py", "convnext_atto", checkpoints["atto"], "--format", "safetensors", *options)
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert "pyramid of convnext_atto, averaged weights of atto.pth: gives stage1, stage3" in ended.out
    assert [row[:2] for row in rows(ended.out)] == [
        ("random", (1, 64, 80)),
        ("random", (3, 64, 80)),
        ("photographs", (1, 64, 80)),
    ]
    assert out.is_file()


def test_timm_in_a_process_of_its_own(program: Any, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    ended = program("export.py", CONFIG["classifier"], checkpoints["atto"], "--format", "timm", "--out", out)
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert out.is_file()
    assert len(rows(ended.out)) == 4


def test_what_cannot_be(tool: Any, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    config, sound, out = CONFIG["classifier"], checkpoints["atto"], tmp_path / "x.safetensors"
    (tmp_path / "file").touch()
    below = tmp_path / "file/x.safetensors"
    wrong = [
        (["convnext_tinny", sound, "--out", out], "unknown backbone 'convnext_tinny'; nearest: convnext_tiny"),
        (["convnext_tiny", sound, "--out", out], "atto.pth'"),
        ([config, checkpoints["segmentor"], "--out", out], "is of another model"),
        ([config, tmp_path / "absent.pth", "--out", out], "absent.pth' does not exist"),
        ([CONFIGS / "classification/digit.py", sound, "--out", out], "did you mean configs/classification/digits.py?"),
        ([config, sound, "--out", tmp_path / "x.pth"], "a file of --format safetensors ends with .safetensors"),
        ([config, sound, "--out", below], f"--out {str(below)!r} cannot be written"),
        ([config, sound, "--out", out, "--out-indices", 1], "--out-indices belongs to the name of a backbone"),
        (["convnext_atto", sound, "--out", out, "--cfg-options", "a=1"], "--cfg-options belongs to a config"),
        (["convnext_atto", sound, "--out", out, "--shape", 8, 64], "--shape 8 64: at least 32 x 32 are needed"),
        ([config, sound, "--out", out, "--images", tmp_path / "none"], "none' is neither an image nor a folder"),
    ]
    for arguments, needle in wrong:
        ended = tool("export.py", *arguments, "--format", "safetensors")
        assert ended.code == 2, ended.err
        assert len(ended.err.splitlines()) == 1, ended.err
        assert ended.err.startswith("error: ")
        assert needle in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_format_that_there_is_not(tool: Any, checkpoints: dict[str, Path]) -> None:
    ended = tool("export.py", CONFIG["classifier"], checkpoints["atto"], "--format", "tflite")
    assert ended.code == 2
    assert "invalid choice: 'tflite'" in ended.err


def test_every_format_can_be_asked_for(tool: Callable[..., Ended]) -> None:
    said = tool("export.py", "--help").out
    assert f"{{{','.join(EXPORT_FORMATS)}}}" in said
