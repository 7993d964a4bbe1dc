"""Checkpoints of a run: what they hold, when and how they are written, and how a run resumes from them exactly.

``state`` and ``rng`` are the state beside weights and optimizer, ``store`` reads and writes files, ``hook`` decides
when; ``preemption`` saves when a run is asked to stop, and ``model_weights`` loads the weights of a whole model.
"""

from engine.checkpoint.hook import ResumableCheckpointHook
from engine.checkpoint.model_weights import load_model_weights
from engine.checkpoint.preemption import Signals, Stop
from engine.checkpoint.store import CheckpointWriter, last_good, write_checkpoint

__all__ = [
    "CheckpointWriter",
    "ResumableCheckpointHook",
    "Signals",
    "Stop",
    "last_good",
    "load_model_weights",
    "write_checkpoint",
]
