"""DINO with four scales on the frozen ConvNeXt-T of DINOv3, COCO, 12 epochs: no published number.

    bash tools/dist_train.sh configs/detection/dino_4scale_dinov3_convnext_tiny_frozen_coco_12e.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-tiny-pretrain-lvd1689m

8 GPUs with 2 images each. Of the backbone the output norms alone learn, at a tenth of the rate. The settings are those
of the tuned detector; no source prints any. In float32, as released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/dino.py", "../_base_/coco_instance.py", "../_base_/schedule_dino.py", "../_base_/runtime.py"]

# DINO's crops are of images of any width, and it learns from images without an object too.
_base_.train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

model = dict(backbone=dict(type="convnext_tiny", frozen_stages=4))
