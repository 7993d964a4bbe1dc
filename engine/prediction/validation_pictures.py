"""Pictures of predictions for held-out images while a network is trained."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from backbones.errors import ConfigError
from engine.config.schema import is_whole
from engine.prediction.visualize import predict_evenly, write_pictures
from engine.report.recorder import only_warning


@HOOKS.register_module()
class ValidationPicturesHook(Hook):
    """Draws predictions for held-out images after each validation, for the report of the run and its trackers.

    The images are the same every time; the weights are the raw ones.

    Args:
        count: Number of images, spread evenly over the validation data.

    Raises:
        ConfigError: If it is no number of images.
    """

    def __init__(self, count: int = 8) -> None:
        if not is_whole(count, 1):
            raise ConfigError(f"ValidationPicturesHook.count={count!r}: a number of images is needed, such as 8")
        self.count = count

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Predict in all processes, which a sharded model needs, and draw in the main one."""
        samples = predict_evenly(runner.model, runner.val_dataloader, self.count)
        if is_main_process():
            with only_warning(runner.logger):
                folder = Path(runner.work_dir) / "pictures"
                write_pictures(runner, folder, samples, runner.val_dataloader, runner.iter)
