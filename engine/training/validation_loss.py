"""The loss of a validation: that of the training, on images of the validation, without a trace in the training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from torch import nn
from torch.utils.data import DataLoader

from backbones.errors import ConfigError
from engine.checkpoint.rng import RandomState, seed_process
from engine.config.datasets import inner_datasets
from engine.config.schema import is_whole
from engine.distributed.sharding import unwrapped
from engine.task import VALIDATION_LOSS, task_of

MAX_LOSS_IMAGES = 500  # a tenth of COCO's validation, a quarter of ADE20K's
LOSS_SEED = 0  # of what a loss draws, the same in every validation and run, so that they can be compared


class ValidationLoss(Hook):
    """Mean of the training's loss over images spread evenly over the validation data.

    Parts that a training changes beside its parameters, such as running statistics and the thresholds of some heads,
    are those of a copy of the model, and random states are restored: the training goes on as without it. Heads compute
    as in training (several give other outputs in a test); normalisation, dropout and the backbone as in a test.

    Images without truth have no loss. Heads that divide by the number of objects in all processes do so here too, so
    all of them compute a batch or none does.

    Args:
        runner: Runner of the training.
        dataloader: Validation data.
        max_images: Number of images, at most, though no less than a batch of each process; 0 for no loss.

    Attributes:
        images: Number of images in the last mean.

    Raises:
        ConfigError: If ``max_images`` is no whole number.
    """

    def __init__(self, runner: Any, dataloader: DataLoader, max_images: int) -> None:
        if not is_whole(max_images, 0):
            raise ConfigError(f"val_cfg.loss_images={max_images!r}: a whole number of images is needed, 0 for no loss")
        self._runner, self._loader = runner, dataloader
        self._loss_inputs = task_of(runner.cfg).loss_inputs if max_images else None
        at_once = (dataloader.batch_size or 1) * runner.world_size
        self._every = max(1, math.ceil(len(dataloader) / max(1, max_images // at_once)))
        settings = (runner.cfg.get("val_dataloader") or {}).get("dataset") or {}
        datasets = inner_datasets(ConfigDict(settings)) if settings else []
        self._pipeline = datasets[0].get("pipeline", []) if datasets else []
        self._model: Any = None
        self._failure = ""
        self._sum, self._count, self._seen = 0.0, 0, 0
        self.images = 0

    @property
    def score_names(self) -> tuple[str, ...]:
        """Name of the score in a validation's; none for a task that has no loss of this kind, or after a failure."""
        return (VALIDATION_LOSS,) if self._loss_inputs else ()

    def begin(self) -> None:
        """Begin a mean of the weights that the model holds."""
        self._model, self._failure = None, ""
        self._sum, self._count, self._seen = 0.0, 0, 0

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add a batch, if it is one of those that are chosen.

        Args:
            runner: Runner of the training.
            batch_idx: Number of the batch in this process, from 0; all processes have as many.
            data_batch: Collated samples with ``inputs``, as the data loader gives them.
            outputs: Predictions, which are not used.
        """
        if self._loss_inputs is None:
            return
        first, size = self._seen, len(data_batch["inputs"])
        self._seen += size
        if batch_idx % self._every:
            return
        # A sampler repeats images where the processes do not have equally many.
        places = (self._runner.rank + self._runner.world_size * (first + index) for index in range(size))
        count = sum(place < len(self._loader.dataset) for place in places)  # type: ignore[arg-type]
        batch = {key: values[:count] for key, values in data_batch.items()}
        before = RandomState.capture()
        seed_process(LOSS_SEED, first)
        inputs = self._guarded(self._prepare, batch) if count and not self._failure else None
        if all(runner.agreement.gather(inputs is not None)):
            self._guarded(self._add, inputs)
        before.restore()

    def finish(self) -> dict[str, float]:
        """The mean over the images of all processes, by its name; empty where there is none."""
        if self._loss_inputs is None:
            return {}
        self._model = None
        parts = self._runner.agreement.gather((self._sum, self._count, self._failure))
        failure = next((failure for _, _, failure in parts if failure), "")
        self.images = sum(count for _, count, _ in parts)
        if failure or not self.images:
            self._runner.logger.warning("validations have no loss: %s", failure or "no images")
            self._loss_inputs = None
            return {}
        return {VALIDATION_LOSS: sum(one for one, _, _ in parts) / self.images}

    def _guarded(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function; ``None`` if it fails, as any library's head may: a curve is no reason to end a training."""
        try:
            with torch.no_grad():
                return function(argument)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return None

    def _prepare(self, batch: Any) -> dict[str, Any] | None:
        """Arguments of the model for the images of a batch that have truth; ``None`` if there are none."""
        assert self._loss_inputs is not None
        if self._model is None:
            self._model = unwrapped(self._runner.model)
            if not self._runner.sharded:
                # Shards cannot be copied: there, a head that counts its batches counts these too.
                self._model = with_same_parameters(self._model)
        return self._loss_inputs(self._model, batch, self._pipeline)

    def _add(self, inputs: Mapping[str, Any]) -> None:
        set_loss_mode(self._model)
        try:
            with self._runner.optim_wrapper.optim_context(self._model):
                losses = self._model(**inputs)
        finally:
            self._model.eval()
        self._sum += len(inputs["inputs"]) * float(self._model.parse_losses(losses)[0])
        self._count += len(inputs["inputs"])


def with_same_parameters(model: nn.Module) -> nn.Module:
    """Copy a model with its buffers and settings; the copy has the same parameters and data preprocessor."""
    kept = [*model.parameters(), getattr(model, "data_preprocessor", None)]
    return copy.deepcopy(model, {id(one): one for one in kept if one is not None})


def set_loss_mode(model: nn.Module) -> None:
    """Set a model to training, but its backbone and layers of torch, such as normalisation and dropout, to testing."""
    model.train()
    for module in model.modules():
        kinds = type(module).__mro__
        if any(kind is not nn.Module and kind.__module__.startswith("torch.nn.modules.") for kind in kinds):
            module.training = False
    if isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        backbone.eval()
