"""The training itself: the runner of all tasks and its loops, whose ``run_iter`` is one optimizer step.

The runner's parts are the checkpoint manager, the preparation of the model, the data loaders and the log handlers.
Weight averages and the progress bar are here too.
"""

from engine.training.build import build_runner
from engine.training.checkpoint_manager import CheckpointManager
from engine.training.ema import ModelEMAHook
from engine.training.loops import EpochLoop, IterationLoop
from engine.training.progress import ProgressBar
from engine.training.runner import Runner
from engine.training.validation import ValidationLoop

__all__ = [
    "CheckpointManager",
    "EpochLoop",
    "IterationLoop",
    "ModelEMAHook",
    "ProgressBar",
    "Runner",
    "ValidationLoop",
    "build_runner",
]
