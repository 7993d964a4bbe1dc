"""The plan of a training: the papers' figures come out of the configs, and contradictions are named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.dry_run import dry_run
from analysis.schedules import review_schedules
from backbones import UserError
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import Schedule, TrainingPlan, training_plan

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CLASSIFICATION = CONFIGS / "classification/convnext_tiny_in1k_300e.py"
DIGITS = CONFIGS / "classification/digits.py"
MASK = CONFIGS / "detection/mask_rcnn_convnext_tiny_coco_3x.py"
CASCADE = CONFIGS / "detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py"
UPERNET = CONFIGS / "segmentation/upernet_convnext_tiny_ade20k_160k.py"


def plan(path: Path, launch: Launch | None = None, **options: Any) -> TrainingPlan:
    launch = launch or Launch()
    return training_plan(load_config(path, options, launch), launch)


def line(found: TrainingPlan, name: str) -> str:
    (one,) = (text.removeprefix(f"{name}: ") for text in found.lines() if text.startswith(f"{name}: "))
    return one


def test_a_classifier_of_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="a softmax over one class is always 1"):
        plan(DIGITS, classes=["cat"])


def test_labels_that_are_smoothed_away_are_refused() -> None:
    with pytest.raises(UserError, match=r"label_smoothing=1\.0: the targets would be the same"):
        plan(DIGITS, **{"model.data_preprocessor.label_smoothing": 1.0})


def test_rates_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    keys = "{'head': dict(lr_mult=%s), 'backbone': dict(lr_mult=0.0)}"
    own = f"optim_wrapper = dict(paramwise_cfg=dict(custom_keys={keys}))"
    file.write_text(f"_base_ = [{str(DIGITS)!r}]\n{own % 0.0}\n")
    with pytest.raises(UserError, match="the rate of every group is 0"):
        plan(file)
    file.write_text(f"_base_ = [{str(DIGITS)!r}]\n{own % 1.0}\n")
    assert plan(file).rows


def test_a_study_on_a_part_of_the_data_counts_the_part() -> None:
    found = plan(CONFIGS / "classification/convnext_tiny_in1k_subset_ablation.py")
    assert "(128,116 images if the data is 1/10 of imagenet-1k)" in line(found, "length")


def test_the_plan_of_the_paper_s_classifier() -> None:
    found = plan(CLASSIFICATION, Launch.on_gpus(32))
    batch, length, rate, precision, memory = found.lines()
    assert batch == "batch: 32 processes x 128 images x 1 accumulation = global batch 4096"
    images = "1,281,167 images if the data is all of imagenet-1k"
    assert length == f"length: 300 epochs of 312 steps = 93,600 steps ({images})"
    assert rate == "rate: peak rate 0.004; linear warm-up over 6,240 steps (20 epochs)"
    assert precision == "precision: float32"
    assert memory.startswith("memory: about ")
    assert "activations of 128 images of 224 x 224" in memory


@pytest.mark.parametrize("path, gpus", [(CLASSIFICATION, 1), (CLASSIFICATION, 64), (CASCADE, 1), (CASCADE, 4)])
def test_steps_do_not_depend_on_the_launch(path: Path, gpus: int) -> None:
    steps = {CLASSIFICATION: 1_281_167 // 4096, CASCADE: 117_266 // 16}[path]
    assert plan(path, Launch.on_gpus(gpus)).schedule.steps_per_epoch == steps


def test_the_plan_of_dense_tasks() -> None:
    detector, segmentor = plan(CASCADE, Launch.on_gpus(8)), plan(UPERNET, Launch.on_gpus(8))
    lowest = 2e-4 * 0.7**7
    assert line(detector, "rate") == (
        f"peak rate 0.0002 at the head, {lowest:.3g} at the lowest layer; linear warm-up over 500 steps"
    )
    assert line(detector, "precision") == "mixed, float16 with scaled loss"
    assert line(segmentor, "length") == "160,000 steps, 126.7 times 20,210 images if the data is all of ade20k"
    assert line(segmentor, "rate").endswith("linear warm-up over 1,500 steps")


def test_the_data_completes_the_plan() -> None:
    found = plan(DIGITS)
    assert line(found, "length") == "5 epochs; steps per epoch are known when the data is read"
    assert line(found, "rate").endswith("linear warm-up over 1 epoch")
    known = found.with_data(6000, 93)
    assert line(known, "length") == "5 epochs of 93 steps = 465 steps (6,000 images)"
    assert line(known, "rate").endswith("linear warm-up over 93 steps (1 epoch)")
    stepwise = plan(UPERNET).with_data(2000, 2000)
    assert line(stepwise, "length") == "160,000 steps, 1280 times 2,000 images"


def test_precision_clipping_and_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "bfloat16"}
    found = plan(CLASSIFICATION, Launch.on_gpus(8), **options, **{"optim_wrapper.clip_grad": {"max_norm": 1.0}})
    assert line(found, "precision") == "mixed, bfloat16, gradients clipped to a norm of 1"
    for has_instructions, precision in ((True, "mixed, bfloat16"), (False, "float32")):
        monkeypatch.setattr("engine.config.precision.has_bfloat16", lambda has=has_instructions: has)
        assert line(plan(CLASSIFICATION, Launch(), **options), "precision") == precision
    assert line(plan(CLASSIFICATION, **{"param_scheduler": []}), "rate") == "peak rate 0.004; no warm-up"


def test_schedules_as_mmengine_takes_them() -> None:
    """One alone, not in a list; and one without an end, which is then the training's."""
    resolved = load_config(CLASSIFICATION, None, Launch())
    for schedule in ({"type": "LinearLR"}, [{"type": "LinearLR"}]):
        resolved.cfg.param_scheduler = schedule
        assert line(training_plan(resolved, Launch()), "rate").endswith("(300 epochs)")


