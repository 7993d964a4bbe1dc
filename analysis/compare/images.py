"""Images of which one setting's predictions are right and another's are wrong, from saved predictions of both."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.config import Config

from analysis.compare.runs import PREDICTION_FILES, ComparedSetting, TrainingRun
from analysis.errors.page import MAX_PICTURE_BYTES, ImageView, draw_cards, images_to_show
from analysis.start_check import silence
from backbones.errors import UserError, first_line
from engine.checkpoint.store import content_mark, last_checkpoint
from engine.data.preflight import check_data_paths
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ImageErrors, ImageScore
from engine.prediction.saved import TestedImages
from engine.report.gallery import Card
from engine.task import TaskSpec

MAX_OF_A_KIND = 12  # pictures of a pair of settings
MIN_DIFFERENCE = 10  # of the scores of an image, 0 to 100, from which on one prediction is better
BOTH_RIGHT, BOTH_WRONG, SEEDS_DIFFER = "both right", "both wrong", "seeds differ"


@dataclass(frozen=True)
class ComparedPair:
    """Images on which two settings differ.

    Attributes:
        first: Letter of a setting.
        second: Letter of the other one.
        counts: Number of images by what is right.
        images: Images that differ, with the difference of the scores by kind.
        cards: Pictures of those that the page shows.
    """

    first: str
    second: str
    counts: Mapping[str, int]
    images: Sequence[ImageErrors]
    cards: Sequence[Card]


@dataclass(frozen=True)
class ComparedImages:
    """What saved predictions say of single images.

    Attributes:
        pairs: The first setting with predictions against each other one.
        sources: Each training with predictions, and the file name of the checkpoint that predicted, if it is known.
        words: Description of the score of an image.
        gaps: Limits of the comparison, a line each.
    """

    pairs: Sequence[ComparedPair] = ()
    sources: Sequence[str] = ()
    words: str = ""
    gaps: Sequence[str] = field(default_factory=tuple)


def compare_images(settings: Sequence[ComparedSetting], task: TaskSpec, cfg: Config | None) -> ComparedImages:
    """Compare the saved predictions of the settings, image by image.

    Of a setting with several seeds an image counts as right if it is right with all of them, and as wrong if it is with
    none.

    Args:
        settings: Compared settings.
        task: Their task.
        cfg: Config whose test data has the truth; ``None`` without one.
    """
    if cfg is None:
        return ComparedImages(gaps=["images are not compared: no config can be resolved"])
    if task.error_analysis is None:
        return ComparedImages(gaps=[f"images are not compared: {task.name} states no score of an image"])
    runs = {one.letter: [run for run in one.runs if run.predictions] for one in settings}
    lacking = [run for one in settings for run in one.runs if not run.predictions]
    gaps = []
    if lacking:
        names = ", ".join(run.name for run in lacking)
        made_by = _command(lacking[0])
        gaps.append(f"images of {names} are not compared: no saved predictions, which are made by {made_by}")
    if sum(map(bool, runs.values())) < 2:
        return ComparedImages(gaps=gaps)
    try:
        check_data_paths(cfg, ("test",))
        with ExitStack() as files:
            with silence():
                analysis = task.error_analysis(AnalysisRequest(cfg, dict(cfg.test_dataloader.dataset.metainfo)))
                opened = _open(cfg, runs, files, gaps)
            return _compare_opened(cfg, opened, analysis, gaps)
    except UserError as error:
        return ComparedImages(gaps=[*gaps, f"images are not compared: {first_line(error)}"])


def _command(run: TrainingRun) -> str:
    """The command that saves the predictions of a training."""
    best = sorted(run.folder.glob("best_*.pth"))
    checkpoint = str(best[0]) if best else "CHECKPOINT"
    out = str(run.folder / PREDICTION_FILES[0])
    config = str(run.config_file or "CONFIG")
    words = ["python", "tools/test.py", config, checkpoint, "--work-dir", str(run.folder), "--save-predictions", out]
    return shlex.join(words)


Opened = dict[str, list[tuple[TrainingRun, TestedImages]]]


def _open(cfg: Config, runs: Mapping[str, Sequence[TrainingRun]], files: ExitStack, gaps: list[str]) -> Opened:
    """The files that are predictions of the config's test data, by the letter of their setting."""
    opened: Opened = {}
    dataset = None
    for letter, of_setting in runs.items():
        for run in of_setting:
            assert run.predictions is not None
            try:
                images = files.enter_context(closing(TestedImages(cfg, run.predictions, dataset)))
                if len(images):
                    images.with_prediction(0, images.truth(0))  # of other images, if the first one is another
            except UserError as error:
                gaps.append(f"images of {run.name} are not compared: {first_line(error)}")
                continue
            gaps += stale_predictions(run, *images.checkpoint)
            dataset = images.dataset
            opened.setdefault(letter, []).append((run, images))
    return opened


