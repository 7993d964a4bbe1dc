"""Where the trainings of a study run: on the GPUs of this machine, or as jobs of SLURM.

A start is noted in the folder of its training before anything begins, and how it stands is read from outside of the
controller: from the keeper's files, or from SLURM's accounting. A controller that was killed therefore finds its
trainings again.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from analysis.sweep.trainings import CONSOLE, Training
from backbones.errors import ConfigError, MachineError
from engine.launch.exit_codes import EXIT_SAVED
from engine.launch.keeper import exit_code_of, forget_end, is_alive, start_kept, tell_to_stop

SLURM_PROGRAMS = ("sbatch", "sacct", "scancel")
# https://slurm.schedmd.com/sacct.html, section job state codes.
SLURM_RUNNING = ("PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING")
SLURM_INTERRUPTED = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED")
SLURM_KILLED = ("CANCELLED", "OUT_OF_MEMORY")
ACCOUNTING_SECONDS = 300.0  # in which a submitted job may be unknown to the accounting


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    Attributes:
        code: Exit code, negative for a signal; ``None`` if it is not known.
    """

    code: int | None


class Executor(Protocol):
    """Starts trainings and says how they stand.

    Attributes:
        poll_seconds: Seconds between two questions.
        slurm: Partition of SLURM; ``None`` on this machine.
    """

    poll_seconds: float
    slurm: str | None

    def has_room(self, running: Sequence[Training]) -> bool:
        """Whether another training may start beside those that run."""

    def place(self, training: Training, running: Sequence[Training]) -> dict[str, Any]:
        """What is to be noted of a start before it begins: its devices, or the name of its job."""

    def start(self, training: Training, command: Sequence[str]) -> None:
        """Start a training whose last start is noted already."""

    def ended(self, running: Sequence[Training]) -> list[Ended | None]:
        """How each training has ended; ``None`` for one that runs."""

    def stop(self, trainings: Iterable[Training]) -> None:
        """Tell trainings to save and to end."""


