"""Report of the demo from the files in the steps' folders: ``report.json`` and one self-contained page.

The report is written in any case; it names the parts that are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.config.load import TEST_FOLDER
from engine.report.environment import code_state, commit_line, machine, read_text, versions
from engine.report.html import (
    CurveLine,
    confusion_table,
    document,
    duration,
    facts,
    figure,
    load_report_line,
    memory,
    note,
    number,
    plot,
    table,
)
from engine.report.run_dir import (
    CONFUSION,
    finite,
    read_curves,
    read_json,
    read_json_lines,
    read_load_reports,
    scaled,
    write_json,
)
from engine.task import Score

TITLE = "One ConvNeXt, three tasks"
PRETRAINED, SCRATCH = "from the trained backbone", "from scratch"
GPU = re.compile(r"^\s*GPU [\d,]+: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Experiment:
    """The steps and scores of one task.

    Attributes:
        title: Heading in the report.
        trained: Name of the step.
        scratch: Name of the step that began with random weights, if there is one.
        scores: Scores of the task; the first is the headline and has a curve.
    """

    title: str
    trained: str
    scratch: str | None
    scores: tuple[Score, ...]


EXPERIMENTS = (
    Experiment("Classification", "classifier", None, (Score("top-1", "top1"), Score("top-5", "top5"))),
    Experiment(
        "Detection: Mask R-CNN",
        "detector",
        "detector_scratch",
        (Score("box AP", "bbox_mAP", 100), Score("mask AP", "segm_mAP", 100)),
    ),
    Experiment(
        "Segmentation: UperNet",
        "segmentor",
        "segmentor_scratch",
        (Score("mIoU", "mIoU"), Score("mean class accuracy", "mAcc")),
    ),
)


def collect_report(work_dir: Path, titles: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Gather all figures of a demo as plain data.

    Args:
        work_dir: Folder with one folder for each step.
        titles: Titles of the steps by name, in order.
        seed: Seed of the trainings.

    Returns:
        The content of ``report.json``.
    """
    steps = [_read_step(work_dir / name, name, title) for name, title in titles.items()]
    return {
        "title": TITLE,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        "machine": {"gpu": next((step["gpu"] for step in steps if step["gpu"]), None), **machine()},
        "versions": versions(),
        "commit": commit_line(code_state()),
        "scores": _scores({step["name"]: step["metrics"] for step in steps}),
        "confusion": read_json(work_dir / "classifier" / TEST_FOLDER / CONFUSION) or None,
        "seconds": _total_seconds(steps),
        "steps": steps,
    }


