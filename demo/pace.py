"""How long the steps of the demo take on this machine, from a short measurement and then from the steps themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from backbones.registry import build_backbone
from demo.drawing import DIGIT_IMAGE_SIZE
from demo.steps import DemoStep

# Of the training step below, where the steps' own times were measured (demo/steps.py).
REFERENCE_SECONDS = 0.13
PROBE_BATCH = 64  # images, as in the training of the classifier
PROBE_ROUNDS = 6
# Of a step, for the next ones to be judged by it: the drawing of the data says nothing of trainings.
MIN_TELLING_SECONDS = 40.0


def measure_slowness() -> float:
    """Time of a training step of the demo's backbone here, in parts of the reference's; both with all threads."""
    state = torch.get_rng_state()
    network, images = build_backbone("convnext_atto"), torch.randn(PROBE_BATCH, 3, DIGIT_IMAGE_SIZE, DIGIT_IMAGE_SIZE)
    seconds = []
    for _ in range(PROBE_ROUNDS):
        begun = time.perf_counter()
        network(images)[-1].square().mean().backward()
        seconds.append(time.perf_counter() - begun)
    torch.set_rng_state(state)
    return min(seconds) / REFERENCE_SECONDS


class Forecast:
    """Time that is left, first by a measurement of the machine, then by the latest steps.

    Args:
        groups: Steps that are to be run, those together that run at the same time.
    """

    def __init__(self, groups: Sequence[Sequence[DemoStep]]) -> None:
        # Of two at the same time the sum: together they have the threads that the measurement has.
        self._seconds = [sum(step.seconds for step in group) for group in groups]
        self._slowness = measure_slowness() if any(self._seconds) and not torch.cuda.is_available() else 0.0

    def learn(self, seconds: float | None) -> None:
        """Take notice that the next group of steps has ended, in so many seconds; ``None`` if resumed."""
        expected = self._seconds.pop(0)
        if seconds is not None and expected > MIN_TELLING_SECONDS:
            self._slowness = seconds / expected

    def left(self) -> str | None:
        """Time that is left, in minutes, rounded up; ``None`` where nothing is, and on a GPU."""
        minutes = math.ceil(self._slowness * sum(self._seconds) / 60)
        return None if minutes == 0 else "a minute" if minutes == 1 else f"{minutes} minutes"
