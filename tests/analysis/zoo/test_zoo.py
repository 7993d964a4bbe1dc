"""The table of methods: a few of them here, all of them where the mark ``zoo`` is chosen (``pytest -m zoo``)."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

import detection.task  # noqa: F401
import segmentation.task  # noqa: F401
from analysis.zoo import table
from analysis.zoo.catalog import METHOD, Method, all_methods, chosen_methods, tasks_by_package
from analysis.zoo.table import sections, tried, try_apart, write_section
from analysis.zoo.trial import Outcome, try_method
from backbones.errors import ConfigError, DataError

PACKAGES = ("mmdet", "mmseg")
# A head behind a pyramid, one behind a single map; heads with an index, and with several.
FEW = [("mmdet", "atss"), ("mmdet", "conditional_detr"), ("mmseg", "ccnet"), ("mmseg", "ann")]
BAR = 0.9
PAGE = Path(__file__).resolve().parents[3] / "docs/zoo.md"


def method_of(package: str, folder: str) -> Method:
    (method,) = chosen_methods([package], [folder])
    return method


@pytest.mark.parametrize(("package", "folder"), FEW)
def test_a_few_methods_work(package: str, folder: str) -> None:
    method = method_of(package, folder)
    outcome = try_method(method.config, method.folder, "convnext_atto", method.task)
    assert not outcome.reason, outcome.trace
    assert outcome.step == "predict"


@pytest.mark.zoo
@pytest.mark.parametrize("package", PACKAGES)
def test_nine_of_ten_methods_work(package: str) -> None:
    results = list(tried([package], [], "convnext_atto", print))
    assert sum(not outcome.reason for _, outcome in results) >= BAR * len(results)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_has_all_methods_and_nine_of_ten_work(package: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition(f"<!-- {package} -->")[2].partition("<!-- end of")[0]
    tables = [re.findall(r"^\| (\S+) \| (.+) \|$", part, re.MULTILINE) for part in section.split("Not tried:")]
    results, reasons = (dict(rows[1:]) for rows in tables)
    methods = chosen_methods([package], [])
    tried = [method for method in methods if not method.excluded]
    assert reasons == {method.folder: method.excluded for method in methods if method.excluded}
    assert {folder: rest.split(" | ")[:2] for folder, rest in results.items()} == {
        method.folder: [method.kind, f"`{method.config.stem}`"] for method in tried
    }
    counts = []
    for group in (tried, [method for method in tried if method.kind == METHOD]):
        works = sum(results[method.folder].endswith(f"| {table.WORKS}") for method in group)
        assert works >= BAR * len(group)
        counts.append(f"{works} of the {len(group)} ")
    assert [section.find(count) >= 0 for count in counts] == [True, True]


@pytest.mark.parametrize("package", PACKAGES)
def test_stated_folders_and_configs_exist(package: str) -> None:
    task = tasks_by_package()[package]
    methods = {method.folder: method for method in all_methods(task)}
    assert all(method.config.is_file() for method in methods.values())
    zoo = task.zoo
    stated = {*zoo.out_of_scope, *zoo.kinds, *zoo.bound, *zoo.configs, *zoo.stages, *zoo.shapes}
    assert stated <= methods.keys()
    assert not zoo.out_of_scope.keys() & {*zoo.kinds, *zoo.bound}


def test_a_crash_and_an_endless_loop_are_lines_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of("mmseg", "ccnet")
    monkeypatch.setattr(table, "try_method", lambda *_: os._exit(7))
    assert try_apart(method, "convnext_atto") == Outcome("process", "ended with exit code 7")
    monkeypatch.setattr(table, "try_method", lambda *_: time.sleep(60))
    assert try_apart(method, "convnext_atto", seconds=0.2) == Outcome("process", "not done after 0.2 s")
    monkeypatch.setattr(table, "try_method", lambda *_: Outcome("loss", "wrong"))
    assert try_apart(method, "convnext_atto") == Outcome("loss", "wrong")


def test_a_failing_method_names_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of("mmseg", "ccnet")

    def wrong(folder: str, model: Any, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        raise ValueError("no | batch\nat all")

    monkeypatch.setitem(vars(method.task.zoo), "complete_batch", wrong)
    outcome = try_method(method.config, method.folder, "convnext_atto", method.task)
    assert (outcome.step, outcome.reason) == ("loss", "ValueError: no | batch at all")
    assert "in wrong" in outcome.trace
    assert "| loss: ValueError: no \\| batch at all |" in table_of((method, outcome))


def table_of(*results: tuple[Method, Outcome]) -> str:
    return sections(results, "convnext_atto")["mmseg"]


def test_folders_of_backbones_are_counted_apart_and_bound_methods_say_why() -> None:
    works, fails = Outcome("predict"), Outcome("loss", "ValueError: no")
    text = table_of(
        (method_of("mmseg", "ccnet"), works),
        (method_of("mmseg", "pidnet"), fails),
        (method_of("mmseg", "swin"), works),
    )
    assert text.startswith(
        "2 of the 3 (67%) folders of mmseg that are in scope work on `convnext_atto`, and\n"
        "1 of the 2 (50%) among them that hold a method of their own:\nmeasured on 2"
    )
    assert "| swin | backbone | `swin-tiny-patch4" in text
    assert "| its head reads the three branches of its own network (loss: ValueError: no) |" in text


def test_wrong_names() -> None:
    with pytest.raises(ConfigError, match="mmdet has no method 'atsss': did you mean atss"):
        chosen_methods(["mmdet"], ["atsss"])
    with pytest.raises(ConfigError, match="convnext_ato"):
        next(tried(["mmdet"], ["atss"], "convnext_ato", print))


def test_a_section_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
    write_section(page, "x", "new")
    write_section(page, "x", "newer")
    assert page.read_text() == "a\n<!-- x -->\n\nnewer\n\n<!-- end of x -->\nb\n"
    with pytest.raises(DataError, match="has no lines '<!-- y -->'"):
        write_section(page, "y", "new")
