"""Layer-wise and stage-wise learning-rate decay for every task and every registered backbone.

Sources: Clark et al., 2020; Bao et al., "BEiT", 2021; groups as in the released ConvNeXt code. The backbone gives the
ids; nothing here knows a parameter name of a network.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from backbones.base import Backbone
from backbones.errors import ConfigError

BACKBONE_PREFIX = "backbone."
PARAMWISE_KEYS = ("decay_rate", "decay_type", "num_groups", "no_decay", "custom_keys")
CUSTOM_FACTORS = ("lr_mult", "decay_mult")
NUM_STAGES = 4
DECAY_TYPES = ("layer", "stage", "block")


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        layer_id: 0 for the stem; the highest for the head.
        lr_scale: Factor on the peak rate.
        weight_decay: 0 for biases, norms, layer scale and the like, or for what ``no_decay`` names.
        params: The tensors.
        names: Their names.
    """

    layer_id: int
    lr_scale: float
    weight_decay: float
    params: list[nn.Parameter] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay_rate: float = 1.0,
    decay_type: str | None = None,
    num_groups: int | None = None,
    no_decay: Sequence[str] | None = None,
    custom_keys: Mapping[str, Mapping[str, float]] | None = None,
) -> list[ParameterGroup]:
    """Assign every trainable parameter of a model to exactly one group.

    Args:
        model: A model with a registered network as ``backbone``; without decay any model.
        weight_decay: For weights; vectors, biases and what the backbone names get none, unless ``no_decay`` says which.
        decay_rate: Factor from one layer id to the one below.
        decay_type: ``layer`` (the default; in a ConvNeXt each 3 blocks of the third stage are one), ``stage``, or
            ``block`` (every block is a layer, ``single`` in the released fine-tuning code of ConvNeXt V2).
        num_groups: Ids below the head's. For ``layer`` and ``block`` the backbone knows, and another number is an
            error; for ``stage`` the released ADE20K configs use 6 with T and 12 with the others, which sets how far the
            stages lie below the head.
        no_decay: Parts of names: parameters with one of them in their name get no weight decay, and all others do,
            vectors and biases too. These are mmcv's ``custom_keys`` with ``decay_mult=0``, as Swin's released detectors
            and segmentors have them.
        custom_keys: Factors by part of a name, as OpenMMLab's: ``dict(head=dict(lr_mult=10, decay_mult=0))``. Of
            several parts in one name the longest counts. ``lr_mult`` multiplies the rate beside ``decay_rate``; with
            ``decay_mult`` the weight decay is ``weight_decay`` times it, for vectors and biases too.

    Returns:
        The groups, from the head down, so that the first one has the highest rate (the one that is logged).

    Raises:
        ConfigError: If an option does not exist, does nothing, or contradicts the backbone.
    """
    _check_options(decay_rate, decay_type, num_groups, no_decay)
    factors_of = _custom_factors(model, custom_keys or {})
    ids_of, top = _depths(model, decay_rate, decay_type or "layer", num_groups)
    is_decayed = _decay_rule(model, no_decay)
    groups: dict[tuple[int, float, float], ParameterGroup] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        own_id = ids_of(name.removeprefix(BACKBONE_PREFIX)) if name.startswith(BACKBONE_PREFIX) else None
        layer_id = top if own_id is None else own_id
        factors = factors_of(name)
        scale = decay_rate ** (top - layer_id) * factors.get("lr_mult", 1.0)
        decay = weight_decay * factors.get("decay_mult", float(is_decayed(name, param)))
        group = groups.setdefault((layer_id, scale, decay), ParameterGroup(layer_id, scale, decay))
        group.params.append(param)
        group.names.append(name)
    return sorted(groups.values(), key=lambda group: (-group.lr_scale, -group.layer_id, -group.weight_decay))


def _custom_factors(
    model: nn.Module, custom_keys: Mapping[str, Mapping[str, float]]
) -> Callable[[str], Mapping[str, float]]:
    """The factors of a parameter by its name.

    Raises:
        ConfigError: If a factor does not exist or is negative, or a key is in no name.
    """
    if not isinstance(custom_keys, Mapping):
        raise ConfigError(f"paramwise_cfg.custom_keys={custom_keys!r}: a dict by part of a name is needed")
    for key, factors in custom_keys.items():
        known = isinstance(factors, Mapping) and factors and set(factors) <= set(CUSTOM_FACTORS)
        if not known or not all(isinstance(one, int | float) and 0 <= one < math.inf for one in factors.values()):
            raise ConfigError(
                f"paramwise_cfg.custom_keys[{key!r}]={factors!r}: dict(lr_mult=..., decay_mult=...) is needed, with "
                "factors from 0 up"
            )
        if not any(key in name for name, _ in model.named_parameters()):
            raise ConfigError(f"paramwise_cfg.custom_keys: {key!r} is in no parameter's name")
    # Longest first, and by alphabet, as mmengine sorts them (optim/optimizer/default_constructor.py, add_params).
    keys = sorted(sorted(custom_keys), key=len, reverse=True)
    return lambda name: next((custom_keys[key] for key in keys if key in name), {})


