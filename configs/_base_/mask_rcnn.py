"""Mask R-CNN with FPN; the backbone gives the neck its channels.

A min_bbox_size of -1 keeps proposals without area, as 0 did in mmdet 2.11, with which the detectors were trained.
"""

_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="convnext_tiny",
        out_indices=(0, 1, 2, 3),
        layer_scale_init_value=1.0,
    ),
    neck=dict(in_channels="from_backbone"),
    roi_head=dict(mask_head=dict(type="FastFCNMaskHead")),
    train_cfg=dict(rpn_proposal=dict(min_bbox_size=-1)),
    test_cfg=dict(rpn=dict(min_bbox_size=-1)),
)
