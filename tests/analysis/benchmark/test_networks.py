"""Throughput of networks and models: peers with our weights, results, a mismatch that ends it. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.benchmark import models, networks, peers
from analysis.benchmark.models import measure_model, paper_shape
from analysis.benchmark.networks import SideTiming, ThroughputResult, measure_network, plot_throughput
from analysis.benchmark.peers import Contender, contenders, randomize_weights
from analysis.benchmark.request import BenchmarkRequest
from analysis.benchmark.timing import MismatchError, relative_error
from backbones import UserError, build_backbone
from detection.task import DETECTOR_SHAPE
from segmentation.task import SEGMENTOR_SHAPE

TINY = BenchmarkRequest("convnext_atto", batch=2, shape=(32, 40), rounds=3)


def test_ratios_are_taken_round_by_round() -> None:
    # The machine is three times slower in the second round; ours is twice as fast throughout.
    sides = (SideTiming("ours", "h", (1.0, 3.0, 1.0)), SideTiming("timm", "h", (2.0, 6.0, 2.0)))
    row = ThroughputResult(dataclasses.replace(TINY, batch=4), {}, sides).as_dict()["sides"][1]
    assert row["ours_is_times_faster"] == 2.0
    assert row["ours_is_times_faster_quartiles"] == [2.0, 2.0]
    assert row["images_per_second"] == 2.0
    assert row["images_per_second_quartiles"] == [1.0, 2.0]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_measurement(train: bool, dtype: str) -> None:
    result = measure_network(dataclasses.replace(TINY, train=train, dtype=dtype))
    assert [side.name for side in result.sides] == ["ours", "timm", "timm, conv_mlp"]
    assert [side.how for side in result.sides[1:]] == ["contiguous, eager", "channels_last, eager"]
    assert all(len(side.seconds) == 3 and min(side.seconds) > 0 for side in result.sides)
    errors = [side.error for side in result.sides if side.error is not None]
    assert len(errors) == 3
    assert max(errors) < 1e-5 if dtype == "fp32" else 1e-4 < max(errors) < 5e-2
    text = result.as_text()
    for said in (result.environment["date"], torch.__version__, "timm 1.", "threads", dtype, "batch 2"):
        assert said in text
    assert "training" in text if train else "inference" in text
    assert json.loads(json.dumps(result.as_dict()))["request"]["shape"] == [32, 40]


def test_all_sides_train_in_training_and_draw_nothing() -> None:
    modes: list[tuple[bool, bool]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = build_backbone("convnext_atto")
            randomize_weights(self.inside)

        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, torch.is_inference_mode_enabled()))
            return self.inside(x)

    side = Contender("ours", lambda: Watched().eval(), "channels_last")
    for train in (False, True):
        request = dataclasses.replace(TINY, train=train)
        images = torch.randn(2, 3, 32, 32)
        step, _ = networks._prepare(request, side, images, networks._expected(request, side, images))
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

    monkeypatch.setattr(networks, "contenders", wrong(one_weight))
    monkeypatch.setattr(networks, "take_turns", lambda *args: pytest.fail("time was taken"))
    with pytest.raises(MismatchError, match="timm computes something else than convnext_atto here: outputs differ by"):
        measure_network(TINY)


def test_a_gradient_that_is_off_is_a_mismatch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_the_gradient(network: nn.Module) -> None:
        next(one for one in network.parameters() if one.ndim == 4).register_hook(lambda gradient: gradient / 2)

    monkeypatch.setattr(networks, "contenders", wrong(half_the_gradient))
    with pytest.raises(MismatchError, match="gradients differ"):
        measure_network(dataclasses.replace(TINY, train=True))


def test_a_peer_that_does_not_run_is_named_and_ours_must(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: nn.Module) -> None:
        network.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no kernel\nmore"))  # type: ignore[method-assign]

    monkeypatch.setattr(networks, "contenders", wrong(broken))
    result = measure_network(TINY)
    assert result.sides[1].failure == "RuntimeError: no kernel"
    assert "does not run: RuntimeError: no kernel" in result.as_text()
    assert "images_per_second" not in result.as_dict()["sides"][1]
    monkeypatch.setattr(
        networks, "contenders", lambda *args: [dataclasses.replace(wrong(broken)(*args)[1], name="ours")]
    )
    with pytest.raises(RuntimeError, match="no kernel"):
        measure_network(TINY)


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
    assert relative_error(theirs, ours) < 1e-5
    forced = contenders("convnext_tiny", ("torchvision",), "contiguous", True)
    assert [(one.layout, one.compiled) for one in forced] == [("contiguous", True), ("contiguous", False)]


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_every_layer_shows_in_the_output(name: str) -> None:
    network = build_backbone(name).eval()
    randomize_weights(network)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        for parameter in network.parameters():
            kept = parameter.clone()
            parameter.mul_(1.5)
            assert relative_error(network(images), before) > 1e-4
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
        measure_network(dataclasses.replace(TINY, **changes))


def test_the_chart_has_a_line_for_each_side() -> None:
    results = [
        ThroughputResult(
            dataclasses.replace(TINY, batch=batch, shape=(size, size)),
            {"device": "D", "date": "today"},
            (SideTiming("ours", "h", (1.0,)), SideTiming("timm", "h", (2.0,)), SideTiming("lost", "h", failure="why")),
        )
        for batch in (4, 1)
        for size in (32, 64)
    ]
    by_batch, by_size = plot_throughput(results).axes
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
    result = measure_model(BenchmarkRequest(config, train, 2, (64, 64), rounds=1))
    assert [side.name for side in result.sides] == ["ours", models.PLAIN_SIDE]
    assert all(side.seconds for side in result.sides)
    notes = ("peak training memory at 2 images per GPU: not measured on CPU",) if train else ()
    assert result.notes == notes


def test_whole_models_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "relative_error", lambda found, expected: 1.0)
    with pytest.raises(MismatchError, match="our blocks and plain ones differ"):
        measure_model(BenchmarkRequest("configs/segmentation/upernet_digits.py", shape=(64, 64), rounds=1))


def test_sizes_of_the_papers() -> None:
    from engine.config.load import load_config
    from engine.config.world import Launch

    expected = {
        "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py": (DETECTOR_SHAPE, (800, 1333)),
        "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py": (SEGMENTOR_SHAPE, (512, 512)),
        "configs/segmentation/upernet_convnext_base_in22k_ade20k_160k.py": ((640, 2560), (640, 640)),
        "configs/detection/mask_rcnn_digits.py": ((160, 160), (160, 160)),
        "configs/classification/convnext_tiny_in1k_300e.py": ((224, 224), (224, 224)),
    }
    for config, shapes in expected.items():
        cfg = load_config(config, None, launch=Launch()).cfg
        assert tuple(paper_shape(cfg, BenchmarkRequest(config, train)) for train in (False, True)) == shapes


def test_peers_are_those_of_the_command_line() -> None:
    assert networks.chosen_peers("all") == peers.NETWORK_PEERS
    assert (networks.chosen_peers("none"), networks.chosen_peers("timm")) == ((), ("timm",))
