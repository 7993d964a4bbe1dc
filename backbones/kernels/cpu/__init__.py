"""The forms of a ConvNeXt block and of the downsampling between stages for CPUs: compiled C, or fused PyTorch steps."""
