"""The storage of a study: opened or made, compared with the study file, and kept to one controller."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from analysis.sweep.results import DATABASE, DECLARATION, MORE_SEEDS, storage_errors
from analysis.sweep.space import grid_points
from analysis.sweep.study_file import StudyFile, make_pruner, make_sampler
from backbones.errors import ConfigError, MachineError
from backbones.files import atomic_write, try_lock
from engine.report.environment import without_secrets
from engine.report.run_dir import read_json, write_json

CONTROLLER = "controller.json"  # in the folder of a study: its name, who controls it, and for how long so far
SLOT, OWNER, RUNG, REASON = "slot", "owner", "rung", "reason"  # user attributes of trials
MAY_CHANGE = ("title", "seeds")  # of a declaration, while the study lives
SQLITE = "sqlite:///"
WAIT_SECONDS = 60  # for another process that writes to a SQLite file, such as a dashboard


def storage_url(study: StudyFile, folder: Path) -> str:
    """URL of the storage: the study file's, or a SQLite file in the folder of the study."""
    return study.storage or f"{SQLITE}{os.path.realpath(folder / DATABASE)}"


@contextmanager
def controlling(study: StudyFile, folder: Path) -> Iterator[None]:
    """Context in which no other controller works in the folder, or on the same SQLite file.

    Raises:
        MachineError: If one does, or the folder cannot be written.
    """
    from sqlalchemy import make_url

    files = [folder / "controller.lock"]
    url = storage_url(study, folder)
    if url.startswith(SQLITE):
        # SQLite also takes file:PATH?mode=...&uri=true in place of a path.
        database = Path((make_url(url).database or DATABASE).removeprefix("file:"))
        files.append(database.with_name(f"{database.name}.lock"))
    with ExitStack() as held:
        for file in files:
            held.enter_context(_lock(file))
        yield


def _make_database(url: str) -> None:
    """Make a SQLite file with all its tables, or none.

    Where a controller is killed between two of Optuna's statements, the next one would find a table without the index
    that keeps a study from being made twice.
    """
    from sqlalchemy import make_url

    place = make_url(url).database if url.startswith(SQLITE) else None
    if not place or place == ":memory:" or place.startswith("file:") or os.path.exists(place):
        return
    tables = RDBStorage(f"{SQLITE}:memory:")
    with atomic_write(Path(place)) as draft, tables.engine.connect() as connection:
        connection.exec_driver_sql("VACUUM INTO ?", (str(draft),))
    tables.engine.dispose()


def _lock(file: Path) -> IO[str]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(file)
    except OSError as error:
        raise MachineError(f"cannot write to {str(file.parent)!r}: {error.strerror or error}") from error
    if lock is None:
        raise MachineError(
            f"another controller works on this study ({str(file)!r} is locked): --status shows how it stands; several "
            "controllers need folders of their own and a storage such as postgresql://"
        )
    return lock


