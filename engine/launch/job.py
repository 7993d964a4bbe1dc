"""A job of several processes on one or several machines: rendezvous, run, report of the end."""

from __future__ import annotations

import logging
import signal
import sys
from dataclasses import dataclass

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from engine.launch.agent import SAVED_MESSAGES, LaunchAgent, print_line
from engine.launch.exit_codes import EXIT_BAD_INPUT, EXIT_HUNG, EXIT_INTERRUPTED, EXIT_SAVED
from engine.launch.leftovers import temporary_folder
from engine.launch.rendezvous import RendezvousError, RendezvousServer, request_port, run_id

RENDEZVOUS_SECONDS = 600  # from the first machine's start to the last one's
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


class StaticRendezvous(StaticTCPRendezvous):
    """Fixed machines, any free ports: one store for the launchers, and a new one for the processes at each start.

    In a store that is kept, restarted processes would read the addresses of the ones before.

    Args:
        job: Number and addresses of the machines, and what they start.

    Raises:
        RendezvousError: If the machines do not find each other.
    """

    def __init__(self, job: LaunchConfig) -> None:
        name = run_id(job.nodes, job.processes, job.program, job.arguments)
        # The port is that of torch's own store, which is not used.
        super().__init__(job.address, job.port, job.node_rank, job.nodes, name, RENDEZVOUS_SECONDS)
        self._round = 0
        self._servers: list[TCPStore] = []
        if job.node_rank == 0:
            launchers = self._serve()
            if job.nodes > 1:
                server = RendezvousServer(name, job.port, launchers.port)
                launchers.wait([f"here/{node}" for node in range(1, job.nodes)], self.timeout)
                server.close()
        else:
            port = request_port(job.address, job.port, name, job.node_rank, RENDEZVOUS_SECONDS)
            launchers = TCPStore(job.address, port, None, False, self.timeout, wait_for_workers=False)
            launchers.set(f"here/{job.node_rank}", "")
        self._launchers = launchers

    def next_rendezvous(self) -> RendezvousInfo:
        """The launchers' store for one start of the processes, and the address of the processes' store."""
        start = PrefixStore(str(self._round), self._launchers)
        self._round += 1
        if self.rank == 0:
            start.set("port", str(self._serve().port))
        place = RendezvousStoreInfo(self.master_addr, int(start.get("port")))
        return RendezvousInfo(start, self.rank, self.world_size, place)

    def _serve(self) -> TCPStore:
        store = TCPStore(self.master_addr, 0, None, True, self.timeout, wait_for_workers=False)
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
    with temporary_folder("launch_") as folder:
        agent = LaunchAgent(spec, DefaultLogsSpecs(log_dir=str(folder)), job.grace, job.nodes, job.node_rank)
        try:
            agent.run()
        except SignalException as stop:  # before the agent has installed its signal handlers
            print_line(f"stopped by {stop.sigval.name} before anything was there to save: start again")
            return EXIT_INTERRUPTED if stop.sigval == signal.SIGINT else EXIT_SAVED
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
