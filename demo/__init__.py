"""The demo of ``tools/demo.sh``: one backbone in three tasks on real handwriting, with nothing to download.

Data (`drawing`, `formats`, `dataset`), what to train (`steps`), running and resuming it (`process`), how long it takes
(`pace`), and the report of the results (`report`). The last three import torch and are left out: the data is made fast.
"""

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones", "engine")

from demo.dataset import make_digits  # noqa: E402
from demo.steps import Command, DemoStep, demo_steps  # noqa: E402

__all__ = ["Command", "DemoStep", "demo_steps", "make_digits"]
