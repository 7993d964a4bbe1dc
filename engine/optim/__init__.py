"""The optimizer of a training: parameter groups with layer-wise decay, schedules, and precision.

``param_groups`` builds the groups from the backbone's own layer ids, ``schedules`` brings schedules to any step,
``resumption`` keeps the config's settings over a checkpoint's,
``precision`` keeps losses in float32, and ``unused_parameters`` finds parameters that get no gradient.
"""

from engine.optim.param_groups import (
    LayerDecayConstructor,
    ParameterGroup,
    group_rows,
    group_table,
    groups_of_config,
    parameter_groups,
)
from engine.optim.precision import losses_in_float32
from engine.optim.resumption import OptimizerSettings
from engine.optim.schedules import LinearWarmUpLR, replay_schedules, schedule_shapes

__all__ = [
    "LayerDecayConstructor",
    "LinearWarmUpLR",
    "OptimizerSettings",
    "ParameterGroup",
    "group_rows",
    "group_table",
    "groups_of_config",
    "losses_in_float32",
    "parameter_groups",
    "replay_schedules",
    "schedule_shapes",
]
