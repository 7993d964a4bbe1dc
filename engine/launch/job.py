"""A job of several processes on one or several machines: rendezvous, run, report of the end."""

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

from engine.launch.agent import SAVED_MESSAGES, LaunchAgent, print_line
from engine.launch.exit_codes import EXIT_BAD_INPUT, EXIT_HUNG
from engine.launch.rendezvous import RendezvousError, RendezvousServer, request_port, run_id

RENDEZVOUS_SECONDS = 600.0  # from the first machine's start to the last one's
STORE_TIMEOUT = timedelta(seconds=RENDEZVOUS_SECONDS)
EXIT_WAIT_SECONDS = 20.0  # for the other machines to end after a failure


@dataclass(frozen=True)
class LaunchConfig:
    """The part of a job that this machine starts.

    Attributes:
        processes: Number of processes on each machine.
        nodes: Number of machines.
        node_rank: Number of this machine, from 0.
        address: Address of the first machine.
        port: First of the ports on which the machines may meet.
        max_restarts: Most restarts of the processes after a failure.
        grace: Seconds to save for processes that are told to stop.
        program: Path of a Python file.
        arguments: Arguments of the program.
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


class StaticRendezvous(RendezvousHandler):
    """Fixed machines, any free ports: one store for the launchers, and a new one for the processes at each start.

    In a store that is kept, restarted processes would read the addresses of the ones before.

    Args:
        job: Number and addresses of the machines, and what they start.

    Raises:
        RendezvousError: If the machines do not find each other.
    """

    use_agent_store = True  # the processes find a server, and start none

    def __init__(self, job: LaunchConfig) -> None:
        self._job = job
        self._name = run_id(job.nodes, job.processes, job.program, job.arguments)
        self._round = 0
        self._servers: list[TCPStore] = []
        if job.node_rank == 0:
            launchers = self._serve()
            if job.nodes > 1:
                server = RendezvousServer(self._name, job.port, launchers.port)
                launchers.wait([f"here/{node}" for node in range(1, job.nodes)], STORE_TIMEOUT)
                server.close()
        else:
            port = request_port(job.address, job.port, self._name, job.node_rank, RENDEZVOUS_SECONDS)
            launchers = TCPStore(job.address, port, None, False, STORE_TIMEOUT, wait_for_workers=False)
            launchers.set(f"here/{job.node_rank}", "")
        self._launchers = launchers

    def next_rendezvous(self) -> RendezvousInfo:
        """The launchers' store for one start of the processes, and the address of the processes' store."""
        job, start = self._job, PrefixStore(str(self._round), self._launchers)
        self._round += 1
        if job.node_rank == 0:
            start.set("port", str(self._serve().port))
        place = RendezvousStoreInfo(job.address, int(start.get("port")))
        return RendezvousInfo(start, job.node_rank, job.nodes, place)

    def get_backend(self) -> str:
        """Name of this kind of rendezvous."""
        return "fixed"

    def get_run_id(self) -> str:
        """Identifier of the job."""
        return self._name

    def is_closed(self) -> bool:
        """Never: it ends with the launcher."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """Number of machines that want to join: none can."""
        return 0

    def shutdown(self) -> bool:
        """Nothing to shut down."""
        return True

    def _serve(self) -> TCPStore:
        store = TCPStore(self._job.address, 0, None, True, STORE_TIMEOUT, wait_for_workers=False)
        self._servers.append(store)
        return store


def launch(job: LaunchConfig) -> int:
    """Run a job to its end; the last line on stderr is the reason if it did not succeed.

    Returns:
        The exit code: 0, that of the rank that failed first, 2 if the machines do not find each other, 75 for stopped
        with everything saved, 124 for a hang, 130 for Ctrl-C.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        rendezvous = StaticRendezvous(job)
    except RendezvousError as error:
        print_line(f"error: {error}")
        return EXIT_BAD_INPUT
    spec = WorkerSpec(
        role="default",
        local_world_size=job.processes,
        rdzv_handler=rendezvous,
        entrypoint=sys.executable,
        args=("-u", job.program, *job.arguments),
        max_restarts=job.max_restarts,
        monitor_interval=0.1,
    )
    with tempfile.TemporaryDirectory(prefix="launch_") as folder:
        agent = LaunchAgent(spec, DefaultLogsSpecs(log_dir=folder), job.grace, job.nodes, job.node_rank)
        try:
            agent.run()
        except SignalException as stop:  # before the agent has installed its signal handlers
            return 128 + stop.sigval
        return _report_end(agent, job)


def _report_end(agent: LaunchAgent, job: LaunchConfig) -> int:
    """Print the end of the job, together with the other machines; the exit code."""
    end = agent.end
    if end is None:
        return 0
    saved = end.exit_code in SAVED_MESSAGES
    if end.exit_code == EXIT_HUNG:
        agent.report_stacks()
    if agent.channel is not None:
        agent.channel.wait_for_exit(end.exit_code, job.grace if saved else EXIT_WAIT_SECONDS)
        # SLURM signals the other machines when the first one exits; they are about to exit with the right code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print_line(end.message if saved else f"error: {end.message}")
    return end.exit_code
