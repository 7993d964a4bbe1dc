"""Mask R-CNN with DINOv3's ConvNeXt-S, tuned on COCO, 3x schedule: no published number.

    bash tools/dist_train.sh configs/detection/mask_rcnn_dinov3_convnext_small_coco_3x.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-small-pretrain-lvd1689m

8 GPUs with 2 images each. Rate, layer-wise decay and stochastic depth are those of ConvNeXt-S from ImageNet-1K with
Cascade Mask R-CNN; no source prints them for DINOv3.
"""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_small", drop_path_rate=0.6))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7, decay_type="layer"))
