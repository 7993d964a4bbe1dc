"""The trainings of a trial: their folders, options and commands, and what is noted of each in its folder."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.sweep.results import RUN_FILE, trial_folder
from analysis.sweep.rungs import branch, constant, decaying, shrunken, trunk_length
from analysis.sweep.space import CONFIG_KEY, settings_of
from analysis.sweep.study_file import StudyFile
from backbones.errors import first_line
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.launch.child import plain_lines
from engine.launch.exit_codes import EXIT_HUNG, EXIT_INTERRUPTED, EXIT_SAVED
from engine.report.environment import ROOT
from engine.report.run_dir import read_json, read_starts, write_json

CONSOLE = "console.log"  # output of all starts of a training
MAX_KILLS = 3  # ends by a signal, or for a hang, after which a training counts as failed
SEED = "randomness.seed"
ERROR_LINE = re.compile(r"^(?:\[rank \d+\] )?error: (.*)")


@dataclass
class Training:
    """One training of a study, or one part of it: the trunk, or the branch of a rung.

    Attributes:
        number: Number of the trial.
        seed: Seed of the training.
        rung: Index of the rung.
        folder: Work directory.
        config: Config file.
        options: Overrides under dotted keys, without those of the rung.
        trunk: True for the trunk up to this rung, which is not scored.
        base: Folder of the trunk from which it branches off; ``None`` if it begins anew.
        stage: Number of this part among those in the same folder; a trunk has one for each rung.
        record: Content of ``run.json`` in the folder.
    """

    number: int
    seed: int
    rung: int
    folder: Path
    config: str
    options: Mapping[str, Any]
    trunk: bool = False
    base: Path | None = None
    stage: int = 0
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.load()

    @property
    def label(self) -> str:
        """Name for people, such as ``trial 3, seed 1``; unique within the study."""
        return f"trial {self.number}, {self.folder.name.replace('_', ' ')}"

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``interrupted``, ``finished`` or ``failed``."""
        return str(self.record.get("state", "waiting"))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.state in ("finished", "failed")

    def load(self) -> None:
        """Read the record from the folder; that of an earlier part of a trunk counts as waiting."""
        found = read_json(self.folder / RUN_FILE)
        if found.get("stage", 0) < self.stage:
            found = {**found, "state": "waiting", "stage": self.stage} if found else {}
        elif found.get("stage", 0) > self.stage:
            found = {**found, "state": "finished"}
        self.record = found

    def note(self, **entries: Any) -> None:
        """Write entries to the record in the folder."""
        own = {"number": self.number, "seed": self.seed, "rung": self.rung, "trunk": self.trunk, "stage": self.stage}
        self.record |= {**own, **entries}
        write_json(self.folder / RUN_FILE, self.record)


def gpu_hours_of(start: Mapping[str, Any]) -> float:
    """Hours of a start in a training's record, up to now if it runs, times its processes."""
    hours: float = ((start.get("ended") or time.time()) - start["began"]) / 3600 * start["processes"]
    return hours


def trainings_of(
    study: StudyFile, folder: Path, number: int, values: Mapping[str, Any], seed: int, rung: int
) -> list[Training]:
    """The trainings of a trial with one seed up to a rung, in the order in which they run.

    Args:
        study: The study.
        folder: Folder of the study.
        number: Number of the trial.
        values: Value of each dimension by its name.
        seed: Seed.
        rung: Index of the highest rung that is to be reached; 0 without rungs.
    """
    options = settings_of(study.space, values, study.options)
    config = str(options.pop(CONFIG_KEY, study.config))
    place = trial_folder(folder, number)
    if study.rungs is None:
        return [Training(number, seed, 0, place / f"seed_{seed}", config, options)]
    found = []
    trunk = place / f"seed_{seed}_trunk"
    for index in range(rung + 1):
        own = place / f"seed_{seed}_rung_{index}"
        if study.rungs.decay is not None:
            found.append(Training(number, seed, index, trunk, config, options, trunk=True, stage=index))
        found.append(
            Training(number, seed, index, own, config, options, base=trunk if study.rungs.decay is not None else None)
        )
    return found


