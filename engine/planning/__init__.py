"""The plan of a training, made before it begins: batch, length, rates and memory.

``plan`` works it out from a resolved config, without any data; ``memory`` estimates what one process needs.
"""

from engine.planning.memory import Memory, estimate_memory
from engine.planning.plan import TrainingPlan, build_on_meta, training_plan

__all__ = [
    "Memory",
    "TrainingPlan",
    "build_on_meta",
    "estimate_memory",
    "training_plan",
]
