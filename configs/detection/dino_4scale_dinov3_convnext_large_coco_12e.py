"""DINO with four scales and DINOv3's ConvNeXt-L, tuned on COCO, 12 epochs: no published number.

    bash tools/dist_train.sh configs/detection/dino_4scale_dinov3_convnext_large_coco_12e.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-large-pretrain-lvd1689m

8 GPUs with 2 images each. The settings are detrex's for every ConvNeXt: 1e-4, a tenth of it for the backbone, no
stochastic depth; no source prints them for DINOv3. In float32, as released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/dino.py", "../_base_/coco_instance.py", "../_base_/schedule_dino.py", "../_base_/runtime.py"]

# DINO's crops are of images of any width, and it learns from images without an object too.
_base_.train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.0))
