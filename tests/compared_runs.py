"""Run folders of trainings that never ran, as trainings leave them, for the tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

CLASSIFIER = {
    "model": {"type": "ImageClassifier", "num_classes": 2},
    "classes": ["cat", "dog"],
    "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
    "train_pipeline": [{"type": "Load"}, {"type": "Resize", "size": 32}],
    "batch": {"size": 8},
}

WRONG: tuple[Any, ...] = (None, 5, -1.5, float("nan"), 10**400, "<&", [], [1, [2]], {"a": 1}, True)


def write_run(
    folder: Path,
    config: Mapping[str, Any] = CLASSIFIER,
    seed: int | None = 0,
    scores: Sequence[float] = (),
    metric: str = "top1",
    **start: Any,
) -> Path:
    """Write a run folder: three steps, then a validation for each score.

    Args:
        folder: Run folder.
        config: Resolved config.
        seed: Seed.
        scores: Values of the metric.
        metric: Metric of the validations.
        start: Entries of the record that differ from those of a finished training.
    """
    place = folder / "20261130_120000" / "vis_data"
    place.mkdir(parents=True)
    Config({**config, "work_dir": str(folder), "randomness": {"seed": seed}}).dump(place / "config.py")
    record = {
        "folder": place.parent.name,
        "outcome": "finished",
        "from_step": 0,
        "to_step": 3,
        "of_steps": 3,
        "seconds": 60.0,
        "memory_bytes": 2**30,
        "spent": {"starting": 5.0, "training": 40.0, "waiting for data": 10.0},
        "about": {"task": "classification", "seed": seed},
        "plan": {"batch": {"global_batch": 8}},
        "config": {"file": "somewhere/a.py"},
        "environment": {"machine": {"cpu": "a CPU", "cores": 2}, "versions": {"torch": "2.11.0"}},
    }
    (folder / "starts.json").write_text(json.dumps({"starts": [record | start]}))
    (folder / "plan.json").write_text(json.dumps({"schedule": {"epochs": 3, "steps_per_epoch": 1}}))
    lines = [{"step": step, "lr": 0.1, "loss": 3.0 - step + 0.1 * (seed or 0), "time": 0.5} for step in (1, 2, 3)]
    lines += [{"step": step, metric: value} for step, value in enumerate(scores, 1)]
    (place / "scalars.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


def with_wrong_parts(node: Any) -> Iterator[Any]:
    """A value with one part after another replaced by each of the wrong ones, or absent."""
    yield from WRONG
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        for inner in with_wrong_parts(node[key]):
            copied = node.copy()
            copied[key] = inner
            yield copied
        if isinstance(node, dict):
            yield {name: inner for name, inner in node.items() if name != key}
