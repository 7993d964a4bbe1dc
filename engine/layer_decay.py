"""Layer-wise and stage-wise learning-rate decay for every task and every registered backbone.

Sources: Clark et al., 2020; Bao et al., "BEiT", 2021; groups as in the released ConvNeXt code. The backbone gives the
ids; nothing here knows a parameter name of a network.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from backbones.errors import UserError
from backbones.registry import Backbone

BACKBONE = "backbone."


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        layer_id: 0 for the stem; the highest for the head.
        lr_scale: Factor on the peak rate.
        weight_decay: 0 for biases, norms, layer scale and the like.
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
    decay_type: str = "layer",
    num_groups: int | None = None,
) -> list[ParameterGroup]:
    """Put every trainable parameter of a model in exactly one group.

    Args:
        model: A model with a registered network as ``backbone``.
        weight_decay: For weights; vectors, biases and what the backbone names get none.
        decay_rate: Factor from one layer id to the one below.
        decay_type: ``layer`` or ``stage``.
        num_groups: Ids below the head's. For ``layer`` the backbone knows; for ``stage`` the released ADE20K configs
            use 6 with T and 12 with the others, which sets how far the stages lie below the head.

    Returns:
        The groups, from the head down, so that the first one has the highest rate (the one that is logged).

    Raises:
        UserError: If an option does not exist or contradicts the backbone.
    """
    if decay_type not in ("layer", "stage"):
        raise UserError(f"paramwise_cfg.decay_type={decay_type!r}: choose layer or stage")
    if not 0 < decay_rate <= 1:
        raise UserError(f"paramwise_cfg.decay_rate={decay_rate}: a factor in (0, 1] is needed")
    backbone: Backbone = model.backbone  # type: ignore[assignment]
    if decay_type == "layer" and num_groups not in (None, backbone.num_layers):
        raise UserError(f"paramwise_cfg.num_groups={num_groups}: this backbone has {backbone.num_layers} layer groups")
    top = (backbone.num_layers if num_groups is None else num_groups) + 1
    groups: dict[tuple[int, bool], ParameterGroup] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        layer_id = top
        decayed = param.ndim > 1 and not name.endswith(".bias")
        if name.startswith(BACKBONE):
            short = name.removeprefix(BACKBONE)
            own_id = backbone.layer_id(short) if decay_type == "layer" else backbone.stage_id(short)
            layer_id = top if own_id is None else own_id
            decayed = decayed and not backbone.without_decay(short)
        group = groups.setdefault(
            (layer_id, decayed),
            ParameterGroup(layer_id, decay_rate ** (top - layer_id), weight_decay if decayed else 0.0),
        )
        group.params.append(param)
        group.names.append(name)
    return sorted(groups.values(), key=lambda group: (-group.layer_id, -group.weight_decay))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor:
    """Build an optimizer wrapper whose parameter groups follow the depth of the backbone.

    In a config: ``optim_wrapper=dict(constructor="LayerDecayConstructor", paramwise_cfg=dict(decay_rate=0.95))``.
    Without ``paramwise_cfg`` all layers learn at one rate, and biases, norms and layer scale are not decayed.

    Args:
        optim_wrapper_cfg: Wrapper and optimizer.
        paramwise_cfg: ``decay_rate``, ``decay_type`` and ``num_groups`` of :func:`parameter_groups`.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.paramwise = dict(paramwise_cfg or {})
        unknown = set(self.paramwise) - {"decay_rate", "decay_type", "num_groups"}
        if unknown:
            raise UserError(f"paramwise_cfg has no option {', '.join(sorted(unknown))}")

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
        lowest = min(group.lr_scale for group in groups)
        print_log(f"{len(groups)} parameter groups, rates {lr * lowest:.3g} to {lr:.3g}", "current", logging.INFO)
        optimizer = OPTIMIZERS.build(self.optimizer)
        self.wrapper.setdefault("type", "OptimWrapper")
        return OPTIM_WRAPPERS.build(self.wrapper, default_args={"optimizer": optimizer})
