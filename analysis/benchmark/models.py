"""Frames per second, seconds per iteration and training memory of a config's whole model.

It is compared with the same model and weights whose ConvNeXt blocks run PyTorch's plain operators, as the ConvNeXt of
any framework does. Images are noise and weights are random: a detector finds almost nothing, so that non-maximum
suppression and mask pasting, which depend on the detections, take almost no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS

from analysis.benchmark.networks import OUTPUT_TOLERANCE, PLAIN_FORMS, SideTiming, ThroughputResult
from analysis.benchmark.peers import OUR_SIDE, randomize_weights
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import DTYPES, MismatchError, autocast, relative_error, synchronize, take_turns, warm_up
from backbones.errors import ConfigError
from backbones.kernels.autotune import autotuner
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.memory import gib, training_shape
from engine.task import Shape, task_of, task_of_model

MEMORY_IMAGES = 2  # per GPU, as in the remark below the paper's Table 2.3
PLAIN_SIDE = "plain PyTorch blocks"


def measure_model(request: BenchmarkRequest, clock: Callable[[], float] = time.perf_counter) -> ThroughputResult:
    """Compare the features of both sides, then time whole steps.

    Args:
        request: The request; its name is the config's path, a shape of zeros means the paper's size.
        clock: Clock in seconds.

    Returns:
        Times of both sides, and the peak memory of a training step on a GPU.

    Raises:
        MismatchError: If the features of both sides differ.
        ConfigError: If the config is wrong, or does not run with this batch or at this size.
    """
    cfg = load_config(request.name, None, launch=Launch()).cfg
    request = replace(request, shape=request.shape if min(request.shape) else paper_shape(cfg, request))
    check_benchmark_request(request)
    model = build_random_model(cfg).to(request.device)
    error = _compare(model, request)
    step = model_step(model, request)

    def plain() -> None:
        with autotuner.use(**PLAIN_FORMS):
            step()

    steps: dict[str, Callable[[], object]] = {OUR_SIDE: step, PLAIN_SIDE: plain}
    try:
        for one in steps.values():
            warm_up(one)
    except ValueError as failure:  # batch norm: one value for each channel has no variance
        raise ConfigError(
            f"{request.name} does not run on a batch of {request.batch} at this size: {failure}"
        ) from failure
    taken = take_turns(steps, request.rounds, lambda: synchronize(request.device), clock)
    sides = tuple(SideTiming(name, "channels_last blocks, eager", taken[name], error) for name in steps)
    return ThroughputResult(request, benchmark_environment(request), sides, tuple(_notes(model, request)))


def paper_shape(cfg: Config, request: BenchmarkRequest) -> Shape:
    """The size at which the task's papers measure speed; for a training step the config's training size.

    Raises:
        ConfigError: If the config states no size.
    """
    found = training_shape(cfg) if request.train else task_of(cfg).default_shape(cfg)
    if found is None:
        raise ConfigError(f"config {request.name!r}: it states no size of its images; give one with --size")
    return found


def build_random_model(cfg: Config) -> BaseModel:
    """The model of a config in evaluation mode, with random weights in its backbone."""
    cfg.model.get("backbone", {}).pop("weights", None)
    model: BaseModel = build(MODELS, cfg.model, "model", cfg.get("default_scope"))
    randomize_weights(model.backbone)
    return model.eval()


def _compare(model: BaseModel, request: BenchmarkRequest) -> float:
    """Relative error of our features against the plain ones, both in float32."""
    images = torch.randn(1, 3, *request.shape, device=request.device)
    with torch.no_grad():
        found = model.backbone(images)
        with autotuner.use(**PLAIN_FORMS):
            expected = model.backbone(images)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    error = max(relative_error(one, other) for one, other in pairs)
    allowed = OUTPUT_TOLERANCE["tf32" if request.device == "cuda" else "fp32"]
    if not error <= allowed:
        raise MismatchError(f"{request.name}: our blocks and plain ones differ by {error:.1e} (allowed: {allowed:.0e})")
    return error


def model_step(model: BaseModel, request: BenchmarkRequest) -> Callable[[], object]:
    """A function that runs one step of a test or, if the request says so, of a training without the optimizer."""
    images = torch.randn(request.batch, 3, *request.shape, device=request.device)
    dummy_batch = task_of_model(model).dummy_batch

    def test() -> object:
        model.eval()
        with torch.inference_mode(), autocast(request.device, DTYPES[request.dtype]):
            return model(**dummy_batch(model, images, False))

    def train() -> None:
        model.train()
        with autocast(request.device, DTYPES[request.dtype]):
            losses = model(**dummy_batch(model, images, True))  # new annotations for each step: models change them
        model.parse_losses(losses)[0].backward()
        model.zero_grad(set_to_none=True)

    return train if request.train else test


def _notes(model: BaseModel, request: BenchmarkRequest) -> list[str]:
    """Peak memory of a training step, where it can be measured."""
    if not request.train:
        return []
    if request.device != "cuda":
        return [f"peak training memory at {MEMORY_IMAGES} images per GPU: not measured on CPU"]
    step = model_step(model, replace(request, batch=MEMORY_IMAGES))
    notes = []
    for name, answers in ((OUR_SIDE, {}), (PLAIN_SIDE, PLAIN_FORMS)):
        with autotuner.use(**answers):
            step()
            torch.cuda.reset_peak_memory_stats()
            step()
        peak = torch.cuda.max_memory_allocated()
        notes.append(f"peak training memory at {MEMORY_IMAGES} images per GPU, {name}: {gib(peak)} GiB, no optimizer")
    return notes
