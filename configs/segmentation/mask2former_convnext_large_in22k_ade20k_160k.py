"""Mask2Former with ConvNeXt-L from ImageNet-22K on ADE20K, 160k iterations of 640 x 640 crops; no published number.

    bash tools/dist_train.sh configs/segmentation/mask2former_convnext_large_in22k_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_large_in22k_90e/epoch_90.pth

8 GPUs with 2 images each. The settings are those of mmseg's Mask2Former with Swin-L from ImageNet-22K, which has 56.0
mIoU; layer-wise decay, in place of a tenth of the rate for the backbone, and stochastic depth are those of ConvNeXt-L
with UperNet. Trained in float32, as released; --cfg-options optim_wrapper.type=AmpOptimWrapper
optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = [
    "../_base_/mask2former_semantic.py",
    "../_base_/ade20k.py",
    "../_base_/schedule_mask2former.py",
    "../_base_/schedule_mask2former_160k.py",
    "../_base_/runtime.py",
]

# Crops of 640 x 640; the shorter side is one of 0.5 to 2 times a crop.
_base_.train_pipeline[2] = dict(
    type="RandomChoiceResize",
    scales=[64 * tenths for tenths in range(5, 21)],
    resize_type="ResizeShortestEdge",
    max_size=2560,
)
_base_.train_pipeline[3].crop_size = (640, 640)
_base_.test_pipeline[1].scale = (2560, 640)
_base_.tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale=(4 * side, side), keep_ratio=True) for side in range(320, 1121, 160)
]
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(type="convnext_large", drop_path_rate=0.4),
)

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9, decay_type="stage", num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
