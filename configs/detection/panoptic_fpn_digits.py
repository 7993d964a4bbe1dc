"""Panoptic FPN on the embedded digits: digits are things, the photograph around them is stuff.

    python tools/train.py configs/detection/panoptic_fpn_digits.py \
        --cfg-options model.backbone.weights=work_dirs/digits/epoch_5.pth

Mask R-CNN of the digits with a branch for stuff on its pyramid, trained for four epochs in place of two.
"""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_panoptic.py",
    "../_base_/schedule_digits.py",
    "../_base_/runtime.py",
]

classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "background")
stuff_classes = ("background",)
data_root = "data/digits/coco"
_norm = dict(type="GN", num_groups=8)
_loss = dict(type="CrossEntropyLoss", ignore_index=255, loss_weight=0.5)
_kinds = dict(num_things_classes="from_classes", num_stuff_classes="from_classes")
model = dict(
    type="PanopticFPN",
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    backbone=dict(type="convnext_atto", drop_path_rate=0.05, init_std=0.06),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    semantic_head=dict(
        type="PanopticFPNHead", in_channels=64, inner_channels=64, norm_cfg=_norm, loss_seg=_loss, **_kinds
    ),
    panoptic_fusion_head=dict(type="HeuristicFusionHead", **_kinds),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    # mmdet's 4,096 pixels are a hundredth of an image of COCO, and a sixth of one of these.
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(score_thr=0.5, nms=dict(class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=256),
    ),
)
_base_.train_pipeline[2:5] = [dict(type="CheckedResize", scale=(160, 160), keep_ratio=True)]  # nothing at random
_base_.test_pipeline[1].scale = (160, 160)
train_dataloader = dict(num_workers=1, sampler=dict(type="DefaultSampler", shuffle=True))
val_dataloader = dict(num_workers=1)
