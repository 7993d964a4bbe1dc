"""Entry point of the networks: run a layer in the form that is fastest on this device, if there is one.

A form for another device is one function with the signature of :class:`~backbones.kernels.protocol.BlockForm`, added to
``BLOCK_FORMS``; it may select between several implementations with :data:`backbones.kernels.autotune.autotuner`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Proxy

from backbones.kernels.cpu.block import run_cpu_block
from backbones.kernels.cpu.downsample import run_cpu_downsample
from backbones.kernels.cuda.block import run_cuda_block
from backbones.kernels.protocol import BlockForm, BlockLayers, DownsampleForm
from backbones.masked import MaskedLayout

BLOCK_FORMS: tuple[BlockForm, ...] = (run_cuda_block, run_cpu_block)
DOWNSAMPLE_FORMS: tuple[DownsampleForm, ...] = (run_cpu_downsample,)


def run_block(block: BlockLayers, x: Tensor, layout: MaskedLayout | None = None) -> Tensor | None:
    """Compute a ConvNeXt block in the form that is fastest on this device.

    Args:
        block: A block of ConvNeXt V1 or V2.
        x: Map, ``(N, C, H, W)``; in ``layout``, if that is given.
        layout: Arrangement of the visible units of images in maps, in a masked autoencoder.

    Returns:
        The block's output ``(N, C, H, W)``, or ``None`` where its plain steps are to be taken: on other devices, for
        layers that were replaced or have hooks, and in programs that are traced, compiled or exported.

    Raises:
        ConfigError: If a form was forced that does not exist.
        MachineError: If a form was forced that this machine cannot run.
    """
    for form in () if isinstance(x, Proxy) else BLOCK_FORMS:
        if (out := form(block, x, layout)) is not None:
            return out
    return None


def run_downsample(layer: nn.Sequential, x: Tensor) -> Tensor | None:
    """Compute the norm and convolution between two stages in the form that is fastest on this device.

    Args:
        layer: LayerNorm and convolution of kernel size and stride 2.
        x: Map, ``(N, C, H, W)``.

    Returns:
        ``(N, outputs, H // 2, W // 2)``, or ``None`` where the plain steps are to be taken, as in :func:`run_block`.

    Raises:
        ConfigError: If a form was forced that does not exist.
    """
    for form in () if isinstance(x, Proxy) else DOWNSAMPLE_FORMS:
        if (out := form(layer, x)) is not None:
            return out
    return None
