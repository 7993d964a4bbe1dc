"""DINO with four scales and ConvNeXt-T on COCO, 12 epochs: 51.4 box AP (detrex).

    bash tools/dist_train.sh configs/detection/dino_4scale_convnext_tiny_coco_12e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_tiny_in1k_300e/epoch_300.pth

8 GPUs with 2 images each. The settings are detrex's (projects/dino/configs/dino-convnext): 1e-4, a tenth of it for the
backbone, no stochastic depth; 90,000 steps there, 12 epochs here. From ImageNet-22K and a fine-tuning at 384
(work_dirs/convnext_tiny_in22k_ft_in1k_384/epoch_30.pth) detrex has 52.4. In float32, as released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/dino.py", "../_base_/coco_instance.py", "../_base_/schedule_dino.py", "../_base_/runtime.py"]

# DINO's crops are of images of any width, and it learns from images without an object too.
_base_.train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

model = dict(backbone=dict(type="convnext_tiny", drop_path_rate=0.0))
