"""The rate of every step of the dense tasks against the formulae of mmcv, with which the released configs were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from analysis.schedules import build_schedules, rate_schedulers
from engine.config.load import load_config
from engine.config.world import Launch

ROOT = Path(__file__).resolve().parents[2]
ADE20K = "segmentation/upernet_convnext_tiny_ade20k_160k"
ADE20K_XLARGE = "segmentation/upernet_convnext_xlarge_in22k_ade20k_160k"
COCO = "detection/cascade_mask_rcnn_convnext_tiny_coco_3x"
EPOCH = 600  # steps; COCO's 7,330 would only take longer
Rates = npt.NDArray[np.float64]


def our_rates(name: str, options: dict[str, Any] | None = None) -> Rates:
    """The peak group's rate of each step of a config, by its schedulers, as the runner steps them."""
    cfg = load_config(ROOT / f"configs/{name}.py", options, Launch()).cfg
    epochs, peak = cfg.train_cfg.get("max_epochs"), cfg.optim_wrapper.optimizer.lr
    steps = cfg.train_cfg.get("max_iters") or epochs * EPOCH
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedulers = build_schedules(rate_schedulers(cfg), optimizer, epochs, steps, EPOCH)
    rates = np.empty(steps)
    for step in range(steps):
        rates[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        for one in schedulers:
            if not one.by_epoch or (step + 1) % EPOCH == 0:
                one.step()
    return rates


def warm_up_factor(steps: Rates, length: int, ratio: float) -> Rates:
    """open-mmlab/mmcv v1.3.0, mmcv/runner/hooks/lr_updater.py:87-88 and 128: linear, and 1 from step ``length`` on."""
    return np.where(steps < length, 1 - (1 - steps / length) * (1 - ratio), 1.0)


def poly(steps: Rates, peak: float, total: int) -> Rates:
    """open-mmlab/mmcv v1.3.0, mmcv/runner/hooks/lr_updater.py:210-211: power 1, min_lr 0, counted from step 0."""
    return peak * (1 - steps / total)


def test_ade20k_falls_from_step_0_under_the_warm_up() -> None:
    # facebookresearch/ConvNeXt, semantic_segmentation/configs/convnext/upernet_convnext_tiny_512_160k_ade20k_ms.py:36
    # (rate), :41-45 (poly of power 1, 1,500 of linear warm-up from 1e-6 of it); mmseg 0.11, schedule_160k.py:7 (length)
    rates = our_rates(ADE20K)
    steps = np.arange(160_000)
    expected = poly(steps, 1e-4, 160_000) * warm_up_factor(steps, 1500, 1e-6)
    assert len(rates) == 160_000
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-16)
    chosen = {0: 1.0e-10, 750: 4.9765674765625e-5, 1500: 9.90625e-5, 80_000: 5.0e-5, 159_999: 6.25e-10}
    for step, rate in chosen.items():
        assert rates[step] == pytest.approx(rate, rel=1e-9), step


@pytest.mark.parametrize(
    # facebookresearch/ConvNeXt, upernet_convnext_xlarge_640_160k_ade20k_ms.py:36: lr=0.00008
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation, upernet_swin_base_patch4_window7_512x512_160k_ade20k.py:26
    "name, peak",
    [(ADE20K_XLARGE, 8e-5), ("segmentation/upernet_swin_base_ade20k_160k", 6e-5)],
)
def test_other_peaks_follow_the_same_curve(name: str, peak: float) -> None:
    shape = load_config(ROOT / f"configs/{ADE20K}.py", None, Launch()).cfg.param_scheduler
    cfg = load_config(ROOT / f"configs/{name}.py", None, Launch()).cfg
    assert cfg.param_scheduler == shape
    assert cfg.optim_wrapper.optimizer.lr == peak


def test_the_decay_follows_the_length_of_a_shortened_run() -> None:
    """A twentieth of the length: the rate falls to 0 over it, and the warm-up keeps its length."""
    rates = our_rates(ADE20K, {"train_cfg.max_iters": 8000})
    steps = np.arange(8000)
    expected = poly(steps, 1e-4, 8000) * warm_up_factor(steps, 1500, 1e-6)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-16)


def test_coco_reaches_its_rate_at_step_500_and_falls_at_epochs_27_and_33() -> None:
    # SwinTransformer/Swin-Transformer-Object-Detection, configs/_base_/schedules/schedule_1x.py:5-9 (step policy, 500
    # of linear warm-up from 0.001 of the rate); facebookresearch/ConvNeXt,
    # object_detection/configs/convnext/cascade_mask_rcnn_convnext_tiny_..._coco_in1k.py:131 (rate), :135-136
    # (milestones, epochs)
    rates = our_rates(COCO)
    steps = np.arange(36 * EPOCH)
    # open-mmlab/mmcv v1.3.0, mmcv/runner/hooks/lr_updater.py:175-180: epochs count from 0, and epoch 27 is the first
    # lower
    cuts = (steps // EPOCH >= 27).astype(int) + (steps // EPOCH >= 33)
    expected = 2e-4 * 0.1**cuts * warm_up_factor(steps, 500, 0.001)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-16)
    assert rates[499] < rates[500] == pytest.approx(2e-4, rel=1e-12)


@pytest.mark.parametrize(
    "name, warm_up, total, ratio, peak", [("segmentation/upernet_digits", 26, 400, 0.01, 2e-3)], ids=["digits"]
)
def test_the_demo_follows_the_same_rule(name: str, warm_up: int, total: int, ratio: float, peak: float) -> None:
    steps = np.arange(total)
    expected = poly(steps, peak, total) * warm_up_factor(steps, warm_up, ratio)
    np.testing.assert_allclose(our_rates(name), expected, rtol=0, atol=1e-16)
