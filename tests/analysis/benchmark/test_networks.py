"""The measuring tool: turns, ratios, peers with our weights, a mismatch that ends it. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.benchmark import models as model_throughput
from analysis.benchmark import networks as throughput
from analysis.benchmark import paper_table as table_throughput
from analysis.benchmark import peers
from analysis.benchmark.models import measure_config, paper_shape
from analysis.benchmark.networks import (
    MismatchError,
    Request,
    Result,
    Side,
    as_text,
    chart,
    measure,
    ratios,
    take_turns,
)
from analysis.benchmark.paper_table import measure_table, pairs
from analysis.benchmark.peers import Contender, contenders, telling_weights
from analysis.flops import DETECTOR_SHAPE, SEGMENTOR_SHAPE
from analysis.paper.printed import TABLES
from backbones import UserError, build_backbone

TINY = Request("convnext_atto", batch=2, shape=(32, 40), rounds=3)


class Clock:
    """Tells the time that pretended work takes; nothing else passes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def step() -> None:
            self.log.append(name)
            self.now += seconds

        return step


def test_sides_take_turns_and_settle_around_each() -> None:
    clock = Clock()
    taken = take_turns({"a": clock.work("a", 0.2), "b": clock.work("b", 0.5)}, 3, lambda: clock.log.append("|"), clock)
    assert clock.log == [*"|a||b|", *"|a||b|" * 3]
    assert taken["a"] == pytest.approx((0.2,) * 3)
    assert taken["b"] == pytest.approx((0.5,) * 3)


def test_what_the_device_has_still_to_do_counts() -> None:
    clock = Clock()

    def settle() -> None:
        clock.now += 0.25

    assert take_turns({"a": clock.work("a", 0.5)}, 2, settle, clock)["a"] == (0.75, 0.75)


def test_short_steps_are_repeated_within_a_round() -> None:
    clock = Clock()
    taken = take_turns({"quick": clock.work("quick", 0.01), "slow": clock.work("slow", 1.0)}, 1, clock=clock)
    assert clock.log.count("quick") in (10, 11)
    assert clock.log.count("slow") == 2
    assert taken["quick"] == pytest.approx((0.01,))


def test_ratios_are_taken_round_by_round() -> None:
    # The machine is three times slower in the second round; ours is twice as fast throughout.
    assert ratios((1.0, 3.0, 1.0), (2.0, 6.0, 2.0)) == [2.0, 2.0, 2.0]
    sides = (Side("ours", "h", (1.0, 3.0, 1.0)), Side("timm", "h", (2.0, 6.0, 2.0)))
    row = Result(dataclasses.replace(TINY, batch=4), {}, sides).as_dict()["sides"][1]
    assert row["ours_is_times_faster"] == 2.0
    assert row["ours_is_times_faster_quartiles"] == [2.0, 2.0]
    assert row["images_per_second"] == 2.0
    assert row["images_per_second_quartiles"] == [1.0, 2.0]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_measurement(train: bool, dtype: str) -> None:
    result = measure(dataclasses.replace(TINY, train=train, dtype=dtype))
    assert [side.name for side in result.sides] == ["ours", "timm", "timm, conv_mlp"]
    assert [side.how for side in result.sides[1:]] == ["contiguous, eager", "channels_last, eager"]
    assert all(len(side.seconds) == 3 and min(side.seconds) > 0 for side in result.sides)
    errors = [side.error for side in result.sides if side.error is not None]
    assert len(errors) == 3
    assert max(errors) < 1e-5 if dtype == "fp32" else 1e-4 < max(errors) < 5e-2
    text = as_text(result)
    for said in (result.place["date"], torch.__version__, "timm 1.", "threads", dtype, "batch 2"):
        assert said in text
    assert "training" in text if train else "inference" in text
    assert json.loads(json.dumps(result.as_dict()))["request"]["shape"] == [32, 40]


def test_all_sides_train_in_training_and_draw_nothing() -> None:
    modes: list[tuple[bool, bool]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = build_backbone("convnext_atto")
            telling_weights(self.inside)

        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, torch.is_inference_mode_enabled()))
            return self.inside(x)

    side = Contender("ours", lambda: Watched().eval(), "channels_last")
    for train in (False, True):
        request = dataclasses.replace(TINY, train=train)
        images = torch.randn(2, 3, 32, 32)
        step, _ = throughput._prepare(request, side, images, throughput._truth(request, side, images))
        modes.clear()
        step()
        assert modes == [(train, not train)]


