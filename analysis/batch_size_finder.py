"""``--per-gpu-batch auto``: the largest micro-batch that a GPU takes, found by training on it."""

from __future__ import annotations

import copy
import gc
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope

from analysis.standing import check_untrained
from backbones.errors import ConfigError
from engine.config.building import building
from engine.config.load import Resolved, ema_settings, load_config
from engine.config.world import Launch
from engine.data.preflight import check_data_paths
from engine.distributed.processes import start_processes, take_gpu
from engine.optim.precision import losses_in_float32

NUM_CANDIDATE_SAMPLES = 32  # the largest of them is used: image sizes vary in detection
NUM_TRIAL_PASSES = 4  # two optimizer steps of two forward passes
MAX_MEMORY_FRACTION = 0.92  # of the GPU's memory; the rest is for fragmentation and for larger images


def chosen_batch(
    text: str, config: str, options: dict[str, Any], launch: Launch, measure: bool = True, resume: bool = True
) -> dict[str, Any]:
    """The config option that ``--per-gpu-batch`` stands for.

    Args:
        text: Number of images, or ``auto`` to measure how many a GPU takes.
        config: Path of the config file.
        options: The other options, by dotted key.
        launch: Processes and devices of the job.
        measure: Whether a measurement may be started.
        resume: Whether the training resumes; if not, its work directory may hold no other.

    Returns:
        ``batch.per_gpu`` and its value.

    Raises:
        UserError: If the text is neither, or nothing can be measured.
    """
    if "batch.per_gpu" in options:
        raise ConfigError("--per-gpu-batch and --cfg-options batch.per_gpu say the same: give one of them")
    if text.isdecimal():
        return {"batch.per_gpu": int(text)}
    if text != "auto":
        raise ConfigError(f"--per-gpu-batch {text!r}: a number of images, or auto")
    if not measure:
        raise ConfigError("--per-gpu-batch auto trains on the GPU to find out, which a dry run does not: give a number")
    resolved = load_config(config, {**options, "batch.per_gpu": None}, launch)
    if not resume:
        check_untrained(Path(resolved.cfg.work_dir))
    check_data_paths(resolved.cfg, ("train",))
    return {"batch.per_gpu": measured_fit(resolved, launch)}


def micro_batches(share: int, even: bool = False) -> list[int]:
    """Sizes into which the images that one process has in a step divide, the smallest first.

    Args:
        share: Images per process and step.
        even: Leave odd ones out; mixup pairs images.
    """
    return [size for size in range(1, share + 1) if share % size == 0 and not (even and size % 2)]


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Search by halves for the largest size that fits; what a size takes, a smaller one takes too.

    Args:
        sizes: Rising.
        fits: Tries one size. The largest is tried first: where memory is plenty nothing else is.

    Returns:
        The size, or ``None`` if not even the first fits.
    """
    if sizes and fits(sizes[-1]):
        return sizes[-1]
    count = bisect_left(sizes, True, hi=max(0, len(sizes) - 1), key=lambda size: not fits(size))
    return sizes[count - 1] if count else None


def measured_fit(resolved: Resolved, launch: Launch) -> int:
    """Measure the largest micro-batch with which the GPU of every process trains.

    Args:
        resolved: The config, resolved for training; it is left as it is.
        launch: Processes and device.

    Returns:
        ``batch.per_gpu``, the same in every process.

    Raises:
        ConfigError: If there is no GPU, or it does not take the smallest micro-batch.
    """
    if launch.device != "cuda":
        raise ConfigError("--per-gpu-batch auto measures a GPU's memory, and here is none: give a number")
    assert resolved.plan is not None, "resolved for testing"
    # No process group yet: a layer that waits for the others (SyncBN) would wait for one that ran out of memory.
    take_gpu(launch)
    torch.cuda.set_per_process_memory_fraction(MAX_MEMORY_FRACTION)
    share = resolved.plan.per_process * resolved.plan.accumulation
    preprocessor = resolved.cfg.model.get("data_preprocessor", {})
    sizes = micro_batches(share, even=bool(preprocessor.get("mixup") or preprocessor.get("cutmix")))
    if not sizes:
        raise ConfigError(f"{share} images per process and step: mixup pairs them, so that number has to be even")
    try:
        found = largest_that_fits(sizes, Trial(resolved.cfg, launch.processes, "cuda").fits)
    except torch.OutOfMemoryError:  # the model alone is too much
        found = None
    _give_back()
    torch.cuda.set_per_process_memory_fraction(1.0)
    start_processes(launch)
    least = torch.tensor(found or 0, device="cuda")
    all_reduce(least, op="min")
    if not least:
        raise ConfigError(
            f"--per-gpu-batch auto: this GPU does not even take {sizes[0]} at a time; see "
            "model.backbone.grad_checkpointing, mixed precision, or a smaller model"
        )
    return int(least)


class Trial:
    """The model and the optimizer of a config, and the largest of some training samples.

    The model is whole and not compiled: one that is sharded takes less.

    Args:
        cfg: Resolved; it is left as it is.
        processes: World size: exchanging gradients takes memory too.
        device: Device to train on.
    """

    def __init__(self, cfg: Any, processes: int, device: str) -> None:
        cfg = copy.deepcopy(cfg)
        if "backbone" in cfg.model:
            cfg.model.backbone.weights = None
        torch.backends.cudnn.benchmark = bool(cfg.env_cfg.get("cudnn_benchmark"))
        places = ("train_pipeline", "train_dataloader", "model", "optim_wrapper")
        with DefaultScope.overwrite_default_scope(cfg.default_scope), building(cfg, *places):
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            collate = cfg.train_dataloader.collate_fn
            self._collate = FUNCTIONS.get(collate.get("collate", collate["type"]))
            self._model = MODELS.build(cfg.model).to(device).train()
            losses_in_float32(self._model)
            # Two passes for a step: the second one finds gradients, moments and activations in memory together.
            self._wrapper = build_optim_wrapper(self._model, dict(cfg.optim_wrapper, accumulative_counts=2))
        self._wrapper.initialize_count_status(self._model, 0, NUM_TRIAL_PASSES * 2**20)
        stride = max(1, len(dataset) // NUM_CANDIDATE_SAMPLES)
        samples = [dataset[index] for index in range(0, len(dataset), stride)]
        self._sample = max(samples, key=lambda sample: sample["inputs"].numel())
        copies = (ema_settings(cfg) is not None) + (processes > 1)
        self._beside = torch.empty(copies * sum(one.numel() for one in self._model.parameters()), device=device)

    def fits(self, size: int) -> bool:
        """Train two steps with micro-batches of a size."""
        try:
            for _ in range(NUM_TRIAL_PASSES):
                batch = self._collate([copy.deepcopy(self._sample) for _ in range(size)])
                self._model.train_step(batch, optim_wrapper=self._wrapper)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        # Outside of the handler: until here the error holds the tensors of the pass that failed.
        self._wrapper.zero_grad()
        _give_back()
        return fits


def _give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()
