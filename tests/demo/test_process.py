"""Steps of the demo: run, resumed and skipped, with tiny programs in the place of trainings."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import demo.process
from backbones.errors import UserError
from demo.process import Screen, describe_progress, run_demo
from demo.steps import DETECTION_CONFIG, Command, DemoStep, demo_steps
from engine.checkpoint.store import last_checkpoint
from engine.launch.leftovers import is_running
from tests.programs import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

# Writes its arguments to calls.txt and does what the arguments say.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "calls.txt").open("a") as file:
    file.write(" ".join(sys.argv[2:]) + "\\n")
if "train" in sys.argv:
    (folder / "epoch_1.pth").write_text("weights")
    (folder / "last_checkpoint").write_text("/elsewhere/epoch_1.pth")
if "test" in sys.argv:
    (folder / "test.json").write_text(json.dumps({"metrics": {"top1": 90.0}}))
(folder / "threads.txt").write_text(os.environ.get("OMP_NUM_THREADS", "all"))
until = time.monotonic() + float(os.environ["PATIENCE"])
while "meet" in sys.argv and len(list(folder.parent.glob("*/calls.txt"))) < 2:
    if time.monotonic() > until:
        sys.exit("error: nobody is here")
    time.sleep(0.02)
if "fail" in sys.argv and not (folder.parent / "fixed").exists():
    print("all is well")
    sys.exit("error: the roof \\x1b[1mleaks\\x1b[0m")
if "sleep" in sys.argv and not (folder.parent / "fixed").exists():
    child = os.fork()
    print(f"pid {os.getpid() if child else os.getppid()}")
    (folder / f"pid_{'parent' if child else 'child'}").write_text(str(os.getpid()))
    time.sleep(1000)
"""


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATIENCE", str(PATIENCE))
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "runs"


def make_step(work_dir: Path, name: str = "classifier", *words: str, test: tuple[str, ...] = ("test",)) -> DemoStep:
    folder, program = str(work_dir / name), str(work_dir.parent / "program.py")
    train = Command((program, folder, "train", *words), resumable=True)
    commands = (train, Command((program, folder, *test, f"{{checkpoint of {name}}}")))
    return DemoStep(name, f"Make a {name}", commands, outputs=(work_dir / name / "test.json",))


def run(work_dir: Path, *steps: DemoStep) -> str:
    stream = io.StringIO()
    run_demo(steps, work_dir, 0, stream)
    return stream.getvalue()


def calls(work_dir: Path, name: str = "classifier") -> list[str]:
    return (work_dir / name / "calls.txt").read_text().splitlines()


def done(work_dir: Path, name: str = "classifier") -> dict:
    return json.loads((work_dir / name / "done.json").read_text())


def test_a_finished_step_leaves_its_record_and_is_not_done_again(work_dir: Path) -> None:
    step = make_step(work_dir)
    text = run(work_dir, step)
    assert "[1/1] Make a classifier\n      done in 0:0" in text
    assert "top-1 90.0" in text
    record = done(work_dir)
    checkpoint = str(work_dir / "classifier" / "epoch_1.pth")
    assert record["metrics"] == {"top1": 90.0}
    assert record["starts"] == 1
    assert 2**23 < record["memory_bytes"] < 2**36
    assert record["commands"][1]["command"].startswith("python ")
    assert record["commands"][1]["command"].endswith(f"test {checkpoint}")
    assert not (work_dir / "classifier" / "started.json").exists()
    assert calls(work_dir) == ["train", f"test {checkpoint}"]

    again = run(work_dir, step)
    assert "[1/1] Make a classifier: done before, in 0:0" in again
    assert done(work_dir) == record
    assert len(calls(work_dir)) == 2
    assert (work_dir / "report.html").is_file()
    assert json.loads((work_dir / "report.json").read_text())["steps"][0]["metrics"] == {"top1": 90.0}


