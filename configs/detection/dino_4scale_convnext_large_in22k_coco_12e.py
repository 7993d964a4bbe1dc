"""DINO with four scales and ConvNeXt-L from ImageNet-22K on COCO, 12 epochs: 55.5 box AP (detrex).

    bash tools/dist_train.sh configs/detection/dino_4scale_convnext_large_in22k_coco_12e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_large_in22k_ft_in1k_384/epoch_30.pth

8 GPUs with 2 images each. The settings are detrex's (projects/dino/configs/dino-convnext): 1e-4, a tenth of it for the
backbone, no stochastic depth, weights fine-tuned on ImageNet-1K at 384; 90,000 steps there, 12 epochs here. In float32,
as released; --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/dino.py", "../_base_/coco_instance.py", "../_base_/schedule_dino.py", "../_base_/runtime.py"]

# DINO's crops are of images of any width, and it learns from images without an object too.
_base_.train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.0))
