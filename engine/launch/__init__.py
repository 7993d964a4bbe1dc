"""Starting, watching and ending the processes of a job, on one or several machines.

Ranks announce their position (`heartbeat`), the launcher (`job`, `agent`) restarts, stops and reports them; `child`
runs single programs. The modules that import torch (`job`, `agent`, `node_channel`) are left out: tools start fast.
"""

from engine.launch.child import ChildProcess, interrupt_on_signals
from engine.launch.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_NONFINITE,
    EXIT_SAVED,
)
from engine.launch.heartbeat import HEARTBEAT, Heartbeat, Phase, Position

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILED",
    "EXIT_HUNG",
    "EXIT_INTERRUPTED",
    "EXIT_NONFINITE",
    "EXIT_SAVED",
    "HEARTBEAT",
    "ChildProcess",
    "Heartbeat",
    "Phase",
    "Position",
    "interrupt_on_signals",
]
