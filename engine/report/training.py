"""The one-page report of a training, made from the files in its work directory; the page is self-contained.

Files that are missing are left out or said to be missing, so that a report can be made at any time.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from backbones.files import atomic_write
from engine.checkpoint.store import RUN_ID_FILE
from engine.config.load import TEST_FOLDER
from engine.data.fault_tolerance import REPLACED_IMAGES_FILE
from engine.data.preflight import DATA_CHECK_FILE
from engine.report.class_scores import CLASS_SCORES, class_table, score_of, score_text
from engine.report.confusion import MAX_MATRIX_CLASSES
from engine.report.environment import commit_line, read_text
from engine.report.html import (
    NONE,
    CurveLine,
    confusion_table,
    document,
    duration,
    facts,
    figure,
    load_report_line,
    memory,
    note,
    plot,
    table,
)
from engine.report.lettering import DRAWN_NAMES, name_legend
from engine.report.run_dir import (
    CONFUSION,
    DRAWN_AFTER,
    EVENTS_FOLDER,
    RECEIPTS,
    REPORT,
    STARTS,
    TEST,
    Points,
    best_point,
    conform,
    finite,
    has_begun,
    has_validated,
    last_begun,
    read_curves,
    read_json,
    read_json_lines,
    read_load_reports,
    read_starts,
    scalar_files,
)
from engine.task import TASK_SPECS, VALIDATION_LOSS, Score, TaskSpec

TESTS = {"test": "test", "test_ema": "test, EMA", "test_tta": "test, TTA", "test_ema_tta": "test, EMA, TTA"}
MAX_REPORT_PICTURES = 8
MAX_EVENTS = 5  # listed one by one
# Share of the time that an activity may usually take, and what makes it shorter.
SLOW = {
    "waiting for data": (0.1, "more train_dataloader.num_workers, smaller images or shards help (docs/shards.md)"),
    "validation": (0.3, "validate less often (train_cfg.val_interval), or on fewer images"),
    "saving": (0.1, "save less often (default_hooks.checkpoint), or to a faster disk"),
}
RAW, AVERAGED = "raw weights", "averaged (EMA)"
HELD_OUT_LOSS = (
    "The loss on held-out data is without augmentation, mixed images, label smoothing, dropout and stochastic depth: "
    "it may lie below that of the training"
)


def write_training_report(folder: Path) -> Path:
    """Write the report of the training in a work directory; returns the path of the page."""
    page = folder / REPORT
    with atomic_write(page) as place:
        place.write_text(render_training_report(read_run(folder), folder), encoding="utf-8")
    return page


def read_run(folder: Path) -> dict[str, Any]:
    """Read all data of the page from the work directory of a training."""
    entries = [entry for path in scalar_files(folder) for entry in read_json_lines(path)]
    times = [time for entry in entries if "lr" in entry and (time := finite(entry.get("time")))]
    run = read_text(folder / RUN_ID_FILE)
    tests = _read_tests(folder, run)
    return {
        "name": folder.resolve().name,
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "starts": read_starts(folder),
        "curves": read_curves(folder),
        "validated": has_validated(folder),
        "step_seconds": median(times) if times else None,
        "gpu_memory_bytes": max((int(finite(entry.get("memory")) or 0) for entry in entries), default=0) * 2**20,
        "tests": tests,
        "receipts": read_load_reports(folder / RECEIPTS),
        "checkpoints": sorted(path.name for path in folder.glob("*.pth")),
        "replaced": [line for line in read_text(folder / REPLACED_IMAGES_FILE).splitlines() if line.strip()],
        "data_check": read_json(folder / DATA_CHECK_FILE),
        "non_finite": [event for event in _read_non_finite(folder / EVENTS_FOLDER) if event.get("run", run) == run],
        "confusion": read_json(folder / TEST_FOLDER / CONFUSION) or read_json(folder / CONFUSION),
        "class_scores": read_json(folder / CLASS_SCORES),
        "pictures": sorted(path.name for path in (folder / "pictures").glob("*.png"))[:MAX_REPORT_PICTURES],
    }


def _read_tests(folder: Path, run: str) -> dict[str, dict[str, Any]]:
    """The results of tests; the label marks those with a checkpoint of another training than the folder's."""
    tests = {}
    for name, label in TESTS.items():
        if (file := folder / f"{name}.json").is_file():
            loaded = read_load_reports(file) or []
            other = any(one.get("part") == "model" and one.get("run", run) != run for one in loaded)
            label += " of another training" if other else ""
            tests[name] = {**conform(read_json(file), TEST), "label": label, "time": file.stat().st_mtime_ns}
    return tests


