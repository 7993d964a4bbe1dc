"""What a training leaves in its folder, from made-up runners."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import engine.report.recorder
from backbones.errors import UserError
from engine.checkpoint.preemption import Stop
from engine.config.load import load_config
from engine.config.world import Launch
from engine.distributed.agreement import StopRequest
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.planning.plan import training_plan
from engine.report.environment import (
    code_diff,
    code_state,
    commit_line,
    environment,
    memory_limit,
    variables,
    without_secrets,
)
from engine.report.recorder import command_line, outcome_of, record_run
from engine.report.run_dir import read_starts
from engine.training.validation import ResumableEarlyStoppingHook

ROOT = Path(__file__).resolve().parents[3]


class Runner:
    """As much of a runner as the record looks at; training is setting ``iter``."""

    def __init__(self, folder: Path, timestamp: str = "20260101_000000", resume: bool = False, begin: int = 0) -> None:
        self.work_dir, self.timestamp, self.is_resuming, self.iter, self.max_iters = (
            str(folder),
            timestamp,
            resume,
            begin,
            10,
        )
        self.world_size, self.seed, self.load_reports = 1, 7, [{"part": "backbone", "line": "8/8 tensors"}]
        self.logger = logging.getLogger("record")
        self.hooks: list[Any] = []
        self.visualizer = SimpleNamespace(get_backend=lambda name: None)
        self.val_loop = SimpleNamespace(class_scores={})

    def register_hook(self, hook: Any, priority: str) -> None:
        self.hooks.append(hook)


@pytest.fixture(scope="module")
def planned() -> tuple[Any, Any]:
    config, launch = ROOT / "configs/classification/digits.py", Launch()
    resolved = load_config(config, {"train_cfg.max_epochs": 2, "batch.size": 8, "randomness.seed": 7}, launch)
    return resolved, training_plan(resolved, launch).with_data(40, 5)


@contextmanager
def started(runner: Runner, planned: tuple[Any, Any]) -> Iterator[None]:
    with record_run(runner, *planned):
        for hook in runner.hooks:
            hook.before_train(runner)
        yield


def starts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "starts.json").read_text())["starts"]


def test_a_finished_training_leaves_its_record(tmp_path: Path, planned: tuple[Any, Any]) -> None:
    runner = Runner(tmp_path)
    with started(runner, planned):
        running = starts(tmp_path)[0]
        assert (running["outcome"], running["from_step"]) == ("running", 0)
        HEARTBEAT.enter(Phase.VALIDATION)
        time.sleep(0.2)
        assert "Running" in (tmp_path / "report.html").read_text()
        runner.iter = 10
    (start,) = starts(tmp_path)
    assert (start["outcome"], start["from_step"], start["to_step"], start["of_steps"]) == ("finished", 0, 10, 10)
    assert 0.2 <= start["spent"]["validation"] <= sum(start["spent"].values()) <= start["seconds"] + 1
    assert start["config"]["changed"]["batch.size"] == [64, 8]
    assert "The classification recipe" in start["config"]["text"]
    assert start["weights"] == runner.load_reports
    assert start["about"]["task"] == "classification"
    assert start["about"]["backbone"] == "convnext_atto"
    assert (start["about"]["seed"], start["about"]["ema"], start["about"]["classes"]) == (7, 0.99, 10)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["batch"] == {"global_batch": 8, "processes": 1, "per_process": 8, "accumulation": 1}
    assert plan["schedule"]["steps"] == 10
    assert any("learning rate" in line for line in plan["notes"])
    made = json.loads((tmp_path / "environment.json").read_text())
    assert {"python", "torch", "torchvision", "timm", "numpy", "pillow"} <= set(made["versions"])
    assert made["machine"]["cores"] >= 1
    assert made == start["environment"]
    assert "Finished at step 10 of 10." in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
        (Stop(StopRequest.LEAVE), "stopped", "asked to, exit code 75"),
        (UserError("data: 'a.jpg' is empty"), "failed", "data: 'a.jpg' is empty"),
        (RuntimeError("CUDA out of memory\nmore"), "failed", "RuntimeError: CUDA out of memory"),
        (ValueError("Caught X in worker 0.\nTraceback\nX: the cause"), "failed", "ValueError: X: the cause"),
        (OSError("https://me:secret@host/a"), "failed", "OSError: https://***@host/a"),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
)
def test_an_early_end_is_told_and_passed_on(
    error: BaseException, outcome: str, reason: str, tmp_path: Path, planned: tuple[Any, Any]
) -> None:
    assert outcome_of(error) == (outcome, reason)
    (tmp_path / "epoch_1.pth").touch()
    runner = Runner(tmp_path)

    def train() -> None:
        with started(runner, planned):
            runner.iter = 4
            raise error

    with pytest.raises(type(error)):
        train()
    (start,) = starts(tmp_path)
    assert (start["outcome"], start["reason"], start["to_step"]) == (outcome, reason, 4)
    assert start["go_on"].endswith("--resume")
    text = (tmp_path / "report.html").read_text()
    assert f"{outcome.capitalize()} at step 4 of 10" in text
    assert "Go on with: python" in text


def test_an_early_stopping_is_told(tmp_path: Path, planned: tuple[Any, Any]) -> None:
    runner: Any = Runner(tmp_path)
    hook = ResumableEarlyStoppingHook("top1", patience=1)
    runner.train_loop = SimpleNamespace(stop_training=False)
    with started(runner, planned):
        runner.hooks.append(hook)
        hook.after_val_epoch(runner, {"top1": 40.0})
        hook.after_val_epoch(runner, {"top1": 39.0})
        runner.iter = 6
    (start,) = starts(tmp_path)
    assert (start["outcome"], start["to_step"]) == ("finished", 6)
    assert start["reason"] == "early stopping: top1 was best at 40, 1 validation ago"
    page = (tmp_path / "report.html").read_text()
    assert "Ended at step 6 of 10 by early stopping: top1 was best at 40, 1 validation ago." in page
    assert "<td>finished: early stopping: top1 was best" in page


def test_starts_are_one_history(tmp_path: Path, planned: tuple[Any, Any]) -> None:
    def train(name: str, resume: bool, begin: int, end: int) -> None:
        runner = Runner(tmp_path, name, resume, begin)
        with started(runner, planned):
            runner.iter = end
            if end < 10:
                raise KeyboardInterrupt

    for name, resume, begin, end in (("a", False, 0, 3), ("b", False, 0, 4), ("c", True, 2, 10)):
        try:
            train(name, resume, begin, end)
        except KeyboardInterrupt:
            assert end < 10
    assert [start["folder"] for start in starts(tmp_path)] == ["a", "b", "c"]
    history = read_starts(tmp_path)
    assert [(one["folder"], one["from_step"], one["to_step"]) for one in history] == [("b", 0, 4), ("c", 2, 10)]


def test_a_start_that_fails_keeps_the_plan(tmp_path: Path, planned: tuple[Any, Any]) -> None:
    """Its steps per epoch place the validations of the training that is there."""
    resolved, plan = planned

    def plan_of(runner: Runner, images: int, begins: bool) -> int:
        with suppress(RuntimeError), record_run(runner, resolved, plan.with_data(images, images // 8)):
            for hook in runner.hooks if begins else ():
                hook.before_train(runner)
            raise RuntimeError("the checkpoint is of another network")
        return int(json.loads((tmp_path / "plan.json").read_text())["schedule"]["steps_per_epoch"])

    assert plan_of(Runner(tmp_path, "a"), 80, begins=False) == 10  # the first one is what there is
    assert plan_of(Runner(tmp_path, "b"), 40, begins=True) == 5
    assert plan_of(Runner(tmp_path, "c"), 80, begins=False) == 5
    assert plan_of(Runner(tmp_path, "d", resume=True, begin=5), 80, begins=True) == 10


def test_a_validation_brings_the_report_up_to_date(tmp_path: Path, planned: tuple[Any, Any]) -> None:
    runner = Runner(tmp_path)
    with started(runner, planned):
        runner.iter = 5
        runner.hooks[0].after_val_epoch(runner, {})
        assert starts(tmp_path)[0]["to_step"] == 5
        assert "last heard of at step 5 of 10" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_written_is_a_warning(
    tmp_path: Path, planned: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(engine.report.recorder, "write_training_report", fail)
    monkeypatch.setattr(engine.report.recorder, "write_json", fail)
    monkeypatch.setattr(engine.report.recorder, "environment", fail)
    runner = Runner(tmp_path)
    with started(runner, planned):
        runner.iter = 10
    assert "the record of this run is not complete: OSError: no space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_only_the_main_process_writes(
    tmp_path: Path, planned: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.report.recorder, "is_main_process", lambda: False)
    runner = Runner(tmp_path)
    with started(runner, planned):
        runner.iter = 10
    assert not runner.hooks
    assert not list(tmp_path.iterdir())


def test_the_command_is_one_to_type_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "tools/train.py"), "a b.py", "--cfg-options", "load_from=https://me:pw@host/w.pth"]
    own = "--cfg-options 'load_from=https://***@host/w.pth'"
    assert command_line(words, {}).replace("'", "") == f"python tools/train.py a b.py {own}".replace("'", "")
    words[2:2] = ["--launcher", "pytorch"]
    launched = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    expected = f"NNODES=2 NODE_RANK=... MASTER_ADDR=... bash tools/dist_train.sh a b.py 4 {own}"
    assert command_line(words, launched).replace("'", "") == expected.replace("'", "")
    assert "NNODES" not in command_line(words, launched | {"WORLD_SIZE": "4"})


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_state_of_the_code(tmp_path: Path) -> None:
    assert code_state(tmp_path) == {"commit": None, "reason": "not a git checkout"}
    assert code_diff(tmp_path) == ""
    git(tmp_path, "init", "-b", "trunk")
    assert code_state(tmp_path)["commit"] is None
    (tmp_path / "a.py").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    clean = code_state(tmp_path)
    assert (clean["branch"], clean["dirty"], clean["untracked"], len(clean["commit"])) == ("trunk", False, [], 40)
    assert commit_line(clean) == f"{clean['commit'][:12]} on trunk"
    (tmp_path / "b.py").write_text("new\n")
    assert (code_state(tmp_path)["dirty"], code_state(tmp_path)["untracked"]) == (False, ["b.py"])
    (tmp_path / "a.py").write_text("two\n" * 100)
    assert commit_line(code_state(tmp_path)).endswith("on trunk with changes")
    diff = code_diff(tmp_path)
    assert "-one\n+two\n" in diff
    cut = code_diff(tmp_path, limit=100)
    assert cut.startswith(diff[:100])
    assert cut.endswith(f"# cut: 100 of {len(diff)} bytes\n")
    (tmp_path / "inner").mkdir()
    assert code_state(tmp_path / "inner")["reason"] == "not a git checkout"


def test_git_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state()["reason"] == "git is not installed"


def test_a_dirty_start_keeps_its_difference(
    tmp_path: Path, planned: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = environment(gpus=False)
    made["code"] = {"commit": "a" * 40, "branch": None, "dirty": True, "untracked": []}
    monkeypatch.setattr(engine.report.recorder, "environment", lambda: made)
    monkeypatch.setattr(engine.report.recorder, "code_diff", lambda: "-one\n+two\n")
    with started(Runner(tmp_path), planned):
        pass
    assert (tmp_path / "20260101_000000/code.diff").read_text() == "-one\n+two\n"


def test_variables_without_secrets_and_names_of_users() -> None:
    given = {"OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO", "CUDA_API_TOKEN": "x", "HOME": "/a", "MASTER_ADDR": "host"}
    given |= {"TORCH_HOME": "https://me:pw@host/a?X-Amz-Signature=12&b=c"}
    given |= {"TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_ada", "TRITON_CACHE_DIR": "~/.triton"}
    kept = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}
    assert variables(given) == kept | {"TORCH_HOME": "https://***@host/a?X-Amz-Signature=***&b=c"}
    assert without_secrets("--a b@c x=1") == "--a b@c x=1"


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 2048), ("1000\n", 1000), ("9999999\n", 2048)])
def test_memory_is_what_the_container_may_use(limit: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       2 kB\nMemFree: 1 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    assert memory_limit(tmp_path, tmp_path) == expected
    assert memory_limit(tmp_path / "no", tmp_path / "no") is None
