"""A worker of a data loader that died: what torch says, as one line that names it and says what to do."""

from __future__ import annotations

import re

from backbones.errors import MachineError
from engine.launch.exit_codes import EXIT_FAILED

# torch raises it where the batch is waited for, or from its handler of SIGCHLD, wherever the process is then.
_SAID = re.compile(r"DataLoader worker \(pid (\d+)\) (?:is killed by signal: ([^.]+)\.|exited .* exit code (\d+)\.)")
_ADVICE = {
    "Killed": ", most often by the kernel, for lack of memory: fewer workers (num_workers) need less",
    "Bus error": ": shared memory (/dev/shm) may be full, and fewer workers (num_workers) need less",
}


class LostWorkerError(MachineError):
    """A worker of a data loader that was killed, or left; the launcher may start the job again."""

    exit_code = EXIT_FAILED


def lost_worker(error: BaseException) -> tuple[int, str] | None:
    """Process of a worker that died, and how, in words that follow its name; ``None`` for any other error.

    Args:
        error: Exception; torch puts the details into its cause.
    """
    said = next(filter(None, (_SAID.match(str(one)) for one in (error.__cause__, error))), None)
    if not isinstance(error, RuntimeError) or said is None:
        return None
    pid, name, code = said.groups()
    return int(pid), f"was ended by a signal ({name}){_ADVICE.get(name, '')}" if name else f"left with exit code {code}"
