"""The batch contract: a config states the global batch and its learning rate; the launch decides the rest.

One iteration of every loop is one optimizer step. The data loader hands it over as a list of micro-batches where
accumulation is needed, so that schedules, logs, averages and checkpoints count optimizer steps without knowing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from mmengine.registry import FUNCTIONS

from backbones.errors import UserError

LR_RULES: dict[str, Callable[[float], float]] = {
    "linear": lambda ratio: ratio,
    "sqrt": sqrt,
    "none": lambda ratio: 1.0,
}


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is spread.

    Attributes:
        global_batch: Images per optimizer step.
        processes: World size.
        per_process: Images that one process sees in one forward pass.
        accumulation: Forward passes per optimizer step.
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
    """Spread a global batch over processes and accumulation steps.

    Args:
        global_batch: Images per optimizer step.
        processes: World size.
        per_gpu: Most images that one process takes in one forward pass; ``None`` for no limit.

    Returns:
        The plan with the fewest accumulation steps.

    Raises:
        UserError: If the batch does not divide.
    """
    if global_batch < 1 or (per_gpu is not None and per_gpu < 1):
        raise UserError(f"batch.size={global_batch}, batch.per_gpu={per_gpu}: positive numbers are needed")
    share, rest = divmod(global_batch, processes)
    if rest or not share:
        near = max(processes, round(global_batch / processes) * processes)
        raise UserError(
            f"global batch {global_batch} does not divide among {processes} processes: use another number of "
            f"processes, or --cfg-options batch.size={near} (the learning rate follows)"
        )
    accumulation = next(k for k in range(1, share + 1) if share % k == 0 and (per_gpu is None or share // k <= per_gpu))
    return BatchPlan(global_batch, processes, share // accumulation, accumulation)


def scaled_lr(lr: float, stated: int, actual: int, rule: str) -> float:
    """Learning rate for another global batch than the config's.

    Args:
        lr: Rate that belongs to the stated batch.
        stated: Global batch in the config file.
        actual: Global batch of this run.
        rule: ``linear`` (Goyal et al., 2017), ``sqrt`` (for adaptive optimizers, Malladi et al., 2022) or ``none``.

    Raises:
        UserError: If the rule is unknown.
    """
    if rule not in LR_RULES:
        raise UserError(f"batch.lr_rule={rule!r}: choose from {', '.join(LR_RULES)}")
    return lr * LR_RULES[rule](actual / stated)


class MicroBatches(list[Any]):
    """The collated micro-batches of one optimizer step."""


@FUNCTIONS.register_module()
def micro_batch_collate(samples: Sequence[Any], parts: int, collate: str) -> MicroBatches:
    """Collate the samples of one optimizer step into ``parts`` micro-batches of equal size.

    Args:
        samples: As the dataset gives them.
        parts: Accumulation steps.
        collate: Registered name of the function that collates one micro-batch.

    Raises:
        UserError: If they do not divide, as the last samples of an epoch may not.
    """
    size, rest = divmod(len(samples), parts)
    if rest or not size:
        raise UserError(
            f"the last {len(samples)} images of an epoch do not divide into {parts} steps of accumulation: leave them "
            "out with train_dataloader.drop_last=True"
        )
    inner = FUNCTIONS.get(collate)
    return MicroBatches(inner(samples[i : i + size]) for i in range(0, len(samples), size))
