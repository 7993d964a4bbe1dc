"""The head of linear probes: a batch norm and a 1 x 1 convolution on maps of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LinearProbeHead(FCNHead):
    """Classify each place of a map by a linear layer behind dropout and a batch norm.

    Source: the linear segmentation of DINOv3 (facebookresearch/dinov3, eval/segmentation/models/heads/linear_head.py).
    Several maps (``input_transform="resize_concat"``) are resized to the first of ``in_index`` and concatenated.

    Args:
        in_channels: Channels of the map, or of each map.
        norm_cfg: Settings of the norm.
        kwargs: Further arguments of mmseg's heads.
    """

    def __init__(self, in_channels: int | Sequence[int], norm_cfg: dict[str, Any], **kwargs: Any) -> None:
        channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
        super().__init__(
            num_convs=0, concat_input=False, in_channels=in_channels, channels=channels, norm_cfg=norm_cfg, **kwargs
        )
        self.norm = build_norm_layer(norm_cfg, channels)[1]

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Scores of the classes, (N, K, H, W), of one map, (N, C, H, W)."""
        return self.conv_seg(self.norm(feat if self.dropout is None else self.dropout(feat)))
