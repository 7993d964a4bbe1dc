"""The shell launchers, run beside a stand-in for the Python tools; needs no GPU, no SLURM, no network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import PATIENCE

TOOLS = Path(__file__).resolve().parents[2] / "tools"

# Says what it was started with, after a real collective over all processes.
PROGRAM = """
import json, os, sys
import torch
import torch.distributed as dist

if "--fail" in sys.argv:
    sys.exit(2)
if "--leave" in sys.argv:
    sys.exit(75)
dist.init_process_group("gloo")
rank_sum = torch.tensor(dist.get_rank())
dist.all_reduce(rank_sum)
names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
said = {name: os.environ[name] for name in names} | {"rank_sum": rank_sum.item(), "args": sys.argv[1:]}
dist.barrier()
print(json.dumps(said) + "\\n", end="", flush=True)
dist.destroy_process_group()
"""

FAKE_SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$FAKE_LOG"
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_NODELIST="node[1-2]" SLURM_NNODES=2
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" || exit
wait $other
"""

FAKE_SCONTROL = """#!/usr/bin/env bash
[ "$1" = requeue ] && { echo "$*" >>"$FAKE_LOG.requeue"; echo "${REFUSE:-}"; [ -z "${REFUSE:-}" ]; exit; }
[ "$*" = "show hostnames node[1-2]" ] && printf '127.0.0.1\\nnode2\\n'
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A checkout with our shell scripts and a stand-in for the programs; the blank in its name is meant."""
    tools = tmp_path / "a checkout" / "tools"
    tools.mkdir(parents=True)
    for script in (*TOOLS.glob("*.sh"), TOOLS / "launch.py"):
        shutil.copy(script, tools)
    for name in ("backbones", "engine", "convnext_dense.py", "convnext_dense_signals.py"):
        (tools.parent / name).symlink_to(TOOLS.parent / name)
    for name in ("train.py", "test.py"):
        (tools / name).write_text(PROGRAM)
    return tools.parent


