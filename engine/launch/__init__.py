"""Starting, watching and ending the processes of a job, on one or several machines.

Ranks announce their position (`heartbeat`), the launcher (`job`, `agent`) restarts, stops and reports them; `child`
runs single programs. The modules that import torch (`job`, `agent`, `node_channel`) are left out: tools start fast.
"""

from engine.launch import exit_codes
from engine.launch.child import ChildProcess, interrupt_on_signals
from engine.launch.heartbeat import HEARTBEAT, Heartbeat, Phase, Position

__all__ = ["HEARTBEAT", "ChildProcess", "Heartbeat", "Phase", "Position", "exit_codes", "interrupt_on_signals"]
