"""Analysis above the tasks: what networks cost, how fast they are, what a machine and a dataset can do, and where
a step went wrong.

Nothing below imports this package. Importing it imports nothing else, so that the doctor also runs where a library that
another sub-package needs is broken.
"""

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones", "engine", "classification", "detection", "segmentation")

__all__ = ()