def stale_predictions(run: TrainingRun, name: str, mark: str) -> list[str]:
    """A line where saved predictions are of another checkpoint than the newest and the best one of a training.

    Args:
        run: Training.
        name: File name of the checkpoint that predicted; empty if it is not known.
        mark: Mark of its content.
    """
    files = sorted(run.folder.glob("best_*.pth"))
    if newest := last_checkpoint(run.folder):
        files.append(newest)
    present = {file.name: content_mark(file) for file in files}
    if not present or (mark and mark in present.values()):
        return []
    made_by = f"are of {name}" if name else "do not name their checkpoint"
    if name in present:
        made_by = f"are of an earlier {name}"
    others = f", and the training has {' and '.join(present)} now: {_command(run)} makes them anew"
    return [f"the saved predictions of {run.name} {made_by}{others}"]


def _compare_opened(cfg: Config, opened: Opened, analysis: ErrorAnalysis, gaps: Sequence[str]) -> ComparedImages:
    if len(opened) < 2:
        return ComparedImages(gaps=gaps)
    reference, *others = opened
    first = opened[reference][0][1]
    scores: dict[str, dict[int, list[ImageScore]]] = {letter: {} for letter in opened}
    for index in range(len(first)):
        truth = first.truth(index)
        found = {
            letter: [analysis.image_score(images.with_prediction(index, truth)) for _, images in of_setting]
            for letter, of_setting in opened.items()
        }
        if any(one is None for of_setting in found.values() for one in of_setting):
            continue  # there is no truth to compare with
        for letter, of_setting in found.items():
            scores[letter][index] = [one for one in of_setting if one is not None]
    indices = list(scores[reference])
    if not indices:
        return ComparedImages(gaps=[*gaps, "images are not compared: none of them has a score"])
    pairs = []
    for letter in others:
        of_both = [list(scores[one].values()) for one in (reference, letter)]
        counts, images = judge_pair(reference, letter, indices, *of_both)
        chosen = images_to_show(images, MAX_OF_A_KIND)
        view = partial(
            _view, opened={one: opened[one] for one in (reference, letter)}, scores=scores, analysis=analysis
        )
        cards = draw_cards(cfg, chosen, view, MAX_PICTURE_BYTES // len(others))
        pairs.append(ComparedPair(reference, letter, counts, images, cards))
    sources = [
        f"{run.name} ({images.checkpoint[0] or 'checkpoint not known'})"
        for of_setting in opened.values()
        for run, images in of_setting
    ]
    return ComparedImages(pairs, sources, analysis.score_words, gaps)


def judge_pair(
    first: str,
    second: str,
    indices: Sequence[int],
    first_scores: Sequence[Sequence[ImageScore]],
    second_scores: Sequence[Sequence[ImageScore]],
) -> tuple[dict[str, int], list[ImageErrors]]:
    """Tell which images one setting has right and the other one wrong, or better.

    Args:
        first: Letter of a setting.
        second: Letter of the other one.
        indices: Positions of the images in the test data.
        first_scores: Scores of each image, one for each seed.
        second_scores: Those of the other setting.

    Returns:
        Number of images by what is right, and the images that differ; their kinds are ``only A right``, ``A better``
        and the same of the other letter, with the difference of the mean scores.
    """
    counts = Counter(
        dict.fromkeys((BOTH_RIGHT, f"only {first} right", f"only {second} right", BOTH_WRONG, SEEDS_DIFFER), 0)
    )
    images = []
    for index, left, right in zip(indices, first_scores, second_scores, strict=True):
        difference = fmean(one.value for one in left) - fmean(one.value for one in right)
        what = _what_is_right(first, second, left, right)
        counts[what] += 1
        better = f"{first if difference > 0 else second} better"
        kinds = {}
        if what.startswith("only"):
            kinds[what] = max(round(abs(difference), 2), 0.01)
        elif abs(difference) >= MIN_DIFFERENCE:
            kinds[better] = round(abs(difference), 2)
        if kinds:
            images.append(ImageErrors(index, kinds, what))
    return {what: count for what, count in counts.items() if count or what != SEEDS_DIFFER}, images


def _what_is_right(first: str, second: str, left: Sequence[ImageScore], right: Sequence[ImageScore]) -> str:
    """Which setting has an image right with all seeds; ``seeds differ`` where those of one are of two minds."""
    verdicts = [{one.right for one in scores} for scores in (left, right)]
    if any(len(verdict) > 1 for verdict in verdicts):
        return SEEDS_DIFFER
    known = {
        (True, True): BOTH_RIGHT,
        (True, False): f"only {first} right",
        (False, True): f"only {second} right",
        (False, False): BOTH_WRONG,
    }
    return known[verdicts[0].pop(), verdicts[1].pop()]


def _view(
    one: ImageErrors, opened: Opened, scores: Mapping[str, Mapping[int, Sequence[ImageScore]]], analysis: ErrorAnalysis
) -> ImageView:
    """The predictions of the first seed of each setting, one below the other."""
    pictures: dict[str, Any] = {}
    path = ""
    for letter, of_setting in opened.items():
        run, images = of_setting[0]
        sample = images.with_prediction(one.index, images.truth(one.index))
        path = str(sample["img_path"])
        found = scores[letter][one.index]
        several = f"; right with {sum(each.right for each in found)} of {len(found)} seeds" if len(found) > 1 else ""
        verdict = "right" if found[0].right else "wrong"
        caption = f"{Path(path).name}, {letter} ({run.name}): score {found[0].value:.0f}, {verdict}{several}"
        pictures[caption] = partial(analysis.draw, sample=sample)
    return ImageView(path, pictures)