def _read_non_finite(folder: Path) -> list[dict[str, Any]]:
    """The reports of steps that were not finite, in the order of the steps."""
    events = [{"folder": path.name, **read_json(path / "report.json")} for path in folder.glob("*") if path.is_dir()]
    return sorted(events, key=lambda event: (finite(event.get("step")) or 0, event["folder"]))


def render_training_report(run: Mapping[str, Any], folder: Path) -> str:
    """Return the page as self-contained HTML, from :func:`read_run`'s data and the pictures in the work directory."""
    last = last_begun(run["starts"])
    sections = {
        "Scores on held-out data": _scores(run, last),
        "Scores of the classes": _class_scores(run, last),
        "Curves": _curves(run, last),
        "What to know": _events(run),
        "What is confused": _confusion(run["confusion"], run["class_scores"]),
        "Predictions": _pictures(run, folder),
        "The training": _training(run, last),
        "Settings": _settings(last),
        "Weights": _weights(run),
        "Starts": _starts(run["starts"]),
        "Made with": _made_with(last),
    }
    return document(str(run["name"]), _lead(run, last), sections)


def state_line(start: Mapping[str, Any], checkpoints: Sequence[str]) -> str:
    """Return the state of a training after its last start in a sentence, and the command that resumes it."""
    if not start:
        return f"No {STARTS} tells how this training stands."
    at = f"at step {_steps(start.get('to_step', start.get('from_step')))} of {_steps(start.get('of_steps'))}"
    outcome, reason = start.get("outcome"), start.get("reason")
    if outcome == "finished":
        return f"Ended {at} by {reason}." if reason else f"Finished {at}."
    if outcome == "running":
        return f"Running, or ended without a word: last heard of {at}."
    at = "before its first step" if not has_begun(start) and not start.get("to_step") else at
    how = f"{'Stopped' if outcome == 'stopped' else 'Failed'} {at}: {reason or 'no reason is known'}."
    go_on = start.get("go_on") if checkpoints else start.get("command")
    words = "Go on with" if checkpoints else "Nothing was saved yet; start again with"
    return f"{how} {words}: {go_on}" if go_on else how


