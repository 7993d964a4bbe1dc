"""Cascade Mask R-CNN with ConvNeXt-S on COCO, 3x schedule: 51.9 box AP, 45.0 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_convnext_small_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_small_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 827 GFLOPs at 1280 x 800.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_small", drop_path_rate=0.6))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7, decay_type="layer"))
