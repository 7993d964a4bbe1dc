"""What a run needs, beside weights and optimizer, to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from backbones.errors import UserError
from engine.checkpoint.rng import RandomState


def resume_state(runner: Any) -> dict[str, Any]:
    """Gather it from all processes.

    Args:
        runner: Of a training, between two steps.

    Returns:
        Plain data: for each process its random states and, where they are its own, statistics of batch normalisation;
        what is validated and the best score; the steps of an epoch.
    """
    own = {"random": RandomState.capture().as_dict(), "buffers": _own_buffers(runner.model)}
    return {
        "ranks": runner.agreement.gather(own),
        "saving": runner.checkpoint_hook.state_dict(),
        "steps_per_epoch": len(runner.train_dataloader),
    }


def check_resumable(checkpoint: Mapping[str, Any], source: str, scheduled: bool) -> None:
    """See that a checkpoint has all that a run goes on from: without the optimizer's state it would be another run.

    Args:
        checkpoint: Its content.
        source: Its name.
        scheduled: Whether the run has schedules.

    Raises:
        UserError: If a part is absent or of another kind.
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
        raise UserError(
            f"checkpoint {source!r} has no usable state of {', '.join(wrong)}, so that no run can go on from it: leave "
            "--resume out and begin with its weights by --cfg-options load_from=FILE"
        )


def restore_position(runner: Any, saved: Mapping[str, Any]) -> None:
    """Find the step to go on from, which is another where an epoch has another number of steps now.

    Args:
        runner: With the step of the checkpoint.
        saved: What :func:`resume_state` gave.
    """
    runner.checkpoint_hook.load_state_dict(saved["saving"])
    loop = runner.train_loop
    before, now = saved["steps_per_epoch"], len(runner.train_dataloader)
    if before == now or not loop.by_epoch:
        return
    inside = loop.iter - loop.epoch * before
    loop.seek(loop.epoch * now + inside * now // before)
    runner.logger.warning(f"an epoch has {now} steps now, {before} before: going on at step {loop.iter}")
    if not inside and runner.checkpoint_hook.validated >= 0:
        runner.checkpoint_hook.validated = loop.iter


def restore_random_state(runner: Any, saved: Mapping[str, Any]) -> None:
    """Restore what belongs to this process.

    Args:
        runner: With its model in place.
        saved: What :func:`resume_state` gave.
    """
    ranks = saved["ranks"]
    if len(ranks) != get_world_size():
        runner.logger.warning(
            f"saved by {len(ranks)} processes, going on with {get_world_size()}: the images are the same, but dropout, "
            "mixup and the like draw other numbers than without the stop"
        )
        return
    own = ranks[get_rank()]
    buffers = dict(runner.model.named_buffers())
    with torch.no_grad():
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
    RandomState.from_dict(own["random"]).restore()


def _own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics that differ between processes: those of batch normalisation that is not synchronised."""
    if get_world_size() == 1:
        return {}
    return {
        # On the CPU: where it is sent, its GPU is another process's.
        f"{place}.{name}": value.cpu()
        for place, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
        for name, value in module.named_buffers(recurse=False)
    }
