"""Fused GPU kernels, each beside the plain PyTorch code that defines it.

One module for each operation: its reference, the operation registered with :mod:`torch.library`, and the launch of its
kernels, which lie in the module ``*_triton`` of the same name and are imported when they are first launched. Importing
anything else here needs neither Triton nor a GPU. :mod:`backbones.kernels.cuda.block` is what networks call.
"""