def command_of(study: StudyFile, training: Training, gpus: int, slurm: str | None = None) -> list[str]:
    """The ordinary launch of a training, without ``--resume``.

    Args:
        study: The study.
        training: The training.
        gpus: Number of processes.
        slurm: Partition in which it is launched; ``None`` for this machine.
    """
    options = {**options_of(study, training), SEED: training.seed}
    if slurm is not None:
        name = f"{study.name}_{training.number}_{training.seed}"
        launcher = ["bash", str(ROOT / "tools/slurm_train.sh"), slurm, name, training.config, str(gpus)]
    else:
        launcher = local_launcher(training.config, gpus)
    more = ["--per-gpu-batch", study.per_gpu_batch] if study.per_gpu_batch else []
    texts = [option_text(key, value) for key, value in options.items()]
    return [*launcher, "--work-dir", str(training.folder), *more, "--cfg-options", *texts]


def local_launcher(config: str, gpus: int) -> list[str]:
    """The start of the command that trains a config with a number of processes on this machine."""
    if gpus > 1:
        return ["bash", str(ROOT / "tools/dist_train.sh"), config, str(gpus)]
    return [sys.executable, str(ROOT / "tools/train.py"), config]


def options_of(study: StudyFile, training: Training) -> dict[str, Any]:
    """Options of a training under dotted keys, with the length and the schedule of its rung.

    Raises:
        ConfigError: If the warm-up is longer than a rung.
    """
    rungs, index, options = study.rungs, training.rung, dict(training.options)
    if rungs is None:
        return options
    cfg = load_config(training.config, dict(options), Launch(), training=False).cfg
    if rungs.decay is None:
        return options | shrunken(cfg, rungs.lengths[index])
    begin = trunk_length(rungs, index)
    return options | (constant(cfg, begin) if training.trunk else decaying(cfg, begin, rungs.lengths[index]))


def prepare(training: Training) -> bool:
    """Make the folder of a training, with what it begins from.

    Returns:
        Whether it is to be started with ``--resume``: it was started before, or branches off from a trunk.
    """
    training.folder.mkdir(parents=True, exist_ok=True)
    if training.base is not None and not any(training.folder.glob("*.pth")):
        branch(training.base, training.folder)
    return any(training.folder.glob("*.pth"))


def option_text(key: str, value: Any) -> str:
    """A setting as ``--cfg-options`` reads it back."""
    text = f"{key}={value}"
    if isinstance(value, str) and parse_options([text]) != {key: value}:
        return f"{key}={value!r}"
    return text


def judge(training: Training, code: int | None) -> tuple[str, str]:
    """How a training stands after an end of its program.

    Args:
        training: The training, whose record has the ends before.
        code: Exit code of the program, negative for a signal; ``None`` if it is not known.

    Returns:
        State, and the reason in one line; the state ``interrupted`` is to go on.
    """
    if code == 0:
        return "finished", ""
    if code in (EXIT_SAVED, EXIT_INTERRUPTED):
        return "interrupted", "stopped, with everything saved"
    if code is not None and not is_kill(code):
        return "failed", failure_line(training.folder) or f"exit code {code}"
    last = (read_starts(training.folder) or [{}])[-1]
    if code is None and last.get("outcome") == "finished" and not training.trunk:
        return "finished", ""
    reason = "ended without an exit code" if code is None else "ended as hanging"
    if code not in (None, EXIT_HUNG):
        number = -code if code < 0 else code - 128
        reason = f"ended by {signal.Signals(number).name if number in list(signal.Signals) else f'signal {number}'}"
    kills = 1 + sum(bool(one.get("killed")) for one in training.record.get("starts", []))
    return ("failed" if kills > MAX_KILLS else "interrupted"), reason


def is_kill(code: int) -> bool:
    """Whether an exit code is that of a program that was ended from outside: by a signal, or as hanging."""
    return code < 0 or code == EXIT_HUNG or (code > 128 and code != EXIT_INTERRUPTED)


def failure_line(folder: Path) -> str:
    """Why a training failed, in one line: its last error, or the last line of its output."""
    lines = plain_lines(folder / CONSOLE)
    errors = [match[1] for line in lines if (match := ERROR_LINE.match(line))]
    return first_line((errors or lines or [""])[-1])


def shown_command(command: Sequence[str], resume: bool = False) -> str:
    """A command as it is typed in the current folder."""
    here = f"{Path.cwd()}/"
    words = ["python" if word == sys.executable else word.removeprefix(here) for word in command]
    return shlex.join([*words, *(["--resume"] if resume else [])])
