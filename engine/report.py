"""The demo's report: reads what the steps left in their folders, writes ``report.json`` and one self-contained page.

Whatever a step did not leave is said to be missing; a report is written in any case.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

TITLE = "One ConvNeXt, three tasks"
NONE = "–"
PRETRAINED, SCRATCH = "from the trained backbone", "from scratch"

# Of every colour, in plots and page: on white, on black.
COLOURS = {
    "text": ("#1c2126", "#e4e7ea"),
    "faint": ("#6a737d", "#98a1ab"),
    "line": ("#d9dee3", "#343b42"),
    "page": ("#fbfbfa", "#16191c"),
    "card": ("#ffffff", "#1e2226"),
    "trained": ("#2367b0", "#78b0ee"),
    "scratch": ("#c06a1c", "#e8a15c"),
    "averaged": ("#3b8a52", "#7cc791"),
    "wrong": ("#c23b3b", "#ee8080"),
}
PACKAGES = (
    *("torch", "torchvision", "timm", "onedl-mmengine", "onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation"),
    *("mmengine", "mmcv", "mmdet", "mmsegmentation", "faster-coco-eval", "numpy"),
)
GPU = re.compile(r"^\s*GPU [\d,]+: (.+)$", re.MULTILINE)
GIB = 2**30
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Score:
    """A metric as people read it: ``factor`` brings the stored value to 0..100."""

    label: str
    metric: str
    factor: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """What the report says about one task.

    Attributes:
        title: Heading.
        trained: Name of the step.
        scratch: Name of the step that began with random weights, if there is one.
        scores: The first is the headline and has a curve.
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


