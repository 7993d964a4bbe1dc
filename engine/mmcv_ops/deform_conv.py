"""Deformable convolution, without (v1) and with modulation (v2), by torchvision; forward and backward.

Sources: Dai et al. 2017, arXiv:1703.06211; Zhu et al. 2019, arXiv:1811.11168.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import deform_conv2d

from engine.mmcv_ops.extension import at_least_float32, write_gradients

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]

_Pair = tuple[int, int]


class _Convolution:
    """torchvision's deformable convolution of (input, offset, weight, mask, bias) with fixed sizes.

    The groups follow from the shapes: of the weight, and of the offset.

    Args:
        stride: Along y and x.
        padding: Along y and x.
        dilation: Along y and x.
    """

    def __init__(self, stride: _Pair, padding: _Pair, dilation: _Pair) -> None:
        self.sizes = {"stride": stride, "padding": padding, "dilation": dilation}

    def __call__(
        self, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        if mask is not None:
            size = self._output_size(input, weight)
            offset, mask = _leading(offset, size), _leading(mask, size)
        return deform_conv2d(input, offset, weight, bias, mask=mask, **self.sizes)

    def _output_size(self, input: Tensor, weight: Tensor) -> _Pair:
        """Height and width of the output."""
        pairs = zip(input.shape[2:], weight.shape[2:], *self.sizes.values(), strict=True)
        height, width = ((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in pairs)
        return height, width


def _leading(maps: Tensor, size: _Pair) -> Tensor:
    """Maps of the output's size from the first numbers of larger ones, (B, C, H, W) to (B, C, *size).

    The compiled modulated op takes only the address of each image's displacements and factors, and reads maps of the
    output's size from there; mmdet's DyHead gives it those of the level below, which are larger.
    """
    count = maps.shape[1] * size[0] * size[1]
    if maps.shape[2:] == size or maps[0].numel() < count:
        return maps
    return maps.flatten(1)[:, :count].unflatten(1, (maps.shape[1], *size))


def _write(convolution: _Convolution, tensors: Sequence[Tensor], output: Tensor) -> None:
    output.copy_(convolution(*(at_least_float32(tensor) for tensor in tensors)))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution v1.

    Args:
        input: Feature map, (B, C, H, W).
        weight: Kernels, (C', C / group, kH, kW).
        offset: Displacements y, x of each tap in input pixels, (B, 2 * deformable_group * kH * kW, H', W').
        output: Output buffer, (B, C', H', W').
        columns: Unused; workspace of the compiled op.
        ones: Unused; workspace of the compiled op.
        kW: Unused; the width of the kernel is that of ``weight``.
        kH: Unused; the height of the kernel is that of ``weight``.
        dW: Stride along x.
        dH: Stride along y.
        padW: Padding along x.
        padH: Padding along y.
        dilationW: Dilation along x.
        dilationH: Dilation along y.
        group: Unused; follows from the shape of ``weight``.
        deformable_group: Unused; follows from the shape of ``offset``.
        im2col_step: Unused; images that the compiled op unfolds at a time.
    """
    _write(_Convolution((dH, dW), (padH, padW), (dilationH, dilationW)), (input, offset, weight), output)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` with respect to input and offset, written into buffers."""
    convolution = _Convolution((dH, dW), (padH, padW), (dilationH, dilationW))
    write_gradients(convolution, (input, offset, weight), grad_output, (grad_input, grad_offset, None))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` with respect to the weight, times ``scale``, written into a buffer."""
    convolution = _Convolution((dH, dW), (padH, padW), (dilationH, dilationW))
    # The op is linear in the weight, whose values, which the wrapper does not give, do not matter.
    write_gradients(convolution, (input, offset, grad_weight), grad_output * scale, (None, None, grad_weight))


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution v2: :func:`deform_conv_forward` whose taps are also weighted.

    Args:
        input: Feature map, (B, C, H, W).
        weight: Kernels, (C', C / group, kernel_h, kernel_w).
        bias: Bias, (C',); ignored without ``with_bias``.
        ones: Unused; workspace of the compiled op.
        offset: Displacements y, x of each tap in input pixels, (B, 2 * deformable_group * taps, H', W').
        mask: Factors of the taps, (B, deformable_group * taps, H', W').
        output: Output buffer, (B, C', H', W').
        columns: Unused; workspace of the compiled op.
        kernel_h: Unused; the height of the kernel is that of ``weight``.
        kernel_w: Unused; the width of the kernel is that of ``weight``.
        stride_h: Stride along y.
        stride_w: Stride along x.
        pad_h: Padding along y.
        pad_w: Padding along x.
        dilation_h: Dilation along y.
        dilation_w: Dilation along x.
        group: Unused; follows from the shape of ``weight``.
        deformable_group: Unused; follows from the shape of ``offset``.
        with_bias: Whether ``bias`` is added.
    """
    convolution = _Convolution((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))
    _write(convolution, (input, offset, weight, mask, bias)[: 5 if with_bias else 4], output)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`, written into buffers of the shapes of its inputs."""
    convolution = _Convolution((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))
    count = 5 if with_bias else 4
    inputs = (input, offset, weight, mask, bias)[:count]
    buffers = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)[:count]
    write_gradients(convolution, inputs, grad_output, buffers)