def _lead(run: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    about = last.get("about", {})
    newest = run["starts"][-1] if run["starts"] else {}
    if has_begun(last) and not has_begun(newest):  # its command would fail again
        newest = {**newest, "go_on": last.get("go_on")}
    kind = {"running": " faint", "stopped": " faint", "failed": " wrong"}.get(str(newest.get("outcome")), "")
    parts = [f'<p class="state{kind}">{escape(state_line(newest, run["checkpoints"]))}</p>']
    if about:
        backbone = f" with {about['backbone']}" if about.get("backbone") else ""
        text = f"{str(about.get('task')).capitalize()}: {about.get('model')}{backbone}"
        if any(task.class_layers for task in _tasks(last)):  # the one class of a masked pre-training has no meaning
            text += f", {about.get('classes')} {'class' if about.get('classes') == 1 else 'classes'}"
        parts.append(f'<p class="lead">{escape(text)}, trained on {escape(str(about.get("data")))}</p>')
    seconds = sum(finite(start.get("seconds")) or 0.0 for start in run["starts"])
    machine = last.get("environment", {}).get("machine", {})
    words = [device_line(machine, last), f"{duration(seconds)} in all", f"written {run['made'].replace('T', ' ')}"]
    return "".join(parts) + note(" · ".join(word for word in words if word))


def device_line(machine: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """The devices of a start of a training as text, from its environment's machine; empty without a record."""
    if not machine:
        return ""
    gpus = machine.get("gpus") or []
    one = gpus[0].get("name", "GPU") if gpus else f"CPU: {machine.get('cpu')}, {machine.get('cores')} cores"
    processes = last.get("processes", 1)
    return f"{processes} × {one}" if processes > 1 else one


def _scores(run: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    curves: Mapping[str, Points] = run["curves"]
    names = [name.removeprefix("val/") for name in curves if name.startswith("val/")]
    names += [name for test in run["tests"].values() for name in test.get("metrics", {})]
    first = [score.metric for task in _tasks(last) for score in task.scores]
    plain = sorted({name.removeprefix("ema/") for name in names})
    plain = [name for name in first if name in plain] + [name for name in plain if name not in first]
    if not plain:
        return note("No score of the validations is a number." if run["validated"] else "There was no validation yet.")
    averaged = any(name.startswith("ema/") for name in names)
    head = ["metric", "last", "best", *(["last, EMA", "best, EMA"] if averaged else [])]
    head += [test["label"] for test in run["tests"].values()]
    rows = []
    for name in plain:
        score = score_of(name, _tasks(last))
        cells = [score.label]
        for prefix in ("", "ema/") if averaged else ("",):
            cells += _last_and_best(score, curves.get(f"val/{prefix}{name}"))
        cells += [score_text(score, test.get("metrics", {}).get(name)) for test in run["tests"].values()]
        rows.append(cells)
    words = ["Last and best: of the validations during training, the best with its step."]
    words += [task.scores_note for task in _tasks(last) if task.scores_note]
    return table(head, rows) + note(" ".join(words))


def _class_scores(run: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """The scores of each class in the tests, or, before a test, in the last validation."""
    tests = {test["label"]: test["class_scores"] for test in run["tests"].values() if test.get("class_scores")}
    validation = run["class_scores"]
    columns = tests or {name: scores for name, scores in validation.get("scores", {}).items() if scores}
    if not columns:
        return ""
    head, rows, remark = class_table(columns, _tasks(last))
    place = "test" if tests else f"validation after step {_steps(validation.get('step'))}"
    return table(head, rows) + note(f"In the {place}" + (f"; {remark}." if remark else "."))


def _tasks(last: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    """The task of a training; all registered tasks where the record does not name it."""
    task = TASK_SPECS.get(str(last.get("about", {}).get("task")))
    return (task,) if task else tuple(TASK_SPECS.values())


def _last_and_best(score: Score, points: Points | None) -> list[str]:
    if not points:
        return [NONE, NONE]
    step, best = best_point(score.metric, points)
    shown = score_text(score, best)
    return [score_text(score, points[-1][1]), shown if shown == NONE else f"{shown} ({_steps(step)})"]


def _curves(run: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    curves: Mapping[str, Points] = run["curves"]
    losses = _losses(curves, last)
    plots = [plot("", "loss" if len(losses) > 1 else "training loss", losses)]
    for score in (one for task in _tasks(last) for one in task.scores if one.metric != task.loss_metric):
        raw, averaged = curves.get(f"val/{score.metric}"), curves.get(f"val/ema/{score.metric}")
        lines = {RAW: CurveLine("trained", raw, score.factor)}
        lines |= {AVERAGED: CurveLine("averaged", averaged, score.factor)} if averaged else {}
        plots.append(plot("", f"{score.label} on held-out data", lines))
    plots.append(plot("", "learning rate (of the first group)", {RAW: CurveLine("scratch", curves.get("train/lr"))}))
    plots.append(plot("", "norm of the gradient", {RAW: CurveLine("scratch", curves.get("train/grad_norm"))}))
    noise_scale = {RAW: CurveLine("scratch", curves.get("train/noise_scale"))}
    plots.append(plot("", "gradient noise scale, images", noise_scale))
    drawn = "".join(plots)
    images = last.get("loss_images")
    scope = f", and of {images:,} images, spread evenly over them" if images else ""
    words = note(f"{HELD_OUT_LOSS}{scope}.") if len(losses) > 1 else ""
    return f'<div class="plots">{drawn}</div>{words}' if drawn else note("Nothing was logged yet.")


def _losses(curves: Mapping[str, Points], last: Mapping[str, Any]) -> dict[str, CurveLine]:
    """The losses of training and, where there is one, of validation, of averaged weights too."""
    lines = {"training": CurveLine("trained", curves.get("train/loss"))}
    metrics = [*(task.loss_metric for task in _tasks(last)), VALIDATION_LOSS]
    metric = next((name for name in metrics if curves.get(f"val/{name}")), "")
    if held_out := curves.get(f"val/{metric}"):
        lines["held-out data"] = CurveLine("scratch", held_out)
    if averaged := curves.get(f"val/ema/{metric}"):
        lines["held-out data, averaged (EMA)"] = CurveLine("averaged", averaged)
    return lines


def _events(run: Mapping[str, Any]) -> str:
    """Problems that people should not overlook."""
    lines = []
    if run["replaced"]:
        count = len(run["replaced"])
        lines.append(
            f"{count:,} image{'s' if count > 1 else ''} could not be read and were replaced: {REPLACED_IMAGES_FILE}"
        )
    shares = shares_of_time(run["starts"])
    for activity, (usual, fix) in SLOW.items():
        if shares.get(activity, 0.0) > usual:
            lines.append(f"{shares[activity]:.0%} of the time went to {activity}: {fix}")
    for event in run["non_finite"][:MAX_EVENTS]:
        words = [f"not finite at {event['folder'].replace('_', ' ')}"]
        words += [f"first in {event['place']}"] if event.get("place") else []
        words += [str(event[key]) for key in ("hint", "replay") if event.get(key)]
        lines.append("; ".join(words))
    if len(run["non_finite"]) > MAX_EVENTS:
        lines.append(f"and {len(run['non_finite']) - MAX_EVENTS} more folders in {EVENTS_FOLDER}")
    if summary := run["data_check"].get("summary"):
        lines.append(f"data check: {summary}; all of it in {DATA_CHECK_FILE}")
        lines += [str(line) for line in run["data_check"].get("notes", [])]
        lines += _findings(run["data_check"].get("findings", []))
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def shares_of_time(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of each activity in the time of all starts, 0 to 1, beside the start-up."""
    spent: defaultdict[str, float] = defaultdict(float)
    for start in starts:
        seconds = start.get("spent")
        for activity, value in seconds.items() if isinstance(seconds, dict) else ():
            spent[activity] += finite(value) or 0.0
    spent.pop("starting", None)
    total = sum(spent.values())
    return {activity: value / total for activity, value in spent.items()} if total else {}


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of the first kinds of findings of a data check, errors before warnings."""
    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in sorted(findings, key=lambda one: one.get("level") != "error"):
        kinds.setdefault((one.get("level"), one.get("kind"), one.get("split")), []).append(one)
    lines = []
    for (level, _, split), group in list(kinds.items())[:MAX_EVENTS]:
        count = f" ({len(group):,} in {split})" if len(group) > 1 else ""
        first = group[0]
        lines.append(f"{level}{count}: {first.get('file')}: {first.get('what')}; {first.get('fix')}")
    return lines


def _confusion(confusion: Mapping[str, Any], validation: Mapping[str, Any]) -> str:
    if not confusion:
        return ""
    count = len(confusion.get("classes", []))
    if count > MAX_MATRIX_CLASSES:
        return note(f"{count:,} classes are too many for a page: see {CONFUSION}")
    # Of the two validations after a step the one of the averaged weights is the last to write it.
    weights = "averaged weights (EMA)" if validation.get("scores", {}).get("EMA") else "raw weights"
    when = f"In the validation after step {_steps(validation['step'])}, {weights}." if "step" in validation else ""
    return confusion_table(confusion) + (note(when) if when else "")


def _pictures(run: Mapping[str, Any], folder: Path) -> str:
    cards = [
        f'<div class="card">{figure(folder / "pictures" / name, Path(name).stem)}</div>' for name in run["pictures"]
    ]
    others = read_json(folder / "pictures" / DRAWN_NAMES)
    legend = note(f"{name_legend(others, len(others))}.") if others else ""
    # A validation draws all of them anew, and a test without TTA.
    if step := read_json(folder / "pictures" / DRAWN_AFTER).get("step"):
        legend += note(f"In the validation after step {_steps(step)}.")
    elif drawn := [test for name, test in run["tests"].items() if not name.endswith("tta")]:
        legend += note(f"In the {max(drawn, key=lambda test: test['time'])['label']}.")
    return f'<div class="gallery">{"".join(cards)}</div>{legend}' if cards else ""


def _training(run: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    plan, about = last.get("plan", {}), last.get("about", {})
    rows: dict[str, Any] = {}
    for line in [*plan.get("lines", []), *(f"note: {line}" for line in plan.get("notes", []))]:
        name, _, text = line.partition(": ")
        rows[name] = f"{rows[name]}; {text}" if name in rows else text
    optimizer = about.get("optimizer", {}).items()
    seconds, batch = run["step_seconds"], plan.get("batch", {}).get("global_batch")
    speed = f", {batch / seconds:.4g} images/s" if seconds and batch else ""
    peak = max((finite(start.get("memory_bytes")) or 0 for start in run["starts"]), default=0)
    rows |= {
        "optimizer": ", ".join(str(value) if key == "type" else f"{key} {value}" for key, value in optimizer) or None,
        "averaged weights (EMA)": (f"decay {about['ema']:g}" if about.get("ema") else "none") if about else None,
        "seed": about.get("seed"),
        "time of a step": f"{seconds:.3g} s{speed}" if seconds else None,
        "time went to": ", ".join(f"{name} {share:.0%}" for name, share in shares_of_time(run["starts"]).items())
        or None,
        "peak memory": f"{memory(int(peak))} of the main process" if peak else NONE,
        "peak GPU memory": memory(run["gpu_memory_bytes"]) if run["gpu_memory_bytes"] else None,
    }
    return facts(rows) if last else ""


def _settings(last: Mapping[str, Any]) -> str:
    config = last.get("config", {})
    if not config:
        return ""
    changed = {key: pair for key, pair in config.get("changed", {}).items() if key != "work_dir"}
    rows = [[key, *("not stated" if value is None else str(value) for value in pair)] for key, pair in changed.items()]
    parts = [table(["given at the start", "in the config", "here"], rows) if rows else note("All as in the config.")]
    if text := config.get("text"):
        words = f"{config.get('file')}: what it says beyond its bases"
        parts.append(f"<details><summary>{escape(words)}</summary><pre>{escape(text)}</pre></details>")
    return "".join(parts)


def _weights(run: Mapping[str, Any]) -> str:
    starts = list(filter(has_begun, run["starts"]))
    # Each start writes weights.json anew: what the training began with is in the record of its first start.
    begun = starts[0].get("weights", run["receipts"]) if starts else run["receipts"]
    resumed = ([one for one in start.get("weights", []) if one.get("part") == "model"] for start in starts[1:])
    lines = [
        f"began with: {load_report_line(begun, 'random weights, nothing loaded')}",
        *(
            f"went on at step {_steps(start.get('from_step'))} with: {load_report_line(loaded, 'nothing loaded')}"
            for start, loaded in zip(starts[1:], resumed, strict=True)
        ),
        *(
            f"{test['label']} with: {load_report_line(test.get('receipts'), 'nothing loaded')}"
            for test in run["tests"].values()
        ),
    ]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _starts(starts: Sequence[Mapping[str, Any]]) -> str:
    if not starts:
        return ""
    rows = []
    for index, start in enumerate(starts):
        outcome = str(start.get("outcome"))
        if outcome == "running" and index < len(starts) - 1:
            outcome = "ended without a word"
        reason = f": {start['reason']}" if start.get("reason") else ""
        began = str(start.get("began", "")).partition("+")[0].replace("T", " ")
        steps = f"{_steps(start.get('from_step'))} to {_steps(start.get('to_step'))}" if has_begun(start) else "none"
        code = commit_line(start.get("environment", {}).get("code", {}))
        rows.append([began, steps, duration(finite(start.get("seconds")) or 0), outcome + reason, code])
    shown = table(["began", "steps", "time", "ended", "code"], rows)
    commands = dict.fromkeys(str(start.get("command", "")) for start in starts)
    return shown + "".join(f"<pre>{escape(command)}</pre>" for command in commands)


def _made_with(last: Mapping[str, Any]) -> str:
    made = last.get("environment", {})
    if not made:
        return ""
    machine = made.get("machine", {})
    gpus = [f"{gpu.get('name', 'GPU')}, {memory(gpu.get('memory_bytes', 0))}" for gpu in machine.get("gpus", [])]
    rows = {
        "code": commit_line(made.get("code", {})),
        "GPU": "; ".join(gpus) or "none",
        "driver": machine.get("driver") or None,
        "CPU": f"{machine.get('cpu')}, {machine.get('cores')} cores",
        "memory": memory(machine.get("memory_bytes")),
        "system": f"{machine.get('system')}, {machine.get('kernel')}",
        "threads": made.get("threads"),
        "packages": ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
        "variables": shlex.join(f"{name}={value}" for name, value in made.get("variables", {}).items()) or None,
    }
    return facts(rows)


def _steps(count: Any) -> str:
    return f"{count:,}" if isinstance(count, int) else "?"