def collect(work_dir: Path, titles: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Gather all figures of a demo as plain data.

    Args:
        work_dir: Folder with one folder for each step.
        titles: Name and description of each step, in order.
        seed: Of the trainings.

    Returns:
        The content of ``report.json``.
    """
    steps = [_read_step(work_dir / name, name, title) for name, title in titles.items()]
    return {
        "title": TITLE,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        "machine": _machine(steps),
        "versions": _versions(),
        "commit": _commit(),
        "scores": _scores({step["name"]: step["metrics"] for step in steps}),
        "confusion": _read_json(work_dir / "classifier" / "confusion.json"),
        "seconds": sum(step["seconds"] for step in steps),
        "steps": steps,
    }


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Training loss and validation metrics of all starts of one training.

    A validation is placed at the last step that was logged before it. Where a run was interrupted, what the next
    start did again counts.

    Args:
        folder: Work directory of the training.

    Returns:
        ``train/loss`` and ``val/<metric>``, each a list of (optimizer step, value).
    """
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        step = 0
        for entry in _json_lines(path):
            if "lr" in entry:
                step = entry["step"]
                values = {"train/loss": entry.get("loss")}
            else:
                values = {f"val/{name}": entry[name] for name in entry if name not in ("step", "time", "data_time")}
            for name, value in values.items():
                if (finite := _finite(value)) is not None:
                    curves.setdefault(name, {})[step or entry["step"]] = finite
    return {name: sorted(points.items()) for name, points in curves.items()}


def write_report(report: dict[str, Any], work_dir: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html``.

    Args:
        report: From :func:`collect`.
        work_dir: Where they go; drawn predictions are read from the steps' folders in it.

    Returns:
        The two paths, page first.
    """
    page, data = work_dir / "report.html", work_dir / "report.json"
    data.write_text(json.dumps(report, indent=2), encoding="utf-8")
    page.write_text(render(report, work_dir), encoding="utf-8")
    return page, data


def table(report: dict[str, Any]) -> list[str]:
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
    """The scores of one step in a few words; empty for a step without."""
    scores = [score for one in EXPERIMENTS if name in (one.trained, one.scratch) for score in one.scores]
    return ", ".join(f"{score.label} {number(_scaled(metrics, score))}" for score in scores)


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory(count: int | None) -> str:
    """Bytes in GiB."""
    return NONE if not count else f"{count / GIB:.2f} GiB"


def number(value: float | None, signed: bool = False) -> str:
    """A score in 0..100, or a difference of two."""
    if value is None:
        return NONE
    return f"{value:{'+' if signed else ''}.1f}".replace("-", "−")


def _read_step(folder: Path, name: str, title: str) -> dict[str, Any]:
    done = _read_json(folder / "done.json") or {}
    gpu = [match for path in sorted(folder.glob("*/*.log")) for match in GPU.findall(_read_text(path))]
    entries = [entry for path in folder.glob("*/vis_data/scalars.json") for entry in _json_lines(path)]
    megabytes = max((entry.get("memory", 0) for entry in entries), default=0)
    metrics = {key: _finite(value) for key, value in done.get("metrics", {}).items()}
    return {
        "name": name,
        "title": title,
        "finished": bool(done),
        "commands": done.get("commands", []),
        "seconds": done.get("seconds", 0.0),
        "starts": done.get("starts", 0),
        "memory_bytes": done.get("memory_bytes", 0),
        "gpu": gpu[-1] if gpu else None,
        "gpu_memory_bytes": megabytes * 2**20,
        "metrics": metrics,
        "receipts": {"training": _read_receipts(folder / "weights.json"), "test": _read_receipts(folder / "test.json")},
        "curves": read_curves(folder),
        "pictures": sorted(path.name for path in (folder / "pictures").glob("*.png")),
    }


def _read_receipts(path: Path) -> list[dict[str, Any]] | None:
    """What a training or a test says that it loaded, in order; ``None`` where it has left no word."""
    receipts = (_read_json(path) or {}).get("receipts")
    return [one for one in receipts if isinstance(one, dict)] if isinstance(receipts, list) else None


def _scores(metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    rows = []
    for experiment in EXPERIMENTS:
        for score in experiment.scores:
            trained = _scaled(metrics.get(experiment.trained, {}), score)
            scratch = _scaled(metrics.get(experiment.scratch or "", {}), score)
            margin = trained - scratch if trained is not None and scratch is not None else None
            values = {"trained": trained, "scratch": scratch, "margin": margin}
            rows.append({"task": experiment.title, "label": score.label, "metric": score.metric, **values})
    return rows


def _scaled(metrics: Mapping[str, float | None], score: Score) -> float | None:
    value = metrics.get(score.metric)
    return None if value is None else value * score.factor


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(_read_text(path))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in _read_text(path).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that was killed may be cut
            continue
        if isinstance(entry, dict) and "step" in entry:
            yield entry


def _machine(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cpu = re.search(r"^model name\s*: (.+)$", _read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "gpu": next((step["gpu"] for step in steps if step["gpu"]), None),
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def render(report: dict[str, Any], work_dir: Path) -> str:
    """The page, with everything it needs inside.

    Args:
        report: From :func:`collect`.
        work_dir: The drawn predictions are read from ``<step>/pictures`` in it.

    Returns:
        HTML.
    """
    steps = {step["name"]: step for step in report["steps"]}
    sections = {
        "Scores on held-out data": _score_cards(report),
        "Curves": _curves(steps),
        "What the classifier confuses": _confusion(report["confusion"]),
        "Predictions beside the truth": _pictures(steps, work_dir),
        "Time and memory": _costs(report),
        "Weights": _receipts(steps),
        "Each step by hand": _commands(report["steps"]),
        "Made with": _made_with(report),
    }
    body = "\n".join(f"<section><h2>{escape(title)}</h2>\n{text}</section>" for title, text in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report['title'])}</title>\n<style>{_style()}</style></head>\n<body><main>\n"
        f"<h1>{escape(report['title'])}</h1>\n{_lead(report)}\n{body}\n</main></body></html>\n"
    )


def _lead(report: dict[str, Any]) -> str:
    machine = report["machine"]
    cpu = f"{machine['cpu']}, {machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    facts = (machine["gpu"] or f"CPU: {cpu}", f"{duration(report['seconds'])} in all", report["date"].replace("T", " "))
    text = (
        "A small backbone learnt to name handwritten digits by the classification recipe. Its checkpoint then went, "
        "unedited, into a detector and a segmentor. Each of these two was trained a second time with random weights "
        "in its place: same config, same data, same number of steps, same seed."
    )
    return f'<p class="lead">{text}</p><p class="faint">{escape(" · ".join(facts))}</p>'


def _score_cards(report: dict[str, Any]) -> str:
    cards = []
    curves = {step["name"]: step["curves"] for step in report["steps"]}
    for experiment in EXPERIMENTS:
        rows = [row for row in report["scores"] if row["task"] == experiment.title]
        head = rows[0]
        parts = [f"<h3>{escape(experiment.title)}</h3>"]
        parts.append(f'<p class="big">{number(head["trained"])} <small>{escape(head["label"])}</small></p>')
        if experiment.scratch:
            parts.append(f"<p>{_margin(head['margin'])}</p>")
        for row in rows:
            parts.append(_bars(row, experiment.scratch is not None))
        averaged = curves.get(experiment.trained, {}).get(f"val/ema/{head['metric']}")
        if averaged:
            last = number(averaged[-1][1] * experiment.scores[0].factor)
            parts.append(f'<p class="label">{escape(head["label"])} of the averaged weights (EMA): {last}</p>')
        cards.append(f'<article class="card">{"".join(parts)}</article>')
    unfinished = [step["name"] for step in report["steps"] if not step["finished"]]
    note = f"One run with seed {report['seed']}; all scores are out of 100. AP is COCO's, over IoU 0.50 to 0.95."
    if unfinished:
        note += f" Not finished: {', '.join(unfinished)}."
    legend = f'<p class="legend"><i class="trained"></i>{PRETRAINED} <i class="scratch"></i>{SCRATCH}</p>'
    return f'<div class="cards">{"".join(cards)}</div>{legend}<p class="faint">{escape(note)}</p>'


def _margin(margin: float | None) -> str:
    if margin is None:
        return f"no comparison with {SCRATCH} yet"
    return f"{number(abs(margin))} points {'behind' if margin < 0 else 'ahead of'} scratch"


def _bars(row: Mapping[str, Any], paired: bool) -> str:
    bars = []
    for kind in ("trained", "scratch") if paired else ("trained",):
        width = min(max(row[kind] or 0.0, 0.0), 100.0)
        bars.append(
            f'<div class="bar"><span><i class="{kind}" style="width:{width:.1f}%"></i></span>'
            f"<b>{number(row[kind])}</b></div>"
        )
    return f'<p class="label">{escape(row["label"])}</p>{"".join(bars)}'


def _curves(steps: Mapping[str, dict[str, Any]]) -> str:
    parts = []
    for experiment in EXPERIMENTS:
        score = experiment.scores[0]
        trained = steps.get(experiment.trained, {}).get("curves", {})
        scratch = steps.get(experiment.scratch or "", {}).get("curves", {})
        loss = {
            PRETRAINED: ("trained", trained.get("train/loss"), 1.0),
            SCRATCH: ("scratch", scratch.get("train/loss"), 1.0),
        }
        value = {
            PRETRAINED: ("trained", trained.get(f"val/{score.metric}"), score.factor),
            "averaged weights (EMA)": ("averaged", trained.get(f"val/ema/{score.metric}"), score.factor),
            SCRATCH: ("scratch", scratch.get(f"val/{score.metric}"), score.factor),
        }
        if experiment.scratch is None:
            loss = {"raw weights": loss[PRETRAINED]}
            value["raw weights"] = value.pop(PRETRAINED)
        plots = _plot(experiment.title, "training loss", loss)
        plots += _plot(experiment.title, f"{score.label} on held-out data", value)
        missing = f'<p class="faint">No curves in the folder of {escape(experiment.trained)}.</p>'
        parts.append(f'<h3>{escape(experiment.title)}</h3><div class="plots">{plots or missing}</div>')
    return "".join(parts)


def _plot(heading: str, title: str, lines: Mapping[str, tuple[str, list[tuple[int, float]] | None, float]]) -> str:
    """A line plot over optimizer steps as inline SVG whose colours follow the page's.

    Args:
        heading: Of the plots around it.
        title: Of the plot.
        lines: By label: name of the colour, points, and what to multiply the values with.

    Returns:
        The SVG, or an empty text where no line has points.
    """
    drawn = {label: line for label, line in lines.items() if line[1]}
    if not drawn:
        return ""
    text, rule = COLOURS["text"][0], COLOURS["line"][0]
    rc: Any = {"svg.fonttype": "none", "svg.hashsalt": heading + title, "font.size": 9, "text.color": text}
    rc |= {"axes.labelcolor": text, "xtick.labelcolor": text, "ytick.labelcolor": text, "axes.edgecolor": rule}
    rc |= {"xtick.color": rule, "ytick.color": rule, "grid.color": rule, "axes.spines.top": False}
    with mpl.rc_context(rc | {"axes.spines.right": False}):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for label, (colour, points, factor) in drawn.items():
            xs, ys = zip(*points or [], strict=True)
            style: Any = {"color": COLOURS[colour][0], "marker": "o" if len(xs) < 30 else None, "ms": 3.5, "lw": 1.8}
            axes.plot(xs, [factor * y for y in ys], label=label, **style)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("optimizer steps")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", lw=0.6)
        axes.set_axisbelow(True)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    for name, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{name})")
    start = svg.index("<svg") + len("<svg")
    return f'<svg role="img" aria-label="{escape(f"{heading}, {title}")}"{svg[start:]}'


def _confusion(confusion: dict[str, Any] | None) -> str:
    if not confusion:
        return '<p class="faint">There is no classifier/confusion.json.</p>'
    classes, matrix = confusion["classes"], confusion["matrix"]
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in classes)
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts) or 1
        cells = [f'<th scope="row">{escape(str(name))}</th>']
        for predicted, count in enumerate(counts):
            kind = "trained" if predicted == true else "wrong"
            # The root makes few mistakes visible; three quarters of a colour leave the number legible.
            share = 75 * math.sqrt(count / total)
            shade = f"background:color-mix(in srgb, var(--{kind}) {share:.0f}%, transparent)" if count else ""
            cells.append(f'<td style="{shade}">{count or ""}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<p class="faint">Rows: what it is. Columns: what the classifier said. Number of held-out images.</p>'
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _pictures(steps: Mapping[str, dict[str, Any]], work_dir: Path) -> str:
    parts = []
    for experiment in EXPERIMENTS:
        runs = [(experiment.trained, PRETRAINED if experiment.scratch else "")]
        runs += [(experiment.scratch, SCRATCH)] if experiment.scratch else []
        names = sorted({name for run, _ in runs for name in steps.get(run, {}).get("pictures", [])})
        cards = []
        for name in names:
            shown = [_figure(work_dir / run / "pictures" / name, caption) for run, caption in runs]
            cards.append(f'<div class="card">{"".join(shown)}</div>')
        how = "Left the truth, right the prediction." if experiment.scratch else "The truth, and the five likeliest."
        folders = " and ".join(f"{run}/pictures" for run, _ in runs)
        note = how if cards else f"There are no pictures in {folders}."
        kind = "gallery pairs" if experiment.scratch else "gallery"
        gallery = f'<div class="{kind}">{"".join(cards)}</div>' if cards else ""
        parts.append(f'<h3>{escape(experiment.title)}</h3><p class="faint">{escape(note)}</p>{gallery}')
    return "".join(parts)


def _figure(path: Path, caption: str) -> str:
    """One picture inside of the page, as JPEG: a quarter of the PNG's size."""
    try:
        file = io.BytesIO()
        Image.open(path).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    except OSError:
        return f"<figure><figcaption>{escape(caption)}: no picture</figcaption></figure>"
    data = base64.b64encode(file.getvalue()).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    alt = escape(f"prediction {path.parent.parent.name} {path.stem}")
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{alt}">{words}</figure>'


def _costs(report: dict[str, Any]) -> str:
    on_gpu = any(step["gpu_memory_bytes"] for step in report["steps"])
    head = "<th>step</th><th>time</th><th>peak memory</th>" + ("<th>peak GPU memory</th>" if on_gpu else "")
    rows = []
    for step in report["steps"]:
        again = f" ({step['starts']} starts)" if step["starts"] > 1 else ""
        time = duration(step["seconds"]) if step["finished"] else "not finished"
        cells = [time + again, memory(step["memory_bytes"])]
        cells += [memory(step["gpu_memory_bytes"])] if on_gpu else []
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(step["title"])}</th>{numbers}</tr>')
    empty = "<td></td>" * (2 if on_gpu else 1)
    rows.append(f'<tr class="total"><th scope="row">all</th><td>{duration(report["seconds"])}</td>{empty}</tr>')
    note = (
        "Time of training and test together, of all starts where a step was interrupted. Memory: the largest resident "
        "size of any one process of the step; the processes that load data come on top."
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div><p class="faint">{note}</p>'


def _receipts(steps: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for experiment in EXPERIMENTS:
        for name in filter(None, (experiment.trained, experiment.scratch)):
            found = steps.get(name, {}).get("receipts", {})
            begun = _receipt_line(found.get("training"), "random weights, nothing loaded")
            tested = _receipt_line(found.get("test"), "nothing loaded")
            lines.append(f"<li><b>{escape(name)}</b> began with: {escape(begun)}. Tested with: {escape(tested)}.</li>")
    return f"<ul>{''.join(lines)}</ul>"


def _receipt_line(receipts: Sequence[Mapping[str, Any]] | None, nothing: str) -> str:
    if receipts is None:
        return "no record"
    return "; then ".join(str(receipt.get("line")) for receipt in receipts) or nothing


def _commands(steps: Sequence[Mapping[str, Any]]) -> str:
    parts = ['<p class="faint">From the root of the repository, in the environment that tools/demo.sh made.</p>']
    for step in steps:
        lines = [entry["command"] for entry in step["commands"]] or ["not finished"]
        parts.append(f"<h3>{escape(step['title'])}</h3>{''.join(f'<pre>{escape(line)}</pre>' for line in lines)}")
    return "".join(parts)


def _made_with(report: dict[str, Any]) -> str:
    machine = report["machine"]
    rows = {"GPU": machine["gpu"] or "none", "CPU": f"{machine['cpu']}, {machine['cores']} cores"}
    rows |= {"system": machine["system"], "commit": report["commit"] or "not a git checkout", **report["versions"]}
    cells = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>' for k, v in rows.items())
    return f'<div class="wide"><table class="facts">{cells}</table></div>'


def _style() -> str:
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}"


STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:1rem 0 .5rem}
h2{font-size:1.35rem;margin:2.75rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.25rem 0 .5rem}
p{margin:.4rem 0}
.lead{max-width:46rem}
.faint,.label,figcaption{color:var(--faint);font-size:.875rem}
.cards,.gallery,.plots{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}
.plots{grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}
.gallery{gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,9rem),1fr))}
.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem}
.card h3{margin-top:0}
.gallery .card{padding:.5rem}
.big{font-size:2.6rem;font-weight:650;line-height:1.1;color:var(--trained);font-variant-numeric:tabular-nums}
.big small{font-size:1rem;font-weight:400;color:var(--faint)}
.label{margin:.75rem 0 .15rem}
.bar{display:flex;align-items:center;gap:.6rem;margin:.2rem 0}
.bar span{flex:1;background:var(--line);border-radius:.3rem;overflow:hidden}
.bar i{display:block;height:.7rem}
.bar b{min-width:3rem;text-align:right;font-weight:500;font-variant-numeric:tabular-nums}
i.trained{background:var(--trained)}i.scratch{background:var(--scratch)}
.legend{font-size:.875rem;margin-top:1rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.35rem}
.legend .scratch{margin-left:.6rem}
svg{width:100%;height:auto;max-width:34rem}
svg text{font-family:inherit!important}
figure{margin:0}
figure+figure{margin-top:.6rem}
img{display:block;width:100%;height:auto;border-radius:.3rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.35rem .8rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--faint)}
th:first-child{text-align:left;padding-left:0;color:var(--text)}
.facts td{text-align:left}
.total th,.total td{font-weight:650}
.confusion td,.confusion th{padding:.3rem .5rem;border:1px solid var(--line);min-width:2.6rem;font-size:.8rem}
.confusion th:first-child{padding-left:.5rem}
pre{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.75rem 1rem;margin:.25rem 0;
white-space:pre-wrap;overflow-wrap:anywhere;font-size:.82rem}
li{overflow-wrap:anywhere}
"""
