"""The memory that one process of a training takes, counted without computing or allocating anything.

Parameters, their gradients, the optimizer's moments, averaged weights and the buckets in which processes exchange
gradients are counted tensor by tensor; of a sharded model a process holds its share. Activations are what autograd
keeps of one forward pass in training mode, counted by running the model on tensors without content, in mixed precision
as autocast casts on a GPU. Which part of the model runs is the task's (``TaskSpec.activation_forward``). Not counted:
what the task leaves out, such as a detector's heads on proposals, temporaries of the backward pass, workspace of the
kernels, fragmentation of the allocator, and the block that is gathered while a sharded model computes.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode  # the class has no public name

from backbones.base import Backbone
from backbones.channels import image_channels
from backbones.errors import ConfigError, UserError, first_line
from engine.checkpoint.state import LOCAL_BATCH_NORMS
from engine.config.batch import BatchPlan, micro_batch_size
from engine.config.building import build, registered_class
from engine.config.load import ema_settings
from engine.config.precision import CpuAmpOptimWrapper
from engine.optim.tensors import tensors_in
from engine.planning.misfits import MisfitError, refusing_misfits
from engine.task import Shape, task_of_model

_GIB = 2**30
_FLOAT32_BYTES = 4
ANY_SHAPE = (256, 256)  # of images whose size the config does not tell: only the layers' own refusals count

SMALL_SHAPES = ((256, 256), (256, 320))  # at which a model that has to compute is run

_SINGLE = "normalises over the batch and gets one value per channel"
_OTHER_NORM = "a norm_cfg such as dict(type='GN', num_groups=32)"


class SingleValueError(ConfigError):
    """Batch normalisation over a single value per channel."""


@dataclass(frozen=True)
class Memory:
    """Estimated memory of one process, in bytes by part.

    Attributes:
        parameters: Weights and buffers.
        gradients: Gradients of the trained parameters.
        moments: Moments that the optimizer keeps.
        averages: Averaged weights, a copy of the trained parameters; 0 without them.
        buckets: Buckets in which several processes exchange gradients.
        activations: Activations of one forward pass; ``None`` where they could not be counted.
        images: Number of images of that pass.
        shape: Height and width of the images in pixels; ``None`` where the config does not state it.
        reason: Reason why the activations are not counted.
        pooled: Name of a batch normalisation that gets one value per channel of each image; empty without one.
    """

    parameters: int
    gradients: int
    moments: int
    averages: int
    buckets: int
    activations: int | None
    images: int
    shape: Shape | None
    reason: str = ""
    pooled: str = ""

    @property
    def total(self) -> int:
        """Sum of all counted parts."""
        fixed = self.parameters + self.gradients + self.moments + self.averages + self.buckets
        return fixed + (self.activations or 0)

    def __str__(self) -> str:
        parts = [f"parameters {gib(self.parameters)}", f"gradients {gib(self.gradients)}"]
        for name in ("moments", "averages", "buckets"):
            if getattr(self, name):
                parts.append(f"{_PART_LABELS[name]} {gib(getattr(self, name))}")
        if self.activations is not None and self.shape is not None:
            pictures = f"{self.images} image{'s' if self.images > 1 else ''} of {self.shape[1]} x {self.shape[0]}"
            parts.append(f"activations of {pictures} {gib(self.activations)}")
        text = f"about {gib(self.total)} GiB per process: {' + '.join(parts)}"
        return text if self.activations is not None else f"{text}; activations not counted: {self.reason}"


def check_last_batch(memory: Memory, images: int, batch: BatchPlan) -> None:
    """Refuse a last batch of an epoch that does not divide, or brings a batch normalisation one value per channel.

    Args:
        memory: Estimate of the training.
        images: Number of training images.
        batch: Processes, micro-batch and accumulation of a step.

    Raises:
        ConfigError: With the ways out.
    """
    last = ceil(images / batch.processes) % (batch.per_process * batch.accumulation)
    if micro_batch_size(last, batch.accumulation) == 1 and memory.pooled:
        raise SingleValueError(
            f"the last batch of an epoch has 1 of {images:,} images per pass: {memory.pooled} {_SINGLE}: set "
            f"train_dataloader.drop_last=True, use another batch.size, or {_OTHER_NORM}"
        )


_PART_LABELS = {"moments": "optimizer's moments", "averages": "averaged weights", "buckets": "exchange of gradients"}


def gib(count: int) -> str:
    """Bytes in GiB, as text without the unit."""
    return f"{count / _GIB:.3g}" if count < _GIB / 100 else f"{count / _GIB:.2f}"


def estimate_memory(model: nn.Module, cfg: Config, processes: int, images: int) -> Memory:
    """Estimate the memory of one process of a training, see the module's docstring.

    Args:
        model: Model built on the ``meta`` device; in mixed precision its parameters are replaced.
        cfg: Resolved config.
        processes: World size.
        images: Number of images of one forward pass.

    Returns:
        The estimate; without activations, and with the reason, where the model does not run on images alone.

    Raises:
        SingleValueError: If a batch normalisation gets one value per channel, which has no variance.
        MisfitError: If a part of the model cannot read what another one gives.
        UserError: If the model refuses images of the size in the config.
    """
    params, buffers = _bytes(model.parameters()), _bytes(model.buffers())
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    averaged = ema_settings(cfg) is not None
    shape = training_shape(cfg)
    activations, reason = None, "the config does not tell the size of the training images"
    with _refusing_single_values(model, images) as pooled:
        try:
            with refusing_misfits(model, cfg.model):
                found = activation_bytes(model, images, shape or ANY_SHAPE, autocast_dtype(cfg.optim_wrapper))
            activations = found if shape is not None else None
        except (SingleValueError, MisfitError):
            raise
        except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
            if isinstance(error, UserError) and shape is not None:
                raise  # so would the first step
            # An estimate never stops a training: a model of an unknown kind may want more than images.
            if shape is not None:
                reason = first_line(error)
                with suppress(RuntimeError, AssertionError, AttributeError, TypeError, ValueError):
                    activations = _from_small_images(cfg, images, shape)
    sharded = processes > 1 and bool(cfg.get("env_cfg", {}).get("sharded"))
    share = processes if sharded else 1
    return Memory(
        parameters=params // share + buffers,
        gradients=_FLOAT32_BYTES * trained // share,
        moments=_FLOAT32_BYTES * trained * moments_of(cfg.optim_wrapper.optimizer) // share,
        averages=_FLOAT32_BYTES * trained // share if averaged else 0,
        buckets=_FLOAT32_BYTES * trained if processes > 1 and not sharded else 0,
        activations=activations,
        images=images,
        shape=shape,
        reason=reason,
        pooled=next(iter(pooled), ""),
    )


def _from_small_images(cfg: Config, images: int, shape: Shape) -> int:
    """Activations of a model that has to compute, in bytes: a line in the pixels through two small images.

    Deformable attention compares numbers, which tensors without content do not have. Mixed precision is that of a CPU.
    """
    settings, dtype = copy.deepcopy(cfg.model), autocast_dtype(cfg.optim_wrapper)
    settings.get("backbone", {}).pop("weights", None)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said already when the model was built for the plan
        model = build(MODELS, settings, "model", cfg.get("default_scope")).train()
        counts = []
        for small in SMALL_SHAPES:
            with LiveStorages() as meter, torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                pictures = torch.zeros(1, image_channels(model), *small)
                kept = task_of_model(model).activation_forward(model, pictures)
                counts.append(meter.bytes)
                del kept
    sizes = [prod(small) for small in SMALL_SHAPES]
    one = counts[0] + (counts[1] - counts[0]) * (prod(shape) - sizes[0]) / (sizes[1] - sizes[0])
    return round(images * one)


@contextmanager
def _refusing_single_values(model: nn.Module, images: int) -> Iterator[list[str]]:
    """Refuse, by forward hooks, batch normalisation over a single value per channel: it has no variance.

    Statistics that are shared by processes are of more values; a training of one process has none of these.

    Yields:
        Names of the layers that get one value per channel of each image, which is one in all for a single image.

    Raises:
        SingleValueError: With the name of the layer.
    """

    def check(name: str, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].numel() // arguments[0].shape[1]
        if layer.training and values == 1:
            raise SingleValueError(
                f"batch of {images} per process: {name} {_SINGLE}: use a batch.per_gpu of 2 or more (and a batch.size "
                f"that holds it), or {_OTHER_NORM}"
            )
        if layer.training and values == images:
            pooled.append(name)

    pooled: list[str] = []
    layers = {name: one for name, one in model.named_modules() if isinstance(one, LOCAL_BATCH_NORMS)}
    hooks = [one.register_forward_pre_hook(partial(check, name)) for name, one in layers.items()]
    try:
        yield pooled
    finally:
        for hook in hooks:
            hook.remove()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def moments_of(optimizer: Mapping[str, Any]) -> int:
    """Number of tensors that an optimizer keeps for each parameter; 2, as AdamW's, for those that are not known."""
    if optimizer["type"] == "SGD":
        return 1 if optimizer.get("momentum") else 0
    return 2