def test_a_change_has_a_step_done_again_in_an_empty_folder(work_dir: Path) -> None:
    base, config = work_dir.parent / "base.py", work_dir.parent / "config.py"
    base.write_text("lr = 1\n")
    config.write_text("_base_ = 'base.py'\n")
    step = replace(make_step(work_dir), config=str(config))
    run(work_dir, step)

    config.write_text("# a comment changes nothing\n_base_ = 'base.py'\n")
    assert "done before" in run(work_dir, step)
    base.write_text("lr = 2\n")
    (work_dir / "classifier" / "stale").touch()
    assert "done before" not in run(work_dir, step)
    assert not (work_dir / "classifier" / "stale").exists()
    assert calls(work_dir)[0] == "train"

    other = replace(make_step(work_dir, "classifier", "more"), config=str(config))
    assert "done before" not in run(work_dir, other)
    assert calls(work_dir)[0] == "train more"


def test_the_data_follows_the_code_that_draws_it(work_dir: Path) -> None:
    data = demo_steps(work_dir, seed=0)[0]
    sources = {path.resolve() for path in data.inputs}
    assert sources == {Path(f"demo/{name}.py").resolve() for name in ("dataset", "drawing", "formats")}


def test_a_step_follows_its_inputs_and_its_outputs(work_dir: Path) -> None:
    first = make_step(work_dir)
    second = replace(make_step(work_dir, "detector"), inputs=(work_dir / "classifier" / "done.json",))
    run(work_dir, first, second)
    assert run(work_dir, first, second).count("done before") == 2

    (work_dir / "detector" / "test.json").unlink()
    assert run(work_dir, first, second).count("done before") == 1
    (work_dir / "classifier" / "epoch_1.pth").unlink()
    assert "done before" not in run(work_dir, first, second)


def test_a_failing_step_ends_with_one_line_and_is_resumed(work_dir: Path) -> None:
    step = make_step(work_dir, "classifier", "fail")
    with pytest.raises(UserError, match=r"^step \[1/1\] classifier failed: the roof leaks; all of its output: .+log$"):
        run(work_dir, step)
    log = (work_dir / "classifier" / "console.log").read_text()
    assert "all is well\n" in log
    started = work_dir / "classifier" / "started.json"
    state = json.loads(started.read_text())
    assert state["commands"][0]["seconds"] > 0
    assert state["commands"][0]["finished"] is False
    state["commands"][0]["seconds"] += 1000
    started.write_text(json.dumps(state))

    (work_dir / "fixed").touch()
    run(work_dir, step)
    assert calls(work_dir)[:2] == ["train fail", "train fail --resume"]
    assert done(work_dir)["seconds"] > 1000
    assert done(work_dir)["starts"] == 2
    assert "--resume" not in done(work_dir)["commands"][0]["command"]


