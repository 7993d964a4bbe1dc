"""Faster forms of a ConvNeXt block beside the plain steps that define it: Triton on GPUs, C on CPUs.

Networks call :func:`run_block` and :func:`run_downsample`; which form runs is measured once by :data:`autotuner`.
"""

from backbones.kernels.autotune import Autotuner, TuningKey, autotuner
from backbones.kernels.dispatch import run_block, run_downsample
from backbones.kernels.protocol import BlockForm, BlockLayers, DownsampleForm

__all__ = [
    "Autotuner",
    "BlockForm",
    "BlockLayers",
    "DownsampleForm",
    "TuningKey",
    "autotuner",
    "run_block",
    "run_downsample",
]
