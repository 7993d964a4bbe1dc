"""Records of trainings with values of wrong kinds, which are read as if they were not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backbones.errors import ConfigError
from engine.report.run_dir import conform, finite, numbers_file, read_json_lines
from engine.report.training import read_run, render_training_report
from tests.compared_runs import with_wrong_parts, write_run


def test_parts_of_another_kind_are_left_out() -> None:
    shape = {"a": int, "b": {"*": [str]}, "c": (int, float)}
    assert conform({"a": 1, "b": {"x": ["y", 2]}, "c": 0.5, "d": None}, shape) == {
        "a": 1,
        "b": {"x": ["y"]},
        "c": 0.5,
        "d": None,
    }
    assert conform({"a": True, "b": {"x": 3}, "c": float("nan")}, shape) == {"b": {}}
    assert conform([1], shape) is None
    assert finite(10**400) is None


def test_numbers_beyond_all_bounds_are_no_steps(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"step": 1{"0" * 400}}}\n{{"step": true}}\n{{"step": 2}}')
    assert list(read_json_lines(tmp_path / "a.json")) == [{"step": 2}]


@pytest.mark.parametrize("name", ["starts.json", "test.json"])
def test_a_report_is_made_of_any_record(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", scores=(10.0,))
    test = {"metrics": {"top1": 9.0}, "class_scores": {"cat": {"top1": 1.0}}, "receipts": [{"line": "x"}]}
    (run / "test.json").write_text(json.dumps(test))
    whole = json.loads((run / name).read_text())
    for content in with_wrong_parts(whole):
        (run / name).write_text(json.dumps(content))
        assert "<h1" in render_training_report(read_run(run), run)


@pytest.mark.parametrize("page", ["", ".", "/", "a/b.json"])
def test_a_page_in_the_place_of_its_numbers_is_refused(page: str) -> None:
    with pytest.raises(ConfigError, match=r"^--out '.*': the page is HTML, with its numbers as \.json beside it"):
        numbers_file(Path(page))
    assert numbers_file(Path("a/b.html")) == Path("a/b.json")
