"""A study made of scores that follow the surge law, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analysis.sweep.results import Objective, StudyResult, TrialResult

RATE, BATCH = "optim_wrapper.optimizer.lr", "batch.size"
PEAK_BATCH, PEAK_RATE = 200.0, 1e-3


def made_study(
    folder: Path, seeds: int = 3, rates: int = 5, batches: int = 6, noise: float = 0.1, **changes: Any
) -> StudyResult:
    """A study of a grid of rates and batches in which one setting fails and one is interrupted."""
    random = np.random.default_rng(0)
    all_rates = [float(rate) for rate in np.geomspace(1e-4, 1e-2, rates).round(6)]
    all_batches = [int(32 * 2**k) for k in range(batches)]
    trials = []
    for number, (batch, rate) in enumerate((b, r) for b in all_batches for r in all_rates):
        best = PEAK_RATE / np.cosh(np.log(batch / PEAK_BATCH) / 2)
        for seed in range(seeds):
            score = 80 - 2 * np.log10(rate / best) ** 2 + 0.2 * np.log2(batch) + float(random.normal(0, noise))
            curve = tuple((float(k), score * (1 - 0.5 ** (k + 1))) for k in range(1, 9))
            facts: dict[str, Any] = dict(state="finished", score=curve[-1][1], curve=curve)
            if number == 0:
                facts = dict(state="failed", reason="step 12 was not finite: the loss & the gradients")
            if number == 1 and seed == seeds - 1:
                facts = dict(state="interrupted", reason="SIGTERM", curve=curve[:3])
            trials.append(
                TrialResult(
                    number,
                    {RATE: rate, BATCH: batch},
                    seed,
                    hours=1.0 / batch**0.5,
                    gpu_hours=8.0 / batch**0.5,
                    steps_per_second=10.0 / batch,
                    images_per_second=10.0,
                    peak_memory_bytes=2**30 + batch,
                    parameters=28_000_000,
                    work_dir=folder / f"{number:04d}" / f"seed_{seed}",
                    command=f"python tools/train.py c.py --work-dir w/{number} --resume --cfg-options {RATE}={rate:g}",
                    **facts,
                )
            )
    facts = dict(
        name="rate_and_batch",
        title="Rate and batch of digits",
        folder=folder,
        storage="sqlite:///study.db",
        config="configs/classification/digits.py",
        options={},
        space={RATE: {"grid": all_rates}, BATCH: {"grid": all_batches}},
        objective=Objective("top1", "maximize"),
        seeds=tuple(range(seeds)),
        rungs=(),
        trials=tuple(trials),
    )
    return StudyResult(**facts | changes)
