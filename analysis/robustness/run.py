"""The evaluation of robustness: plan, evaluate each set, summarize, write the results and the report."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger

from analysis.robustness.evaluation import Progress, SetEvaluator, SetResult
from analysis.robustness.examples import draw_worst
from analysis.robustness.expected import PublishedRow, rows_of
from analysis.robustness.planning import RELEASED, EvaluationPlan, make_evaluation_plan
from analysis.robustness.report import write_robustness_report
from analysis.robustness.summary import as_text, is_performance, performance_rows, score_rows, summarize_suites
from engine.config.classes import class_names
from engine.config.load import Resolved
from engine.config.world import Launch
from engine.data.preflight import check_before_test, check_data_paths
from engine.distributed.processes import start_processes
from engine.prediction.visualize import load_predictor
from engine.report.environment import environment
from engine.report.recorder import command_line
from engine.report.run_dir import scaled, write_json
from engine.run import use_tta
from engine.task import TASK_SPECS, TaskSpec, task_of
from engine.training.build import make_work_dir

ROBUSTNESS_FOLDER = "robustness"
ROBUSTNESS_RESULT = "robustness.json"
MAX_PROBLEMS_SHOWN = 3  # of a suite


@dataclass(frozen=True)
class RobustnessOptions:
    """What an evaluation is asked for.

    Attributes:
        suites: Names of suites.
        root: Folder of the public suites.
        protocols: Names of protocols, see :func:`~analysis.robustness.planning.make_evaluation_plan`.
        averaged: Whether the averaged weights of the checkpoint are evaluated.
        tta: Whether to test at several scales and flipped, as the config says.
        trust: Whether to execute code that the checkpoint asks for.
        data_check: Whether an incomplete suite is refused.
    """

    suites: Sequence[str]
    root: Path
    protocols: Sequence[str] = ()
    averaged: bool = False
    tta: bool = False
    trust: bool = False
    data_check: bool = True


def evaluate_robustness(
    resolved: Resolved, launch: Launch, checkpoint: str, options: RobustnessOptions
) -> dict[str, Any]:
    """Evaluate a checkpoint on suites of robustness; write ``robustness.json`` and ``report.html``.

    Args:
        resolved: Resolved config.
        launch: Processes and devices of the job.
        checkpoint: Path or URL of the weights of the whole model.
        options: Suites, protocols and way of evaluating.

    Returns:
        The content of ``robustness.json``.

    Raises:
        UserError: If data is missing or incomplete, the checkpoint does not fit, a suite or protocol is unknown, or the
            work directory cannot be written.
    """
    start_processes(launch)
    cfg = resolved.cfg
    make_work_dir(cfg)
    task = task_of(cfg)
    checked = copy.deepcopy(cfg)  # a pipeline of test-time augmentation hides how labels are loaded
    if options.tta:
        use_tta(cfg)
    say = print if is_main_process() else lambda *_, **__: None
    plan = make_evaluation_plan(cfg, options.suites, options.root, options.protocols, options.tta)
    _announce(plan, say)
    own = any(suite.kind != RELEASED for suite in plan.suites)
    if own:
        check_data_paths(cfg, ("test",))
    if options.data_check:
        plan.refuse_problems()
    plan = plan.without_empty_suites()
    if options.data_check and own:
        check_before_test(checked, MMLogger.get_instance("robustness", log_level="WARNING"))
    model, visualizer = load_predictor(cfg, checkpoint, options.averaged, launch.device, options.trust)
    mode = ("_ema" if options.averaged else "") + ("_tta" if options.tta else "")
    folder = Path(cfg.work_dir) / f"{ROBUSTNESS_FOLDER}{mode}"
    evaluator = SetEvaluator(cfg, model, folder, {"averaged": options.averaged, "tta": options.tta})
    sets = [one for suite in plan.suites for one in suite.sets]
    progress = Progress(len(sets))
    try:
        results = evaluator.evaluate_all(sets, progress, lambda result: _scores_line(result, task))
    finally:
        progress.close()
    content = _content(cfg, checkpoint, options, plan, results, task)
    if is_main_process():
        content["worst"] = draw_worst(evaluator, visualizer, plan.suites, results, task)
        write_json(folder / ROBUSTNESS_RESULT, content)
        write_robustness_report(folder, content, plan.suites, results, task)
    return content


def _announce(plan: EvaluationPlan, say: Any) -> None:
    """Say what will be evaluated and how, what is absent, and what is wrong with the data."""
    for suite in plan.suites:
        what = f"{suite.name}: {suite.title}, {suite.kind}, {len(suite.sets)} set(s)"
        say(f"{what}, protocol {suite.protocol}: {suite.preprocessing}")
    for line in (*plan.notes, *(f"absent: {line}" for line in plan.absent)):
        say(line)
    for suite in plan.suites:
        for problem in suite.problems[:MAX_PROBLEMS_SHOWN]:
            say(f"data check: {suite.name}: {problem}")
        if (more := len(suite.problems) - MAX_PROBLEMS_SHOWN) > 0:
            say(f"data check: {suite.name}: {more} more like these")


def _scores_line(result: SetResult, task: TaskSpec) -> str:
    shown = [(score.label, scaled(result.metrics, score)) for score in task.scores]
    found = [f"{label} {value:.1f}" for label, value in shown if value is not None]
    return ", ".join(found) or ", ".join(f"{name} {value:.1f}" for name, value in list(result.metrics.items())[:2])


def published_rows(cfg: Config) -> list[PublishedRow]:
    """Published rows of the config's network at the size of its test pipeline.

    Args:
        cfg: Resolved config.
    """
    model = cfg.model.get("module", cfg.model)
    shape = task_of(cfg).default_shape(cfg)
    return rows_of(str((model.get("backbone") or {}).get("type")), shape[0] if shape else None)


def has_imagenet_classes(cfg: Config) -> bool:
    """Whether the classes are those of ImageNet-1K, for which AlexNet's errors and the published numbers stand."""
    names = TASK_SPECS.named_classes().get("imagenet-1k")
    return names is not None and tuple(names.names()) == class_names(cfg.classes)


def _content(
    cfg: Config,
    checkpoint: str,
    options: RobustnessOptions,
    plan: EvaluationPlan,
    results: dict[str, SetResult],
    task: TaskSpec,
) -> dict[str, Any]:
    same_classes = has_imagenet_classes(cfg)
    summaries = summarize_suites(plan.suites, results, task, same_classes)
    published = published_rows(cfg) if same_classes else []
    return {
        "checkpoint": checkpoint,
        "network": str((cfg.model.get("module", cfg.model).get("backbone") or {}).get("type")),
        "averaged": options.averaged,
        "tta": options.tta,
        "suites": summaries,
        "published": [{"label": row.label, "values": row.values} for row in published],
        "absent": list(plan.absent),
        "notes": list(plan.notes),
        "sets": {name: result.metrics for name, result in results.items()},
        "table": score_rows(plan.suites, summaries, published, "this checkpoint") if task.robustness.error_of else [],
        "command": command_line(sys.argv, os.environ),
        "environment": environment(),
    }


def result_lines(content: dict[str, Any]) -> str:
    """The tables of a result as text.

    Args:
        content: Content of ``robustness.json``.
    """
    parts = [as_text(content["table"])] if content["table"] else []
    for name, summary in content["suites"].items():
        if is_performance(summary):
            parts.append(f"{name} ({summary['kind']}, {summary['protocol']})\n" + as_text(performance_rows(summary)))
    return "\n\n".join(parts)
