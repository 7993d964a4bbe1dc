"""Triton kernels on a CPU, in Triton's interpreter: one NumPy operation after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

# Before anything is interpreted: modules that Triton imports while it runs must find its functions as they were.
import triton.experimental.gluon
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


@contextmanager
def interpreted(*modules: ModuleType) -> Iterator[None]:
    """Put interpreted functions in the place of compiled ones: Triton itself decides that when it is first imported.

    Its patches of the language stay in place meanwhile. A function called from a kernel would else patch again at each
    call, and never take that back.

    Args:
        modules: Modules of the kernels, and those from which they import functions.
    """
    language = [module for name, module in sys.modules.items() if name.startswith("triton.language")]
    functions = [value for value in vars(modules[0]).values() if isinstance(value, JITFunction)]
    made: dict[int, interpreter.InterpretedFunction] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(interpreter, "_convert_float", converted)
        patch.setattr(interpreter.InterpretedFunction, "__call__", lambda self, *a, **k: self.rewrite()(*a, **k))
        scopes = [interpreter._patch_lang(f.fn) for f in (functions[0], triton.language.standard.zeros)]
        for module in chain(language, modules):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    function = made.setdefault(id(value), interpreter.InterpretedFunction(value.fn))
                    patch.setattr(module, name, function)
        try:
            yield
        finally:
            for scope in reversed(scopes):
                scope.restore()


def converted(numbers: np.ndarray, source: Any, target: Any, _: Any) -> np.ndarray:
    """Bits of float32 as bfloat16 and back, rounded to nearest as a GPU does; the interpreter would cut them off."""
    if source == triton.language.bfloat16:
        return numbers.view(np.uint16).astype(np.uint32) << 16
    halves = torch.from_numpy(np.ascontiguousarray(numbers)).bfloat16().view(torch.int16)
    return halves.numpy().view(np.uint16)
