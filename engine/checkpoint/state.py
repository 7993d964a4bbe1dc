"""State of a run, beside weights and optimizer, that an exact resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from logging import Logger
from typing import Any, Protocol

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn

from backbones.errors import CheckpointError
from engine.checkpoint.rng import RandomState, seed_process
from engine.distributed.agreement import Agreement

# Their statistics differ between the processes; those of SyncBatchNorm are the same everywhere.
LOCAL_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ResumableRun(Protocol):
    """The runner of a training, as far as its state needs it."""

    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def logger(self) -> Logger: ...
    @property
    def agreement(self) -> Agreement: ...
    @property
    def checkpoint_hook(self) -> Any: ...
    @property
    def train_loop(self) -> Any: ...
    @property
    def train_dataloader(self) -> Any: ...
    @property
    def message_hub(self) -> Any: ...


def resume_state(runner: ResumableRun) -> dict[str, Any]:
    """Gather the state from all processes.

    Args:
        runner: Runner of a training, between two steps.

    Returns:
        Plain data: random states of each process, with its running statistics of batch normalisation where they are not
        synchronised; state of the checkpoint hook; steps per epoch.
    """
    own = {"random": RandomState.capture().as_dict(), "buffers": _own_buffers(runner.model)}
    return {
        "ranks": runner.agreement.gather(own),
        "saving": runner.checkpoint_hook.state_dict(),
        "steps_per_epoch": len(runner.train_dataloader),
    }


def check_resumable(checkpoint: Mapping[str, Any], source: str, scheduled: bool) -> None:
    """Check that a checkpoint has all parts that a resume needs, such as the optimizer's state.

    Args:
        checkpoint: Content of the checkpoint.
        source: Path of the checkpoint, for error messages.
        scheduled: Whether the run has schedules.

    Raises:
        CheckpointError: If a part is missing or of another type.
    """
    parts: dict[str, type | tuple[type, ...]] = {"meta": Mapping, "message_hub": Mapping, "optimizer": Mapping}
    parts |= {"param_schedulers": (list, Mapping)} if scheduled else {}
    state = checkpoint.get("resume")
    wrong = [name for name, kind in parts.items() if not isinstance(checkpoint.get(name), kind)]
    if state is not None and not (
        isinstance(state, Mapping) and {"ranks", "saving", "steps_per_epoch"} <= state.keys()
    ):
        wrong.append("resume")
    if wrong:
        raise CheckpointError(
            f"checkpoint {source!r} has no usable state of {', '.join(wrong)} and cannot be resumed: leave --resume "
            "out and start from its weights with --cfg-options load_from=FILE"
        )


def restore_position(runner: ResumableRun, saved: Mapping[str, Any]) -> None:
    """Restore the checkpoint hook, and convert the step if an epoch has another number of steps now.

    Args:
        runner: Runner at the step of the checkpoint.
        saved: Result of :func:`resume_state`.
    """
    runner.checkpoint_hook.load_state_dict(saved["saving"])
    loop = runner.train_loop
    before, now = saved["steps_per_epoch"], len(runner.train_dataloader)
    if before == now or not loop.by_epoch:
        return
    inside = loop.iter - loop.epoch * before
    loop.seek(loop.epoch * now + inside * now // before)
    runner.logger.warning(f"an epoch has {now} steps now, {before} before: continuing at step {loop.iter}")
    if not inside and runner.checkpoint_hook.validated >= 0:
        runner.checkpoint_hook.validated = loop.iter


def _restore_counts(runner: ResumableRun) -> None:
    """Let the message hub count as after the last step: mmengine's hook has counted on when the training began."""
    done = runner.train_loop.iter
    if done:
        runner.message_hub.update_info("iter", done - 1)
        if runner.train_loop.by_epoch:
            runner.message_hub.update_info("epoch", (done - 1) // len(runner.train_dataloader))


def begin_random_state(runner: ResumableRun) -> None:
    """Give each process of a new run random numbers of its own for mixup, random erasing and stochastic depth.

    All processes have built and initialised the model with common numbers. The first one continues with those, so that
    a run of one process has only the seed's; the others are seeded by seed and rank. The order and the augmentation
    of the samples do not depend on it (:mod:`engine.data.sampling`).

    Args:
        runner: Runner with its model and its data built.
    """
    if get_rank():
        _seed_process_at(runner, 0)


def restore_random_state(runner: ResumableRun, saved: Mapping[str, Any]) -> None:
    """Restore random states and unsynchronised statistics of this process, and the counts of the message hub.

    With another number of processes than the checkpoint's, each is seeded by seed, rank and step instead; so is each
    but the first one where all processes were saved with common random numbers.

    Args:
        runner: Runner at the step of the checkpoint, with its model on its device.
        saved: Result of :func:`resume_state`.
    """
    _restore_counts(runner)
    ranks = saved["ranks"]
    if len(ranks) != get_world_size():
        runner.logger.warning(
            f"saved by {len(ranks)} processes, resumed with {get_world_size()}: the images, their order and "
            "augmentation are the same, but mixup, random erasing, stochastic depth and dropout draw other numbers "
            "than without the stop"
        )
        _seed_process_at(runner, runner.train_loop.iter)
        return
    own = ranks[get_rank()]
    buffers = dict(runner.model.named_buffers())
    with torch.no_grad():
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
    RandomState.from_dict(own["random"]).restore()
    # Where all are seeded alike, Python's generator stays alike: random erasing draws as often in each process.
    if len(ranks) > 1 and ranks[0]["random"]["python"] == ranks[1]["random"]["python"]:
        runner.logger.warning(
            "saved by a version in which all processes drew the same random numbers: from now on each mixes, erases "
            "and drops by its own, so the run differs from one without the stop"
        )
        if get_rank():
            _seed_process_at(runner, runner.train_loop.iter)


def _seed_process_at(runner: ResumableRun, step: int) -> None:
    seed_process(runner.seed, get_world_size(), get_rank(), step)


def _own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics of unsynchronised batch normalisation, which differ between processes."""
    if get_world_size() == 1:
        return {}
    return {
        # On the CPU: in the process that receives it, this GPU belongs to another process.
        f"{place}.{name}": value.cpu()
        for place, module in model.named_modules()
        if isinstance(module, LOCAL_BATCH_NORMS)
        for name, value in module.named_buffers(recurse=False)
    }
