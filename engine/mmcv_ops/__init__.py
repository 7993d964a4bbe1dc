"""mmcv's compiled ops, served by torchvision and plain PyTorch where mmcv was installed without them.

Call :func:`install` before the first import of ``mmcv.ops``, mmdet or mmseg, as the packages ``detection`` and
``segmentation`` do. Every op can then be imported; one without a stand-in raises :class:`MissingOpError` when called.
"""

from engine.mmcv_ops.extension import MissingOpError, check_layers, install

__all__ = ["MissingOpError", "check_layers", "install"]