def autocast_dtype(optim_wrapper: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of mixed precision, ``None`` for float32."""
    wrapper = registered_class(OPTIM_WRAPPERS, optim_wrapper.get("type"))
    if wrapper is None or not issubclass(wrapper, AmpOptimWrapper | CpuAmpOptimWrapper):
        return None
    wide = wrapper is CpuAmpOptimWrapper or optim_wrapper.get("dtype") == "bfloat16"
    return torch.bfloat16 if wide else torch.float16


def training_shape(cfg: Config) -> Shape | None:
    """Height and width of the training images: the crop, or the largest size that multi-scale training draws, padded.

    Images that are higher than wide are taken as if they lay on their side.
    """
    preprocessor = cfg.model.get("data_preprocessor") or {}
    if (size := preprocessor.get("size")) is not None:
        return (int(size[0]), int(size[1]))
    found = _largest_shape(cfg.get("train_pipeline") or cfg.train_dataloader.dataset.get("pipeline", []))
    for part in preprocessor.get("batch_augments") or []:
        if found is not None and (size := part.get("size")) is not None:
            found = (max(found[0], int(size[0])), max(found[1], int(size[1])))
    return found


def _largest_shape(pipeline: Sequence[Mapping[str, Any]], found: Shape | None = None) -> Shape | None:
    """Largest height and width after the transforms of images of a shape; ``None`` if nothing states a size."""
    for step in pipeline:
        if branches := step.get("transforms"):  # one of them is chosen
            ends = [_largest_shape(one if isinstance(one, list | tuple) else [one], found) for one in branches]
            sizes = [end for end in ends if end is not None]
        else:
            sizes = list(_stated_shapes(step))
        found = max(sizes, key=prod) if sizes else found
        if found is not None and (crop := _pair(step.get("crop_size"))):
            found = (min(found[0], min(crop)), min(found[1], max(crop)))
    return found


def _stated_shapes(step: Mapping[str, Any]) -> Iterator[Shape]:
    """Sizes to which one transform brings an image."""
    if isinstance(step.get("size"), int):
        yield (step["size"], step["size"])
    scale, factor = step.get("scale"), max(step.get("ratio_range") or (1.0,))
    # RandomResize takes a scale, or the two between which it draws.
    alone = [scale] if _pair(scale) else scale if isinstance(scale, list | tuple) else []
    for one in [*alone, *(step.get("scales") or [])]:
        if pair := _pair(one):
            yield (round(min(pair) * factor), round(max(pair) * factor))


def _pair(value: Any) -> tuple[int, int] | None:
    """Two sides in pixels, if that is what a setting holds, and not shares of an image."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(side, int) for side in value):
        return None
    return (value[0], value[1]) if min(value) > 1 else None


def activation_bytes(model: nn.Module, images: int, shape: Shape, dtype: torch.dtype | None = None) -> int:
    """Count what autograd keeps of one forward pass in training mode.

    Args:
        model: Model on the ``meta`` device; with a ``dtype`` its parameters are replaced by others without content.
        images: Number of images of the pass.
        shape: Height and width of the images in pixels.
        dtype: Dtype of mixed precision; ``None`` for float32.

    Returns:
        Bytes. Of blocks that are recomputed in the backward pass, their inputs and the largest block count.
    """
    model.train()
    # Autocast has no rules for the meta device: mixed precision needs fake tensors that claim to be on a GPU.
    device = "meta" if dtype is None else "cuda"
    with nullcontext() if dtype is None else _pretending():
        if dtype is not None:
            model.to_empty(device=device)
        meter, channels = LiveStorages(), image_channels(model)
        with meter, _autocast(dtype), _recomputing(model, meter) as (inputs, recomputed):
            # No name holds the images: autocast lets go of them once it has its copy.
            kept = task_of_model(model).activation_forward(model, torch.empty(images, channels, *shape, device=device))
        count = meter.bytes + max(recomputed, default=0)  # by now autocast has dropped its copies of the weights
        del kept, inputs
    return count


class LiveStorages(TorchDispatchMode):
    """Sums up the memory that was allocated inside of ``with meter:`` and is still in use.

    Attributes:
        bytes: Size of the living storages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._living: dict[StorageWeakRef, weakref.finalize] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {StorageWeakRef(one.untyped_storage()) for one in tensors_in((args, kwargs))}
        for storage in (one.untyped_storage() for one in tensors_in(result)):
            key, size = StorageWeakRef(storage), storage.nbytes()
            if key not in inputs and key not in self._living:
                self.bytes += size
                self._living[key] = weakref.finalize(storage, self._remove, key, size)
        return result

    def _remove(self, key: StorageWeakRef, size: int) -> None:
        del self._living[key]
        self.bytes -= size


def _pretending() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode  # late: it takes two seconds to import

    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Cast as on a GPU; ``torch.autocast`` itself does nothing on a machine without one."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@contextmanager
def _recomputing(model: nn.Module, meter: LiveStorages) -> Iterator[tuple[list[Tensor], list[int]]]:
    """Keep of blocks that are recomputed in the backward pass their inputs alone, by forward hooks on these blocks.

    Yields:
        The inputs of these blocks, and the bytes that each block holds while it is recomputed.
    """
    inputs: list[Tensor] = []
    before: list[int] = []
    sizes: list[int] = []

    def enter(block: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])
        before.append(meter.bytes)

    def leave(block: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sizes.append(meter.bytes - before.pop())
        return output.detach().requires_grad_()

    backbones = (one for one in model.modules() if isinstance(one, Backbone))
    networks = {network: network.grad_checkpointing for network in backbones if network.grad_checkpointing}
    hooks = []
    for network in networks:
        for block in network.recomputed_blocks():
            hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        network.grad_checkpointing = ()
    try:
        yield inputs, sizes
    finally:
        for network, wanted in networks.items():
            network.grad_checkpointing = wanted
        for hook in hooks:
            hook.remove()
