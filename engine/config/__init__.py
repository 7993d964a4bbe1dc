"""Reading a config: load, check and resolve it for the launch at hand.

Here are the batch contract, the settings of ``env_cfg``, the sets of classes, and the building of a config's parts with
errors that name their place. Nothing here knows a model, a data set or a training loop.
"""

from engine.config.batch import BatchPlan, MicroBatches, micro_batch_collate, plan_batch, scaled_lr
from engine.config.building import build, building, registered_class
from engine.config.classes import class_names, palette
from engine.config.environment import NonFinitePolicy, check_environment
from engine.config.fingerprint import config_values, make_fingerprint
from engine.config.load import Resolved, load_config, parse_options, resolve
from engine.config.schema import check_settings, is_number, is_whole
from engine.config.world import Launch

__all__ = [
    "BatchPlan",
    "Launch",
    "MicroBatches",
    "NonFinitePolicy",
    "Resolved",
    "build",
    "building",
    "check_environment",
    "check_settings",
    "class_names",
    "config_values",
    "is_number",
    "is_whole",
    "load_config",
    "make_fingerprint",
    "micro_batch_collate",
    "palette",
    "parse_options",
    "plan_batch",
    "registered_class",
    "resolve",
    "scaled_lr",
]