def wrong(change: Callable[[nn.Module], None]) -> Callable[..., list[Contender]]:
    def with_one_wrong(*args: Any) -> list[Contender]:
        first, second, *_ = contenders(*args)

        def build() -> nn.Module:
            network = second.build()
            with torch.no_grad():
                change(network)
            return network

        return [first, dataclasses.replace(second, build=build)]

    return with_one_wrong


def test_a_mismatch_ends_it_before_any_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_weight(network: nn.Module) -> None:
        network.get_parameter("stages.2.blocks.3.mlp.fc1.weight")[5] *= 1.1

    monkeypatch.setattr(throughput, "contenders", wrong(one_weight))
    monkeypatch.setattr(throughput, "take_turns", lambda *args: pytest.fail("time was taken"))
    with pytest.raises(MismatchError, match="timm computes something else than convnext_atto here: outputs differ by"):
        measure(TINY)


def test_a_gradient_that_is_off_is_a_mismatch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_the_gradient(network: nn.Module) -> None:
        next(one for one in network.parameters() if one.ndim == 4).register_hook(lambda gradient: gradient / 2)

    monkeypatch.setattr(throughput, "contenders", wrong(half_the_gradient))
    with pytest.raises(MismatchError, match="gradients differ"):
        measure(dataclasses.replace(TINY, train=True))


def test_a_peer_that_does_not_run_is_named_and_ours_must(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: nn.Module) -> None:
        network.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no kernel\nmore"))  # type: ignore[method-assign]

    monkeypatch.setattr(throughput, "contenders", wrong(broken))
    result = measure(TINY)
    assert result.sides[1].failure == "RuntimeError: no kernel"
    assert "does not run: RuntimeError: no kernel" in as_text(result)
    assert "images_per_second" not in result.as_dict()["sides"][1]
    monkeypatch.setattr(
        throughput, "contenders", lambda *args: [dataclasses.replace(wrong(broken)(*args)[1], name="ours")]
    )
    with pytest.raises(RuntimeError, match="no kernel"):
        measure(TINY)


def test_peers_at_their_best_and_as_they_come() -> None:
    found = contenders("convnext_tiny", ("timm", "timm-compiled", "torchvision"), None, False)
    assert [(one.name, one.layout, one.compiled) for one in found] == [
        ("ours", "channels_last", False),
        ("timm", "contiguous", False),
        ("timm, conv_mlp", "channels_last", False),
        ("timm-compiled", "contiguous", True),
        ("timm-compiled, conv_mlp", "channels_last", True),
        ("torchvision", "contiguous", False),
        ("torchvision, channels_last", "channels_last", False),
    ]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = found[0].build()(images), found[5].build()(images).flatten(1)
    assert throughput.relative_error(theirs, ours) < 1e-5
    forced = contenders("convnext_tiny", ("torchvision",), "contiguous", True)
    assert [(one.layout, one.compiled) for one in forced] == [("contiguous", True), ("contiguous", False)]


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_every_layer_shows_in_the_output(name: str) -> None:
    network = build_backbone(name).eval()
    telling_weights(network)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        for parameter in network.parameters():
            kept = parameter.clone()
            parameter.mul_(1.5)
            assert throughput.relative_error(network(images), before) > 1e-4
            parameter.copy_(kept)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "swin_tiny"}, "--peer: swin_tiny has no peer with the same weights"),
        ({"name": "convnext_isotropic_small"}, "--peer: convnext_isotropic_small has no peer"),
        (
            {"name": "convnext_atto", "peers": ("torchvision",)},
            "--peer torchvision: torchvision has no 'convnext_atto'",
        ),
        ({"name": "convnext_nowhere"}, "unknown backbone 'convnext_nowhere'"),
        ({"batch": 0}, "--batch 0: a positive number is needed"),
        ({"rounds": 0}, "--rounds 0: a positive number is needed"),
        ({"shape": (16, 16)}, "--size 16: images of at least 32 pixels are needed"),
        ({"dtype": "fp16"}, "--dtype fp16: CPUs compute in fp32 or bf16"),
    ],
)
def test_requests_that_cannot_be_met(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        measure(dataclasses.replace(TINY, **changes))


def test_the_chart_has_a_line_for_each_side() -> None:
    results = [
        Result(
            dataclasses.replace(TINY, batch=batch, shape=(size, size)),
            {"device": "D", "date": "today"},
            (Side("ours", "h", (1.0,)), Side("timm", "h", (2.0,)), Side("lost", "h", failure="why")),
        )
        for batch in (4, 1)
        for size in (32, 64)
    ]
    by_batch, by_size = chart(results).axes
    assert [line.get_label() for line in by_batch.lines] == [
        "ours, 32 pixels",
        "timm, 32 pixels",
        "ours, 64 pixels",
        "timm, 64 pixels",
    ]
    assert by_batch.lines[1].get_xydata().tolist() == [[1, 0.5], [4, 2.0]]
    assert by_size.lines[0].get_xydata().tolist() == [[32, 4.0], [64, 4.0]]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        "configs/segmentation/upernet_digits.py",
        "configs/detection/mask_rcnn_digits.py",
        "configs/classification/digits.py",
    ],
)
def test_whole_models(config: str, train: bool) -> None:
    result = measure_config(Request(config, train, 2, (64, 64), rounds=1))
    assert [side.name for side in result.sides] == ["ours", model_throughput.OTHER]
    assert all(side.seconds for side in result.sides)
    notes = ("peak training memory at 2 images per GPU: not measured on CPU",) if train else ()
    assert result.notes == notes


