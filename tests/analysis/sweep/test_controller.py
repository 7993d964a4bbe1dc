"""The controller: a study from beginning to end, ends of all kinds, and controllers that are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from analysis.sweep.results import DATABASE, Objective, TrialResult
from analysis.sweep.run import describe_study, further_seeds
from analysis.sweep.storage import CONTROLLER, StudyStorage
from analysis.sweep.study_file import read_study_file
from analysis.sweep.trainings import Training, judge
from backbones.errors import ConfigError, MachineError
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from engine.launch.keeper import is_alive
from engine.report.run_dir import read_json, write_json
from tests.analysis.sweep.conftest import write_study
from tests.studies import made_study

ROOT = Path(__file__).resolve().parents[3]
DIGITS = str(ROOT / "configs/classification/digits.py")
LR = "optim_wrapper.optimizer.lr"
TRAININGS = [(f"{number:04d}/seed_{seed}", 0, 4) for number in range(3) for seed in range(2)]


def test_a_grid_with_two_seeds(sweep: Any) -> None:
    lines = sweep.run()
    assert sweep.ledger() == TRAININGS
    found = [(one.number, one.seed, one.state, round(one.score, 6)) for one in sweep.result.trials]
    assert found == [(n, s, "finished", base + s / 100) for n, base in enumerate((9, 10, 9)) for s in (0, 1)]
    assert lines[0] == f"3 trials complete, 0 failed, in {sweep.work_dir}"
    assert lines[-1] == f"best: trial 1, top1 10.005 [{LR}=0.01]"
    study = optuna.load_study(study_name="rates", storage=f"sqlite:///{sweep.work_dir / DATABASE}")
    assert [round(one.value, 6) for one in study.trials] == [9.005, 10.005, 9.005]


def test_ends_of_all_kinds(sweep: Any, capsys: Any) -> None:
    sweep.run(space={LR: {"grid": [7, 9, 1e-2]}}, seeds=1)
    states = [(one.state, one.reason) for one in sweep.result.trials]
    assert states == [("failed", "the loss is nan in step 1"), ("finished", ""), ("finished", "")]
    # That which was killed goes on from its checkpoint; what failed is not tried again.
    assert sweep.ledger() == [
        ("0000/seed_0", 0, 4),
        ("0001/seed_0", 0, 4),
        ("0001/seed_0", 1, 4),
        ("0002/seed_0", 0, 4),
    ]
    assert "trial 1, seed 0: interrupted (ended by SIGKILL)" in capsys.readouterr().out


def test_bad_input_of_a_training_stops_the_study(sweep: Any) -> None:
    settings: dict[str, Any] = {"space": {LR: {"grid": [1e-2, 8, 1e-3]}}, "seeds": 1}
    with pytest.raises(ConfigError, match=r"^trial 1, seed 0: no image in data/nowhere: link it there; the study has"):
        sweep.run(**settings)
    assert [one.state for one in sweep.result.trials] == ["finished", "interrupted"]
    with pytest.raises(ConfigError, match="no image"):  # tried again, as nothing was corrected
        sweep.run(resume=True, **settings)
    assert [name for name, *_ in sweep.ledger()] == ["0000/seed_0", "0001/seed_0", "0001/seed_0"]


def test_a_finished_study_does_nothing_more_but_grows_with_its_budget(sweep: Any) -> None:
    space = {LR: {"log_uniform": (1e-4, 1)}}
    sweep.run(space=space, budget={"trials": 2}, seeds=1)
    with pytest.raises(ConfigError, match="holds this study: go on with --resume"):
        sweep.run(space=space, budget={"trials": 3}, seeds=1)
    sweep.run(resume=True, space=space, budget={"trials": 2}, seeds=1)
    assert len(sweep.ledger()) == 2
    sweep.run(resume=True, space=space, budget={"trials": 4}, seeds=1)
    rates = [one.settings[LR] for one in sweep.result.trials]
    assert len(set(rates)) == len(sweep.ledger()) == 4  # a sampler that starts again does not repeat itself


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"space": {LR: {"grid": [1e-3, 1e-2]}}}, "space changed"),
        ({"seeds": 3, "objective": {"metric": "top1", "at": "best"}}, "objective changed"),
        ({"options": {"batch.size": 8}}, "options changed"),
    ],
)
def test_a_changed_study_file_is_refused(sweep: Any, changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"space": {LR: {"grid": [1e-3]}}, "seeds": 1}
    sweep.run(**settings)
    with pytest.raises(ConfigError, match=rf"^{message} since the study began"):
        sweep.run(resume=True, **{**settings, **changed})


def test_the_two_best_settings_get_more_seeds(sweep: Any) -> None:
    space = {LR: {"grid": [1e-3, 1e-2, 1e-4, 1e-1]}}
    sweep.run(space=space)
    assert sweep.run(resume=True, space=space, more_seeds=2)[-1] == f"best: trial 1, top1 10.015 [{LR}=0.01]"
    assert sweep.ledger()[8:] == [(f"{number:04d}/seed_{seed}", 0, 4) for number in (0, 1) for seed in (2, 3)]
    assert {n: [run.seed for run in runs] for n, runs in sweep.result.compared().items()} == {
        **{0: [0, 1, 2, 3], 1: [0, 1, 2, 3]},
        **{2: [0, 1], 3: [0, 1]},
    }
    sweep.run(resume=True, space=space)
    assert len(sweep.ledger()) == 12


def test_more_seeds_go_to_both_although_one_has_some() -> None:
    def run(number: int, seed: int, score: float) -> TrialResult:
        return TrialResult(number, {}, seed, "finished", score=score)

    trials = (run(0, 0, 1.0), run(0, 1, 1.0), run(0, 2, 1.0), run(1, 0, 9.0), run(1, 7, 9.0), run(2, 0, 8.0))
    study = made_study(Path(), trials=trials)
    assert further_seeds(study, 1) == {1: [1], 2: [1, 7]}
    assert further_seeds(replace(study, objective=Objective("val_loss", "minimize")), 2) == {0: [3, 4], 2: [1, 2, 3, 4]}
    with pytest.raises(ConfigError, match="no setting is finished"):
        further_seeds(replace(study, trials=()), 1)


def test_two_studies_in_one_folder_are_refused(sweep: Any, tmp_path: Path) -> None:
    sweep.run(seeds=1)
    other = tmp_path / "other.py"
    other.write_text((tmp_path / "rates.py").read_text())
    for storage in ("", f"storage = 'sqlite:///{tmp_path / 'shared.db'}'"):
        other.write_text(f"{(tmp_path / 'rates.py').read_text()}\n{storage}")
        with pytest.raises(ConfigError, match="holds the study 'rates': give another --work-dir"):
            StudyStorage(read_study_file(other), sweep.work_dir, resume=True)


def test_a_note_that_cannot_be_written_is_named(sweep: Any, tmp_path: Path) -> None:
    (sweep.work_dir / CONTROLLER).mkdir(parents=True)
    study = read_study_file(write_study(tmp_path, seeds=1))
    with pytest.raises(MachineError, match=r"controller.json' cannot be written \(Is a directory\): fix that"):
        StudyStorage(study, sweep.work_dir, resume=True)


def test_a_study_file_with_more_seeds_trains_those_alone(sweep: Any) -> None:
    sweep.run(seeds=1)
    sweep.run(resume=True, seeds=3)
    assert sweep.ledger()[3:] == [(f"{number:04d}/seed_{seed}", 0, 4) for number in range(3) for seed in (1, 2)]
    sweep.run(resume=True, seeds=[1])
    assert len(sweep.ledger()) == 9
    assert {len(runs) for runs in sweep.result.compared().values()} == {3}  # what is finished counts


def test_seeds_that_are_added_to_rungs_are_trained_at_full_length(sweep: Any) -> None:
    settings: dict[str, Any] = {"space": {LR: {"grid": [1e-3, 1e-2]}}, "rungs": {"lengths": (1, 2, 4), "keep": 0.5}}
    sweep.run(**settings, seeds=1)
    before = len(sweep.ledger())
    sweep.run(**settings, seeds=2, resume=True)
    assert sweep.ledger()[before:] == [("0001/seed_1_rung_2", 0, 4)]
    assert [(one.number, one.seed, one.state) for one in sweep.result.trials] == [
        *((0, 0, "pruned"), (1, 0, "finished"), (1, 1, "finished"))
    ]
    settings["rungs"] = {"lengths": (2, 4), "keep": 0.5, "decay": 0.25}
    sweep.work_dir = sweep.folder / "trunk"
    sweep.run(**settings, seeds=1)
    before = len(sweep.ledger())
    sweep.run(**settings, seeds=2, resume=True)
    ends = [(name, last) for name, _, last in sweep.ledger()[before:]]
    assert ends[-1] == ("0001/seed_1_rung_1", 4)
    assert {name for name, _ in ends[:-1]} == {"0001/seed_1_trunk"}


def test_an_added_seed_that_runs_hides_nothing_but_one_that_fails_does(sweep: Any) -> None:
    sweep.run(seeds=1, space={LR: {"grid": [1e-2]}})
    place = sweep.work_dir / "trials/0000/seed_1"
    declared = read_study_file(write_study(sweep.folder, seeds=2, space={LR: {"grid": [1e-2]}}))
    StudyStorage(declared, sweep.work_dir, resume=True)
    for state, compared in (("running", {0}), ("failed", set())):
        write_json(place / "run.json", {"number": 0, "seed": 1, "rung": 0, "trunk": False, "state": state})
        assert set(sweep.result.compared()) == compared


def test_trainings_that_failed_are_tried_again_where_that_is_asked(sweep: Any) -> None:
    settings: dict[str, Any] = {"space": {LR: {"grid": [7, 1e-2]}}, "seeds": 1}
    sweep.run(**settings)
    sweep.run(resume=True, **settings)
    assert [name for name, *_ in sweep.ledger()] == ["0000/seed_0", "0001/seed_0"]
    sweep.run(resume=True, retry=True, **settings)
    assert [name for name, *_ in sweep.ledger()] == ["0000/seed_0", "0001/seed_0", "0000/seed_0"]


def test_a_killed_controller_loses_nothing(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at random moments, with trainings that go on, are killed too, or end while nobody looks."""
    monkeypatch.setenv("STAND_IN_SECONDS", "0.15")
    chance = random.Random(3)
    for attempt in range(8):
        controller = sweep.start(resume=attempt > 0, jobs=2)
        controller.join(chance.uniform(0.2, 1.6))
        controller.kill()
        controller.join()
        if attempt % 3 == 1:
            for file in sweep.work_dir.glob("trials/*/*/keeper.json"):
                if is_alive(file.parent) and (program := read_json(file).get("program")):
                    with suppress(ProcessLookupError):  # it may have ended since
                        os.kill(program, signal.SIGKILL)
    sweep.run(resume=True, jobs=2)
    assert [(one.state, one.number, one.seed) for one in sweep.result.trials] == [
        ("finished", number, seed) for number in range(3) for seed in range(2)
    ]
    for name, starts in Counter(name for name, *_ in sweep.ledger()).items():
        firsts = [first for one, first, _ in sweep.ledger() if one == name]
        assert firsts == sorted(firsts), f"{name} began anew: {firsts}"
        assert all(first < 4 for first in firsts), f"{name} was finished and ran again ({starts} starts)"
    study = optuna.load_study(study_name="rates", storage=f"sqlite:///{sweep.work_dir / DATABASE}")
    assert [one.state.name for one in study.trials] == ["COMPLETE"] * 3


