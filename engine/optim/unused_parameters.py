"""Parameters that a training leaves without a gradient, reported by name after the first backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backbones.errors import ConfigError
from engine.distributed.sharding import unwrapped

if TYPE_CHECKING:
    from engine.training.runner import Runner

MAX_LISTED = 5


def check_unused_parameters(runner: Runner) -> None:
    """Report parameters that the backward pass of a step did not reach.

    torch's data parallel model complains too, but about the step after it, and with numbers instead of names.

    Args:
        runner: Runner of a training, between the backward pass and the update, whose gradients may be skipped.

    Raises:
        ConfigError: If several processes would wait for these gradients; otherwise a warning is logged.
    """
    params = unwrapped(runner.model).named_parameters()
    names = [name for name, param in params if param.requires_grad and param.grad is None]
    if not names:
        return
    count = f"{len(names)} parameter{'s get' if len(names) > 1 else ' gets'} no gradient"
    shown = ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
    tolerated = runner.sharded or runner.cfg.get("find_unused_parameters", False)
    if runner.world_size > 1 and not tolerated:
        raise ConfigError(
            f"{count}: {shown}; freeze what is not to be trained (requires_grad=False), or set "
            "find_unused_parameters=True where it depends on the data"
        )
    hint = "" if tolerated else "; several processes would need find_unused_parameters=True, or to have them frozen"
    runner.logger.warning("%s in the first step: %s%s", count, shown, hint)
