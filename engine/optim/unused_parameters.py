"""Parameters that a training leaves without a gradient, by name, before anything else stumbles over them."""

from __future__ import annotations

from typing import Any

from torch import nn

from backbones.errors import UserError
from engine.distributed.sharding import unwrapped

NAMED = 5


def without_gradient(model: nn.Module) -> list[str]:
    """Names of the parameters that are to be trained and have no gradient."""
    return [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]


def check_first_step(runner: Any) -> None:
    """Let the first optimizer step look at the gradients before it uses them.

    torch's data parallel model complains too, but about the step after it, and with numbers instead of names.

    Args:
        runner: With model and optimizer. In one process, or where ``find_unused_parameters`` allows for it, what is
            found is logged; otherwise the step raises :class:`UserError`.
    """
    wrapper = runner.optim_wrapper
    step = wrapper.step

    def checked_step(**settings: Any) -> None:
        wrapper.step = step
        _report(runner)
        step(**settings)

    wrapper.step = checked_step


def _report(runner: Any) -> None:
    names = without_gradient(unwrapped(runner.model))
    if not names:
        return
    count = f"{len(names)} parameter{'s get' if len(names) > 1 else ' gets'} no gradient"
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    tolerated = runner.sharded or runner.cfg.get("find_unused_parameters", False)
    if runner.world_size > 1 and not tolerated:
        raise UserError(
            f"{count}: {shown}; freeze what is not to be trained (requires_grad=False), or set "
            "find_unused_parameters=True where it depends on the data"
        )
    hint = "" if tolerated else "; several processes would need find_unused_parameters=True, or to have them frozen"
    runner.logger.warning("%s in the first step: %s%s", count, shown, hint)
