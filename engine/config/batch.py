"""The batch contract: a config states the global batch and its learning rate; the launch decides the rest.

One iteration of every loop is one optimizer step. With gradient accumulation the data loader yields a list of
micro-batches, so that schedules, logs, averages and checkpoints count optimizer steps in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from mmengine.registry import FUNCTIONS

from backbones.errors import ConfigError

LR_RULES: dict[str, Callable[[float], float]] = {
    "linear": lambda ratio: ratio,
    "sqrt": sqrt,
    "none": lambda ratio: 1.0,
}


@dataclass(frozen=True)
class BatchPlan:
    """Processes, micro-batch and accumulation of one optimizer step.

    Attributes:
        global_batch: Images per optimizer step.
        processes: World size.
        per_process: Images of one process in one forward pass (micro-batch).
        accumulation: Forward passes of one process per optimizer step.
    """

    global_batch: int
    processes: int
    per_process: int
    accumulation: int

    def __str__(self) -> str:
        return (
            f"{self.processes} process{'es' if self.processes > 1 else ''} x {self.per_process} images x "
            f"{self.accumulation} accumulation = global batch {self.global_batch}"
        )


def plan_batch(global_batch: int, processes: int, per_gpu: int | None = None) -> BatchPlan:
    """Split a global batch over processes and accumulation steps.

    Args:
        global_batch: Images per optimizer step.
        processes: World size.
        per_gpu: Maximum number of images of one process in one forward pass; ``None`` for no limit.

    Returns:
        The plan with the fewest accumulation steps.

    Raises:
        ConfigError: If the batch does not divide.
    """
    if global_batch < 1 or (per_gpu is not None and per_gpu < 1):
        raise ConfigError(f"batch.size={global_batch}, batch.per_gpu={per_gpu}: positive numbers are needed")
    share, rest = divmod(global_batch, processes)
    if rest or not share:
        near = max(processes, round(global_batch / processes) * processes)
        raise ConfigError(
            f"global batch {global_batch} does not divide among {processes} processes: use another number of "
            f"processes, or --cfg-options batch.size={near} (the learning rate follows)"
        )
    accumulation = next(k for k in range(1, share + 1) if share % k == 0 and (per_gpu is None or share // k <= per_gpu))
    return BatchPlan(global_batch, processes, share // accumulation, accumulation)


def scaled_lr(lr: float, stated: int, actual: int, rule: str) -> float:
    """Scale a learning rate to another global batch than the config's.

    Args:
        lr: Learning rate that belongs to the stated batch.
        stated: Global batch in the config file, images.
        actual: Global batch of this run, images.
        rule: ``linear`` (Goyal et al., 2017), ``sqrt`` (for adaptive optimizers, Malladi et al., 2022) or ``none``.

    Raises:
        ConfigError: If the rule is unknown.
    """
    if rule not in LR_RULES:
        raise ConfigError(f"batch.lr_rule={rule!r}: choose from {', '.join(LR_RULES)}")
    return lr * LR_RULES[rule](actual / stated)


def micro_batch_size(images: int, parts: int) -> int:
    """Number of images of each of ``parts`` micro-batches.

    Raises:
        ConfigError: If the images do not divide, as the last ones of an epoch may not.
    """
    size, rest = divmod(images, parts)
    if rest:
        raise ConfigError(
            f"the last {images} images of an epoch do not divide into {parts} accumulation steps: drop them with "
            "train_dataloader.drop_last=True"
        )
    return size


class MicroBatches(list[Any]):
    """The collated micro-batches of one optimizer step."""


@FUNCTIONS.register_module()
def micro_batch_collate(samples: Sequence[Any], parts: int, collate: Any) -> MicroBatches:
    """Collate the samples of one optimizer step into ``parts`` micro-batches of equal size.

    Args:
        samples: Samples of the dataset.
        parts: Number of micro-batches (accumulation steps).
        collate: Registered name of the function that collates one micro-batch, the function, or ``type`` and
            arguments of one.

    Raises:
        ConfigError: If the samples do not divide, as the last ones of an epoch may not.
    """
    size = micro_batch_size(len(samples), parts)
    options = dict(collate) if isinstance(collate, Mapping) else {"type": collate}
    kind = options.pop("type")
    inner = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    return MicroBatches(inner(samples[i : i + size], **options) for i in range(0, len(samples), size))


def collate_settings(collate: Any, parts: int) -> dict[str, Any]:
    """The ``collate_fn`` of a training's data loader.

    Args:
        collate: Registered name, function, or ``type`` and arguments of one, as the config states it. Of a config that
            was resolved before, what it stated is in ``micro_batch_collate``.
        parts: Number of micro-batches of a step.

    Raises:
        ConfigError: If it is neither.
    """
    stated = collate if isinstance(collate, Mapping) else {"type": collate}
    if not isinstance(kind := stated.get("type"), str) and not callable(kind):
        raise ConfigError(f"train_dataloader.collate_fn={collate!r}: dict(type=NAME) is needed")
    if kind == micro_batch_collate.__name__:
        return collate_settings(stated.get("collate"), parts)
    if parts == 1:
        return dict(stated)
    inner = kind if len(stated) == 1 else dict(stated)
    return {"type": micro_batch_collate.__name__, "parts": parts, "collate": inner}