def write_demo_report(report: dict[str, Any], work_dir: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` beside the steps' folders; return the two paths."""
    page, data = work_dir / "report.html", work_dir / "report.json"
    write_json(data, report)
    page.write_text(render_demo_report(report, work_dir), encoding="utf-8")
    return page, data


def score_table(report: dict[str, Any]) -> list[str]:
    """Scores and costs as lines for a terminal."""
    lines = [f"{'':<44}{'trained backbone':>18}{'scratch':>10}{'margin':>9}"]
    for score in report["scores"]:
        values = (number(score["trained"]), number(score["scratch"]), number(score["margin"], signed=True))
        lines.append(f"{score['task'] + ', ' + score['label']:<44}{values[0]:>18}{values[1]:>10}{values[2]:>9}")
    lines += ["", f"{'':<44}{'time':>18}{'peak memory':>19}"]
    for step in report["steps"]:
        lines.append(f"{step['name']:<44}{duration(step['seconds']):>18}{memory(step['memory_bytes']):>19}")
    return [*lines, f"{'total':<44}{duration(report['seconds']):>18}"]


def headline(name: str, metrics: Mapping[str, float]) -> str:
    """The scores of one step in a few words; empty for a step without scores."""
    scores = [score for one in EXPERIMENTS if name in (one.trained, one.scratch) for score in one.scores]
    return ", ".join(f"{score.label} {number(scaled(metrics, score))}" for score in scores)


def render_demo_report(report: dict[str, Any], work_dir: Path) -> str:
    """The page as one self-contained HTML document, with the drawn predictions in ``<step>/pictures``."""
    steps, confusion = {step["name"]: step for step in report["steps"]}, report["confusion"]
    no_confusion = note("There is no classifier/test/confusion.json.")
    sections = {
        "Scores on held-out data": _score_cards(report),
        "Curves": _curves(steps),
        "What the classifier confuses": confusion_table(confusion) if confusion else no_confusion,
        "Predictions beside the truth": _pictures(steps, work_dir),
        "Time and memory": _costs(report),
        "Weights": _load_reports(steps),
        "Each step by hand": _commands(report["steps"]),
        "Made with": _made_with(report),
    }
    return document(report["title"], _lead(report), sections)


def _read_step(folder: Path, name: str, title: str) -> dict[str, Any]:
    done = read_json(folder / "done.json")
    gpu = [match for path in sorted(folder.glob("*/*.log")) for match in GPU.findall(read_text(path))]
    entries = [entry for path in folder.glob("*/vis_data/scalars.json") for entry in read_json_lines(path)]
    megabytes = max((entry.get("memory", 0) for entry in entries), default=0)
    return {
        "name": name,
        "title": title,
        "finished": bool(done),
        "commands": done.get("commands", []),
        "seconds": done.get("seconds", 0.0),
        "beside_former": done.get("beside_former", False),
        "starts": done.get("starts", 0),
        "memory_bytes": done.get("memory_bytes", 0),
        "gpu": gpu[-1] if gpu else None,
        "gpu_memory_bytes": megabytes * 2**20,
        "metrics": {key: finite(value) for key, value in done.get("metrics", {}).items()},
        "receipts": {
            "training": read_load_reports(folder / "weights.json"),
            "test": read_load_reports(folder / "test.json"),
        },
        "curves": read_curves(folder),
        "pictures": sorted(path.name for path in (folder / "pictures").glob("*.png")),
    }


def _total_seconds(steps: Sequence[Mapping[str, Any]]) -> float:
    """Time of all steps; of two that ran at the same time, that of the longer one."""
    pairs = [pair for pair in pairwise(steps) if pair[1]["beside_former"]]
    both = sum(min(former["seconds"], step["seconds"]) for former, step in pairs)
    return float(sum(step["seconds"] for step in steps) - both)


def _scores(metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    rows = []
    for experiment in EXPERIMENTS:
        for score in experiment.scores:
            trained = scaled(metrics.get(experiment.trained, {}), score)
            scratch = scaled(metrics.get(experiment.scratch or "", {}), score)
            margin = trained - scratch if trained is not None and scratch is not None else None
            row = {"task": experiment.title, "label": score.label, "metric": score.metric}
            rows.append({**row, "trained": trained, "scratch": scratch, "margin": margin})
    return rows


def _lead(report: dict[str, Any]) -> str:
    where = report["machine"]
    cpu = f"{where['cpu']}, {where['cores']} core{'s' if where['cores'] != 1 else ''}"
    about = (where["gpu"] or f"CPU: {cpu}", f"{duration(report['seconds'])} in all", report["date"].replace("T", " "))
    text = (
        "A small backbone learnt to name handwritten digits by the classification recipe. Its checkpoint then went, "
        "unedited, into a detector and a segmentor. Each of these two was trained a second time with random weights "
        "in its place: same config, same data, same number of steps, same seed."
    )
    return f'<p class="lead">{text}</p>{note(" · ".join(about))}'


def _score_cards(report: dict[str, Any]) -> str:
    cards = []
    curves = {step["name"]: step["curves"] for step in report["steps"]}
    for experiment in EXPERIMENTS:
        rows = [row for row in report["scores"] if row["task"] == experiment.title]
        head = rows[0]
        parts = [
            f"<h3>{escape(experiment.title)}</h3>",
            f'<p class="big">{number(head["trained"])} <small>{escape(head["label"])}</small></p>',
            f"<p>{_margin(head['margin'])}</p>" if experiment.scratch else "",
            *(_bars(row, experiment.scratch is not None) for row in rows),
        ]
        averaged = curves.get(experiment.trained, {}).get(f"val/ema/{head['metric']}")
        if averaged:
            last = number(averaged[-1][1] * experiment.scores[0].factor)
            parts.append(f'<p class="label">{escape(head["label"])} of the averaged weights (EMA): {last}</p>')
        cards.append(f'<article class="card">{"".join(parts)}</article>')
    unfinished = [step["name"] for step in report["steps"] if not step["finished"]]
    remark = f"One run with seed {report['seed']}; all scores are out of 100. AP is COCO's, over IoU 0.50 to 0.95."
    if unfinished:
        remark += f" Not finished: {', '.join(unfinished)}."
    legend = f'<p class="legend"><i class="trained"></i>{PRETRAINED} <i class="scratch"></i>{SCRATCH}</p>'
    return f'<div class="cards">{"".join(cards)}</div>{legend}{note(remark)}'


def _margin(margin: float | None) -> str:
    if margin is None:
        return f"no comparison with {SCRATCH} yet"
    return f"{number(abs(margin))} points {'behind' if margin < 0 else 'ahead of'} scratch"


def _bars(row: Mapping[str, Any], paired: bool) -> str:
    bars = [
        f'<div class="bar"><span><i class="{kind}" style="width:{min(max(row[kind] or 0.0, 0.0), 100.0):.1f}%">'
        f"</i></span><b>{number(row[kind])}</b></div>"
        for kind in (("trained", "scratch") if paired else ("trained",))
    ]
    return f'<p class="label">{escape(row["label"])}</p>{"".join(bars)}'


def _curves(steps: Mapping[str, dict[str, Any]]) -> str:
    parts = []
    for experiment in EXPERIMENTS:
        score = experiment.scores[0]
        trained = steps.get(experiment.trained, {}).get("curves", {})
        scratch = steps.get(experiment.scratch or "", {}).get("curves", {})
        loss = {
            PRETRAINED: CurveLine("trained", trained.get("train/loss")),
            SCRATCH: CurveLine("scratch", scratch.get("train/loss")),
        }
        value = {
            PRETRAINED: CurveLine("trained", trained.get(f"val/{score.metric}"), score.factor),
            "averaged weights (EMA)": CurveLine("averaged", trained.get(f"val/ema/{score.metric}"), score.factor),
            SCRATCH: CurveLine("scratch", scratch.get(f"val/{score.metric}"), score.factor),
        }
        if experiment.scratch is None:
            loss = {"raw weights": loss[PRETRAINED]}
            value["raw weights"] = value.pop(PRETRAINED)
        plots = plot(experiment.title, "training loss", loss)
        plots += plot(experiment.title, f"{score.label} on held-out data", value)
        missing = note(f"No curves in the folder of {experiment.trained}.")
        parts.append(f'<h3>{escape(experiment.title)}</h3><div class="plots">{plots or missing}</div>')
    return "".join(parts)


def _pictures(steps: Mapping[str, dict[str, Any]], work_dir: Path) -> str:
    parts = []
    for experiment in EXPERIMENTS:
        runs = [(experiment.trained, PRETRAINED if experiment.scratch else "")]
        runs += [(experiment.scratch, SCRATCH)] if experiment.scratch else []
        names = sorted({name for run, _ in runs for name in steps.get(run, {}).get("pictures", [])})
        cards = []
        for name in names:
            shown = [figure(work_dir / run / "pictures" / name, caption) for run, caption in runs]
            cards.append(f'<div class="card">{"".join(shown)}</div>')
        remark = "Left the truth, right the prediction." if experiment.scratch else "The truth, and the five likeliest."
        gallery = f'<div class="gallery{" pairs" if experiment.scratch else ""}">{"".join(cards)}</div>'
        if not cards:
            remark, gallery = f"There are no pictures in {' and '.join(f'{run}/pictures' for run, _ in runs)}.", ""
        parts.append(f"<h3>{escape(experiment.title)}</h3>{note(remark)}{gallery}")
    return "".join(parts)


def _costs(report: dict[str, Any]) -> str:
    on_gpu = any(step["gpu_memory_bytes"] for step in report["steps"])
    head = ["step", "time", "peak memory", "peak GPU memory"]
    rows = []
    for step in report["steps"]:
        again = f" ({step['starts']} starts)" if step["starts"] > 1 else ""
        time = duration(step["seconds"]) if step["finished"] else "not finished"
        rows.append([step["title"], time + again, memory(step["memory_bytes"]), memory(step["gpu_memory_bytes"])])
    total, columns = ["all", duration(report["seconds"]), "", ""], 4 if on_gpu else 3
    remark = (
        "Time of training and test together, of all starts where a step was interrupted; of two that ran at the same "
        "time, the longer one counts for all. Memory: the largest resident size of any one process of the step; the "
        "processes that load data come on top."
    )
    return table(head[:columns], [row[:columns] for row in rows], total[:columns]) + note(remark)


def _load_reports(steps: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for experiment in EXPERIMENTS:
        for name in filter(None, (experiment.trained, experiment.scratch)):
            found = steps.get(name, {}).get("receipts", {})
            begun = load_report_line(found.get("training"), "random weights, nothing loaded")
            tested = load_report_line(found.get("test"), "nothing loaded")
            lines.append(f"<li><b>{escape(name)}</b> began with: {escape(begun)}. Tested with: {escape(tested)}.</li>")
    return f"<ul>{''.join(lines)}</ul>"


def _commands(steps: Sequence[Mapping[str, Any]]) -> str:
    parts = [note("From the root of the repository, in the environment that tools/demo.sh made.")]
    for step in steps:
        lines = [entry["command"] for entry in step["commands"]] or ["not finished"]
        parts.append(f"<h3>{escape(step['title'])}</h3>{''.join(f'<pre>{escape(line)}</pre>' for line in lines)}")
    return "".join(parts)


def _made_with(report: dict[str, Any]) -> str:
    where = report["machine"]
    rows = {"GPU": where["gpu"] or "none", "CPU": f"{where['cpu']}, {where['cores']} cores"}
    return facts(rows | {"system": where["system"], "commit": report["commit"], **report["versions"]})