def _decay_rule(model: nn.Module, no_decay: Sequence[str] | None) -> Callable[[str, nn.Parameter], bool]:
    """Whether a parameter of a name is decayed: by the name alone with ``no_decay``, else by its kind."""
    if no_decay is not None:
        return lambda name, param: not any(part in name for part in no_decay)
    backbone = getattr(model, "backbone", None)
    exempt = backbone.no_weight_decay if isinstance(backbone, Backbone) else lambda name: False

    def is_weight(name: str, param: nn.Parameter) -> bool:
        if param.ndim < 2 or name.endswith(".bias"):
            return False
        return not (name.startswith(BACKBONE_PREFIX) and exempt(name.removeprefix(BACKBONE_PREFIX)))

    return is_weight


def _check_options(
    decay_rate: float, decay_type: str | None, num_groups: int | None, no_decay: Sequence[str] | None
) -> None:
    if decay_type is not None and decay_type not in DECAY_TYPES:
        raise ConfigError(f"paramwise_cfg.decay_type={decay_type!r}: choose from {', '.join(DECAY_TYPES)}")
    if not isinstance(decay_rate, int | float) or not 0 < decay_rate <= 1:
        raise ConfigError(f"paramwise_cfg.decay_rate={decay_rate!r}: a factor in (0, 1] is needed")
    listed = isinstance(no_decay, list | tuple) and all(isinstance(part, str) and part for part in no_decay)
    if no_decay is not None and not listed:
        raise ConfigError(f"paramwise_cfg.no_decay={no_decay!r}: a list of parts of names is needed, such as ('norm',)")
    if decay_rate == 1:
        for name, value in (("decay_type", decay_type), ("num_groups", num_groups)):
            if value is not None:
                raise ConfigError(
                    f"paramwise_cfg.{name}={value!r} does nothing at decay_rate=1: state a decay_rate below 1, or "
                    f"leave {name} out"
                )