def test_whole_models_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_throughput, "relative_error", lambda found, expected: 1.0)
    with pytest.raises(MismatchError, match="our blocks and plain ones differ"):
        measure_config(Request("configs/segmentation/upernet_digits.py", shape=(64, 64), rounds=1))


def test_sizes_of_the_papers() -> None:
    from engine.config.load import load_config
    from engine.config.world import Launch

    expected = {
        "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py": (DETECTOR_SHAPE, (800, 1333)),
        "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py": (SEGMENTOR_SHAPE, (512, 512)),
        "configs/classification/convnext_tiny_in1k_300e.py": ((224, 224), (224, 224)),
    }
    for config, shapes in expected.items():
        cfg = load_config(config, None, launch=Launch()).cfg
        assert tuple(paper_shape(cfg, Request(config, train)) for train in (False, True)) == shapes


def test_table_2_12_pairs_each_convnext_with_its_swin(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [tuple(row.label for row in rows) for rows in pairs()]
    assert found[0] == ("Swin-T", "ConvNeXt-T")
    assert found[-1] == ("ConvNeXt-XL",)
    assert sum(map(len, found)) == len(TABLES["2.12"].rows)
    assert all(len({row.shape for row in rows}) == 1 for rows in pairs())
    clock = Clock()
    cost = {"Swin-T": 3.0, "ConvNeXt-T": 2.0, "ConvNeXt-XL": 8.0}
    monkeypatch.setattr(
        table_throughput, "pairs", lambda: iter([(*TABLES["2.12"].rows[:2],), TABLES["2.12"].rows[-1:]])
    )
    monkeypatch.setattr(table_throughput, "_step", lambda row, device, batch: clock.work(row.label, cost[row.label]))
    swin, tiny, largest = measure_table("cpu", 6, rounds=2, clock=clock)
    assert clock.log[2:6] == ["Swin-T", "ConvNeXt-T"] * 2
    assert (swin.rate, swin.over_swin, tiny.rate, tiny.over_swin) == (2.0, None, 3.0, 1.5)
    assert (largest.over_swin, largest.side, largest.paper) == (None, 384, "147.4")
    assert "1943.5" in table_throughput.line(tiny)
    assert "paper, on an A100" in table_throughput.header("cpu", 6)[-1]


def test_peers_are_those_of_the_command_line() -> None:
    assert throughput.chosen_peers("all") == peers.PEERS
    assert (throughput.chosen_peers("none"), throughput.chosen_peers("timm")) == ((), ("timm",))
