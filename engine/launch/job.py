"""A job of several processes on one or several machines: find each other, run, say how it ended."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from engine.launch.agent import LEFT, Agent, say
from engine.launch.exit_codes import EXIT_HUNG
from engine.launch.rendezvous import Meeting, ask, run_id

MEETING_PATIENCE = 600.0  # seconds from the first machine's start to the last one's
TIMEOUT = timedelta(seconds=MEETING_PATIENCE)
LEAVING_PATIENCE = 20.0  # seconds for the other machines to end after a failure


@dataclass(frozen=True)
class Job:
    """What is started on this machine.

    Attributes:
        processes: On this machine, and on every other one.
        nodes: Machines.
        node_rank: Number of this machine.
        address: Of the first machine.
        port: First of the ports on which the machines may meet.
        max_restarts: How often to start the processes again after a failure.
        grace: Seconds to save for processes that are told to stop.
        program: Python file.
        arguments: Its arguments.
    """

    processes: int
    nodes: int
    node_rank: int
    address: str
    port: int
    max_restarts: int
    grace: float
    program: str
    arguments: list[str]


class Rendezvous(RendezvousHandler):
    """Fixed machines, any free ports: a store for the launchers, and a new one for the processes at each start.

    The processes of another try would read the addresses of the last one in a store that is kept.

    Args:
        job: What is started here.

    Raises:
        MeetingError: If the machines do not find each other.
    """

    use_agent_store = True  # the processes find a server, and start none

    def __init__(self, job: Job) -> None:
        self._job = job
        self._name = run_id(job.nodes, job.processes, job.program, job.arguments)
        self._round = 0
        self._servers: list[TCPStore] = []
        if job.node_rank == 0:
            launchers = self._serve()
            if job.nodes > 1:
                meeting = Meeting(self._name, job.port, launchers.port)
                launchers.wait([f"here/{node}" for node in range(1, job.nodes)], TIMEOUT)
                meeting.close()
        else:
            port = ask(job.address, job.port, self._name, job.node_rank, MEETING_PATIENCE)
            launchers = TCPStore(job.address, port, None, False, TIMEOUT, wait_for_workers=False)
            launchers.set(f"here/{job.node_rank}", "")
        self._launchers = launchers

    def next_rendezvous(self) -> RendezvousInfo:
        """The store of the launchers for one start of the processes, and the place of that of the processes."""
        job, start = self._job, PrefixStore(str(self._round), self._launchers)
        self._round += 1
        if job.node_rank == 0:
            start.set("port", str(self._serve().port))
        place = RendezvousStoreInfo(job.address, int(start.get("port")))
        return RendezvousInfo(start, job.node_rank, job.nodes, place)

    def get_backend(self) -> str:
        """Name of this way."""
        return "fixed"

    def get_run_id(self) -> str:
        """Name of the job."""
        return self._name

    def is_closed(self) -> bool:
        """Never: it ends with the launcher."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """Machines that want to join: none can."""
        return 0

    def shutdown(self) -> bool:
        """Nothing to shut down."""
        return True

    def _serve(self) -> TCPStore:
        store = TCPStore(self._job.address, 0, None, True, TIMEOUT, wait_for_workers=False)
        self._servers.append(store)
        return store


def launch(job: Job) -> int:
    """Run a job to its end and say in the last line how that was, where it was not well.

    Returns:
        The exit code: 0, that of the rank that failed first, 75 for saved and left, 124 for a hang, 130 for Ctrl-C.

    Raises:
        MeetingError: If the machines do not find each other.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    spec = WorkerSpec(
        role="default",
        local_world_size=job.processes,
        rdzv_handler=Rendezvous(job),
        entrypoint=sys.executable,
        args=("-u", job.program, *job.arguments),
        max_restarts=job.max_restarts,
        monitor_interval=0.1,
    )
    with tempfile.TemporaryDirectory(prefix="launch_") as folder:
        agent = Agent(spec, DefaultLogsSpecs(log_dir=folder), job.grace, job.nodes, job.node_rank)
        try:
            agent.run()
        except SignalException as stop:  # between torch's handlers and ours
            return 128 + stop.sigval
        return _farewell(agent, job)


def _farewell(agent: Agent, job: Job) -> int:
    ended = agent.ended
    if ended is None:
        return 0
    if ended.code == EXIT_HUNG:
        agent.tell_stacks()
    if agent.mail is not None:
        agent.mail.leave(ended.code, job.grace if ended.code in LEFT else LEAVING_PATIENCE)
        # SLURM tells the machines that are left at the first one's exit; they are about to leave with the right code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(ended.line if ended.code in LEFT else f"error: {ended.line}")
    return ended.code