class LocalExecutor:
    """Trainings on this machine, each with GPUs of its own; without any, as processes on the CPU.

    Args:
        gpus_per_trial: Processes of each training.
        jobs: Largest number of trainings at a time; by default as many as there are GPUs for, without any 1.

    Raises:
        ConfigError: If there are not enough GPUs.
    """

    poll_seconds = 0.5
    slurm: str | None = None

    def __init__(self, gpus_per_trial: int, jobs: int | None = None) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        self._devices = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
        self._per_trial = gpus_per_trial
        most = count // gpus_per_trial if count else None
        if most is not None and (jobs or 1) > most:
            raise ConfigError(
                f"{jobs or 1} trainings of {gpus_per_trial} GPUs at a time: this machine has {count} GPUs: use --jobs "
                "or --gpus-per-trial"
            )
        self.jobs = jobs or most or 1

    def has_room(self, running: Sequence[Training]) -> bool:
        """Whether another training may start beside those that run."""
        return len(running) < self.jobs

    def place(self, training: Training, running: Sequence[Training]) -> dict[str, Any]:
        """The first devices that no running training has."""
        forget_end(training.folder)
        taken = {device for one in running for device in one.record["starts"][-1].get("devices", [])}
        free = [device for device in self._devices if device not in taken]
        return {"devices": free[: self._per_trial]} if self._devices else {}

    def start(self, training: Training, command: Sequence[str]) -> None:
        """Start a training, in a session of its own."""
        devices = training.record["starts"][-1].get("devices", [])
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if devices:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        threads = max(1, (os.cpu_count() or 1) // (self.jobs * self._per_trial))
        env.setdefault("OMP_NUM_THREADS", str(threads))
        try:
            start_kept(training.folder, command, training.folder / CONSOLE, env)
        except OSError as error:
            raise MachineError(f"{training.label} cannot be started: {error.strerror or error}") from error

    def ended(self, running: Sequence[Training]) -> list[Ended | None]:
        """How each training has ended; ``None`` for one that runs."""
        return [None if is_alive(one.folder) else Ended(exit_code_of(one.folder)) for one in running]

    def stop(self, trainings: Iterable[Training]) -> None:
        """Tell trainings to save and to end."""
        for training in trainings:
            tell_to_stop(training.folder)


class SlurmExecutor:
    """Trainings as jobs of SLURM, a job each; ``SBATCH_ARGS`` has more options for ``sbatch``.

    Args:
        partition: Partition.
        gpus_per_trial: GPUs of each training.
        jobs: Largest number of jobs in the queue or running.

    Raises:
        MachineError: If a program of SLURM is absent.
    """

    poll_seconds = 15.0

    def __init__(self, partition: str, gpus_per_trial: int, jobs: int | None = None) -> None:
        if absent := [name for name in SLURM_PROGRAMS if shutil.which(name) is None]:
            raise MachineError(f"--slurm {partition}: {', '.join(absent)} not found: start on a machine of the cluster")
        self.slurm: str | None = partition
        self.jobs = jobs or 16
        self._gpus = gpus_per_trial
        self._per_node = int(os.environ.get("GPUS_PER_NODE") or min(gpus_per_trial, 8))
        if gpus_per_trial % self._per_node:
            raise ConfigError(f"--gpus-per-trial {gpus_per_trial} is not a multiple of GPUS_PER_NODE={self._per_node}")

    def has_room(self, running: Sequence[Training]) -> bool:
        """Whether another job may be submitted."""
        return len(running) < self.jobs

    def place(self, training: Training, running: Sequence[Training]) -> dict[str, Any]:
        """A name for the job that no other has: found again where the controller dies before it knows the job's id."""
        return {"job": f"{training.folder.name}-{training.number}-{secrets.token_hex(6)}"}

    def start(self, training: Training, command: Sequence[str]) -> None:
        """Submit a job.

        Raises:
            MachineError: If SLURM does not take it.
        """
        cpus = os.environ.get("CPUS_PER_TASK") or str(8 * self._per_node)
        options = {
            "job-name": training.record["starts"][-1]["job"],
            "partition": self.slurm,
            "nodes": self._gpus // self._per_node,
            "ntasks-per-node": 1,
            "gres": f"gpu:{self._per_node}",
            "cpus-per-task": cpus,
            "output": training.folder / CONSOLE,
            "open-mode": "append",
            "wrap": shlex.join(command),
        }
        more = shlex.split(os.environ.get("SBATCH_ARGS", ""))
        _run(["sbatch", "--parsable", "--requeue", *(f"--{key}={value}" for key, value in options.items()), *more])

    def ended(self, running: Sequence[Training]) -> list[Ended | None]:
        """How each job has ended, by SLURM's accounting; ``None`` for one that runs or waits."""
        starts = [one.record["starts"][-1] for one in running]
        if not starts:
            return []
        names = [start["job"] for start in starts]
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(start["began"] for start in starts) - 86400))
        query = ["sacct", "-X", "-n", "-P", "-S", since, f"--name={','.join(names)}", "--format=JobName,State,ExitCode"]
        states = dict(_job(line) for line in _run(query).splitlines() if line.count("|") == 2)
        unknown = [
            Ended(None) if time.time() - start["began"] > ACCOUNTING_SECONDS and start["job"] not in states else None
            for start in starts
        ]
        return [states.get(name, missing) for name, missing in zip(names, unknown)]

    def stop(self, trainings: Iterable[Training]) -> None:
        """Cancel jobs; SLURM lets them save first."""
        for training in trainings:
            training.note(cancelled=training.record["starts"][-1]["job"])
            _run(["scancel", f"--name={training.record['starts'][-1]['job']}"])


def _job(line: str) -> tuple[str, Ended | None]:
    """Name and end of a job from a line of sacct: ``name|CANCELLED by 1000|0:15``."""
    name, state, codes = line.split("|")
    word = state.split()[0].rstrip("+")
    code, _, signal_number = codes.partition(":")
    if word in SLURM_RUNNING:
        return name, None
    if word in SLURM_INTERRUPTED:
        return name, Ended(EXIT_SAVED)
    if word in SLURM_KILLED or signal_number not in ("", "0"):
        return name, Ended(-(int(signal_number or 0) or 15))
    return name, Ended(int(code))


def _run(command: Sequence[str]) -> str:
    """The output of a program of SLURM.

    Raises:
        MachineError: If it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise MachineError(f"{command[0]}: {said}")
    return done.stdout
