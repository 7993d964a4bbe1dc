"""All that a training would do, in a few lines, without starting it: ``tools/train.py CONFIG --dry-run``."""

from __future__ import annotations

from pathlib import Path

from mmengine.registry import DATASETS

from analysis.browse import browse_command
from analysis.schedules import review_schedules
from analysis.start_check import checked_plan
from analysis.starting_weights import starting_weights
from engine.config.building import build
from engine.config.load import Resolved
from engine.config.world import Launch
from engine.data.preflight import check_for_a_minute, dataset_paths, refuse_errors
from engine.data.shards.unpacked import data_file
from engine.optim.param_groups import group_table
from engine.planning.plan import Review, epoch_steps

DATA_REPORT = "the output of tools/check_data.py CONFIG"


def dry_run(
    resolved: Resolved,
    launch: Launch,
    review: Review = review_schedules,
    data_check: bool = True,
    trust: bool = False,
) -> list[str]:
    """Check all that a training checks before it starts, and describe it.

    Data that is absent is listed as such; data that is there is checked, for about a minute at most, and counted.

    Args:
        resolved: Config that was resolved for training.
        launch: Processes and devices of the job.
        review: Source of further facts and of warnings, such as the rates.
        data_check: Whether to check the data.
        trust: Whether to execute code that checkpoints ask for (``--trust-checkpoint``).

    Returns:
        Lines of text.

    Raises:
        UserError: As the training would, but for absent data and weights.
    """
    cfg, plan = resolved.cfg, checked_plan(resolved, launch)
    weights = starting_weights(cfg, trust)
    splits = [split for split in ("train", "val") if cfg.get(f"{split}_dataloader")]
    paths = {split: dataset_paths(cfg[f"{split}_dataloader"].dataset) for split in splits}
    present = tuple(split for split in splits if all(data_file(path).exists() for path in paths[split]))
    checked = []
    if data_check and present:
        result = check_for_a_minute(cfg, present)
        refuse_errors(result, DATA_REPORT)
        checked = [f"data check: {line}" for line in result.to_lines(DATA_REPORT)]
        if "train" in present:
            loader = cfg.train_dataloader
            images = len(build(DATASETS, loader.dataset, "train_dataloader.dataset", cfg.get("default_scope")))
            plan = plan.with_data(images, epoch_steps(loader, images, launch.processes))
    batch, *others = plan.lines()
    device = {"cuda": "GPU", "cpu": "CPU"}[launch.device]
    lines = [batch, f"device: {device}", *others, f"work directory: {cfg.work_dir}"]
    facts, problems = review(cfg, plan.schedule)
    lines += [*facts, *(f"WARNING: {one}" for one in problems)]
    lines += [f"note: {note}" for note in resolved.notes]
    for split in splits:  # a folder is there if what is in it is
        inner = [path for path in dict.fromkeys(paths[split]) if not any(path in one.parents for one in paths[split])]
        lines += [f"{split} data: {_presence(path)}" for path in inner]
    lines += [*weights, *checked]
    if "train" in present:
        lines.append(
            f"a page of what the network gets: {browse_command(str(cfg.filename))}, with the same --cfg-options"
        )
    if plan.rows:
        return [*lines, "", *group_table(plan.rows, plan.frozen)]
    return [*lines, f"parameter groups: those of {cfg.optim_wrapper.get('constructor', 'the default constructor')}"]


def _presence(path: Path) -> str:
    return f"{path} ({'present' if data_file(path).exists() else 'ABSENT'})"
