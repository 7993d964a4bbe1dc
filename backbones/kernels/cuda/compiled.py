"""Choice of a form for a compiled graph.

It has its own file, which is imported while a graph is compiled: the mark on the function imports the compiler, which
takes a second, and most programs compile nothing.
"""

from __future__ import annotations

import torch

from backbones.kernels.autotune import TuningKey, autotuner, device_name
from backbones.kernels.cuda.launch import is_capable
from backbones.kernels.protocol import FUSED_FORM, PLAIN_FORM


@torch.compiler.assume_constant_result
def predict_form(half: str, device: torch.device, dtype: torch.dtype, static: tuple[int, ...]) -> str:
    """The form for a graph, which may run on maps of any size.

    It is run, not traced: within torch.compile, a traced ``is_exporting`` is always true.

    Args:
        half: Name of the operation.
        device: Device of the maps.
        dtype: Precision of the products.
        static: Further parts of the key of :class:`backbones.kernels.autotune.TuningKey`.
    """
    if torch.compiler.is_exporting():
        return PLAIN_FORM
    if autotuner.forced(half) is None and not is_capable(device):
        return PLAIN_FORM
    return autotuner.predict(TuningKey(half, device_name(device), str(dtype), static, 0), (FUSED_FORM, PLAIN_FORM))