class StudyStorage:
    """The trials of a study in Optuna's storage, as far as this controller is concerned.

    Args:
        study: Study file.
        folder: Folder of the study, whose lock is held.
        resume: Whether an existing study may be continued.

    Raises:
        ConfigError: If there is a study and ``resume`` is false, or it was declared otherwise.
        MachineError: If the storage cannot be used.
    """

    def __init__(self, study: StudyFile, folder: Path, resume: bool) -> None:
        self.file, self.folder = study, folder
        self.url = storage_url(study, folder)
        found = read_json(folder / CONTROLLER)
        self.owner: str = found.get("owner") or secrets.token_hex(8)
        self.hours: float = found.get("hours", 0.0)
        if (other := found.get("study", study.name)) != study.name:
            raise ConfigError(f"{str(folder)!r} holds the study {other!r}: give another --work-dir")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with storage_errors(self.url):
            _make_database(self.url)
            arguments = {"connect_args": {"timeout": WAIT_SECONDS}} if self.url.startswith(SQLITE) else {}
            self._storage = RDBStorage(self.url, engine_kwargs=arguments)
            exists = study.name in optuna.get_all_study_names(self._storage)
            if exists and not resume:
                raise ConfigError(f"{str(folder)!r} holds this study: go on with --resume, or give another --work-dir")
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=study.name,
                direction=study.objective.direction,
                pruner=make_pruner(study),
                load_if_exists=True,
            )
            self._check_declaration()
            # A sampler that begins with the same seed again would repeat its first points.
            self.study.sampler = make_sampler(study, study.seeds[0] + len(self.trials()))
        self.save_hours(self.hours)

    def _check_declaration(self) -> None:
        declared = json.loads(json.dumps(self.file.declaration(), default=repr))
        before: dict[str, Any] | None = self.study.user_attrs.get(DECLARATION)
        if before is None and self.study.get_trials(deepcopy=False):
            raise ConfigError(f"study {self.file.name!r} in {without_secrets(self.url)} was not made by tools/sweep.py")
        if before is not None:
            changed = [key for key in declared if key not in MAY_CHANGE and declared[key] != before.get(key)]
            names = {"values": f"the content of {', '.join(self.file.configs)}", "decay": "rungs.decay"}
            if changed:
                what = ", ".join(names.get(key, key) for key in changed)
                raise ConfigError(
                    f"{what} changed since the study began, and its trials would not compare: take the "
                    "change back, or give another --work-dir; seeds, budget, sampler and pruner may change"
                )
        self.study.set_user_attr(DECLARATION, declared)

    def save_hours(self, hours: float) -> None:
        """Note how long controllers have worked in this folder, in hours.

        Raises:
            MachineError: If the note cannot be written.
        """
        self.hours, note = hours, self.folder / CONTROLLER
        try:
            write_json(note, {"study": self.file.name, "owner": self.owner, "hours": hours})
        except OSError as error:
            problem = f"{str(note)!r} cannot be written ({error.strerror or error})"
            raise MachineError(f"{problem}: fix that, then go on with --resume") from error

    def trials(self) -> list[FrozenTrial]:
        """All trials of the study."""
        return self.study.get_trials(deepcopy=False)

    def own_running(self) -> list[FrozenTrial]:
        """Trials that this controller, or one before it in this folder, has begun and not finished."""
        mine = (one for one in self.trials() if one.user_attrs.get(OWNER) == self.owner)
        return [one for one in mine if one.state is TrialState.RUNNING]

    def own_ended(self) -> list[FrozenTrial]:
        """Trials that this controller, or one before it in this folder, has finished, or that failed."""
        mine = (one for one in self.trials() if one.user_attrs.get(OWNER) == self.owner)
        return [one for one in mine if one.state in (TrialState.COMPLETE, TrialState.FAIL)]

    def more_seeds(self) -> dict[int, list[int]]:
        """Seeds that trials have got beyond those of the study, by the number of the trial."""
        return {int(number): seeds for number, seeds in self.study.user_attrs.get(MORE_SEEDS, {}).items()}

    def add_seeds(self, wanted: Mapping[int, Sequence[int]]) -> None:
        """Note that trials are to be trained with further seeds.

        Args:
            wanted: Seeds by the number of the trial; those that it has are left as they are.
        """
        known = self.more_seeds()
        merged = {number: sorted({*known.get(number, ()), *seeds}) for number, seeds in {**known, **wanted}.items()}
        self.study.set_user_attr(MORE_SEEDS, {str(number): seeds for number, seeds in merged.items()})

    def handle(self, number: int) -> Trial:
        """The trial of a number, to report to."""
        study_id = self._storage.get_study_id_from_name(self.file.name)
        return Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def ask(self) -> Trial | None:
        """Begin the next trial; ``None`` if the study has all that it may have.

        A trial is in the storage before it has values: one that is interrupted there gets the rest later.
        """
        points, limit = grid_points(self.file.space), self.file.max_trials
        while True:
            slots = {one.user_attrs[SLOT] for one in self.trials() if SLOT in one.user_attrs}
            waiting = any(one.state is TrialState.WAITING for one in self.trials())
            slot = next(index for index in range(len(slots) + 1) if index not in slots)
            if not waiting:
                if limit is not None and slot >= limit:
                    return None
                self.study.enqueue_trial(points[slot % len(points)], user_attrs={SLOT: slot, OWNER: self.owner})
            trial = self.study.ask()
            trial.set_user_attr(OWNER, self.owner)
            others = [one for one in self.trials() if one.number < trial.number]
            if all(one.user_attrs.get(SLOT) != trial.user_attrs.get(SLOT) for one in others):
                return trial
            self.study.tell(trial, state=TrialState.FAIL)  # two controllers have begun the same one

    def values(self, trial: Trial) -> dict[str, Any]:
        """The value of each dimension; sampled where the trial has none yet."""
        return {dimension.name: dimension.suggest(trial) for dimension in self.file.space}
