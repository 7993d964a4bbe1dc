"""Any number, any shape, any text: what holds for all of them, tried by hypothesis on those nobody thinks of."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image
from torch.utils.data import BatchSampler, SequentialSampler

import detection  # noqa: F401
from analysis.flops import count_backbone
from backbones import UserError, build_backbone
from backbones.weights import read_checkpoint
from detection.check import CocoChecker, _decode_runs
from engine.checkpoint.rng import RandomState, seed_of, seeded
from engine.checkpoint.state import restore_position
from engine.checkpoint.store import cpu_copy, write_checkpoint
from engine.config.batch import LR_RULES, plan_batch, scaled_lr
from engine.config.classes import class_names
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.data.check import evenly_spread
from engine.data.paths import leads_outside
from engine.data.sampling import ResumableBatchSampler
from engine.launch.hang_detector import HangDetector, describe_hang, find_causes
from engine.launch.heartbeat import Phase, Position
from engine.training.loops import EpochLoop
from tests.bad_inputs.builders import CONFIG, TASKS, tried

modest = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(modest, max_examples=12)
WHOLE = st.integers(-(2**40), 2**40)
NUMBER = st.floats(allow_nan=True, allow_infinity=True) | WHOLE


@modest
@given(size=WHOLE, processes=st.integers(1, 10_000), per_gpu=st.none() | st.integers(-5, 10_000))
def test_a_plan_holds_or_is_refused_with_one_that_holds(size: int, processes: int, per_gpu: int | None) -> None:
    size = size % 100_000 if size % 3 else size
    plan, line = tried(plan_batch, size, processes, per_gpu)
    if "does not divide" in line:
        near = int(line.partition("batch.size=")[2].split()[0])
        assert plan_batch(near, processes).global_batch == near
    elif line:
        assert size < 1 or (per_gpu is not None and per_gpu < 1)
    else:
        assert plan.processes * plan.per_process * plan.accumulation == size
        assert per_gpu is None or plan.per_process <= per_gpu


@modest
@given(lr=st.floats(1e-12, 1e3), stated=st.integers(1, 10**6), actual=st.integers(1, 10**6))
def test_a_rate_that_is_scaled_there_and_back(lr: float, stated: int, actual: int) -> None:
    for rule in LR_RULES:
        there = scaled_lr(lr, stated, actual, rule)
        assert there > 0
        assert math.isclose(scaled_lr(there, actual, stated, rule), lr, rel_tol=1e-9)


@modest
@given(parts=st.lists(WHOLE, min_size=1, max_size=4))
def test_a_seed_is_one_and_leaves_all_as_it_was(parts: list[int]) -> None:
    seed = seed_of(*parts)
    assert 0 <= seed < 2**63
    before = RandomState.capture()
    with seeded(seed):
        first = float(np.random.rand()), float(torch.rand(()))
    with seeded(seed):
        assert (float(np.random.rand()), float(torch.rand(()))) == first
    assert torch.equal(RandomState.capture().torch, before.torch)
    assert RandomState.capture().python == before.python


@modest
@given(
    options=st.lists(st.text() | st.from_regex(r"[a-z.]{1,9}=[\[\](),'\"0-9a-z.-]{0,12}", fullmatch=True), max_size=3)
)
def test_options_of_any_text(options: list[str]) -> None:
    parsed, line = tried(parse_options, options)
    if not line:
        assert set(parsed) == {option.partition("=")[0] for option in options}


@modest
@given(
    key=st.from_regex(r"[a-z_0-9]{1,12}(\.[a-z_0-9]{1,12}){0,3}", fullmatch=True), value=NUMBER | st.text(max_size=5)
)
def test_a_setting_of_any_name_is_known_or_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIG["classifier"], {f"x{key}": value}, Launch())
    assert f"x{key}".partition(".")[0] in str(caught.value)


@modest
@given(names=st.lists(st.text(max_size=4), max_size=5) | NUMBER | st.none())
def test_classes_of_any_kind(names: Any) -> None:
    found, line = tried(class_names, names)
    if not line:
        assert list(found) == names
        assert len(set(found)) == len(found) > 0


@modest
@given(folder=st.sampled_from(["", "/data", "data/images", "/"]), name=st.text(alphabet="ab./\\ ", max_size=12))
def test_a_name_that_leads_out_is_told_from_one_that_does_not(folder: str, name: str) -> None:
    """Compared with the path that the system would open."""
    root = Path(folder).absolute()
    inside = Path(os.path.normpath(root / name))
    if not name.startswith("/") and ".." not in name:
        assert not leads_outside(folder, name)
    else:
        assert leads_outside(folder, name) == (root not in inside.parents)


@modest
@given(count=st.integers(1, 5000))
def test_a_spread_order_is_an_order(count: int) -> None:
    assert sorted(evenly_spread(count)) == list(range(count))


BOX = st.lists(NUMBER | st.none() | st.text(max_size=2) | st.booleans(), max_size=5) | NUMBER | st.none()


@modest
@given(box=BOX, area=NUMBER | st.none(), width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_a_box_of_any_kind_is_judged(box: Any, area: Any, width: int, height: int) -> None:
    checker = CocoChecker("train", {}, {})
    checker.file = "a.json"
    state = checker._check_box({"id": 1, "bbox": box, "area": area}, {"width": width, "height": height})
    assert state in ("whole", "outside", "dropped", "wrong")
    assert (state == "wrong") == any(item.level == "error" for item in checker.findings)
    assert all(len(str(item).splitlines()) == 1 for item in checker.findings)
    if state == "whole":
        x, y, w, h = box
        assert -2 <= x <= x + w <= width + 2
        assert -2 <= y <= y + h <= height + 2


@modest
@given(rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=9), text=st.text(max_size=9))
def test_the_text_of_a_mask_is_read_as_it_was_written(rows: list[list[bool]], text: str) -> None:
    from pycocotools import mask as coco

    mask = np.asfortranarray(np.array(rows, np.uint8))
    runs = _decode_runs(coco.encode(mask)["counts"].decode())
    assert runs is not None
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(values.reshape(mask.shape, order="F"), mask)
    assert _decode_runs(text) is None or all(isinstance(run, int) for run in _decode_runs(text) or [])


LEAF = st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False) | st.text(max_size=5)
TENSOR = st.builds(
    lambda shape, kind: torch.arange(math.prod(shape)).reshape(shape).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
TREE = st.recursive(
    LEAF | TENSOR,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@modest
@given(tree=st.dictionaries(st.text(max_size=5), TREE, max_size=4))
def test_any_state_survives_copying_and_the_disk(tree: dict[str, Any], tmp_path: Path) -> None:
    copy = cpu_copy(tree)
    assert alike(copy, tree)
    write_checkpoint(copy, tmp_path / "a.pth")
    assert alike(read_checkpoint(str(tmp_path / "a.pth")), tree)


@modest
@given(
    before=st.integers(1, 1000),
    now=st.integers(1, 1000),
    epoch=st.integers(0, 50),
    share=st.floats(0, 0.999),
    validated=st.booleans(),
)
def test_a_run_goes_on_in_its_epoch(before: int, now: int, epoch: int, share: float, validated: bool) -> None:
    inside = int(share * before)
    loop = EpochLoop.__new__(EpochLoop)
    loop._epoch, loop._iter = epoch, epoch * before + inside
    saving = SimpleNamespace(validated=loop._iter if validated else -1, load_state_dict=lambda saved: None)
    logger = SimpleNamespace(warning=lambda line: None)
    runner = SimpleNamespace(checkpoint_hook=saving, train_loop=loop, train_dataloader=range(now), logger=logger)
    restore_position(runner, {"saving": {}, "steps_per_epoch": before})
    assert epoch * now <= loop._iter < (epoch + 1) * now
    assert inside or loop._iter == epoch * now
    if not inside:
        assert saving.validated == (loop._iter if validated else -1)


@modest
@given(samples=st.integers(1, 60), size=st.integers(1, 9), start=st.integers(0, 80), seed=st.integers(0, 2**32))
def test_a_stream_goes_on_from_any_batch(samples: int, size: int, start: int, seed: int) -> None:
    def make() -> ResumableBatchSampler:
        sampler = SequentialSampler(range(samples))
        return ResumableBatchSampler(BatchSampler(sampler, size, drop_last=False), sampler, samples, seed)

    whole = [[(int(draw), draw.seed) for draw in batch] for batch in make()]
    batches = make()
    batches.seek_batch(start)
    assert [[(int(draw), draw.seed) for draw in batch] for batch in batches] == whole[start:]
    assert [[int(draw) for draw in batch] for batch in batches] == [[index for index, _ in batch] for batch in whole]


COUNT = st.integers(0, 99)
POSITION = st.builds(Position, COUNT, COUNT, COUNT, st.sampled_from(Phase), st.floats(0, 1e4), st.text(max_size=9))


@modest
@given(
    looks=st.lists(
        st.tuples(st.floats(0, 1e4), st.dictionaries(st.integers(0, 3), POSITION, min_size=1)), min_size=1, max_size=6
    )
)
def test_the_detection_of_a_hang_needs_no_order(looks: list[tuple[float, dict[int, Position]]]) -> None:
    detector = HangDetector()
    now = 0.0
    for gap, positions in looks:
        now += gap
        late = detector.update(positions, now)
        assert {status.rank for status in late} <= positions.keys()
        assert all(status.age > 0 for status in late)
        if late:
            guilty = find_causes(late)
            assert guilty
            assert len(describe_hang(late).splitlines()) == 1
            assert min(status.progress for status in late) == guilty[0].progress


SIDE = st.integers(1, 400)


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Compose]:
    made = {}
    for task in TASKS:
        cfg = load_config(CONFIG[task], {}, Launch()).cfg
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            made[task] = Compose([TRANSFORMS.build(step) for step in cfg.test_dataloader.dataset.pipeline])
    return made


@modest
@given(height=SIDE, width=SIDE)
@pytest.mark.parametrize("task", TASKS)
def test_any_image_goes_through_the_test_pipeline(
    pipelines: Any, task: str, height: int, width: int, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.ones((height, width), np.uint8)).save(tmp_path / "b.png")
    sample: dict[str, Any] = {"img_path": str(tmp_path / "a.png"), "seg_map_path": str(tmp_path / "b.png"), "img_id": 1}
    sample |= {"instances": [], "seg_fields": [], "reduce_zero_label": True, "label_map": None}
    done, line = tried(pipelines[task], sample)
    scale = 160 / max(height, width)
    if line:
        assert task == "detector"
        assert min(height, width) * scale <= 0.5
        assert f"a.png: has {width} x {height} pixels, of which none is left" in line
        return
    inputs = done["inputs"]
    if task == "classifier":
        assert tuple(inputs.shape) == (3, 48, 48)
    elif task == "segmentor":
        assert tuple(inputs.shape) == (3, height, width)
    else:
        assert max(inputs.shape[1:]) == 160
        assert abs(inputs.shape[1] - max(1, height * scale)) <= 1
        assert abs(inputs.shape[2] - max(1, width * scale)) <= 1


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    small = dict(depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))
    return {
        "dense": build_backbone("convnext_atto", out_indices=(0, 1, 2, 3), **small).eval(),
        "pooled": build_backbone("convnext_atto", **small).eval(),
    }


@few
@given(height=st.integers(1, 150), width=st.integers(1, 150))
def test_any_image_goes_through_the_network(networks: Any, height: int, width: int) -> None:
    image = torch.zeros(1, 3, height, width)
    if min(height, width) < 32:
        for network in networks.values():
            with pytest.raises(UserError, match="32") as caught, torch.no_grad():
                network(image)
            assert len(str(caught.value).splitlines()) == 1
        return
    with torch.no_grad():
        outputs = networks["dense"](image)
        assert tuple(networks["pooled"](image).shape) == (1, 16)
    for output, channels, stride in zip(outputs, (4, 8, 12, 16), networks["dense"].strides, strict=True):
        assert output.shape[:2] == (1, channels)
        assert output.shape[2] in (height // stride, -(-height // stride))
        assert output.shape[3] in (width // stride, -(-width // stride))


@few
@given(height=st.integers(32, 200), width=st.integers(32, 200))
def test_flops_grow_with_the_image(height: int, width: int) -> None:
    less, more = (count_backbone("convnext_atto", (height + more, width + more)) for more in (0, 32))
    assert 0 < less.flops < more.flops
    assert less.params == more.params
    assert sum(less.by_module.values()) == less.flops
