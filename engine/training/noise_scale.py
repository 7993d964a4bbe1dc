"""The gradient noise scale, measured while a training runs: a cheap estimate of the batch at which the rate peaks.

Source: McCandlish et al., "An empirical model of large-batch training", arXiv 1812.06162, appendix A.1. With G the
gradient of b images, the expectation of |G|^2 is |true gradient|^2 + tr(covariance of one image) / b. Gradients of two
numbers of images, which a training has anyway, give both terms without bias; B_simple = tr(covariance) / |true
gradient|^2. Both terms are averaged over the steps before they are divided, since the ratio of two noisy numbers is
biased.
"""

# Annotations are not postponed here: DDP reads those of its communication hook.

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from backbones.errors import ConfigError
from engine.config.batch import BatchPlan, MicroBatches
from engine.optim.update import loss_scaler

if TYPE_CHECKING:
    from engine.training.runner import Runner

DECAY = 0.99  # of the averages: they remember about 100 steps
STATE = "noise_scale"  # in a checkpoint


class NoiseScaleAverage:
    """Exponential averages of the two terms, without the bias of their start.

    Attributes:
        steps: Number of steps that were averaged.
        variance: Average of the estimates of tr(covariance), times 1 - DECAY^steps.
        signal: Average of the estimates of |true gradient|^2, with the same factor; single estimates may be negative.
    """

    def __init__(self) -> None:
        self.steps, self.variance, self.signal = 0, 0.0, 0.0

    @property
    def noise_scale(self) -> float | None:
        """B_simple in images; ``None`` before the first step, and where the noise hides the gradient."""
        return max(self.variance, 0.0) / self.signal if self.signal > 0 else None

    def update(self, small: float, large: float, small_images: float, large_images: float) -> None:
        """Add a step; one whose gradient is not finite is left out.

        Args:
            small: Squared norm of the gradient of the smaller number of images, a mean over several where there are.
            large: Squared norm of the gradient of the larger number.
            small_images: The smaller number of images.
            large_images: The larger number of images.
        """
        if not (math.isfinite(small) and math.isfinite(large)):
            return
        signal = (large_images * large - small_images * small) / (large_images - small_images)
        variance = (small - large) / (1 / small_images - 1 / large_images)
        self.steps += 1
        self.variance += (1 - DECAY) * (variance - self.variance)
        self.signal += (1 - DECAY) * (signal - self.signal)


class NoiseScaleHook(Hook):
    """Measures the noise scale in every step, logs it as ``train/noise_scale``, and saves its average.

    With several processes, DDP hands over the gradient of each before it averages them. One process that accumulates
    compares its first micro-batch with the whole step. Norms are taken before clipping, and without the factor of a
    loss scaler. Each step reads the gradients twice more and, with several processes, averages one number.

    Args:
        plan: Division of the batch.

    Attributes:
        average: Averages so far, the same in all processes.
    """

    priority = "VERY_HIGH"  # before the log line

    def __init__(self, plan: BatchPlan) -> None:
        self.average = NoiseScaleAverage()
        self._plan = plan
        self._model: nn.Module | None = None
        self._group: dist.ProcessGroup
        self._parts: list[Tensor] = []  # squared norms of the buckets, or of the first micro-batch
        self._images = plan.per_process * plan.accumulation

    def before_train(self, runner: "Runner") -> None:
        """Let DDP and the loop hand over gradients.

        Raises:
            ConfigError: If the processes average gradients in another way.
        """
        if self._model is not None:  # a rollback starts anew with the same model
            return
        self._model = runner.model
        runner.train_loop.noise_scale = self
        if self._plan.processes == 1:
            return
        if not isinstance(runner.model, DistributedDataParallel):
            raise ConfigError(f"env_cfg.noise_scale: {type(runner.model).__name__} is not DDP: set it to False")
        self._group = runner.model.process_group
        runner.model.register_comm_hook(None, self._exchange)

    def before_train_iter(self, runner: "Runner", batch_idx: int, data_batch: Any = None) -> None:
        """Count the images of this process: the last batch of an epoch may have fewer."""
        self._parts = []
        micro_batches = data_batch if isinstance(data_batch, MicroBatches) else [data_batch]
        counted = [len(one["inputs"]) for one in micro_batches if isinstance(one, Mapping) and "inputs" in one]
        self._images = sum(counted) or self._plan.per_process * self._plan.accumulation

    def measure_first(self) -> None:
        """Measure the gradient of the first micro-batch of a step; with several processes it is not needed."""
        if self._plan.processes == 1:
            # A share of the step's loss was its loss.
            self._parts = [self._plan.accumulation**2 * self._squared_norm()]

    def measure_whole(self, wrapper: OptimWrapper) -> None:
        """Measure the gradient of a step, before it is clipped, and update the average.

        Args:
            wrapper: Wrapper of the optimizer, which may scale losses.
        """
        if not self._parts:
            return
        whole = self._squared_norm()
        small = torch.stack(self._parts).sum()
        if self._plan.processes > 1:
            all_reduce(small, op="mean")
        scaler = loss_scaler(wrapper)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        small_value, large_value = (value / scale**2 for value in torch.stack([small, whole]).tolist())
        images = float(self._images * self._plan.processes)
        parts = self._plan.processes if self._plan.processes > 1 else self._plan.accumulation
        self.average.update(small_value, large_value, images / parts, images)

    def after_train_iter(self, runner: "Runner", batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log the noise scale."""
        if (value := self.average.noise_scale) is not None:
            runner.message_hub.update_scalar("train/noise_scale", value)

    def before_save_checkpoint(self, runner: "Runner", checkpoint: dict[str, Any]) -> None:
        """Add the averages to a checkpoint."""
        checkpoint[STATE] = dict(vars(self.average))

    def after_load_checkpoint(self, runner: "Runner", checkpoint: dict[str, Any]) -> None:
        """Restore the averages when a run is resumed; a checkpoint without them lets them begin anew."""
        if runner.is_resuming:
            self.average = NoiseScaleAverage()
            vars(self.average).update(checkpoint.get(STATE, {}))

    def _exchange(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Measure the gradients of this process, then average them over the processes as DDP does by itself."""
        self._parts.append(torch.linalg.vector_norm(bucket.buffer(), dtype=torch.float32).square())
        return allreduce_hook(self._group, bucket)

    def _squared_norm(self) -> Tensor:
        assert self._model is not None
        return get_total_norm([param.grad for param in self._model.parameters() if param.grad is not None]).square()
