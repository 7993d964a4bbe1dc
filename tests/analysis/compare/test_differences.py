"""Which settings differ, and how a setting is named by them."""

from __future__ import annotations

from pathlib import Path

from analysis.compare.differences import differing, find_circumstances, find_differences, folded, labelled
from analysis.compare.runs import group_by_setting, read_runs
from tests.compared_runs import CLASSIFIER, write_run


def test_only_what_differs_is_found_under_dotted_keys() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": [{"type": "X", "e": 1}, {"type": "Y"}]}, "f": [{"type": "X"}]}
    other = {"a": 1, "b": {"c": [1, 3], "d": [{"type": "X", "e": 2}, {"type": "Y"}]}, "f": [], "g": None}
    assert differing([one, other, one]) == {
        "b.c": [[1, 2], [1, 3], [1, 2]],
        "b.d.0.e": [1, 2, 1],
        "f": [[{"type": "X"}], [], [{"type": "X"}]],
        "g": ["not stated", None, "not stated"],
    }
    assert differing([one, one]) == {}


def test_copies_of_a_setting_are_one_row() -> None:
    rows = folded({"size": [1, 2], "train.pipeline.0.size": [1, 2], "val.size": [3, 2], "lr": [1, 2]})
    assert rows == {"size": (["train.pipeline.0.size"], [1, 2]), "val.size": ([], [3, 2]), "lr": ([], [1, 2])}


def test_settings_are_named_by_little_that_differs(tmp_path: Path) -> None:
    def named(*configs: dict[str, object]) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        runs = read_runs([write_run(folder / f"run{place}", config) for place, config in enumerate(configs)])
        settings = group_by_setting(runs)
        return [one.label for one in labelled(settings, find_differences(settings))]

    rate = {**CLASSIFIER, "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.30001}}}
    assert named(CLASSIFIER, rate) == ["A: lr=0.1", "B: lr=0.3"]
    much = {**CLASSIFIER, "classes": ["a"], "batch": {"size": 1}, "model": {"type": "Other"}}
    assert named(CLASSIFIER, much) == ["A: run0", "B: run1"]
    long = {**CLASSIFIER, "model": {**CLASSIFIER["model"], "weights": "work_dirs/" + 20 * "long"}}
    assert named(CLASSIFIER, long) == ["A: run0", "B: run1"]  # and not weights=... beside a name


def test_circumstances_are_shown_where_they_differ(tmp_path: Path) -> None:
    clean = {"code": {"commit": "a" * 40}, "machine": {"cpu": "a CPU", "cores": 2}}
    changed = {"code": {"commit": "b" * 40}, "machine": {"cpu": "a CPU", "cores": 2}}
    runs = read_runs(
        [
            write_run(tmp_path / "a", seed=0, environment=clean),
            write_run(tmp_path / "b", seed=1, environment=changed),
        ]
    )
    settings = group_by_setting(runs)
    assert find_circumstances(settings) == {"code": ["aaaaaaaaaaaa / bbbbbbbbbbbb"]}
