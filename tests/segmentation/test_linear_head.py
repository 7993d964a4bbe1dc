"""The head of linear probes: dropout, batch norm, 1 x 1 convolution, on one map or on several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmseg.models import build_head

import segmentation  # noqa: F401  (registers the head)
from segmentation.linear_head import LinearProbeHead

CHANNELS, CLASSES = (8, 16), 5


@pytest.mark.parametrize("several", [False, True])
def test_the_released_probe(several: bool) -> None:
    torch.manual_seed(0)
    places = (
        dict(in_channels=list(CHANNELS), in_index=[0, 1], input_transform="resize_concat")
        if several
        else dict(in_channels=CHANNELS[1], in_index=1)
    )
    head = build_head(dict(type="LinearProbeHead", num_classes=CLASSES, norm_cfg=dict(type="BN"), **places))
    assert isinstance(head, LinearProbeHead)
    head.init_weights()
    assert head.conv_seg.weight.detach().std().item() == pytest.approx(0.01, rel=0.3)
    maps = [torch.randn(2, CHANNELS[0], 6, 4), torch.randn(2, CHANNELS[1], 3, 2)]
    x = torch.cat([maps[0], F.interpolate(maps[1], size=(6, 4), mode="bilinear")], 1) if several else maps[1]
    head.dropout.p = 0.0
    normalised = F.batch_norm(x, None, None, training=True)
    assert torch.allclose(head.train()(maps), F.conv2d(normalised, head.conv_seg.weight, head.conv_seg.bias))
    torch.manual_seed(1)
    head.dropout.p = 0.5
    found = head(maps)
    torch.manual_seed(1)
    dropped = F.batch_norm(F.dropout2d(x, 0.5), None, None, training=True)  # dropout comes before the norm
    assert torch.allclose(found, F.conv2d(dropped, head.conv_seg.weight, head.conv_seg.bias))
