"""Losses and gradients that are not finite: found before they change a weight, recorded, reproduced, rolled back.

The training loop calls the guard; the guard runs the step again under a trace and records it, from which
`analysis/replay.py` reproduces the step in one process.
"""

from engine.nonfinite.guard import NonFiniteError, NonFiniteGuard, RollBack

__all__ = [
    "NonFiniteError",
    "NonFiniteGuard",
    "RollBack",
]