def _depths(
    model: nn.Module, decay_rate: float, decay_type: str, num_groups: int | None
) -> tuple[Callable[[str], int | None], int]:
    """The id of each parameter of the backbone (``None`` for the head's), and the head's id."""
    network = getattr(model, "backbone", None)
    if not isinstance(network, Backbone):
        if decay_rate == 1:
            return lambda name: None, 1
        kind = "no backbone" if network is None else f"{type(network).__name__} as backbone, which has no layer ids"
        raise ConfigError(
            f"paramwise_cfg.decay_rate={decay_rate}: the model has {kind}; name a registered network "
            "(backbones.list_backbones()), or leave decay_rate out"
        )
    if decay_type == "stage":
        top = (network.num_layers if num_groups is None else num_groups) + 1
        if top <= NUM_STAGES:
            raise ConfigError(
                f"paramwise_cfg.num_groups={num_groups}: the last stage would lie above the head; 4 or more"
            )
        return network.stage_id, top
    ids_of, count = {
        "layer": (network.layer_id, network.num_layers),
        "block": (network.block_id, network.num_blocks),
    }[decay_type]
    if num_groups not in (None, count):
        raise ConfigError(f"paramwise_cfg.num_groups={num_groups}: this backbone has {count} {decay_type} groups")
    return ids_of, count + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor:
    """Build an optimizer wrapper whose parameter groups follow the depth of the backbone.

    In a config: ``optim_wrapper=dict(constructor="LayerDecayConstructor", paramwise_cfg=dict(decay_rate=0.95))``.
    Without ``paramwise_cfg`` all layers learn at one rate, and biases, norms and layer scale are not decayed.

    Args:
        optim_wrapper_cfg: Wrapper and optimizer.
        paramwise_cfg: ``decay_rate``, ``decay_type``, ``num_groups``, ``no_decay`` and ``custom_keys`` of
            :func:`parameter_groups`.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.paramwise = dict(paramwise_cfg or {})
        check_names(self.paramwise)

    def __call__(self, model: nn.Module) -> Any:
        model = getattr(model, "module", model)
        lr = self.optimizer["lr"]
        groups = parameter_groups(model, self.optimizer.get("weight_decay", 0.0), **self.paramwise)
        self.optimizer["params"] = [
            {
                "params": group.params,
                "lr": lr * group.lr_scale,
                "weight_decay": group.weight_decay,
                "layer_id": group.layer_id,
            }
            for group in groups
        ]
        low, high = (lr * end(group.lr_scale for group in groups) for end in (min, max))
        print_log(f"{len(groups)} parameter groups, rates {low:.3g} to {high:.3g}", "current", logging.INFO)
        optimizer = OPTIMIZERS.build(self.optimizer)
        self.wrapper.setdefault("type", "OptimWrapper")
        return OPTIM_WRAPPERS.build(self.wrapper, default_args={"optimizer": optimizer})


def check_names(paramwise: dict[str, Any]) -> None:
    """Refuse an option that nothing reads.

    Raises:
        ConfigError: With its name.
    """
    unknown = sorted(set(paramwise) - set(PARAMWISE_KEYS))
    if unknown:
        raise ConfigError(f"paramwise_cfg has no option {', '.join(unknown)}: choose from {', '.join(PARAMWISE_KEYS)}")


def groups_of_config(model: nn.Module, optim_wrapper: dict[str, Any]) -> list[ParameterGroup]:
    """The groups that a resolved config's ``optim_wrapper`` would train a model with.

    Raises:
        ConfigError: If an option is wrong, or another constructor makes the groups.
    """
    constructor = optim_wrapper.get("constructor")
    if constructor != LayerDecayConstructor.__name__:
        raise ConfigError(
            f"optim_wrapper.constructor={constructor!r}: the groups of LayerDecayConstructor alone are known here"
        )
    paramwise = dict(optim_wrapper.get("paramwise_cfg") or {})
    check_names(paramwise)
    return parameter_groups(model, optim_wrapper["optimizer"].get("weight_decay", 0.0), **paramwise)


@dataclass(frozen=True)
class GroupRow:
    """One line of the table of groups.

    Attributes:
        layer_id: Id of the layer: 0 for the stem, the highest for the head.
        rate: Peak learning rate of the group.
        scale: Peak learning rate as a fraction of the head's.
        weight_decay: Weight decay of the group.
        drop_path: Lowest and highest drop path rate of the blocks with this id; ``None`` without blocks.
        tensors: Number of parameter tensors.
        params: Number of parameters (elements of the tensors).
    """

    layer_id: int
    rate: float
    scale: float
    weight_decay: float
    drop_path: tuple[float, float] | None
    tensors: int
    params: int


def group_rows(model: nn.Module, groups: Sequence[ParameterGroup], lr: float) -> list[GroupRow]:
    """Describe groups, in their order.

    Args:
        model: The model they are of.
        groups: From :func:`parameter_groups`.
        lr: Peak rate of the head.
    """
    layer_of = {name: group.layer_id for group in groups for name in group.names}
    depths: dict[int, list[float]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "drop_prob"):  # ours, timm's or mmcv's
            block = name.rpartition(".")[0] + "."
            layer = next((layer_of[one] for one in layer_of if one.startswith(block)), None)
            if layer is not None:
                depths.setdefault(layer, []).append(float(module.drop_prob or 0.0))
    return [
        GroupRow(
            layer_id=group.layer_id,
            rate=lr * group.lr_scale,
            scale=group.lr_scale,
            weight_decay=group.weight_decay,
            drop_path=(min(found), max(found)) if (found := depths.get(group.layer_id)) else None,
            tensors=len(group.params),
            params=sum(param.numel() for param in group.params),
        )
        for group in groups
    ]


def group_table(rows: Sequence[GroupRow], frozen: int = 0) -> list[str]:
    """The groups as lines of text, with a total.

    Args:
        rows: From :func:`group_rows`.
        frozen: Parameters that are not trained and therefore in no group.
    """
    heads = ("layer", "rate", "rate/peak", "weight decay", "drop path", "tensors", "parameters")
    cells = [
        (
            str(row.layer_id),
            f"{row.rate:.4g}",
            f"{row.scale:.4g}",
            f"{row.weight_decay:g}",
            _span(row.drop_path),
            f"{row.tensors:,}",
            f"{row.params:,}",
        )
        for row in rows
    ]
    total = (f"{sum(row.tensors for row in rows):,}", f"{sum(row.params for row in rows) + frozen:,}")
    cells += [("frozen", "", "", "", "", "", f"{frozen:,}")] if frozen else []
    cells += [("total", "", "", "", "", *total)]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [heads, *cells]]


def _span(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "-"
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"
