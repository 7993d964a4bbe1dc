"""Another training pipeline in the last epochs, as RTMDet and YOLOX have it: without mosaics and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmcv.transforms import Compose
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from engine.data.sampling import shutdown_workers

if TYPE_CHECKING:
    from engine.training.runner import Runner

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


def _readers(dataset: Any) -> list[Any]:
    """The data sets that read files: those inside of wrappers, or the data set itself."""
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return [dataset] if inner == [None] else [reader for one in inner for reader in _readers(one)]