def clean_environment(**extra: str) -> dict[str, str]:
    """This interpreter first on PATH, and no setting of a surrounding launcher or environment."""
    mine = {"NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
    mine |= {"OMP_NUM_THREADS", "GPUS_PER_NODE", "CPUS_PER_TASK", "SRUN_ARGS", "VIRTUAL_ENV", "CONDA_PREFIX"}
    mine |= {"MAX_RESTARTS", "STOP_GRACE"}
    kept = {name: value for name, value in os.environ.items() if name not in mine and not name.startswith("SLURM_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | extra


def start(script: Path, *args: str, **extra: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = ["bash", str(script), *args]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=clean_environment(**extra))


def finish(process: subprocess.Popen[str]) -> tuple[int, list[dict], str]:
    """Exit code, what each process said (by rank), stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    said = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return process.returncode, sorted(said, key=lambda one: int(one["RANK"])), err


def make_executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_two_launches_at_once_each_with_two_processes(room: Path) -> None:
    launched = [
        start(room / "tools/dist_train.sh", f"{name}.py", "2", "--cfg-options", "x=a b", OMP_NUM_THREADS="3")
        for name in ("one", "two")
    ]
    ports = set()
    for name, process in zip(("one", "two"), launched, strict=True):
        code, said, err = finish(process)
        assert code == 0, err
        assert [one["RANK"] for one in said] == ["0", "1"]
        for one in said:
            assert one["WORLD_SIZE"] == "2"
            assert one["rank_sum"] == 1
            assert one["OMP_NUM_THREADS"] == "3"
            assert one["args"] == [f"{name}.py", "--launcher", "pytorch", "--cfg-options", "x=a b"]
        ports.add(said[0]["MASTER_PORT"])
    assert len(ports) == 2


def test_dist_test_passes_the_checkpoint(room: Path) -> None:
    code, said, err = finish(start(room / "tools/dist_test.sh", "c.py", "my weights.pth", "1", "--tta"))
    assert code == 0, err
    assert said[0]["args"] == ["c.py", "my weights.pth", "--launcher", "pytorch", "--tta"]


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (7, "3")])
def test_processes_share_the_cores(room: Path, cores: int, threads: str) -> None:
    make_executable(room / "bin/nproc", f"#!/bin/sh\necho {cores}\n")
    make_executable(room / ".venv/bin/python", '#!/bin/sh\necho "$OMP_NUM_THREADS"\n')
    path = f"{room / 'bin'}{os.pathsep}{os.environ['PATH']}"
    out, _ = start(room / "tools/dist_train.sh", "c.py", "2", PATH=path).communicate(timeout=PATIENCE)
    assert out.strip() == threads


def test_a_failure_of_the_program_is_a_failure_of_the_launcher(room: Path) -> None:
    code, _, _ = finish(start(room / "tools/dist_train.sh", "c.py", "1", "--fail"))
    assert code not in (0, None)


@pytest.mark.parametrize(
    ("script", "args", "needle"),
    [
        ("dist_train.sh", [], "usage: tools/dist_train.sh CONFIG GPUS"),
        ("dist_train.sh", ["c.py"], "usage:"),
        ("dist_train.sh", ["c.py", "0"], "GPUS must be a positive integer, not '0'"),
        ("dist_train.sh", ["c.py", "two"], "GPUS must be a positive integer, not 'two'"),
        ("dist_test.sh", ["c.py", "w.pth"], "usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS"),
        ("dist_test.sh", ["c.py", "w.pth", "-1"], "GPUS must be a positive integer"),
        ("slurm_train.sh", ["gpu", "job", "c.py"], "usage: tools/slurm_train.sh PARTITION"),
        ("slurm_train.sh", ["gpu", "job", "c.py", "12"], "GPUS (12) is not a multiple of GPUS_PER_NODE (8)"),
    ],
)
def test_wrong_usage_says_so_with_code_2(room: Path, script: str, args: list[str], needle: str) -> None:
    process = start(room / "tools" / script, *args)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert out == ""
    assert needle in err


@pytest.mark.parametrize(
    ("setting", "value", "needle"),
    [
        ("NODE_RANK", "2", "NODE_RANK=2: it counts from 0 to 1"),
        ("NODE_RANK", "first", "NODE_RANK must be a number from 0, not 'first'"),
        ("MAX_RESTARTS", "-1", "MAX_RESTARTS must be a number from 0"),
        ("STOP_GRACE", "2min", "STOP_GRACE must be a number from 0"),
    ],
)
def test_wrong_settings_say_so_with_code_2(room: Path, setting: str, value: str, needle: str) -> None:
    settings = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", setting: value}
    process = start(room / "tools/dist_train.sh", "c.py", "1", **settings)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert needle in err


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR"])
def test_several_machines_need_a_rank_and_an_address(room: Path, missing: str) -> None:
    settings = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    del settings[missing]
    process = start(room / "tools/dist_train.sh", "c.py", "1", **settings)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert missing in err


def test_the_environment_of_the_checkout_is_used_when_none_is_active(room: Path) -> None:
    script = room / "tools/dist_train.sh"
    make_executable(room / ".venv/bin/python", '#!/bin/sh\necho "of the checkout: $*"\n')
    out, _ = start(script, "c.py", "1").communicate(timeout=PATIENCE)
    assert out.startswith("of the checkout: ")
    assert "launch.py" in out
    make_executable(room / "active/python", '#!/bin/sh\necho "active"\n')
    path = f"{room / 'active'}{os.pathsep}{os.environ['PATH']}"
    out, _ = start(script, "c.py", "1", PATH=path, VIRTUAL_ENV="x").communicate(timeout=PATIENCE)
    assert out == "active\n"


@pytest.fixture
def slurm(room: Path) -> dict[str, str]:
    """The environment of a job on a cluster with stand-ins for srun and scontrol, on a free rendezvous port."""
    make_executable(room / "bin/srun", FAKE_SRUN)
    make_executable(room / "bin/scontrol", FAKE_SCONTROL)
    return {
        "PATH": f"{room / 'bin'}{os.pathsep}{clean_environment()['PATH']}",
        "FAKE_LOG": str(room / "srun.log"),
        "SLURM_JOB_ID": str(free_port_of_a_job() + 10_000),
        "GPUS_PER_NODE": "1",
        "SRUN_ARGS": "--time=1:00:00 --requeue",
    }


def test_slurm_starts_one_launcher_per_machine(room: Path, slurm: dict[str, str]) -> None:
    """The port that follows from the job is taken by somebody who says nothing: no reason not to meet."""
    args = ["gpu", "a job", "c.py", "2", "--seed", "1"]
    port = int(slurm["SLURM_JOB_ID"]) - 10_000
    with socket.create_server(("", port)):
        code, said, err = finish(start(room / "tools/slurm_train.sh", *args, **slurm))
    assert code == 0, err
    assert [(one["RANK"], one["rank_sum"]) for one in said] == [("0", 1), ("1", 1)]
    assert {one["MASTER_ADDR"] for one in said} == {"127.0.0.1"}
    assert len({one["MASTER_PORT"] for one in said} - {str(port)}) == 1
    assert said[0]["args"] == ["c.py", "--launcher", "pytorch", "--seed", "1"]
    asked = set((room / "srun.log").read_text().splitlines())
    assert asked >= {"--partition=gpu", "--job-name=a job", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"}
    assert asked >= {"--gres=gpu:1", "--cpus-per-task=8", "--time=1:00:00", "--requeue"}


@pytest.mark.parametrize(
    ("settings", "needle"),
    [
        ({}, "is queued again and will go on from there"),
        (
            {"REFUSE": "Job is no batch job"},
            "not queued again (Job is no batch job): go on with the same line and ",
        ),
        ({"SLURM_JOB_ID": ""}, "only an sbatch job is queued again by itself: go on with the same line and --resume"),
    ],
)
def test_slurm_queues_a_saved_job_again_once(
    room: Path, slurm: dict[str, str], settings: dict[str, str], needle: str
) -> None:
    args = ["gpu", "a job", "c.py", "2", "--leave"]
    process = start(room / "tools/slurm_train.sh", *args, **slurm | settings)
    code, _, err = finish(process)
    assert code == 75
    assert needle in err.splitlines()[-1]
    assert err.count("stopped with everything saved") == 2  # by each machine
    asked = room / "srun.log.requeue"
    job = (slurm | settings)["SLURM_JOB_ID"]
    assert (asked.read_text().splitlines() if asked.exists() else []) == ([f"requeue {job}"] if job else [])


BUSY_CHANNEL = """
import sys, threading, time
sys.path.insert(0, {tools!r})
import launch
import engine.launch.job
from torch.distributed import TCPStore

def end_while_a_thread_asks_the_store(job):
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    def ask():
        while True:
            store.set("beat", "")
    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.1)
    print("the last line", file=sys.stderr)
    return 75

engine.launch.job.launch = end_while_a_thread_asks_the_store
launch.main()
"""


def test_a_busy_channel_does_not_change_its_exit_code() -> None:
    program = [sys.executable, "-c", BUSY_CHANNEL.format(tools=str(TOOLS)), "--processes", "1", "train.py"]
    done = subprocess.run(program, capture_output=True, text=True, env=clean_environment(), timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (75, "the last line\n")


@pytest.mark.parametrize(("count", "more"), [("0", []), ("2", ["--resume"])])
def test_slurm_resumes_after_a_requeue(room: Path, slurm: dict[str, str], count: str, more: list[str]) -> None:
    make_executable(room / "bin/srun", '#!/bin/sh\nwhile [ "$1" != slurm_train ]; do shift; done\necho "$@"\n')
    process = start(room / "tools/slurm_train.sh", "gpu", "job", "c.py", "2", **slurm, SLURM_RESTART_COUNT=count)
    out, _ = process.communicate(timeout=PATIENCE)
    assert out.rstrip().endswith(" ".join(["/dist_train.sh", "c.py", "1", *more]))


def free_port_of_a_job() -> int:
    """A free port among those that slurm_train.sh derives from job numbers (10000 to 29999)."""
    for port in range(12_000 + os.getpid() % 10_000, 30_000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
