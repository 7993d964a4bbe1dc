"""What every registered network has in common: weights that cannot be forgotten, checkpointed blocks, its answers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.errors import ConfigError
from backbones.layers import LayerNorm2d
from backbones.weights import LoadReport, load_backbone_weights, read_checkpoint

STAGE_INDICES = (0, 1, 2, 3)


class Backbone(nn.Module):
    """A backbone without its layers.

    A subclass builds the layers, sets the attributes, and tells for each of its parameters the layer and the stage.

    Args:
        out_indices: ``None`` for one pooled vector (classification), or the stages whose maps are given, in
            ascending order.
        drop_path_rate: Stochastic depth of the last block, a probability.
        grad_checkpointing: Recompute blocks in the backward pass instead of keeping their activations: all, those of
            these stages, or a share of all from the first on, such as 0.25. In a pyramid a block costs the same work in
            every stage, and holds half as much as one of the stage before: the first give the most memory for the time.
        weights: Path or URL of a checkpoint, loaded by :meth:`init_weights`.

    Raises:
        UserError: If an argument is impossible, with its name.

    Attributes:
        out_channels: Channels of each output, in the order of ``out_indices``.
        strides: Stride of each output against the image.
        num_features: Channels of the pooled vector.
        min_image_side: Height and width in pixels below which an image is refused.
        trust_weights: Whether reading ``weights`` may execute code in the file.
        load_report: Result of loading ``weights``; ``None`` before that.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_features: int
    min_image_side = 32

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
        self.grad_checkpointing = _stages_or_share(grad_checkpointing)
        self._recomputed: frozenset[nn.Module] | None = None
        self.weights = None if weights is None else os.fspath(weights)
        self._weights_pending = weights is not None
        self.trust_weights = False
        self.load_report: LoadReport | None = None

    def prepare(self, x: Tensor) -> Tensor:
        """Check images ``(N, C, H, W)`` before the first layer and bring them into ``channels_last``.

        Raises:
            UserError: If they are too small, or ``weights`` were asked for and never loaded.
        """
        least = self.min_image_side
        if min(x.shape[-2:]) < least:
            raise ConfigError(f"image of {x.shape[-2]} x {x.shape[-1]} pixels: at least {least} x {least} are needed")
        if self._weights_pending:
            raise ConfigError(f"weights={self.weights!r} were not loaded: call init_weights() before the first forward")
        return x.contiguous(memory_format=torch.channels_last)

    def run_blocks(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Run blocks in turn, checkpointed in training where that was asked for their stage."""
        keeping = not (self.grad_checkpointing and self.training and torch.is_grad_enabled())
        recomputed = frozenset() if keeping else self.recomputed_blocks()
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if block in recomputed else block(x)
        return x

    def add_norms(self, dims: Sequence[int]) -> None:
        """Give the pooled vector its norm, or each map of ``out_indices`` its own.

        Args:
            dims: Channels of the four stages.
        """
        if self.out_indices is None:
            self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        else:
            for i in self.out_indices:
                self.add_module(f"norm{i}", LayerNorm2d(dims[i]))

    def collect(self, outputs: list[Tensor], stage: int, x: Tensor) -> None:
        """Add the normalised map of a stage to the outputs, where it is one of them."""
        if self.out_indices is not None and stage in self.out_indices:
            outputs.append(self.get_submodule(f"norm{stage}")(x))

    def finish(self, outputs: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The collected maps, or the pooled and normalised vector of the last map ``x``."""
        return self.norm(x.mean((2, 3))) if self.out_indices is None else tuple(outputs)

    def block_stages(self) -> dict[str, int]:
        """Stage, from 0, of each block under its module name: the units in which a network is recomputed and sharded.

        A block is the outermost module whose parameters share one id and one stage, and that is not a mere container
        of another block.
        """
        return dict(self._find_blocks(self, ""))

    def recomputed_blocks(self) -> frozenset[nn.Module]:
        """The blocks of the stages, or the share of blocks, in ``grad_checkpointing``."""
        if self._recomputed is None:
            stages, wanted = self.block_stages(), self.grad_checkpointing
            if isinstance(wanted, float):
                chosen = list(stages)[: round(wanted * len(stages))]
            else:
                chosen = [name for name, stage in stages.items() if stage in wanted]
            self._recomputed = frozenset(map(self.get_submodule, chosen))
        return self._recomputed

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place, see :func:`torch.compile`."""
        self.recomputed_blocks()  # the search for them is not to be traced
        super().compile(*args, **kwargs)

    def _find_blocks(self, module: nn.Module, prefix: str) -> Iterator[tuple[str, int]]:
        for name, child in module.named_children():
            path = prefix + name
            places = {(self.block_id(full), self.stage_id(full)) for full, _ in child.named_parameters(path)}
            stage = next(iter(places))[1] if len(places) == 1 else None
            parts = sum(any(True for _ in part.parameters()) for part in child.children())
            alone = bool(stage and parts) and not isinstance(child, nn.Sequential | nn.ModuleList)
            inside = [] if alone and parts > 1 else list(self._find_blocks(child, f"{path}."))
            if alone and stage and not inside:
                yield path, stage - 1
            yield from inside

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
        # A checkpoint of the whole model brings the backbone's tensors with it: nothing is pending after that.
        super()._load_from_state_dict(*args, **kwargs)
        self._weights_pending = False

    def may_be_missing(self, name: str) -> bool:
        """Whether a parameter may be absent from a classifier's checkpoint: only the norms of the dense outputs."""
        return re.match(r"norm[0-3]\.", name) is not None

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter is no weight although it has several axes, and takes no weight decay."""
        return False

    @property
    def num_layers(self) -> int:
        """Layer groups before the head, for layer-wise learning-rate decay."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Depth of a parameter: 0 for the stem, up to ``num_layers``, and one more for what trains with the head."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """Ids of :meth:`block_id` before the head; the layer groups where these are single blocks."""
        return self.num_layers

    def block_id(self, name: str) -> int:
        """Depth of a parameter where every block is a layer of its own; :meth:`layer_id` where it is so already."""
        return self.layer_id(name)

    def stage_id(self, name: str) -> int | None:
        """Stage of a parameter: 0 for the stem and downsampling, 1 to 4 for the stages, ``None`` for the head's."""
        raise NotImplementedError


def _stages_or_share(grad_checkpointing: bool | float | Sequence[int]) -> tuple[int, ...] | float:
    """The stages, or the share of blocks, that are recomputed."""
    if isinstance(grad_checkpointing, bool):
        return STAGE_INDICES if grad_checkpointing else ()
    if isinstance(grad_checkpointing, float) and 0 <= grad_checkpointing <= 1:
        return grad_checkpointing
    if not isinstance(grad_checkpointing, list | tuple) or not set(grad_checkpointing) <= set(STAGE_INDICES):
        raise ConfigError(
            f"grad_checkpointing={grad_checkpointing}: True, or stages from 0, 1, 2, 3 such as (0, 1), "
            "or a share of the blocks such as 0.25"
        )
    return tuple(grad_checkpointing)
