"""tools/scale.py prints a line that a config can take."""

from __future__ import annotations

from typing import Any

from backbones import build_backbone


def test_the_printed_line_builds_the_network_of_the_budget(tool: Any) -> None:
    ended = tool("scale.py", "--gflops", "1.0", "--blocks", "2", "--kernel-size", "5")
    assert ended.code == 0, ended.err
    line, cost = ended.out.splitlines()
    settings = eval(line.removeprefix("backbone="), {"dict": dict})
    assert settings["kernel_size"] == 5
    assert settings["depths"] == (2, 2, 6, 2)
    network = build_backbone(settings.pop("type"), **settings)
    head = 1000 * (network.num_features + 1)
    assert cost.startswith(f"{(sum(p.numel() for p in network.parameters()) + head) / 1e6:.2f} M parameters")


def test_an_impossible_budget_is_one_line(tool: Any) -> None:
    ended = tool("scale.py", "--gflops", "0.00001")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: no such network")
