"""The report of a study that was made up: its answer, its tables and files, and studies with little to say."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib import pyplot

from analysis.sweep.report import find_answers, render_study, write_study_report
from analysis.sweep.report.page import ready_command, trial_table
from analysis.sweep.results import Objective, StudyResult
from analysis.sweep.run import report_study
from analysis.sweep.study_file import read_study_file
from backbones.errors import ConfigError
from tests.studies import BATCH, PEAK_BATCH, RATE, made_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return made_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study: StudyResult) -> str:
    return write_study_report(study, study.folder / "report").read_text()


def words_of(page: str) -> str:
    """The page as a reader sees it."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_first_lines_are_the_answer_and_how_sure_it_is(page: str) -> None:
    lead = words_of(page.partition("<section>")[0])
    assert "lr=0.001, size=512 scores best: mean of 3 seeds, 95 % interval" in lead
    assert "Not resolved: " in lead
    assert "may be the best" in lead
    assert "more seeds of both (--more-seeds) would tell the two apart" in lead
    assert "The best rate follows the surge law" in lead
    assert "89 of 90 trainings ended, 3 failed" in lead
    assert "width=device-width" in page


def test_the_rest_says_what_failed_and_what_to_do(study: StudyResult, page: str) -> None:
    text = words_of(page)
    assert "#0, seed 2: failed: step 12 was not finite: the loss & the gradients" in text
    assert "#1, seed 2: interrupted: SIGTERM" in text
    assert "PED-ANOVA fANOVA" in text
    assert f"optuna-dashboard {study.storage}" in text
    assert f"--work-dir work_dirs/rate_and_batch_0022 --cfg-options {RATE}=0.001" in text
    assert "--resume" not in text


def test_every_chart_is_a_picture_that_loads_nothing(page: str) -> None:
    pictures = [base64.b64decode(data) for data in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    assert len(pictures) == 6
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert not pyplot.get_fignums()


def test_the_files_for_programs_hold_the_same(study: StudyResult, page: str) -> None:
    data = json.loads((study.folder / "report/study.json").read_text())
    ranked = data["findings"]["ranking"]["settings"]
    assert ranked[0]["name"] == "22"
    assert len(ranked) == len(study.compared()) == 28  # one setting failed, one is interrupted
    rows = list(csv.DictReader(io.StringIO((study.folder / "report/trials.csv").read_text())))
    assert len(rows) == len(study.trials) == 90
    assert rows[0]["reason"] == "step 12 was not finite: the loss & the gradients"
    assert rows[-1][BATCH] == "1024"


def test_the_law_that_made_the_scores_is_found(study: StudyResult) -> None:
    found = find_answers(study).rate_and_batch
    assert found is not None
    assert found.laws is not None
    assert found.laws.preferred == "surge"
    interval = found.laws.fits["surge"].peak_interval
    assert interval is not None
    assert not interval.excludes(PEAK_BATCH)
    assert found.best[32].border == "low"  # its smaller rates failed or are interrupted
    assert any("at batch 32" in line for line in found.notes)


def test_the_front_of_score_and_cost(study: StudyResult) -> None:
    findings = find_answers(study)
    assert findings.pareto["gpu_hours"] == (27, 22)  # the largest batch is the cheapest, the next one scores higher
    assert findings.pareto["parameters"] == (22,)


def test_an_error_that_is_to_be_small_turns_everything_around(study: StudyResult) -> None:
    errors = tuple(
        replace(
            run, score=None if run.score is None else 100 - run.score, curve=tuple((x, 100 - y) for x, y in run.curve)
        )
        for run in study.trials
    )
    findings = find_answers(replace(study, trials=errors, objective=Objective("error", "minimize")))
    ours = find_answers(study)
    assert findings.ranking is not None
    assert ours.ranking is not None
    assert [one.name for one in findings.ranking.settings] == [one.name for one in ours.ranking.settings]
    assert findings.pareto == ours.pareto
    assert findings.times == ours.times


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_study_that_has_just_begun_is_reported_too(study: StudyResult, count: int) -> None:
    early = replace(study, trials=study.trials[6 : 6 + count])
    page = render_study(early, find_answers(early))
    assert ("No answer yet" in page) == (count < 1)
    waiting = tuple(replace(run, state="waiting", score=None, curve=()) for run in study.trials)
    assert "No answer yet: 0 of 90 trainings ended" in words_of(
        render_study(replace(study, trials=waiting), find_answers(replace(study, trials=waiting)))
    )


def test_one_seed_resolves_nothing_and_says_so(tmp_path: Path) -> None:
    single = made_study(tmp_path, seeds=1, batches=2)
    text = words_of(render_study(single, find_answers(single)))
    assert "at least two seeds of each are needed" in text
    assert "One seed for each setting says nothing about the noise" in text


def test_a_shorter_schedule_is_not_compared(study: StudyResult) -> None:
    pruned = replace(study.trials[-1], number=99, state="pruned", score=99.0)
    longer = replace(study, trials=(*study.trials, pruned))
    assert find_answers(longer).ranking == find_answers(study).ranking
    assert "1 pruned, 3 failed" in words_of(render_study(longer, find_answers(longer)))


def test_names_and_reasons_are_escaped(study: StudyResult) -> None:
    strange = replace(
        study,
        title="<b>A & B</b>",
        trials=tuple(replace(run, settings={"x": "<i>"}, reason="a <script>") for run in study.trials[:9]),
        space={"x": {"choice": ["<i>"]}},
    )
    page = render_study(strange, find_answers(strange))
    assert "<script>" not in page
    assert "<i>" not in page
    assert "<b>A" not in page


def test_a_command_of_a_path_with_blanks_stays_one(study: StudyResult) -> None:
    run = replace(study.trials[9], command="python tools/train.py 'my c.py' --work-dir 'a b' --resume")
    assert ready_command(study, run) == (
        f"python tools/train.py 'my c.py' --work-dir work_dirs/rate_and_batch_{run.number:04d}"
    )
    assert trial_table(replace(study, trials=())).count("\n") == 1


def test_a_study_that_was_run_is_reported_from_its_folder(sweep: Any) -> None:
    sweep.run()
    study = read_study_file(sweep.folder / "rates.py")
    assert report_study(study, sweep.work_dir) == [f"report: {sweep.work_dir / 'study.html'}"]
    lead = words_of((sweep.work_dir / "study.html").read_text().partition("<section>")[0])
    assert "10 top1 lr=0.01 scores best: mean of 2 seeds" in lead
    assert "6 of 6 trainings ended" in lead
    with pytest.raises(ConfigError, match="holds no study"):
        report_study(study, sweep.folder / "elsewhere")


def test_values_of_any_kind_are_shown(study: StudyResult) -> None:
    """Labels, lists, None, flags and a rate of 0: what a choice may hold."""
    kinds = {"a": [None, [224, 224]], "b.x": [True, False, True], RATE: [0.0, 1e-3], BATCH: ["small", "large"]}
    trials = tuple(
        replace(run, settings={key: values[run.number % len(values)] for key, values in kinds.items()})
        for run in study.trials[6:36]
    )
    mixed = replace(study, space={key: {"choice": values} for key, values in kinds.items()}, trials=trials)
    findings = find_answers(mixed)
    assert findings.rate_and_batch is None
    assert "x=True, lr=0, size=small" in words_of(render_study(mixed, findings))
