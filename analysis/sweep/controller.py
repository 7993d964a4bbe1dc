"""The controller of a sweep: it asks for trials, starts their trainings, and judges how they end.

What has happened is in the storage and in the folders of the trainings before anything follows from it. A controller
may therefore be killed at any moment: the next one finds the trainings that run, resumes those that were interrupted,
and repeats none.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import Trial, TrialState

from analysis.sweep.executors import Ended, Executor
from analysis.sweep.progress import StatusLines, best_line, describe_training
from analysis.sweep.results import RUN_FILE, TRIALS_FOLDER, mean_score, read_study, validation_score
from analysis.sweep.rungs import goes_on, saving
from analysis.sweep.space import decode_value
from analysis.sweep.storage import REASON, RUNG, SLOT, StudyStorage
from analysis.sweep.study_file import HALVING, StudyFile
from analysis.sweep.trainings import (
    Training,
    command_of,
    failure_line,
    gpu_hours_of,
    is_kill,
    judge,
    prepare,
    trainings_of,
)
from backbones.errors import ConfigError, MachineError
from backbones.files import remove_partial_files
from convnext_dense_signals import Terminated, stop_signals
from engine.launch.child import handle_signals, interrupt_on_signals
from engine.launch.exit_codes import EXIT_BAD_INPUT, EXIT_SAVED
from engine.launch.keeper import GRACE_SECONDS
from engine.report.run_dir import read_json

SAVE_HOURS_SECONDS = 10.0  # of the budget that a killed controller does not count


@dataclass
class ActiveTrial:
    """A trial that is not finished, or gets more seeds.

    Attributes:
        number: Number of the trial.
        trial: Optuna's trial; ``None`` for one that has ended in the storage and gets more seeds.
        values: Value of each dimension by its name.
        rung: Index of the rung that it works for.
        seeds: Its trainings up to that rung, in order, for each seed.
    """

    number: int
    trial: Trial | None
    values: dict[str, Any]
    rung: int = 0
    seeds: dict[int, list[Training]] = field(default_factory=dict)

    def trainings(self) -> Iterator[Training]:
        """All trainings."""
        for chain in self.seeds.values():
            yield from chain

    def startable(self) -> Iterator[Training]:
        """The next training of each seed, if it neither runs nor waits for one that failed."""
        for chain in self.seeds.values():
            following = next((one for one in chain if one.state != "finished"), None)
            if following is not None and following.state in ("waiting", "interrupted"):
                yield following

    @property
    def is_over(self) -> bool:
        """Whether every seed has come to the end of the rung, or failed."""
        return all(any(one.state == "failed" for one in chain) or chain[-1].is_over for chain in self.seeds.values())


class Controller:
    """Runs a study to its end or its budget.

    Args:
        study: Study file.
        folder: Folder of the study, whose lock is held.
        storage: Trials of the study.
        executor: Place where the trainings run.
        screen: Output of the progress.
        retry: Whether trainings that failed are tried again by whoever starts the command again.
    """

    def __init__(
        self,
        study: StudyFile,
        folder: Path,
        storage: StudyStorage,
        executor: Executor,
        screen: StatusLines,
        retry: bool = False,
    ) -> None:
        remove_partial_files(folder)  # of a controller that was killed
        self._retry = retry
        self._study, self._folder, self._storage = study, folder, storage
        self._executor, self._screen = executor, screen
        self._active: dict[int, ActiveTrial] = {}
        self._started: set[Path] = set()
        self._asked_all = self._stopping = False
        self._begun, self._hours_before = time.monotonic(), storage.hours
        self._spent_gpu_hours = self._gpu_hours_on_disk()

    def run(self) -> None:
        """Run until nothing is left to be done.

        Raises:
            ConfigError: If a training refuses its input: the study stops.
            MachineError: If the storage or SLURM fails; trainings go on.
            KeyboardInterrupt: On Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP; trainings on this machine have saved and ended.
        """
        with interrupt_on_signals():
            try:
                self._run_steps()
            except KeyboardInterrupt:
                if self._executor.slurm is None:
                    self._screen.say("stopping: the trainings save and end")
                    self._stop_all()
                running = "jobs of SLURM go on" if self._executor.slurm else "everything is saved"
                again = "" if self._retry else " and --resume"
                self._screen.say(f"stopped, {running}: go on with the same command{again}")
                raise
            finally:
                with suppress(OSError):
                    self._storage.save_hours(self._hours)

    def _run_steps(self) -> None:
        """Take steps; a signal that arrives within one waits for its end.

        An exception of a signal handler can be lost in a callback of the database, or leave a trial half noted.
        """
        asked: KeyboardInterrupt | None = None
        sleeping = False

        def note(number: int, _: object) -> None:
            nonlocal asked
            asked = asked or (KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
            if sleeping:
                raise asked

        handlers = dict.fromkeys(stop_signals(), note)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            handlers[signal.SIGINT] = note
        with handle_signals(handlers):
            self._adopt()
            self._take_up_seeds()
            while self._step():
                sleeping = True
                if asked is not None:
                    raise asked
                time.sleep(self._executor.poll_seconds)
                sleeping = False

    @property
    def _hours(self) -> float:
        return self._hours_before + (time.monotonic() - self._begun) / 3600

    def _running(self) -> list[Training]:
        return [one for active in self._active.values() for one in active.trainings() if one.state == "running"]

    def _adopt(self) -> None:
        """Take over the trials that a controller before this one left."""
        for frozen in self._storage.own_running():
            active = self._activate(self._storage.handle(frozen.number), frozen.user_attrs.get(RUNG, 0))
            states = ", ".join(f"seed {seed} {chain[-1].state}" for seed, chain in active.seeds.items())
            self._screen.say(f"trial {frozen.number}: taken over ({states})")

    def _take_up_seeds(self) -> None:
        """Train the seeds that trials of the storage got after they had ended, and the failed ones if asked."""
        last = 0 if self._study.rungs is None else len(self._study.rungs.lengths) - 1
        more = self._storage.more_seeds()
        for frozen in self._storage.own_ended():
            every = self._study.seeds if self._retry or frozen.state is TrialState.COMPLETE else ()
            values = {name: decode_value(value) for name, value in frozen.params.items()}
            active = ActiveTrial(frozen.number, None, values, last)
            for seed in dict.fromkeys([*every, *more.get(frozen.number, ())]):
                chain = self._chain(active, seed, last)
                # Of the shorter rungs nothing is asked any more.
                active.seeds[seed] = [one for one in chain if one.trunk or one.rung == last]
            for training in active.trainings():
                if self._retry and training.state == "failed":
                    starts = [{**start, "killed": False} for start in training.record["starts"]]
                    training.note(state="interrupted", starts=starts)
            if not active.is_over:
                self._active[frozen.number] = active
                seeds = [seed for seed, chain in active.seeds.items() if not chain[-1].is_over]
                self._screen.say(
                    f"trial {frozen.number}: seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} to train"
                )

    def _activate(self, trial: Trial, rung: int) -> ActiveTrial:
        active = ActiveTrial(trial.number, trial, self._storage.values(trial), rung)
        self._set_rung(active, rung)
        self._active[trial.number] = active
        return active

    def _set_rung(self, active: ActiveTrial, rung: int) -> None:
        active.rung, known = rung, {one.folder: one for one in active.trainings() if not one.trunk}
        for seed in self._study.seeds:
            active.seeds[seed] = [known.get(one.folder, one) for one in self._chain(active, seed, rung)]

    def _chain(self, active: ActiveTrial, seed: int, rung: int) -> list[Training]:
        return trainings_of(self._study, self._folder, active.number, active.values, seed, rung)

    def _step(self) -> bool:
        """See what has ended, judge it, start what may start; whether anything is left."""
        self._judge_ended()
        for active in list(self._active.values()):
            if active.is_over:
                self._advance(active)
        self._fill()
        if time.monotonic() - self._begun > (self._storage.hours - self._hours_before) * 3600 + SAVE_HOURS_SECONDS:
            self._storage.save_hours(self._hours)
        if self._screen.is_due:
            self._screen.show([describe_training(one, self._study.objective) for one in self._running()])
        return bool(self._active)

    def _judge_ended(self) -> None:
        running = self._running()
        try:
            ends = self._executor.ended(running)
        except MachineError as error:  # the accounting of SLURM may be away for a while
            self._screen.say(f"{error}: asking again")
            return
        for training, ended in zip(running, ends):
            if ended is not None:
                self._note_end(training, ended)
                if ended.code == EXIT_BAD_INPUT:
                    training.note(state="interrupted")  # goes on once the input is corrected
                    line = failure_line(training.folder)
                    self._stop_all()
                    raise ConfigError(f"{training.label}: {line}; the study has stopped, correct it and go on")

    def _note_end(self, training: Training, ended: Ended) -> None:
        start = training.record["starts"][-1]
        cancelled = start.get("job") is not None and training.record.get("cancelled") == start["job"]
        # One that is told to stop in its first moment has no handler yet: that is no kill of those that count.
        early = self._stopping and ended.code in (-signal.SIGTERM, 128 + signal.SIGTERM)
        code = EXIT_SAVED if cancelled or early else ended.code
        remove_partial_files(training.folder)  # its keeper may have been killed as it wrote
        state, reason = judge(training, code)
        killed = training.folder in self._started if code is None else is_kill(code)
        start |= {"ended": time.time(), "code": code, "killed": killed}
        training.note(state=state, reason=reason)
        self._spent_gpu_hours += gpu_hours_of(start)
        self._screen.say(f"{training.label}: {state}{f' ({reason})' if reason else ''}")

    def _advance(self, active: ActiveTrial) -> None:
        """Decide on a trial whose trainings are over: it fails, is finished or pruned, or goes on to the next rung."""
        number, study, trial = active.number, self._study, active.trial
        failed = [f"seed {one.seed}: {one.record.get('reason')}" for one in active.trainings() if one.state == "failed"]
        scores = [self._score(chain[-1]) for chain in active.seeds.values()]
        if not failed and None in scores:
            failed = [f"no value of {study.objective.metric} was logged"]
        if trial is None:
            del self._active[number]
            said = f"failed, {'; '.join(failed)}" if failed else "its seeds are trained"
            self._screen.say(f"trial {number}: {said}")
            return
        if failed:
            trial.set_user_attr(REASON, "; ".join(failed))
            self._finish(active, TrialState.FAIL, None, f"failed, {'; '.join(failed)}")
            return
        score = fmean(score for score in scores if score is not None)
        if study.rungs is None:
            self._finish(active, TrialState.COMPLETE, score, f"{study.objective.metric} {score:.5g}")
            return
        length = study.rungs.lengths[active.rung]
        frozen = next(one for one in self._storage.trials() if one.number == number)
        if length not in frozen.intermediate_values:
            trial.report(score, length)
        if active.rung == len(study.rungs.lengths) - 1:
            self._finish(active, TrialState.COMPLETE, score, f"{study.objective.metric} {score:.5g}")
            return
        if study.pruner["type"] in HALVING:
            ranked = self._rung_scores(length, active.rung)
            on = None if ranked is None else goes_on(number, ranked, study.rungs.keep, study.objective.direction)
        else:
            on = not trial.should_prune()
        if on:
            trial.set_user_attr(RUNG, active.rung + 1)
            self._set_rung(active, active.rung + 1)
            self._screen.say(f"trial {number}: {score:.5g} at length {length}, goes on")
        elif on is not None:
            self._finish(active, TrialState.PRUNED, None, f"{score:.5g} at length {length}, pruned")

    def _rung_scores(self, length: int, rung: int) -> dict[int, float] | None:
        """Score of each trial at a rung by its number; ``None`` as long as successive halving waits for others."""
        assert self._study.rungs is not None
        scores, outstanding = dict[int, float](), 0
        for one in self._storage.trials():
            if length in one.intermediate_values:
                scores[one.number] = one.intermediate_values[length]
            elif one.state in (TrialState.RUNNING, TrialState.WAITING):
                before = self._study.rungs.lengths[rung - 1] if rung else None
                outstanding += before is None or before in one.intermediate_values
        if self._study.pruner["type"] == "asha" or (self._asked_all and not outstanding):
            return scores
        return None

    def _score(self, training: Training) -> float | None:
        return validation_score(training.folder, self._study.objective) if training.state == "finished" else None

    def _finish(self, active: ActiveTrial, state: TrialState, score: float | None, text: str) -> None:
        self._storage.study.tell(active.number, score, state)
        del self._active[active.number]
        values = ", ".join(f"{name}={value}" for name, value in active.values.items())
        self._screen.say(f"trial {active.number}: {text}{f' [{values}]' if values else ''}")

    def _fill(self) -> None:
        """Start trainings while there is room, of trials that are active before those of new ones."""
        while self._executor.has_room(self._running()):
            waiting = (one for active in self._active.values() for one in active.startable())
            training = next(waiting, None)
            if training is None:
                if not self._ask():
                    return
                continue
            self._start(training)

    def _ask(self) -> bool:
        """Begin a trial, if budget and study allow another."""
        if self._asked_all:
            return False
        spent = self._spent()
        trial = None if spent else self._storage.ask()
        if trial is None:
            self._asked_all = True
            if spent:
                self._screen.say(f"the budget of {spent} is spent: what was begun is finished")
            return False
        self._activate(trial, 0)
        return True

    def _spent(self) -> str:
        budget = self._study.budget
        if self._hours >= (budget.hours or math.inf):
            return f"{budget.hours:g} hours"
        gpu_hours = self._spent_gpu_hours + sum(gpu_hours_of(one.record["starts"][-1]) for one in self._running())
        if gpu_hours >= (budget.gpu_hours or math.inf):
            return f"{budget.gpu_hours:g} GPU hours"
        begun = sum(SLOT in one.user_attrs for one in self._storage.trials())
        return (
            f"{budget.trials} trials" if begun >= (budget.trials or math.inf) and self._study.max_trials is None else ""
        )

    def _gpu_hours_on_disk(self) -> float:
        """Cost of what the controllers before this one have started, as far as it has ended."""
        total = 0.0
        for file in self._folder.glob(f"{TRIALS_FOLDER}/*/*/{RUN_FILE}"):
            total += sum(gpu_hours_of(one) for one in read_json(file).get("starts", []) if "ended" in one)
        return total

    def _start(self, training: Training) -> None:
        resume = prepare(training)
        gpus = self._study.gpus_per_trial
        command = command_of(self._study, training, gpus, self._executor.slurm)
        command += ["--resume"] if resume else []
        place = self._executor.place(training, self._running())
        starts = training.record.get("starts", [])
        training.note(state="running", reason="", starts=[*starts, {"began": time.time(), "processes": gpus, **place}])
        self._executor.start(training, command)
        self._started.add(training.folder)
        self._screen.say(f"{training.label}: {'resumed' if resume else 'started'} in {training.folder}")

    def _stop_all(self) -> None:
        """Tell all trainings to save and to end, and wait for them."""
        running, self._stopping = self._running(), True
        self._executor.stop(running)
        until = time.monotonic() + GRACE_SECONDS + 10
        while running and time.monotonic() < until:
            for training, ended in zip(running, self._executor.ended(running)):
                if ended is not None:
                    self._note_end(training, ended)
            running = [one for one in running if one.state == "running"]
            time.sleep(min(2.0, self._executor.poll_seconds))

    def closing_lines(self) -> list[str]:
        """How the study ended."""
        trials = self._storage.trials()
        done = [one for one in trials if one.state is TrialState.COMPLETE]
        failed = [one for one in trials if one.state is TrialState.FAIL and REASON in one.user_attrs]
        lines = [f"{len(done)} trials complete, {len(failed)} failed, in {self._folder}"]
        if self._study.rungs is not None:
            reached: dict[int, int] = {}
            for one in trials:
                ranks = [index for index, at in enumerate(self._study.rungs.lengths) if at in one.intermediate_values]
                if ranks:
                    reached[ranks[-1]] = reached.get(ranks[-1], 0) + 1
            lines.append(saving(self._study.rungs, reached))
        if done:
            result = read_study(self._folder, self._study.storage, self._study.name)
            # Those of other controllers are in the storage alone, with the seeds of the study.
            scores = {one.number: one.value for one in done if one.value is not None}
            scores |= {number: mean_score(runs) for number, runs in result.compared().items()}
            settings = {one.number: one.params for one in trials}
            lines.append(best_line(self._study.objective, scores, settings))
        return lines
