"""Fused GPU kernels, each beside the plain PyTorch code that defines it.

One module for each operation: its reference, the operation registered with :mod:`torch.library`, and the launch of its
kernels. The kernels are in the module ``*_triton`` of the same name, which is imported when they are first launched:
importing anything else here needs neither Triton nor a GPU.
"""

from backbones.kernels.cuda.block import run_cuda_block

__all__ = ["run_cuda_block"]
