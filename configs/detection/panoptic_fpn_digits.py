"""Panoptic FPN on the embedded digits: digits are things, the photograph around them is stuff.

    python tools/train.py configs/detection/panoptic_fpn_digits.py \
        --cfg-options model.backbone.weights=work_dirs/digits/epoch_10.pth

Mask R-CNN of the digits, trained as long, with a branch for stuff on its pyramid.
"""

_base_ = "mask_rcnn_digits.py"

task = "panoptic"
classes = (*_base_.classes, "background")
stuff_classes = ("background",)
model = dict(
    type="PanopticFPN",
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    semantic_head=dict(
        type="PanopticFPNHead",
        num_things_classes="from_classes",
        num_stuff_classes="from_classes",
        in_channels=64,
        inner_channels=64,
        norm_cfg=dict(type="GN", num_groups=8),
        loss_seg=dict(type="CrossEntropyLoss", ignore_index=255, loss_weight=0.5),
    ),
    panoptic_fusion_head=dict(
        type="HeuristicFusionHead", num_things_classes="from_classes", num_stuff_classes="from_classes"
    ),
    # mmdet's 4,096 pixels are a hundredth of an image of COCO, and a sixth of one of these.
    test_cfg=dict(
        rcnn=dict(score_thr=0.5, nms=dict(class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=256),
    ),
)
_base_.train_pipeline[1] = dict(type="LoadPanoptic")
_base_.test_pipeline[2] = dict(type="LoadPanoptic")
_base_.test_pipeline[3].meta_keys += ("seg_map_path", "segments_info")
train_dataloader = dict(
    dataset=dict(
        type="CocoPanoptic",
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(seg="annotations/panoptic_train2017/"),
    )
)
val_dataloader = dict(
    dataset=dict(
        type="CocoPanoptic",
        ann_file="annotations/panoptic_val2017.json",
        data_prefix=dict(seg="annotations/panoptic_val2017/"),
    )
)
val_evaluator = dict(_delete_=True, type="PanopticQuality")
