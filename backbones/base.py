"""Base class of all registered networks: loading of weights, gradient checkpointing, and what engine asks of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.errors import ConfigError
from backbones.layers import LayerNorm2d
from backbones.weights import LoadReport, load_backbone_weights, read_checkpoint

STAGE_INDICES = (0, 1, 2, 3)
PYRAMID_STRIDES = (4, 8, 16, 32)


class Group(NamedTuple):
    """Groups of a module's parameters for layer-wise and stage-wise learning rates.

    Attributes:
        layer: Layer group: 0 for the stem; that of the head is one more than the highest before it.
        stage: Stage from 1; 0 for stem and downsampling, ``None`` for modules of the head.
        block: Group where each block has one of its own.
    """

    layer: int
    stage: int | None
    block: int


@torch.fx.wrap
def check_image_size(x: Tensor, side: int) -> Tensor:
    """Return images ``(N, C, H, W)`` unless they are smaller than ``side``; a single operation for :mod:`torch.fx`.

    Raises:
        ConfigError: If they are too small.
    """
    if min(x.shape[-2:]) < side:
        raise ConfigError(f"image of {x.shape[-2]} x {x.shape[-1]} pixels: at least {side} x {side} are needed")
    return x


class Stage(nn.Sequential):
    """Blocks in their order, some of which may be recomputed in the backward pass."""

    def forward(self, x: Tensor, recomputed: Set[nn.Module] = frozenset()) -> Tensor:
        """Compute ``(N, C, H, W) -> (N, C, H, W)``.

        Args:
            x: Map.
            recomputed: Blocks whose activations are not saved but recomputed in the backward pass.
        """
        return run_recomputed(self, x, recomputed)


def run_recomputed(blocks: nn.Module, x: Tensor, recomputed: Set[nn.Module], *context: object) -> Tensor:
    """Run blocks in their order, some with gradient checkpointing.

    Args:
        blocks: Container of blocks.
        x: Map or tokens, ``(N, ...)``.
        recomputed: Blocks whose activations are not saved but recomputed in the backward pass.
        context: Further arguments of each block.
    """
    for block in blocks.children():
        x = checkpoint(block, x, *context, use_reentrant=False) if block in recomputed else block(x, *context)
    return x


class Backbone(nn.Module):
    """Base class without layers.

    A subclass builds the layers, sets the attributes, implements :meth:`run_stem` and :meth:`run_stage` or its own
    ``forward``, and enters its modules into :attr:`groups` or implements :meth:`layer_id`, :meth:`stage_id` and
    :attr:`num_layers`.

    Args:
        out_indices: ``None`` for one pooled vector (classification), or indices of the stages whose maps are returned,
            in ascending order.
        drop_path_rate: Probability of stochastic depth in the last block.
        grad_checkpointing: Recompute blocks in the backward pass instead of saving their activations: all (``True``),
            those of given stages, or a fraction of all from the first on, such as 0.25. In a pyramid a block costs the
            same time in every stage and saves half as much as one of the stage before: the first blocks save the most
            memory for the time.
        weights: Path or URL of a checkpoint, loaded by :meth:`init_weights`.

    Raises:
        ConfigError: If an argument is invalid.

    Attributes:
        out_channels: Channels of each output, in the order of ``out_indices``.
        strides: Stride of each output relative to the image.
        num_features: Channels of the pooled vector.
        min_image_side: Minimum height and width of an image in pixels.
        described_as: Name of the architecture in error messages.
        groups: Groups of modules by name; a parameter belongs to the longest name that it starts with.
        trust_weights: Whether reading ``weights`` may execute code in the file.
        load_report: Result of loading ``weights``; ``None`` before that.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_features: int
    min_image_side = 32
    described_as = "this network"

    def __init__(
        self,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool | float | Sequence[int] = False,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate={drop_path_rate}: a probability in [0, 1) is needed")
        if out_indices is not None and (not out_indices or [*out_indices] != sorted({*out_indices} & {*STAGE_INDICES})):
            raise ConfigError(f"out_indices={out_indices}: choose from 0, 1, 2, 3, the four stages, in ascending order")
        self.out_indices = None if out_indices is None else tuple(out_indices)
        self.grad_checkpointing = _parse_grad_checkpointing(grad_checkpointing)
        self._recomputed: frozenset[nn.Module] | None = None
        self.weights = None if weights is None else os.fspath(weights)
        self._weights_pending = weights is not None
        self.trust_weights = False
        self.load_report: LoadReport | None = None
        self.groups: dict[str, Group] = {}
        self._frozen: tuple[nn.Module, ...] = ()

    def freeze_stages(self, stages: int) -> None:
        """Exclude the first stages from training: their parameters get no gradient, and they stay in evaluation mode.

        This is the ``frozen_stages`` of every registered network, which has the meaning of mmdet's ResNet. A stage
        includes the downsampling before it.

        Args:
            stages: Last stage that is frozen, from 1, with the stem and all stages before it; 0 for the stem alone, -1
                for nothing. With 4, a linear probe, the norm of the output and the heads alone are trained.

        Raises:
            ConfigError: If the number is out of range.
        """
        if not isinstance(stages, int) or not -1 <= stages <= len(STAGE_INDICES):
            raise ConfigError(f"frozen_stages={stages!r}: a whole number from -1 (nothing) to 4 is needed")
        if stages < 0:
            return
        names = [name for name, _ in self.named_parameters()]
        last = max((self.layer_id(name) for name in names if 0 < (self.stage_id(name) or 0) <= stages), default=0)
        for name, param in self.named_parameters():
            if self.stage_id(name) is not None and self.layer_id(name) <= last:
                param.requires_grad_(False)
        parts = (module for module in self.modules() if module is not self)
        whole = (module for module in parts if any(True for _ in module.parameters()))
        self._frozen = tuple(one for one in whole if not any(param.requires_grad for param in one.parameters()))
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def set_outputs(self, channels: Sequence[int], strides: Sequence[int], num_features: int) -> None:
        """Set the attributes of the outputs.

        Args:
            channels: Channels of the four stages' maps.
            strides: Strides of the four stages' maps.
            num_features: Channels of the pooled vector.
        """
        self.num_features = num_features
        chosen = self.out_indices
        self.out_channels = (num_features,) if chosen is None else tuple(channels[i] for i in chosen)
        self.strides = tuple(strides[i] for i in chosen or (3,))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Batch of normalised images, ``(N, 3, H, W)``, or with the network's ``in_channels``.

        Returns:
            ``(N, num_features)`` without ``out_indices``, else one map ``(N, C_i, H_i, W_i)`` for each index.

        Raises:
            ConfigError: If an image is smaller than ``min_image_side``, or ``weights`` were requested and never loaded.
        """
        x = self.run_stem(self.prepare(x))
        outputs = []
        for stage in STAGE_INDICES:
            x = self.run_stage(stage, x)
            if self.out_indices is not None and stage in self.out_indices:
                outputs.append(self.output_map(stage, x))
        return self.pool(x) if self.out_indices is None else tuple(outputs)

    def run_stem(self, x: Tensor) -> Tensor:
        """Input of the first stage from images ``(N, C, H, W)``."""
        return x

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """Output of a stage, 0 to 3, from that of the stage before."""
        raise NotImplementedError

    def as_map(self, x: Tensor) -> Tensor:
        """The output of a block or stage as a map, ``(N, C, H, W)``."""
        return x

    def output_map(self, stage: int, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` that is returned of a stage's output, normalised if the network has output norms."""
        return self.get_submodule(f"norm{stage}")(x) if "norm" in self.groups else x

    def pool(self, x: Tensor) -> Tensor:
        """The vector ``(N, num_features)`` of the last stage's output, normalised if the network has output norms."""
        x = x.mean((2, 3))
        return self.norm(x) if "norm" in self.groups else x

    def prepare(self, x: Tensor) -> Tensor:
        """Check images ``(N, C, H, W)`` before the first layer and convert them to ``channels_last``.

        Raises:
            ConfigError: If they are too small, or ``weights`` were requested and never loaded.
        """
        if self._weights_pending:
            raise ConfigError(f"weights={self.weights!r} were not loaded: call init_weights() before the first forward")
        x = check_image_size(x, self.min_image_side)
        return x.contiguous(memory_format=torch.channels_last)

    def run_blocks(self, blocks: nn.Module, x: Tensor) -> Tensor:
        """Call a container of blocks as a module, so that hooks on it see its output.

        In training, those of :meth:`recomputed_blocks` use gradient checkpointing. Hooks on a container of timm, unlike
        those on a :class:`Stage`, are not called then.

        Args:
            blocks: Blocks in their order.
            x: Map or tokens, ``(N, ...)``.
        """
        if not self.is_recomputing():
            return blocks(x)
        recomputed = self.recomputed_blocks()
        return blocks(x, recomputed) if isinstance(blocks, Stage) else run_recomputed(blocks, x, recomputed)

    def is_recomputing(self) -> bool:
        """Whether the forward pass uses gradient checkpointing."""
        return bool(self.grad_checkpointing) and self.training and torch.is_grad_enabled()

    def add_norms(self, dims: Sequence[int], eps: float = 1e-6) -> None:
        """Add the norm of the pooled vector, or one norm for each map of ``out_indices``; the stages are in ``groups``.

        Args:
            dims: Channels of the four stages.
            eps: Epsilon added to the variance.
        """
        if self.out_indices is None:
            self.norm = nn.LayerNorm(dims[-1], eps=eps)
        else:
            for i in self.out_indices:
                self.add_module(f"norm{i}", LayerNorm2d(dims[i], eps))
        head = Group(self.num_layers + 1, None, self.num_blocks + 1)
        self.groups |= dict.fromkeys(("norm", *(f"norm{i}" for i in STAGE_INDICES)), head)

    def block_stages(self) -> dict[str, int]:
        """Stage index of each block by module name: the units of gradient checkpointing and sharding.

        A block is the outermost module whose parameters share one block id and one stage, and that is not just a
        container of another block.
        """
        return dict(self._find_blocks(self, ""))

    def recomputed_blocks(self) -> frozenset[nn.Module]:
        """The blocks that ``grad_checkpointing`` selects."""
        if self._recomputed is None:
            stages, selection = self.block_stages(), self.grad_checkpointing
            if isinstance(selection, float):
                chosen = list(stages)[: round(selection * len(stages))]
            else:
                chosen = [name for name, stage in stages.items() if stage in selection]
            self._recomputed = frozenset(map(self.get_submodule, chosen))
        return self._recomputed

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place, see :func:`torch.compile`."""
        self.recomputed_blocks()  # found here, so that the search is not traced
        super().compile(*args, **kwargs)

    def _find_blocks(self, module: nn.Module, prefix: str) -> Iterator[tuple[str, int]]:
        for name, child in module.named_children():
            path = prefix + name
            ids = {(self.block_id(full), self.stage_id(full)) for full, _ in child.named_parameters(path)}
            stage = next(iter(ids))[1] if len(ids) == 1 else None
            parts = sum(any(True for _ in part.parameters()) for part in child.children())
            is_block = bool(stage and parts) and not isinstance(child, nn.Sequential | nn.ModuleList)
            nested = [] if is_block and parts > 1 else list(self._find_blocks(child, f"{path}."))
            if is_block and stage and not nested:
                yield path, stage - 1
            yield from nested

    def init_weights(self) -> LoadReport | None:
        """Load ``weights``; mmengine calls this after its own initialisation, which would undo an earlier load.

        Returns:
            The report of what was loaded, or ``None`` without ``weights``.

        Raises:
            CheckpointError: If the file cannot be read or does not hold every tensor of this network.
        """
        if self.weights is None:
            return None
        return self.load_weights(read_checkpoint(self.weights, self.trust_weights), self.weights)

    @property
    def is_init(self) -> bool:
        """Whether ``weights`` are loaded; mmengine does not call :meth:`init_weights` again then."""
        return self.load_report is not None

    def load_weights(self, checkpoint: Mapping[str, Any], source: str, averaged: bool = False) -> LoadReport:
        """Load a checkpoint that has been read already, see :func:`backbones.weights.load_backbone_weights`."""
        self.load_report = load_backbone_weights(self, checkpoint, source, averaged)
        self._weights_pending = False
        return self.load_report

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a file to this network's names; ConvNeXt's layouts are recognised without it.

        Args:
            tensors: Content of a file, without the prefix of a whole model.
        """
        return tensors

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        # A checkpoint of the whole model contains the backbone's tensors: no weights are pending after that.
        super()._load_from_state_dict(*args, **kwargs)
        self._weights_pending = False

    def may_be_missing(self, name: str) -> bool:
        """Whether a tensor may be missing from a classifier's checkpoint: only those of the output norms may."""
        return re.match(r"norm[0-3]\.", name) is not None

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter of more than one axis gets no weight decay."""
        return False

    @property
    def num_layers(self) -> int:
        """Number of layer groups before the head, for layer-wise learning-rate decay."""
        return max(group.layer for group in self.groups.values() if group.stage is not None)

    def layer_id(self, name: str) -> int:
        """Layer group of a parameter: 0 for the stem, ``num_layers + 1`` for those that train at the head's rate.

        Args:
            name: Parameter name without a prefix, such as ``stages.2.5.dwconv.weight``.

        Raises:
            ConfigError: If there is no such parameter.
        """
        return self._group(name).layer

    @property
    def num_blocks(self) -> int:
        """Number of blocks before the head; equal to ``num_layers`` where each block is a layer group."""
        blocks = (group.block for group in self.groups.values() if group.stage is not None)
        return max(blocks, default=0) or self.num_layers

    def block_id(self, name: str) -> int:
        """Layer group of a parameter with one group per block; equal to :meth:`layer_id` where that is so already."""
        return self._group(name).block if self.groups else self.layer_id(name)

    def stage_id(self, name: str) -> int | None:
        """Stage of a parameter: 0 for stem and downsampling, 1 to 4 for the stages, ``None`` for those of the head."""
        return self._group(name).stage

    def _group(self, name: str) -> Group:
        part = name
        while part not in self.groups:
            part, dot, _ = part.rpartition(".")
            if not dot:
                raise ConfigError(f"{name!r} is not a parameter of {self.described_as}")
        return self.groups[part]


def _parse_grad_checkpointing(grad_checkpointing: bool | float | Sequence[int]) -> tuple[int, ...] | float:
    """The stages, or the fraction of blocks, that are recomputed."""
    if isinstance(grad_checkpointing, bool):
        return STAGE_INDICES if grad_checkpointing else ()
    if isinstance(grad_checkpointing, float) and 0 <= grad_checkpointing <= 1:
        return grad_checkpointing
    if not isinstance(grad_checkpointing, list | tuple) or not set(grad_checkpointing) <= set(STAGE_INDICES):
        raise ConfigError(
            f"grad_checkpointing={grad_checkpointing}: give True, stages from 0, 1, 2, 3 such as (0, 1), "
            "or a fraction of the blocks such as 0.25"
        )
    return tuple(grad_checkpointing)
