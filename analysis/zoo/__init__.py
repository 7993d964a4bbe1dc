"""Every method of the installed detection and segmentation packages on one of our backbones.

A method is a folder of configs in a package. Of each, one config is built with the backbone swapped in, and does a
loss, a backward pass, a step and a prediction on two small images, without weights, data or compiled ops.
"""

__all__ = ()
