"""Mask R-CNN on the frozen ConvNeXt-T of DINOv3, COCO, 3x schedule: no published number.

    bash tools/dist_train.sh configs/detection/mask_rcnn_dinov3_convnext_tiny_frozen_coco_3x.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-tiny-pretrain-lvd1689m

8 GPUs with 2 images each; 262 GFLOPs at 1280 x 800. Of the backbone the output norms alone learn. The rate is that of
the tuned detector; no source prints one.
"""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_tiny", frozen_stages=4))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
