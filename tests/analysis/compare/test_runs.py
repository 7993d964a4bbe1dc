"""Run folders as they are read, and which trainings are seeds of one setting."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from analysis.compare.differences import find_circumstances
from analysis.compare.runs import compared_config, group_by_setting, read_runs
from backbones.errors import UserError
from tests.compared_runs import CLASSIFIER, with_wrong_parts, write_run

FASTER = {**CLASSIFIER, "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.3}}}


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "a", scores=(10.0, 30.0), seed=3)
    write_run(tmp_path / "b")
    (tmp_path / "a/test.json").write_text('{"metrics": {"top1": 31.0}}')
    (tmp_path / "a/analysis").mkdir()
    (tmp_path / "a/analysis/predictions.zip").write_text("")
    run, other = read_runs([tmp_path / "a", tmp_path / "b"])
    assert (run.name, run.task, run.seed, run.step, run.is_finished) == ("a", "classification", 3, 3, True)
    assert run.curves["val/top1"][-1][1] == 30.0
    assert run.tests == {"test": {"top1": 31.0}}
    assert run.speed == {
        "step_seconds": 0.5,
        "images_per_second": 16.0,
        "data_wait": 0.2,
        "memory_bytes": 2**30,
        "gpu_memory_bytes": None,
        "seconds": 60.0,
    }
    assert run.predictions == tmp_path / "a/analysis/predictions.zip"
    assert other.predictions is None


def test_trainings_that_differ_in_the_seed_alone_are_one_setting(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", {**CLASSIFIER, "file": str(tmp_path / "a/confusion.json")}, 0),
        write_run(tmp_path / "b", FASTER, 0),
        write_run(tmp_path / "c", {**CLASSIFIER, "file": str(tmp_path / "c/confusion.json")}, 1),
        write_run(tmp_path / "d", FASTER, 1, outcome="running"),
        write_run(tmp_path / "e", FASTER, 0),
        write_run(tmp_path / "f", FASTER, None),
        write_run(tmp_path / "g", FASTER, None),
    ]
    settings = group_by_setting(read_runs(runs))
    # An unfinished one, the same seed once more, and one without a seed are no further seeds.
    assert [[run.name for run in one.runs] for one in settings] == [["a", "c"], ["b"], ["d"], ["e"], ["f"], ["g"]]
    assert [one.letter for one in settings] == ["A", "B", "C", "D", "E", "F"]
    assert [one.is_finished for one in settings] == [True, True, False, True, True, True]


def test_what_is_no_training_or_of_another_task_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    detector = write_run(tmp_path / "b", about={"task": "detection"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(run)
    inside = write_run(tmp_path / "study/trials/0000/seed_0")
    for folders, line in (
        ([run], "one training has nothing to be compared with: name two run folders or more"),
        ([run, tmp_path / "link"], "{0}/link: is named twice, also as {0}/a"),
        (
            [run, tmp_path / "nowhere"],
            "{0}/nowhere: there is no such folder: name the folders of trainings, as in work_dirs",
        ),
        (
            [run, tmp_path / "empty"],
            "{0}/empty: is no run folder, there is no starts.json in it: name the folder of a training",
        ),
        (
            [run, tmp_path / "study"],
            f"{{0}}/study: is no run folder, there is no starts.json in it: did you mean {inside}?",
        ),
        (
            [run, detector],
            "{0}/a is a training of classification, {0}/b of detection: name trainings of one task",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read_runs(folders)
        assert str(caught.value) == line.format(tmp_path)


def test_a_training_without_a_config_that_can_be_read_is_kept(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "a/20261130_120000/vis_data/config.py").write_text("1 / 0")
    (tmp_path / "b/20261130_120000/vis_data/config.py").unlink()
    first, second = read_runs([tmp_path / "a", tmp_path / "b"])
    assert first.config is None
    assert first.problem.startswith("its config cannot be read: ")
    assert second.problem == "there is no resolved config in it (a.py)"
    assert [len(one.runs) for one in group_by_setting([first, second])] == [1, 1]


@pytest.mark.parametrize("name", ["starts.json", "test.json", "plan.json"])
def test_a_record_with_wrong_parts_is_read_without_them(name: str, tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    for config in tmp_path.glob("*/*/vis_data/config.py"):
        config.unlink()
    (run / "test.json").write_text('{"metrics": {"top1": 31.0}}')
    for content in with_wrong_parts(json.loads((run / name).read_text())):
        (run / name).write_text(json.dumps(content))
        with suppress(UserError):  # that the task is another one
            settings = group_by_setting(read_runs([run, other]))
            assert sum(len(one.runs) for one in settings) == 2
            find_circumstances(settings)


@pytest.mark.parametrize("stated", [None, 5, "x", [1], {"seed": [1]}])
def test_settings_of_a_wrong_kind_are_compared_as_they_are(stated: object, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    (runs[0] / "20261130_120000/vis_data/config.py").write_text(f"randomness = {stated!r}\nwork_dir = 3")
    (runs[0] / "starts.json").write_text('{"starts": [{"folder": "20261130_120000"}]}')
    first, second = group_by_setting(read_runs(runs))
    assert first.runs[0].seed is None
    assert "work_dir" not in (compared_config(first) or {})
    assert second.runs[0].seed == 0
