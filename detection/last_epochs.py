"""Another training pipeline in the last epochs, as RTMDet and YOLOX have it: without mosaics and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmcv.transforms import Compose
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from engine.data.sampling import shutdown_workers

if TYPE_CHECKING:
    from engine.training.runner import Runner

MMDET_SWITCH = "PipelineSwitchHook"
WORKER_SECONDS = 60.0  # for a worker to end after its batch


@HOOKS.register_module()
class LastEpochsPipelineHook(Hook):
    """Gives the training data another pipeline in the last epochs.

    mmdet's ``PipelineSwitchHook`` sets it on the outermost data set, which is none of mmdet's here.

    Args:
        epochs: Number of epochs at the end of the training.
        pipeline: Their training pipeline.
    """

    def __init__(self, epochs: int, pipeline: Sequence[dict[str, Any]]) -> None:
        self.epochs, self.pipeline = epochs, Compose(pipeline)
        self._switched = False

    def before_train_epoch(self, runner: Runner) -> None:
        """Change the pipeline once, also after a resume; workers with the former one end."""
        if self._switched or runner.epoch < runner.max_epochs - self.epochs:
            return
        for dataset in _readers(runner.train_dataloader.dataset):
            dataset.pipeline = self.pipeline
        shutdown_workers([runner.train_dataloader], WORKER_SECONDS)
        self._switched = True
        runner.logger.info(f"the last {self.epochs} epochs have a pipeline of their own")


def replace_pipeline_switch(cfg: Config, notes: list[str]) -> None:
    """Put :class:`LastEpochsPipelineHook` in the place of mmdet's ``PipelineSwitchHook``, which states the first epoch.

    Args:
        cfg: Config; changed.
        notes: List that receives a line for each hook.
    """
    epochs = (cfg.get("train_cfg") or {}).get("max_epochs")
    hooks = cfg.get("custom_hooks") or []
    for index, hook in enumerate(hooks):
        if epochs is None or str(hook.get("type")).rpartition(".")[2] != MMDET_SWITCH:
            continue
        first = hook["switch_epoch"]
        hooks[index] = ConfigDict(
            type=LastEpochsPipelineHook.__name__, epochs=max(0, epochs - first), pipeline=hook["switch_pipeline"]
        )
        when = (
            f"the last {epochs - first} epochs" if first < epochs else f"none of {epochs} epochs: it begins at {first}"
        )
        notes.append(f"custom_hooks.{index}: {MMDET_SWITCH} -> {LastEpochsPipelineHook.__name__}, in {when}")


def _readers(dataset: Any) -> list[Any]:
    """The data sets that read files: those inside of wrappers, or the data set itself."""
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return [dataset] if inner == [None] else [reader for one in inner for reader in _readers(one)]