def test_trainings_that_run_are_adopted(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(sweep.folder / "go"))
    controller = sweep.start()
    sweep.wait_for(lambda: sweep.ledger())
    controller.kill()
    controller.join()
    assert is_alive(sweep.work_dir / "trials/0000/seed_0")
    (sweep.folder / "go").touch()
    sweep.run(resume=True)
    assert sweep.ledger() == TRAININGS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_controller_that_is_told_to_stop_lets_its_trainings_save(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(sweep.folder / "go"))
    controller = sweep.start(jobs=2)
    first = sweep.work_dir / "trials/0000/seed_0"
    sweep.wait_for(lambda: (first / "epoch_1.pth").exists() and len(sweep.ledger()) == 2)
    os.kill(controller.pid, number)
    controller.join()
    assert controller.exitcode == (EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_SAVED)
    assert not is_alive(first)
    assert read_json(first / "run.json")["reason"] == "stopped, with everything saved"
    assert [one.state for one in sweep.result.trials] == ["interrupted", "interrupted"]
    (sweep.folder / "go").touch()
    sweep.run(resume=True)
    assert len(sweep.ledger()) == 8
    assert {one.state for one in sweep.result.trials} == {"finished"}


def test_a_training_that_is_just_starting_is_told_to_stop_too(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its keeper has not said yet whom to tell, or the program cannot save yet: it ends, and counts as no kill."""
    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(tmp_path / "never"))
    controller = sweep.start()
    sweep.wait_for(lambda: list(sweep.work_dir.glob("trials/*/*/alive")))
    os.kill(controller.pid, signal.SIGTERM)
    controller.join()
    assert controller.exitcode == EXIT_SAVED
    (training,) = sweep.work_dir.glob("trials/*/*")
    assert not is_alive(training)
    record = read_json(training / "run.json")
    assert (record["state"], record["reason"]) == ("interrupted", "stopped, with everything saved")
    assert not record["starts"][0]["killed"]


def test_what_a_killed_keeper_was_writing_is_cleared(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(sweep.folder / "go"))
    controller = sweep.start()
    sweep.wait_for(lambda: sweep.ledger())
    (training,) = sweep.work_dir.glob("trials/*/*")
    parts = [
        folder / f".{name}.json.0123456789abcdef.part" for folder, name in ((training, "ended"), (sweep.work_dir, "x"))
    ]
    controller.kill()
    controller.join()
    for part in parts:
        part.touch()
    (sweep.folder / "go").touch()
    sweep.run(resume=True)
    assert not any(part.exists() for part in parts)


def _die_at_an_index(sweep: Any) -> None:
    def die(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "UNIQUE INDEX" in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", die)
    sweep.run()


def test_a_controller_that_is_killed_as_it_makes_the_database(sweep: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die_at_an_index, args=(sweep,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for _ in range(2):
        sweep.run(resume=True)
    assert len(sweep.ledger()) == 6


def test_two_controllers_are_refused(sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(tmp_path / "nothing"))
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    controller = sweep.start(storage=database)
    sweep.wait_for(lambda: sweep.ledger())
    with pytest.raises(MachineError, match="another controller works on this study"):
        sweep.run(resume=True, storage=database)
    sweep.work_dir = tmp_path / "elsewhere"  # another folder, the same file
    with pytest.raises(MachineError, match=r"another controller .*shared\.db\.lock"):
        sweep.run(resume=True, storage=database)
    study = read_study_file(tmp_path / "rates.py")
    lines = describe_study(study, tmp_path / "work")  # anybody may look
    assert any(line.startswith("  trial 0, seed 0: ") for line in lines)
    os.kill(controller.pid, signal.SIGTERM)
    controller.join()


def test_a_training_that_is_killed_again_and_again_fails(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = ["bash", "-c", "kill -9 $$"]
    monkeypatch.setattr("analysis.sweep.controller.command_of", lambda *args: list(kill))
    sweep.run(space={LR: {"grid": [1e-2]}}, seeds=1)
    (one,) = sweep.result.trials
    assert (one.state, one.reason) == ("failed", "ended by SIGKILL")
    assert len(read_json(one.work_dir / "run.json")["starts"]) == 4


def test_a_budget_in_hours_lets_what_runs_finish(sweep: Any, capsys: Any) -> None:
    lines = sweep.run(budget={"gpu_hours": 1e-9}, seeds=1)
    assert "the budget of 1e-09 GPU hours is spent" in capsys.readouterr().out
    assert lines[0].startswith("1 trials complete")


def test_a_storage_that_cannot_be_written_is_one_line(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.run(space={LR: {"grid": [1e-2]}}, seeds=1)
    monkeypatch.chdir(tmp_path)  # nothing is written there
    url = f"sqlite:///file:{sweep.work_dir / DATABASE}?mode=ro&uri=true"
    with pytest.raises(MachineError, match=r"readonly database; trainings that run go on") as caught:
        sweep.run(resume=True, storage=url, space={LR: {"grid": [1e-2]}}, seeds=1)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("file:*"))
    assert (sweep.work_dir / f"{DATABASE}.lock").exists()


def test_gpus_are_shared_out(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweep.run(jobs=2, gpus_per_trial=2)
    devices = {line.split()[0]: line.split()[-1] for line in (sweep.work_dir / "ledger").read_text().splitlines()}
    assert [devices[f"0000/seed_{seed}"] for seed in range(2)] == ["0,1", "2,3"]  # started together
    assert set(devices.values()) == {"0,1", "2,3"}
    with pytest.raises(ConfigError, match="this machine has 4 GPUs"):
        sweep.run(resume=True, jobs=3, gpus_per_trial=2)


@pytest.mark.parametrize("code, said", [(-9, "SIGKILL"), (143, "SIGTERM"), (255, "signal 127"), (124, "as hanging")])
def test_a_training_that_was_killed_says_by_what(tmp_path: Path, code: int, said: str) -> None:
    assert judge(Training(0, 0, 0, tmp_path, DIGITS, {}), code)[1].endswith(said)


@pytest.mark.parametrize("outcome, state", [("finished", "finished"), ("running", "interrupted")])
def test_an_end_that_nobody_saw_is_judged_by_the_history_of_the_training(
    tmp_path: Path, outcome: str, state: str
) -> None:
    write_json(tmp_path / "starts.json", {"starts": [{"outcome": outcome}]})
    assert judge(Training(0, 0, 0, tmp_path, DIGITS, {}), None)[0] == state