@pytest.mark.parametrize("kind, steps", [("LinearLR", 499), ("LinearWarmUpLR", 500)])
def test_the_warm_up_in_steps_ends_where_the_peak_is(kind: str, steps: int) -> None:
    resolved = load_config(CLASSIFICATION, None, Launch())
    resolved.cfg.param_scheduler = [{"type": kind, "end": 500, "by_epoch": False}]
    assert line(training_plan(resolved, Launch()), "rate").endswith(f"linear warm-up over {steps} steps")


def test_an_end_above_the_rate_is_refused() -> None:
    """Of another layer's rate it is the layer's share, which is below it."""
    options = {
        "optim_wrapper.optimizer.lr": 5e-5,
        "optim_wrapper.paramwise_cfg": {"decay_rate": 0.7},
        "param_scheduler": [{"type": "CosineAnnealingLR", "eta_min": 1e-6}],
        "model.backbone.type": "convnext_large",
    }
    assert plan(CLASSIFICATION, **options).lowest < 1e-6
    options["param_scheduler"] = [{"type": "CosineAnnealingLR", "eta_min": 5e-5}]
    with pytest.raises(UserError, match=r"\.0\.eta_min=5e-05 is not below .*-options param_scheduler\.0\.eta_min=0"):
        plan(CLASSIFICATION, **options)
    options["param_scheduler"] = [
        {"type": "CosineAnnealingParamScheduler", "param_name": "weight_decay", "eta_min": 0.4}
    ]
    plan(CLASSIFICATION, **options)


@pytest.mark.parametrize("epochs, ends", [(1, (1, 0)), (2, (1, 1)), (20, (2, 2))])
def test_the_advice_for_a_training_that_is_shorter_than_its_warm_up(epochs: int, ends: tuple[int, int]) -> None:
    length = {"train_cfg.max_epochs": epochs}
    with pytest.raises(UserError, match=r"param_scheduler\.1: a schedule begins when training is over") as refused:
        plan(CLASSIFICATION, **length)
    advice = dict(option.split("=") for option in str(refused.value).partition("--cfg-options ")[2].split())
    assert advice == {"param_scheduler.0.end": str(ends[0]), "param_scheduler.1.begin": str(ends[1])}
    options = {**length, **{key: int(value) for key, value in advice.items()}}
    plan(CLASSIFICATION, **options)
    cfg = load_config(CLASSIFICATION, options, Launch()).cfg
    assert review_schedules(cfg, Schedule(epochs, None))[1] == []