@pytest.fixture
def pair(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DemoStep, DemoStep]:
    """Two steps that are to run at the same time, on a machine with six cores and no GPU."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(demo.process, "usable_cores", lambda: 6)
    monkeypatch.setattr(demo.process, "memory_limit", lambda: None)
    monkeypatch.setattr(demo.process.torch.cuda, "is_available", lambda: False)
    first, second = make_step(work_dir, "detector", "meet"), make_step(work_dir, "detector_scratch", "meet")
    return first, replace(second, beside_former=True)


def test_two_steps_run_at_the_same_time_and_share_the_cores(work_dir: Path, pair: tuple[DemoStep, DemoStep]) -> None:
    text = run(work_dir, *pair)
    assert text.index("[2/2]") < text.index("detector done in ")
    assert "detector_scratch done in " in text
    assert (work_dir / "detector" / "threads.txt").read_text() == "3"
    assert run(work_dir, *pair).count("done before") == 2


@pytest.mark.parametrize(("cores", "gpu", "memory"), [(1, False, 2**40), (6, True, 2**40), (6, False, 4 * 2**30)])
def test_steps_run_one_after_the_other_on_one_core_on_a_gpu_and_with_little_memory(
    work_dir: Path, pair: tuple[DemoStep, DemoStep], monkeypatch: pytest.MonkeyPatch, cores: int, gpu: bool, memory: int
) -> None:
    monkeypatch.setattr(demo.process, "usable_cores", lambda: cores)
    monkeypatch.setattr(demo.process, "memory_limit", lambda: memory)
    monkeypatch.setattr(demo.process.torch.cuda, "is_available", lambda: gpu)
    text = run(work_dir, *(replace(make_step(work_dir, step.name), beside_former=step.beside_former) for step in pair))
    assert text.index("done in ") < text.index("[2/2]")
    assert (work_dir / "detector" / "threads.txt").read_text() == "all"


def test_a_failing_step_ends_the_one_beside_it_and_both_go_on(work_dir: Path, pair: tuple[DemoStep, DemoStep]) -> None:
    waiting = replace(make_step(work_dir, "detector", "meet", "sleep"))
    failing = replace(make_step(work_dir, "detector_scratch", "meet", "fail"), beside_former=True)
    with pytest.raises(UserError, match=r"^step \[2/2\] detector_scratch failed: the roof leaks"):
        run(work_dir, waiting, failing)
    assert json.loads((work_dir / "detector" / "started.json").read_text())["commands"][0]["finished"] is False
    wait_for_end(list(work_dir.glob("*/pid_*")))

    (work_dir / "fixed").touch()
    run(work_dir, waiting, failing)
    assert calls(work_dir, "detector")[1] == "train meet sleep --resume"
    assert done(work_dir, "detector_scratch")["starts"] == 2


def test_all_programs_are_ended_though_one_cannot_be_recorded() -> None:
    ended = []

    def program(name: str) -> Generator[None]:
        try:
            while True:
                yield
        finally:
            ended.append(name)
            raise OSError(f"no room for {name}")

    def failing() -> Generator[None]:
        yield
        raise UserError("failed")

    runs = [program("first"), program("second"), failing()]  # held, so that none is closed by being forgotten
    with pytest.raises(OSError, match="no room for"):
        demo.process._run_together(runs)
    assert sorted(ended) == ["first", "second"]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_forecast_learns_from_steps_that_ran_from_their_beginning(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    step, learned = make_step(work_dir, "classifier", *(["fail"] if resumed else [])), []
    if resumed:
        with pytest.raises(UserError, match="the roof leaks"):
            run(work_dir, step)
        (work_dir / "fixed").touch()
    monkeypatch.setattr(demo.process.Forecast, "learn", lambda self, seconds: learned.append(seconds))
    run(work_dir, step)
    assert [one is None for one in learned] == [resumed]


def test_a_finished_training_is_not_repeated_when_its_test_fails(work_dir: Path) -> None:
    step = make_step(work_dir, test=("test", "fail"))
    with pytest.raises(UserError, match="the roof leaks"):
        run(work_dir, step)
    (work_dir / "fixed").touch()
    run(work_dir, step)
    assert [call.split()[0] for call in calls(work_dir)] == ["train", "test", "test"]
    assert not any("--resume" in call for call in calls(work_dir))


def test_a_failed_step_that_is_changed_starts_anew(work_dir: Path) -> None:
    with pytest.raises(UserError, match="the roof leaks"):
        run(work_dir, make_step(work_dir, "classifier", "fail"))
    run(work_dir, make_step(work_dir))
    assert calls(work_dir)[0] == "train"
    assert done(work_dir)["starts"] == 1


def test_a_program_that_is_killed_is_told_from_one_that_fails(work_dir: Path) -> None:
    command = Command(("-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(UserError, match=r"ended by SIGKILL, perhaps for want of memory"):
        run(work_dir, DemoStep("classifier", "Die", (command,)))


def wait_for_end(pids: Sequence[Path]) -> None:
    """Wait until the processes whose numbers are in these files have ended."""
    assert pids
    until = time.monotonic() + PATIENCE
    while any(is_running(int(path.read_text())) for path in pids):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(("name", "count"), [("SIGINT", 1), ("SIGTERM", 1), ("SIGINT", 2), ("SIGTERM", 2)])
@pytest.mark.usefixtures("pair")
def test_an_interruption_ends_the_programs_and_loses_nothing(work_dir: Path, name: str, count: int) -> None:
    folders = [work_dir / f"classifier{number}" for number in range(count)]
    steps = [make_step(work_dir, folder.name, "sleep") for folder in folders]
    steps[1:] = [replace(step, beside_former=True) for step in steps[1:]]
    pids = [folder / f"pid_{which}" for folder in folders for which in ("parent", "child")]

    def interrupt() -> None:
        until = time.monotonic() + PATIENCE
        while not all(path.exists() and path.read_text() for path in pids) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.Signals[name])

    # A shell starts what it runs in the background deaf to SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(work_dir, *steps)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    wait_for_end(pids)
    before = [json.loads((folder / "started.json").read_text())["commands"][0]["seconds"] for folder in folders]
    assert min(before) > 0

    (work_dir / "fixed").touch()
    run(work_dir, *steps)
    for folder, seconds in zip(folders, before, strict=True):
        assert calls(work_dir, folder.name)[1] == "train sleep --resume"
        assert done(work_dir, folder.name)["commands"][0]["seconds"] > seconds
        assert done(work_dir, folder.name)["starts"] == 2


def test_ctrl_c_ends_the_tool_with_the_way_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.process, "run_demo", interrupted)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--seed", "3"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(ROOT / "tools" / "demo.py"), run_name="__main__")
    assert ending.value.code == 130
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("goes on from here: bash tools/demo.sh --seed 3")


def test_two_demos_in_one_folder_are_refused(work_dir: Path) -> None:
    with demo.process._locked(work_dir), pytest.raises(UserError, match=r"a demo is at work in .*choose another"):
        run(work_dir, make_step(work_dir))
    run(work_dir, make_step(work_dir))


def test_a_folder_of_somebody_else_is_not_touched(work_dir: Path) -> None:
    (work_dir / "classifier").mkdir(parents=True)
    (work_dir / "classifier" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files: give the demo another folder with --work-dir"):
        run(work_dir, make_step(work_dir))
    assert (work_dir / "classifier" / "thesis.tex").exists()


def test_a_work_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file/runs .*--work-dir"):
        run_demo([], tmp_path / "file" / "runs", 0, io.StringIO())


def test_the_pairs_differ_in_the_weights_alone() -> None:
    steps = {step.name: step for step in demo_steps(Path("w"), 7, {DETECTION_CONFIG: ["a=1"]})}
    assert list(steps) == ["data", "classifier", "detector", "detector_scratch", "segmentor", "segmentor_scratch"]
    for name in ("detector", "segmentor"):
        trained, scratch = steps[name], steps[f"{name}_scratch"]
        arguments = list(trained.commands[0].arguments)
        arguments.remove("model.backbone.weights={checkpoint of classifier}")
        arguments[arguments.index(f"w/{name}")] = f"w/{name}_scratch"
        assert tuple(arguments) == scratch.commands[0].arguments
        assert trained.config == scratch.config
    assert all("randomness.seed=7" in step.commands[0].arguments for step in list(steps.values())[1:])
    assert steps["detector"].commands[1].arguments[-2:] == ("--cfg-options", "a=1")
    assert "a=1" not in steps["segmentor"].commands[0].arguments
    for step in steps.values():
        assert all((ROOT / command.arguments[0]).is_file() for command in step.commands)
        assert step.config is None or (ROOT / step.config).is_file()


def test_a_checkpoint_is_found_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("/somewhere/else/iter_240.pth\n")
    assert last_checkpoint(tmp_path) == tmp_path / "iter_240.pth"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "INFO - Epoch(train) [2][30/58]  lr: 1e-03  eta: 0:00:40  time: 1.1  loss: 1.2345  loss_cls: 9.9",
            "training, epoch 2, step 30 of 58, loss 1.23, about 0:40 left",
        ),
        (
            "INFO - Iter(train) [ 50/240]  eta: 1:02:03  time: 0.1  loss: 3.0",
            "training, step 50 of 240, loss 3.00, about 1:02:03 left",
        ),
        ("INFO - Epoch(val) [1][8/8]  top1: 10.4", "checking on held-out images, batch 8 of 8"),
        ("INFO - Iter(test) [ 50/120]  eta: 0:00:01  time: 0.1", "testing on held-out images, batch 50 of 120"),
        ("INFO - Saving checkpoint at 1 epochs", None),
    ],
)
def test_log_lines_in_plain_words(line: str, words: str | None) -> None:
    assert describe_progress(line) == words


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_rewritten_and_a_file_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(time, "monotonic", lambda: now)
    texts = {}
    for stream in (Terminal(), io.StringIO()):
        now = 0.0
        screen = Screen(stream)
        screen.say("[1/1] step")
        for now in range(0, 61, 10):
            screen.show(now, "training, step 1 of 1000000000")
        texts[type(stream)] = stream.getvalue()
    assert texts[Terminal].count("\n") == 1
    assert texts[Terminal].count("training") == 7
    assert max(len(line) for line in texts[Terminal].replace("\x1b[2K", "").split("\r")) <= 29
    assert texts[io.StringIO] == "[1/1] step\n      0:30  training, step 1 of 1000000000\n"
