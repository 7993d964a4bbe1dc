"""The compiled library as bytes: checked in a child process, loaded from memory, and the structs of its functions.

A file can change or shrink while it is mapped, which ends the process with SIGBUS, so that no file of the cache is
mapped: what was verified is what is loaded. This module imports nothing but the standard library, since the child
process runs it as a program.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

LIBRARY_TRIAL_SECONDS = 60
_WRONG_RESULT = 9
_STEPS = ("whole", "before_grn", "after_grn", "downsampled")
_PRECISIONS = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
_ONE = {"float32": b"\0\0\x80\x3f", "bfloat16": b"\x80\x3f"}  # 1.0, least significant byte first


class BlockStruct(ctypes.Structure):
    """``Block`` of ``native.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "hidden", "side")),
        *((name, ctypes.c_int64) for name in ("span", "tile", "threads", "scratch")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("conv", "conv_bias", "scale", "shift")),
        *((name, ctypes.c_void_p) for name in ("first", "first_bias", "second", "second_bias", "tail")),
    )


class DownsampleStruct(ctypes.Structure):
    """``Downsample`` of ``native.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "outputs")),
        *((name, ctypes.c_int64) for name in ("tile", "threads", "scratch")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "weight", "bias")),
    )


def load_library(content: bytes) -> ctypes.CDLL:
    """Load a shared library from its bytes.

    Raises:
        OSError: If it is none, or nothing can be loaded here.
    """
    with suppress(AttributeError, OSError):  # not on Linux, forbidden, or no /proc
        descriptor = os.memfd_create("convnext-cpu", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(descriptor, "wb", closefd=False) as memory:
            memory.write(content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        # Not closed: the loader knows libraries by their names, and the next one could get this number.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    with tempfile.TemporaryDirectory(prefix="convnext-") as folder:
        file = Path(folder) / "cpu.so"
        file.write_bytes(content)
        return ctypes.CDLL(str(file))


def failed_trial(content: bytes) -> str | None:
    """Why a library is not to be loaded: how a child process ended that called each function once; ``None`` if well.

    Raises:
        OSError: If no process can be started.
    """
    command = [sys.executable, "-I", __file__]
    try:
        ended = subprocess.run(command, input=content, capture_output=True, timeout=LIBRARY_TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"hangs in a trial call ({LIBRARY_TRIAL_SECONDS} s)"
    if ended.returncode == _WRONG_RESULT:
        return "computes a wrong result in a trial call"
    if ended.returncode < 0:
        return f"crashes in a trial call (signal {-ended.returncode})"
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return (
        None if ended.returncode == 0 else f"fails in a trial call: {(said or [f'exit code {ended.returncode}'])[-1]}"
    )


def gives_ones(library: ctypes.CDLL) -> bool:
    """Whether every function, called with ones and weights of 0, passes the ones on; two threads share the work."""
    images, height, width, channels, side, eps = 2, 6, 18, 32, 7, 1e-6
    positions, hidden = images * height * width, 4 * channels
    zeros = ctypes.create_string_buffer(4 * max(positions * hidden, channels * hidden, side * side * channels))
    ones = ctypes.create_string_buffer(_ONE["float32"] * positions * channels)
    words = 4 * positions * hidden
    scratch = ctypes.create_string_buffer(4 * 2 * words)
    maps, squares = (ctypes.create_string_buffer(4 * positions * hidden) for _ in range(2))
    at = ctypes.addressof
    for precision, of_maps in _PRECISIONS:
        if precision == "bfloat16" and not hasattr(library, f"whole_{precision}_{of_maps}"):
            continue  # the processor has no such products
        x = ctypes.create_string_buffer(_ONE[of_maps] * positions * channels)
        out = [ctypes.create_string_buffer(len(x)) for _ in range(3)]
        found = {step: getattr(library, f"{step}_{precision}_{of_maps}") for step in _STEPS}
        block = BlockStruct(*(images, height, width, channels, hidden, side), 108, 54, 2, words, eps, *[at(zeros)] * 9)
        found["whole"](ctypes.byref(block), x, out[0], scratch)
        found["before_grn"](ctypes.byref(block), x, maps, squares, scratch)
        found["after_grn"](ctypes.byref(block), x, maps, zeros, out[1], scratch)
        sizes = (images, height, width, channels, channels, 27, 2, words)
        layer = DownsampleStruct(*sizes, eps, *[at(zeros)] * 3, at(ones))
        found["downsampled"](ctypes.byref(layer), x, out[2], scratch)
        shrunk = _ONE[precision] * (positions // 4 * channels)
        if not (out[0].raw == out[1].raw == x.raw and out[2].raw.startswith(shrunk)):
            return False
    return True


if __name__ == "__main__":
    sys.exit(0 if gives_ones(load_library(sys.stdin.buffer.read())) else _WRONG_RESULT)
