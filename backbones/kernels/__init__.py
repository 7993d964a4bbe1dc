"""Faster forms of a ConvNeXt block, each beside the plain PyTorch code that defines it: Triton on a GPU, C on a CPU."""
