"""Forms of a ConvNeXt block and of the downsampling between stages for CPUs: compiled C, or fused PyTorch operators.

``dispatch`` says when they may run, ``native`` compiles and calls ``native.c``, ``autograd`` has the backward pass.
"""

from backbones.kernels.cpu.block import run_cpu_block
from backbones.kernels.cpu.downsample import run_cpu_downsample

__all__ = ["run_cpu_block", "run_cpu_downsample"]
