"""Compiler versions that ``mmcv.utils.collect_env`` asks the extension for: there is no compiler here."""

from __future__ import annotations

__all__ = ["get_compiler_version", "get_compiling_cuda_version"]

_NO_COMPILER = "none: ops are served by torchvision"


def get_compiler_version() -> str:
    """C++ compiler of the extension, a line of text."""
    return _NO_COMPILER


def get_compiling_cuda_version() -> str:
    """CUDA toolkit of the extension, a line of text."""
    return _NO_COMPILER
