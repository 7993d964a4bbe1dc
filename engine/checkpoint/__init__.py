"""Checkpoints of a run: what they hold, when and how they are written, and how a run resumes from them exactly.

``state`` and ``rng`` are the state beside weights and optimizer, ``store`` reads and writes files, ``hook`` decides
when; ``preemption`` saves when a run is asked to stop, and ``model_weights`` loads the weights of a whole model.
"""

from engine.checkpoint.hook import ResumableCheckpointHook
from engine.checkpoint.model_weights import load_model
from engine.checkpoint.preemption import Signals, Stop, exiting_on_signals
from engine.checkpoint.rng import RandomState, seed_of, seeded
from engine.checkpoint.state import check_resumable, restore_position, restore_random_state, resume_state
from engine.checkpoint.store import CheckpointWriter, begin_run, checkpoints, cpu_copy, last_good, write_checkpoint

__all__ = [
    "CheckpointWriter",
    "RandomState",
    "ResumableCheckpointHook",
    "Signals",
    "Stop",
    "begin_run",
    "check_resumable",
    "checkpoints",
    "cpu_copy",
    "exiting_on_signals",
    "last_good",
    "load_model",
    "restore_position",
    "restore_random_state",
    "resume_state",
    "seed_of",
    "seeded",
    "write_checkpoint",
]
