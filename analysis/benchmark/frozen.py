"""What a frozen backbone saves: a step of a training against a tuned one, and features read from disk instead.

The memory of a step is the peak beyond what is held before it, of each side in a process of its own. The features are
those that neck and head read, in float16 on disk, as a training without augmentation could read them again; they are
written and synced before, and dropped from the page cache before each reading.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from analysis.benchmark.memory import check_memory_is_told, memory_apart
from analysis.benchmark.models import build_random_model, model_step
from analysis.benchmark.request import BenchmarkRequest, check_benchmark_request
from analysis.benchmark.storage import forget
from analysis.benchmark.timing import DTYPES, WorkComparison, autocast, synchronize, take_turns, warm_up
from engine.config.load import load_config
from engine.config.world import Launch

FROZEN, TUNED = "frozen", "tuned"
SIDE_STAGES = {FROZEN: 4, TUNED: -1}  # frozen_stages
FEATURE_FILES = 16  # images whose features are read in turn
_MIB = 2**20


def measure_frozen(request: BenchmarkRequest, clock: Callable[[], float] = time.perf_counter) -> list[WorkComparison]:
    """Measure a step of both sides, then the features of one image.

    Args:
        request: Path of a config, batch, shape, precision, device and rounds.
        clock: Function that returns the present time in seconds.

    Returns:
        The comparison of the steps, and that of the features.

    Raises:
        ConfigError: If the config does not build, or a number is wrong.
        MachineError: If there is no such device, or the system does not tell the memory of a process.
    """
    check_benchmark_request(request)
    check_memory_is_told(request.device)
    return [_compare_steps(request, clock), _compare_features(request, clock)]


def frozen_step(request: BenchmarkRequest, side: str) -> Callable[[], object]:
    """Build the model of a side and return its training step without the optimizer."""
    return model_step(build_random_model(_config(request, side)).to(request.device), request)


def _config(request: BenchmarkRequest, side: str) -> Config:
    cfg = copy.deepcopy(load_config(request.name, None, launch=Launch()).cfg)
    cfg.model.backbone.frozen_stages = SIDE_STAGES[side]
    cfg.model.backbone.drop_path_rate = 0.0  # of both: a frozen backbone has none
    return cfg


def _compare_steps(request: BenchmarkRequest, clock: Callable[[], float]) -> WorkComparison:
    memory = {side: memory_apart(partial(frozen_step, request, side), request.device) for side in SIDE_STAGES}
    steps = {side: frozen_step(request, side) for side in SIDE_STAGES}
    for step in steps.values():
        warm_up(step)
    peaks = ", ".join(f"{side} {peak / _MIB:,.0f} MiB" for side, peak in memory.items())
    share = memory[FROZEN] / memory[TUNED]
    return WorkComparison(
        f"training step without the optimizer, batch {request.batch}, {request.shape[0]} x {request.shape[1]} pixels",
        f"peak memory beyond the weights: {peaks}, ratio {share:.2f}",
        take_turns(steps, request.rounds, lambda: synchronize(request.device), clock),
    )


def _compare_features(request: BenchmarkRequest, clock: Callable[[], float]) -> WorkComparison:
    backbone = build_random_model(_config(request, FROZEN)).to(request.device).backbone.eval()
    image = torch.randn(1, 3, *request.shape, device=request.device)

    def compute() -> tuple[Tensor, ...]:
        with torch.inference_mode(), autocast(request.device, DTYPES[request.dtype]):
            maps = backbone(image)
        return tuple(maps)

    with TemporaryDirectory() as name:
        files = [Path(name) / f"{number}.npy" for number in range(FEATURE_FILES)]
        values = np.concatenate([one.float().cpu().numpy().astype(np.float16).ravel() for one in compute()])
        for file in files:
            np.save(file, values)
        os.sync()
        turn = iter(range(10**9))

        def read(cold: bool) -> Tensor:
            file = files[next(turn) % FEATURE_FILES]
            if cold:
                forget([str(file)])
            return torch.from_numpy(np.load(file)).to(request.device)

        steps: dict[str, Callable[[], object]] = {
            "backbone": compute,
            "reading, from disk": partial(read, True),
            "reading, from the page cache": partial(read, False),
        }
        for step in steps.values():
            warm_up(step)
        seconds = take_turns(steps, request.rounds, lambda: synchronize(request.device), clock)
    size = values.nbytes / _MIB
    return WorkComparison(
        f"features of an image of {request.shape[0]} x {request.shape[1]} pixels",
        f"{size:.2f} MiB of float16 per image, {size * 1000 / 1024:.1f} GiB for 1,000 images",
        seconds,
    )
