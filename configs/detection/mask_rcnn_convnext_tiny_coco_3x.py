"""Mask R-CNN with ConvNeXt-T on COCO, 3x schedule: 46.2 box AP, 41.7 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/mask_rcnn_convnext_tiny_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_tiny_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 262 GFLOPs at 1280 x 800.
"""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_tiny", drop_path_rate=0.4))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95, decay_type="layer"))
