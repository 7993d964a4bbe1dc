"""The loss of a validation: that of the training, on images of the validation, without a trace in the training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from torch import nn
from torch.utils.data import DataLoader

from backbones.errors import ConfigError, first_line
from engine.checkpoint.rng import RandomState, seed_process
from engine.config.datasets import inner_datasets
from engine.config.schema import is_whole
from engine.distributed.processes import as_one_process
from engine.distributed.sharding import unwrapped
from engine.task import VALIDATION_LOSS, task_of

MAX_LOSS_IMAGES = 500  # a tenth of COCO's validation, a quarter of ADE20K's
COMPILED = "_compiled_call_impl"  # attribute of a module that was compiled in place
NOT_COPIED = {*vars(nn.Module()), COMPILED} - {"_buffers"}  # of a module's attributes, torch's own
SHARDING = "__composable_api_state_key"  # beginning of the attributes that torch gives a sharded module
LOSS_SEED = 0  # of what a loss draws, the same in every validation and run, so that they can be compared


class ValidationLoss(Hook):
    """Mean of the training's loss over images spread evenly over the validation data.

    Parts that a training changes beside its parameters, such as running statistics and the thresholds of some heads,
    are copied for each batch, and random states are restored: the training goes on as without it. Heads compute as in
    training (several give other outputs in a test); normalisation, dropout and the backbone as in a test.

    Images without truth have no loss. Each process computes alone, so that none waits for one whose head has failed:
    heads divide by the number of objects in their own images. Processes that share a sharded model compute a batch
    together or not at all, and a head that fails there ends the training.

    Args:
        runner: Runner of the training.
        dataloader: Validation data.
        max_images: Number of images, at most, though no less than a batch of each process; 0 for no loss.

    Attributes:
        images: Number of images in the last mean.

    Raises:
        ConfigError: If ``max_images`` is no whole number, or the loss of a sharded model cannot be computed.
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
        self._failure = ""
        self._sum, self._count, self._seen = 0.0, 0, 0
        self.images = 0

    @property
    def score_names(self) -> tuple[str, ...]:
        """Name of the score in a validation's; none for a task that has no loss of this kind, or after a failure."""
        return (VALIDATION_LOSS,) if self._loss_inputs else ()

    def begin(self) -> None:
        """Begin a mean of the weights that the model holds."""
        self._failure = ""
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
        try:
            inputs = self._guarded(self._prepare, batch) if count and not self._failure else None
            if self._runner.sharded:
                self._add_together(inputs)
            elif inputs is not None:
                self._guarded(self._add, inputs)
        finally:
            before.restore()

    def finish(self) -> dict[str, float]:
        """The mean over the images of all processes, by its name; empty where there is none."""
        if self._loss_inputs is None:
            return {}
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
            return function(argument)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return None

    def _prepare(self, batch: Any) -> dict[str, Any] | None:
        """Arguments of the model for the images of a batch that have truth; ``None`` if there are none."""
        assert self._loss_inputs is not None
        return self._loss_inputs(unwrapped(self._runner.model), batch, self._pipeline)

    def _add_together(self, inputs: Mapping[str, Any] | None) -> None:
        """Add a batch of a sharded model, whose parts all processes gather."""
        if not all(self._runner.agreement.gather(inputs is not None)):
            return
        assert inputs is not None
        try:
            self._add(inputs)
        except Exception as error:  # not caught, the others would wait for this process
            raise ConfigError(f"the loss of a validation: {first_line(error)}: set val_cfg.loss_images=0") from error

    def _add(self, inputs: Mapping[str, Any]) -> None:
        model = unwrapped(self._runner.model)
        with torch.no_grad(), as_one_process(), separate_state(model):
            set_loss_mode(model)
            with self._runner.optim_wrapper.optim_context(model):
                losses = model(**inputs)
            self._sum += len(inputs["inputs"]) * float(model.parse_losses(losses)[0])
        self._count += len(inputs["inputs"])


@contextmanager
def separate_state(model: nn.Module) -> Iterator[None]:
    """Context in which everything that the parts of a model hold beside parameters is a copy.

    This includes buffers and counters, though nothing of the data preprocessor. Afterwards each part is in training or
    in testing as before; within, none is compiled.
    """
    modules = list(model.modules())
    before = [dict(vars(module)) for module in modules]
    kept = {*getattr(model, "data_preprocessor", nn.Module()).modules()}
    own = [
        {name: value for name, value in state.items() if name not in NOT_COPIED and not name.startswith(SHARDING)}
        if module not in kept
        else {}
        for module, state in zip(modules, before, strict=True)
    ]
    copies = copy.deepcopy(own, {id(one): one for one in (*modules, *model.parameters())})
    try:
        for module, state in zip(modules, copies, strict=True):
            vars(module).pop(COMPILED, None)
            vars(module).update(state)
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(state)


def set_loss_mode(model: nn.Module) -> None:
    """Set a model to training, but its backbone and layers of torch, such as normalisation and dropout, to testing."""
    model.train()
    for module in model.modules():
        kinds = type(module).__mro__
        if any(kind is not nn.Module and kind.__module__.startswith("torch.nn.modules.") for kind in kinds):
            module.training = False
    if isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        backbone.eval()
