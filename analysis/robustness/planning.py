"""Which sets of images an evaluation of robustness consists of, and whether they are all there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from analysis.robustness.corrupt_step import CorruptImage
from analysis.robustness.corruptions import BAR_CORRUPTIONS, CORRUPTIONS, DENSE_CORRUPTIONS
from analysis.robustness.scores import SEVERITIES
from backbones.errors import ConfigError, DataError, nearest
from engine.config.datasets import inner_datasets
from engine.task import ImageSet, RobustnessSuite, TaskSpec, task_of

CLEAN = "clean"
TEST_DATA, RELEASED, MADE_HERE = "test data", "released", "regenerated"
REGENERATED = {"c": "Corruptions of ImageNet-C", "cbar": "Corruptions of ImageNet-C-bar"}


@dataclass(frozen=True)
class PlannedSuite:
    """A suite as it will be evaluated.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        kind: ``test data``, ``released``, or ``regenerated`` for corruptions made here.
        protocol: Name of the protocol.
        preprocessing: Preprocessing or way of corrupting, for a person.
        sets: The sets of images.
        score: Metric that the table shows; ``None`` for the main metrics of the task.
        corrupted: Whether the sets are corruptions at severities.
        problems: Lines about what is wrong with the images.
    """

    name: str
    title: str
    kind: str
    protocol: str
    preprocessing: str
    sets: tuple[ImageSet, ...]
    score: str | None
    corrupted: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationPlan:
    """The suites of an evaluation.

    Attributes:
        suites: Suites that are there.
        absent: A line about each suite that is not: how to get it, and where it would lie.
        notes: Lines about what was decided.
    """

    suites: tuple[PlannedSuite, ...]
    absent: tuple[str, ...]
    notes: tuple[str, ...]

    def problem_lines(self) -> list[str]:
        """Lines about what is wrong with the images of the suites."""
        return [f"{suite.name}: {problem}" for suite in self.suites for problem in suite.problems]

    def refuse_problems(self) -> None:
        """Raise the first problem of a public suite; test data of one's own may have any number of images.

        Raises:
            DataError: If there is one.
        """
        released = tuple(suite for suite in self.suites if suite.kind == RELEASED)
        if lines := EvaluationPlan(released, (), ()).problem_lines():
            others = f" (the first of {len(lines)} problems)" if len(lines) > 1 else ""
            raise DataError(f"{lines[0]}{others}: complete the suite; --no-data-check evaluates what is there")

    def without_empty_suites(self) -> EvaluationPlan:
        """The plan without suites of which no set can be evaluated, which count as absent.

        Raises:
            DataError: If nothing is left.
        """
        empty = (f"{suite.name}: {suite.problems[0]}" for suite in self.suites if not suite.sets)
        absent, suites = (*self.absent, *empty), tuple(suite for suite in self.suites if suite.sets)
        if not suites:
            others = f" (the first of {len(absent)} suites)" if len(absent) > 1 else ""
            raise DataError(f"no suite can be evaluated: {absent[0]}{others}")
        return EvaluationPlan(suites, absent, self.notes)


def make_evaluation_plan(
    cfg: Config, names: Sequence[str], root: Path, protocols: Sequence[str], tta: bool = False
) -> EvaluationPlan:
    """Plan the sets of the suites that are asked for.

    Args:
        cfg: Resolved config; of test-time augmentation its pipeline is in the test data already.
        names: Names of suites.
        root: Folder of the public suites.
        protocols: Names of protocols, ``NAME`` for all suites that have it or ``SUITE=NAME``.
        tta: Whether there is test-time augmentation, which public suites do without.

    Raises:
        ConfigError: If a suite or protocol is unknown, or a public suite is asked for with test-time augmentation.
    """
    task = task_of(cfg)
    known = [*dict.fromkeys([CLEAN, *REGENERATED, *task.robustness.suites])]
    if unknown := [name for name in names if name not in known]:
        near = nearest(unknown[0], known) or f": choose from {', '.join(known)}"
        raise ConfigError(f"--suites {unknown[0]}: {task.name} has no such suite{near}")
    chosen: list[PlannedSuite] = []
    absent: list[str] = []
    notes: list[str] = []
    used: set[str] = set()
    for name in _in_order(names, task, cfg, root, tta):
        suite = task.robustness.suites.get(name)
        reason, folder = _unusable(suite, cfg, root, tta) if suite else ("", None)
        if suite is not None and folder is not None:
            protocol = _protocol(name, protocols, suite.protocols, used)
            chosen.append(_public(name, suite, cfg, folder, protocol))
            continue
        if reason:
            (notes if name in REGENERATED or name == CLEAN else absent).append(f"{name}: {reason}")
        if name in REGENERATED:
            protocol = _protocol(name, protocols, task.robustness.protocols, used)
            chosen.append(_regenerated(name, task, cfg, protocol, tta))
            notes.append(f"{name}: regenerated on the test data; no number of a released set can be compared with it")
        elif name == CLEAN:
            chosen.append(_test_data(task, cfg))
    if unused := [one for one in protocols if one not in used]:
        ways = [way for suite in task.robustness.suites.values() for way in suite.protocols]
        every = ", ".join(dict.fromkeys([*ways, *task.robustness.protocols]))
        raise ConfigError(f"--protocol {unused[0]}: no suite that is evaluated has it; there are {every}")
    return EvaluationPlan(tuple(chosen), tuple(absent), tuple(notes))


def _in_order(names: Sequence[str], task: TaskSpec, cfg: Config, root: Path, tta: bool) -> list[str]:
    """The suites, each once; before test data is corrupted, it is evaluated as it is, to compare with."""
    made_here = [
        name
        for name in REGENERATED
        if name in names
        and ((suite := task.robustness.suites.get(name)) is None or _unusable(suite, cfg, root, tta)[1] is None)
    ]
    return list(dict.fromkeys([*([CLEAN] if made_here or CLEAN in names else []), *names]))


def _protocol(name: str, asked: Sequence[str], known: Mapping[str, str], used: set[str]) -> str:
    """The protocol of a suite; one for this suite alone goes before one for all."""
    chosen = next(iter(known))
    for one in sorted(asked, key=lambda text: "=" in text):
        suite, mark, protocol = one.rpartition("=")
        if (not mark or suite == name) and protocol in known:
            used.add(one)
            chosen = protocol
    return chosen


def _unusable(suite: RobustnessSuite, cfg: Config, root: Path, tta: bool) -> tuple[str, Path | None]:
    """Why a suite cannot be evaluated, or its folder."""
    if tta:
        return "with --tta there is no public suite, whose preprocessing is one view of the image", None
    if reason := suite.unfit(cfg):
        return reason, None
    if suite.folder is None:
        return "", root
    folder = folder_of(root, suite.folder)
    if folder is None:
        return f"{suite.title} is not in {str(root / suite.folder)!r}; get it from {suite.source}", None
    return "", folder


def folder_of(root: Path, name: str) -> Path | None:
    """Folder of a name in any case, such as ``ImageNet-C``; ``None`` if there is none.

    Args:
        root: Folder of the suites.
        name: Name in lower case.
    """
    found = [path for path in root.iterdir() if path.name.lower() == name and path.is_dir()] if root.is_dir() else []
    return min(found) if found else None


def _public(name: str, suite: RobustnessSuite, cfg: Config, folder: Path, protocol: str) -> PlannedSuite:
    problems = tuple(suite.check(cfg, folder))
    try:
        sets = tuple(suite.sets(cfg, folder, protocol))
    except DataError:
        if not problems:
            raise
        sets = ()  # the problems say why
    return PlannedSuite(
        name=name,
        title=suite.title,
        kind=TEST_DATA if suite.folder is None else RELEASED,
        protocol=protocol,
        preprocessing=suite.preprocessing(cfg, protocol),
        sets=sets,
        score=suite.score,
        corrupted=suite.corrupted,
        problems=problems,
    )


def _test_data(task: TaskSpec, cfg: Config) -> PlannedSuite:
    sets = (ImageSet(CLEAN, cfg.test_dataloader.dataset.to_dict(), None),)
    return PlannedSuite(CLEAN, "Test data", TEST_DATA, "config", "the test pipeline of the config", sets, None, False)


def _regenerated(name: str, task: TaskSpec, cfg: Config, protocol: str, tta: bool) -> PlannedSuite:
    """A suite of corruptions that are made on the test data while it is loaded."""
    spec, sets = task.robustness, []
    for corruption, severities in _severities(name, task, protocol).items():
        for severity in severities:
            dataset = cfg.test_dataloader.dataset.to_dict()
            for one in inner_datasets(dataset):
                step = {
                    "type": CorruptImage.__name__,
                    "name": corruption,
                    "severity": severity,
                    "order": task.channel_order,
                    "root": str(one.get("data_root") or ""),
                }
                one["pipeline"] = spec.place_corruption(copy.deepcopy(one["pipeline"]), step, protocol)
            sets.append(ImageSet(f"{name}/{corruption}/{severity}", dataset, None if tta else spec.evaluator))
    way = f"{spec.protocols[protocol]}; frost is generated, not laid over"
    return PlannedSuite(name, REGENERATED[name], MADE_HERE, protocol, way, tuple(sets), spec.error_of, True)


def _severities(name: str, task: TaskSpec, protocol: str) -> Mapping[str, Sequence[int]]:
    spec = task.robustness
    if name == "cbar":
        return dict.fromkeys(BAR_CORRUPTIONS, SEVERITIES)
    return spec.severities.get(protocol) or dict.fromkeys(
        DENSE_CORRUPTIONS if spec.located else CORRUPTIONS, SEVERITIES
    )
