"""The table of parameter groups as a program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTOR = CONFIGS / "detection/mask_rcnn_convnext_tiny_coco_3x.py"
PARAMS = 48_095_376  # of Mask R-CNN with ConvNeXt-T and 80 classes


def test_the_groups_of_a_detector(tool: Any) -> None:
    ended = tool("print_groups.py", DETECTOR)
    assert (ended.code, ended.err) == (0, "")
    heads, *rows, total = ended.out.splitlines()
    assert heads.split() == ["layer", "rate", "rate/peak", "weight", "decay", "drop", "path", "tensors", "parameters"]
    assert total.split()[0] == "total"
    assert total.split()[-1] == f"{PARAMS:,}"
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == PARAMS
    assert [int(row.split()[0]) for row in rows] == [layer for layer in range(7, -1, -1) for _ in "ab"]
    assert {row.split()[3] for row in rows} == {"0.05", "0"}
    assert len({len(line) for line in [heads, *rows, total]}) == 1


def test_as_data_and_with_options(tool: Any) -> None:
    options = ("optim_wrapper.paramwise_cfg.decay_rate=0.5", "optim_wrapper.paramwise_cfg.decay_type=block")
    ended = tool("print_groups.py", DETECTOR, "--json", "--cfg-options", *options)
    assert ended.code == 0
    found = json.loads(ended.out)
    groups = found["groups"]
    assert found["params"] == PARAMS == sum(group["params"] for group in groups)
    assert [group["layer_id"] for group in groups[::2]] == list(range(19, 0, -1))
    assert groups[-1]["rate"] == pytest.approx(1e-4 * 0.5**18)
    assert groups[2]["drop_path"] == [0.4, 0.4]


def test_options_that_do_nothing(tool: Any) -> None:
    options = ("optim_wrapper.paramwise_cfg.decay_rate=1.0", "optim_wrapper.paramwise_cfg.decay_type=layer")
    ended = tool("print_groups.py", DETECTOR, "--cfg-options", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: paramwise_cfg.decay_type='layer' does nothing at decay_rate=1")
    assert len(ended.err.splitlines()) == 1