@pytest.mark.parametrize("schedule", [{}, {"end": 9}, {"by_epoch": True}, {"convert_to_iter_based": True}], ids=str)
def test_epochs_of_a_training_that_has_none_are_refused(schedule: dict[str, Any]) -> None:
    """mmengine counts epochs where nothing is stated, and the rate would stay what it is in the first step."""
    with pytest.raises(UserError, match=r"param_scheduler\.0: it counts epochs.*state by_epoch=False"):
        plan(UPERNET, **{"param_scheduler": [{"type": "LinearLR", **schedule}]})


def test_schedules_that_move_in_a_training_of_steps() -> None:
    by_score = {"type": "ReduceOnPlateauLR", "monitor": "mIoU", "rule": "greater"}
    converted = {"type": "LinearLR", "end": 2, "by_epoch": True, "convert_to_iter_based": True}
    plan(UPERNET, **{"param_scheduler": [by_score, converted, {"type": "PolyLR", "by_epoch": False}]})


def test_a_review_is_a_part_of_the_dry_run() -> None:
    resolved = load_config(DIGITS, None, Launch())
    lines = dry_run(resolved, Launch(), lambda cfg, length: ([f"of {length.epochs}"], ["look"]))
    assert lines.index("of 5") + 1 == lines.index("WARNING: look") < len(lines) - 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model.backbone.colour": "red"}, "'colour'"),
        ({"optim_wrapper.paramwise_cfg": {"num_groups": 6}}, "num_groups=6 does nothing"),
        ({"optim_wrapper.paramwise_cfg": {"decay": 0.9}}, "no option decay"),
        ({"optim_wrapper.optimizer.lr": "high"}, "optimizer.lr='high': a positive number"),
        ({"env_cfg.shraded": True}, "env_cfg has no setting 'shraded'; nearest: sharded"),
    ],
)
def test_what_does_not_build_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan(CLASSIFICATION, **options)
    assert "\n" not in str(caught.value)


def test_a_dry_run_finds_data_in_archives(digits: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "train2017"), "zip", digits / "coco", "train2017")
    options = {"data_root": str(tmp_path), "model.backbone.weights": None}
    lines = dry_run(load_config(MASK, options, Launch()), Launch(), data_check=False)
    assert f"train data: {tmp_path / 'train2017'} (present)" in lines
    assert f"val data: {tmp_path / 'val2017'} (ABSENT)" in lines


def test_a_dry_run_tells_where_the_data_would_be(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    launch = Launch.on_gpus(8)
    options = {"data_root": str(tmp_path), "model.backbone.weights": "absent.pth", "batch.size": 32}
    lines = dry_run(load_config(MASK, options, launch), launch)
    assert lines[:2] == ["batch: 8 processes x 2 images x 2 accumulation = global batch 32", "device: GPU"]
    assert f"train data: {tmp_path / 'train2017'} (present)" in lines
    assert f"train data: {tmp_path / 'annotations/instances_train2017.json'} (ABSENT)" in lines
    assert f"val data: {tmp_path / 'val2017'} (ABSENT)" in lines
    assert not any(line.startswith(f"train data: {tmp_path} ") for line in lines)  # it is there if they are
    assert "backbone from: absent.pth (ABSENT)" in lines
    assert any(line.startswith("memory: ") and "activations of 2 images" in line for line in lines)
    assert "note: global batch 16 -> 32: learning rate 0.0001 -> 0.0002 (linear rule)" in lines
    assert lines[-1].split()[0] == "total"


def test_a_launch_on_gpus() -> None:
    assert Launch.on_gpus(4) == Launch(4, "cuda", 4)
    assert Launch.on_gpus(32) == Launch(32, "cuda", 8)
    with pytest.raises(UserError, match="--gpus 0"):
        Launch.on_gpus(0)


def test_odd_micro_batches_under_mixup_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="1 images per process: mixup pairs them"):
        plan(CONFIGS / "classification/convnext_tiny_in1k_300e.py", Launch.on_gpus(8), **{"batch.per_gpu": 1})
