"""Pictures of what a model gets most wrong, as the network sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from analysis.robustness.corrupt_step import CorruptImage
from analysis.robustness.evaluation import MAX_WORST, SetEvaluator, SetResult
from analysis.robustness.planning import CLEAN, PlannedSuite
from engine.config.datasets import mappings
from engine.prediction.visualize import draw_sample, predict, spread_evenly
from engine.report.run_dir import scaled
from engine.task import ImageSet, TaskSpec

WORST_FOLDER = "worst"
SPREAD = "spread evenly over the set: its metric tells no worst images"


def draw_worst(
    evaluator: SetEvaluator,
    visualizer: Any,
    suites: Sequence[PlannedSuite],
    results: Mapping[str, SetResult],
    task: TaskSpec,
) -> list[dict[str, str]]:
    """Draw the worst examples of each suite, of a corrupted one those of its worst set.

    Args:
        evaluator: Evaluator of the sets, with its folder; the pictures go to ``worst/``.
        visualizer: Visualizer of the task.
        suites: Evaluated suites.
        results: Results by the names of the sets.
        task: The task.

    Returns:
        ``file``, below the folder, ``caption``, and ``chosen``, what it was chosen by, of each picture.
    """
    target = evaluator.folder / WORST_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for earlier in target.glob("[0-9]*.png"):
        earlier.unlink()
    pictures: list[dict[str, str]] = []
    for suite in (one for one in suites if one.name != CLEAN or len(suites) == 1):
        worst = min(suite.sets, key=lambda one: _score(results[one.name], task))
        loader = evaluator.loader(worst)
        place = target / f"{len(pictures):02}_"
        details = results[worst.name].details
        found, first = details.get("worst"), len(pictures)
        if not task.robustness.error_of:
            pictures += _predictions(place, worst, found, loader, evaluator, visualizer)
        elif found:
            pictures += _mistakes(place, worst.name, loader.dataset, found, task)
        for one in pictures[first:]:
            one["chosen"] = details.get("worst_by", SPREAD)
    return [{**one, "file": f"{WORST_FOLDER}/{Path(one['file']).name}"} for one in pictures]


def _score(result: SetResult, task: TaskSpec) -> float:
    values = [scaled(result.metrics, score) for score in task.scores]
    return next((value for value in values if value is not None), 0.0)


def _mistakes(
    place: Path, name: str, dataset: Any, found: Sequence[Mapping[str, Any]], task: TaskSpec
) -> list[dict[str, str]]:
    """The inputs of the network that a metric has listed, with true and predicted class."""
    wanted = {one["image"]: one for one in found[:MAX_WORST]}
    index_of = {dataset.get_data_info(index)["img_path"]: index for index in range(len(dataset))}
    classes, pictures = dataset.metainfo["classes"], []
    for number, (path, one) in enumerate(wanted.items()):
        pixels = dataset[index_of[path]]["inputs"].permute(1, 2, 0).numpy().astype(np.uint8)
        file = place.with_name(f"{place.name}{number}.png")
        Image.fromarray(np.ascontiguousarray(pixels[..., :: -1 if task.channel_order == "BGR" else 1])).save(file)
        right = " or ".join(str(classes[label]) for label in one["right"])
        said = f"said {classes[one['predicted']]} ({100 * one['confidence']:.0f} %)"
        pictures.append({"file": str(file), "caption": f"{name}: {Path(path).name}, {right}, {said}"})
    return pictures


def _predictions(
    place: Path,
    one: ImageSet,
    found: Sequence[Mapping[str, Any]] | None,
    loader: DataLoader,
    evaluator: SetEvaluator,
    visualizer: Any,
) -> list[dict[str, str]]:
    """Truth and prediction on the images that a metric has listed, else on some that are spread evenly over a set."""
    steps = [node for node in mappings(dict(one.dataset)) if node.get("type") == CorruptImage.__name__]
    settings = {key: value for key, value in steps[0].items() if key != "type"} if steps else None
    dataset: Any = loader.dataset
    captions = {entry["index"]: f", {entry['caption']}" for entry in found or ()}
    indices = list(captions) if found is not None else spread_evenly(len(dataset), MAX_WORST)
    pictures = []
    for number, index in enumerate(indices):
        sample = predict(evaluator.model, dataset[index], loader.collate_fn)
        file = place.with_name(f"{place.name}{number}.png")
        change = partial(CorruptImage(**settings).as_rgb, path=sample.img_path) if settings else None
        draw_sample(evaluator.cfg, visualizer, sample, file, truth=True, change=change)
        pictures.append(
            {"file": str(file), "caption": f"{one.name}: {Path(sample.img_path).name}{captions.get(index, '')}"}
        )
    return pictures
