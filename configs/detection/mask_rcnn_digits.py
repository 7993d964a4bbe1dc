"""Mask R-CNN on the embedded digits, from the digits classifier: a step of tools/demo.sh.

    python tools/train.py configs/detection/mask_rcnn_digits.py \
        --cfg-options model.backbone.weights=work_dirs/digits/epoch_5.pth

Two epochs: half the steps of the panoptic miniatures, at a higher rate.
"""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_digits.py",
    "../_base_/runtime.py",
]

classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
data_root = "data/digits/coco"
model = dict(
    backbone=dict(type="convnext_atto", drop_path_rate=0.05, init_std=0.06),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask="from_model"),
    dict(type="CheckedResize", scale=(160, 160), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="CheckedResize", scale=(160, 160), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask="from_model"),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
train_cfg = dict(max_epochs=2, val_interval=1)
val_cfg = dict(loss_images=30)
