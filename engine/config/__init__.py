"""Reading a config: load, check and resolve it for the launch at hand.

Here are the batch contract, the settings of ``env_cfg``, the sets of classes, and the building of a config's parts with
errors that name their place. Nothing here knows a model, a data set or a training loop.
"""

from engine.config.batch import BatchPlan
from engine.config.building import build, building, registered_class
from engine.config.classes import class_names
from engine.config.load import Resolved, load_config, resolve
from engine.config.options import parse_options
from engine.config.world import Launch

__all__ = [
    "BatchPlan",
    "Launch",
    "Resolved",
    "build",
    "building",
    "class_names",
    "load_config",
    "parse_options",
    "registered_class",
    "resolve",
]
