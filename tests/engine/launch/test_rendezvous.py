"""The launchers of two machines find each other beside whoever else uses their ports."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from engine.launch import rendezvous
from engine.launch.rendezvous import RendezvousError, RendezvousServer, request_port, run_id
from tests.programs import PATIENCE

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(rendezvous, "RETRY_SECONDS", 0.05)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is not waited for; others have as long as they need."""
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.5)


@pytest.fixture
def first_port() -> int:
    """The first of some ports in a row that are free."""
    for port in range(20_000, 30_000, rendezvous.PORT_COUNT):
        with ExitStack() as stack:
            try:
                for number in range(port, port + 4):
                    stack.enter_context(socket.create_server(("", number)))
            except OSError:
                continue
            return port
    raise AssertionError("no free ports")


@contextmanager
def stranger(port: int, says: bytes | None) -> Iterator[None]:
    """Somebody else who listens on a port and says something, or nothing."""

    def serve() -> None:
        kept = []
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if says is not None:
                connection.sendall(says)
            kept.append(connection)

    with socket.create_server(("", port)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("says", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"hello job 1234\n", b"\xff" * 5000])
def test_a_stranger_on_the_port_is_passed_by(first_port: int, says: bytes | None) -> None:
    with stranger(first_port, says):
        first = RendezvousServer("job", first_port, 4321)
        assert first.port == first_port + 1
        assert request_port(HOST, first_port, "job", 1, PATIENCE) == 4321
        first.close()


def test_two_jobs_on_one_machine_do_not_mix(first_port: int) -> None:
    one, two = RendezvousServer("one", first_port, 1111), RendezvousServer("two", first_port, 2222)
    assert request_port(HOST, first_port, "two", 1, PATIENCE) == 2222
    assert request_port(HOST, first_port, "one", 1, PATIENCE) == 1111
    one.close()
    two.close()
    again = RendezvousServer("three", first_port, 3333)
    assert again.port == first_port
    again.close()


@pytest.mark.usefixtures("silence")
def test_one_that_says_nothing_does_not_keep_the_others_waiting(first_port: int) -> None:
    first = RendezvousServer("job", first_port, 4321)
    with socket.create_connection((HOST, first_port)):
        assert request_port(HOST, first_port, "job", 1, PATIENCE) == 4321
    first.close()


def test_the_last_machine_may_come_first(first_port: int) -> None:
    answers: list[int] = []
    other = threading.Thread(target=lambda: answers.append(request_port(HOST, first_port, "job", 1, PATIENCE)))
    other.start()
    other.join(0.3)
    assert not answers
    first = RendezvousServer("job", first_port, 4321)
    other.join(PATIENCE)
    assert answers == [4321]
    first.close()


def test_wrong_launches_are_told_in_one_line(first_port: int) -> None:
    first = RendezvousServer("job", first_port, 4321)
    assert request_port(HOST, first_port, "job", 1, PATIENCE) == 4321
    with pytest.raises(RendezvousError, match="NODE_RANK=1: each needs a number of its own"):
        request_port(HOST, first_port, "job", 1, PATIENCE)
    with pytest.raises(RendezvousError, match=f"on port {first_port} waits a launch with another command line"):
        request_port(HOST, first_port, "other", 1, 0.2)
    first.close()
    with pytest.raises(RendezvousError, match=f"did not answer at MASTER_ADDR={HOST}, ports {first_port} to "):
        request_port(HOST, first_port, "job", 1, 0.2)


def test_no_free_port_is_told_in_one_line(first_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PORT_COUNT", 2)
    with (
        stranger(first_port, None),
        stranger(first_port + 1, None),
        pytest.raises(RendezvousError, match="are all in use: give another MASTER_PORT"),
    ):
        RendezvousServer("job", first_port, 4321)


def test_the_run_id_is_that_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    mine = run_id(2, 8, "a/tools/train.py", ["c.py", "--seed", "1"])
    assert mine == run_id(2, 8, "b/tools/train.py", ["c.py", "--seed", "1"])
    others = [(3, 8, "train.py", ["c.py", "--seed", "1"]), (2, 8, "test.py", ["c.py", "--seed", "1"])]
    others += [(2, 8, "train.py", ["c.py", "--seed", "2"]), (2, 8, "train.py", ["c.py --seed 1"])]
    assert mine not in {run_id(*other) for other in others}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert mine != run_id(2, 8, "a/tools/train.py", ["c.py", "--seed", "1"])
