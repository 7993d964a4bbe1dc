"""Weights & Biases and MLflow: config, curves, pictures, receipts and scores of a training, in one run of theirs.

A run has the id of the training, so that a start that resumes goes on in it. That id is known once the checkpoint is
loaded: nothing is written before. Where no server is set they write into the work directory, W&B with
``WANDB_MODE=offline``. Steps that a resumed training does again are logged again. A tracker that fails in the midst of
a training is a warning, and the training goes on without it.
"""

from __future__ import annotations

import logging
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend

from backbones.errors import MachineError, describe_error
from engine.config.trackers import TRACKERS
from engine.report.run_dir import ENVIRONMENT, PLAN, RECEIPTS, REPORT, STARTS

PROJECT = "convnext-dense"  # where WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME name no other
HANDED_OVER = (REPORT, PLAN, ENVIRONMENT, STARTS, RECEIPTS)  # files of a work directory, at the end
RUN_TAG = "convnext_dense.run"  # of a run in MLflow: the id of the training
MAX_SENT_PICTURES = 32
MAX_BATCH = 100  # parameters of one request to MLflow
MAX_CHARACTERS = 500  # of a parameter in MLflow's stores


class Tracker(BaseVisBackend):
    """A backend of visualizers that writes from :meth:`begin` to :meth:`finish`, on the main process.

    Args:
        save_dir: Folder of the visualizer's files.

    Attributes:
        package: Name of the tracker's package.
        fix: Advice to a user for whom it cannot begin.
    """

    package = ""
    fix = ""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self._runner: Runner | None = None

    def _init_env(self) -> None:
        """Nothing: a tracker begins with the training."""

    @property
    def experiment(self) -> Any:
        """The tracker itself."""
        return self

    def begin(self, runner: Runner, config: Mapping[str, Any]) -> None:
        """Begin the run of a training, or go on in it.

        Args:
            runner: Runner of the training, whose ``run_id`` all starts that continue it have in common; the run is
                called as its work directory.
            config: Resolved config as plain data.

        Raises:
            MachineError: If the tracker cannot begin, such as without a login.
        """
        try:
            self._begin(runner.run_id, Path(runner.work_dir), config)
        except Exception as error:  # of any kind: their packages, the network, the server
            raise MachineError(
                f"trackers: {self.package} does not begin ({describe_error(error)}): {self.fix}"
            ) from error
        self._runner = runner

    def finish(self, folder: Path, finished: bool) -> None:
        """Hand over the files of the work directory and end the run.

        Args:
            folder: Work directory.
            finished: Whether the training reached its end.
        """
        named = [folder / name for name in HANDED_OVER if (folder / name).is_file()]
        pictures = sorted((folder / "pictures").glob("*.png"))[:MAX_SENT_PICTURES]
        self._guarded(self._finish, folder, named + pictures, finished)
        self._runner = None

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Nothing: :meth:`begin` gets the config."""

    def add_graph(self, model: Any, data_batch: Any, **kwargs: Any) -> None:
        """Nothing."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Add a picture, (H, W, 3) in RGB."""
        self._guarded(self._add_image, name, image, self._step(step))

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Add a number."""
        self.add_scalars({name: value}, step)

    def add_scalars(
        self, scalar_dict: Mapping[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Add the numbers among the values."""
        numbers = {}
        for name, value in scalar_dict.items():
            with suppress(TypeError, ValueError):  # text
                numbers[name] = float(value)
        self._guarded(self._add_scalars, numbers, self._step(step))

    def close(self) -> None:
        """Nothing: :meth:`finish` ends the run, and one that is lost is no end."""

    def _step(self, step: int) -> int:
        """Optimizer steps so far: mmengine gives validations the number of their epoch."""
        return max(int(step), self._runner.iter) if self._runner is not None else 0

    def _guarded(self, write: Callable[..., None], *arguments: Any) -> None:
        if self._runner is None:
            return
        try:
            write(*arguments)
        except Exception as error:  # a training is worth more than what follows it
            self._runner = None
            line = f"{self.package} fails, and gets nothing more: {describe_error(error)}"
            print_log(line, "current", logging.WARNING)

    @abstractmethod
    def _begin(self, run_id: str, folder: Path, config: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _finish(self, folder: Path, files: list[Path], finished: bool) -> None: ...

    @abstractmethod
    def _add_image(self, name: str, image: np.ndarray, step: int) -> None: ...

    @abstractmethod
    def _add_scalars(self, numbers: dict[str, float], step: int) -> None: ...


@VISBACKENDS.register_module()
class WandbTracker(Tracker):
    """Weights & Biases; ``WANDB_PROJECT``, ``WANDB_ENTITY`` and ``WANDB_MODE`` work as everywhere."""

    package = "wandb"
    fix = "log in with `wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`"

    def _begin(self, run_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = import_module("wandb")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=folder.name,
            dir=str(folder),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        self._run.config.update(dict(config), allow_val_change=True)
        # Its own count of steps would begin anew with each start.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _finish(self, folder: Path, files: list[Path], finished: bool) -> None:
        for file in files:
            self._run.save(str(file), base_path=str(folder), policy="now")
        self._run.finish(exit_code=0 if finished else 1)

    def _add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._run.log({name: self._image(image), "step": step})

    def _add_scalars(self, numbers: dict[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})


@VISBACKENDS.register_module()
class MlflowTracker(Tracker):
    """MLflow, on the server of ``MLFLOW_TRACKING_URI`` or in ``mlruns`` of the work directory."""

    package = "mlflow"
    fix = "check MLFLOW_TRACKING_URI, or unset it for files in the work directory"

    def _begin(self, run_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = mlflow.MlflowClient(uri or (folder / "mlruns").resolve().as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([place], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        run = found[0] if found else self._client.create_run(place, tags={RUN_TAG: run_id}, run_name=folder.name)
        self._run = run.info.run_id
        if found:
            self._client.update_run(self._run, status="RUNNING")
        else:  # what a later start changes is in its config: MLflow's parameters are written once
            parameters = iter(_flat(config))
            while part := list(islice(parameters, MAX_BATCH)):
                self._client.log_batch(self._run, params=[self._entities.Param(*one) for one in part])
        self._client.log_dict(self._run, dict(config), "config.json")

    def _finish(self, folder: Path, files: list[Path], finished: bool) -> None:
        for file in files:
            place = file.parent.relative_to(folder).as_posix()
            self._client.log_artifact(self._run, str(file), None if place == "." else place)
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    def _add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self._run, image, f"pictures/{name}_{step}.png")

    def _add_scalars(self, numbers: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._entities.Metric(*one, now, step) for one in numbers.items()])


def begin_trackers(runner: Runner, config: Mapping[str, Any]) -> list[Tracker]:
    """Begin the trackers of a training's visualizer; ``config`` is its resolved config as plain data."""
    trackers = [one for name in TRACKERS.values() if (one := runner.visualizer.get_backend(name)) is not None]
    for tracker in trackers:
        tracker.begin(runner, config)
    return trackers


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of the settings, those of lists under their places."""
    for key, value in config.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:MAX_CHARACTERS]
