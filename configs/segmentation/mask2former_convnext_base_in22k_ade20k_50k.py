"""Mask2Former with ConvNeXt-B from ImageNet-22K on ADE20K: 55.06 mIoU (facebookresearch/Mask2Former, PR 34).

    bash tools/dist_train.sh configs/segmentation/mask2former_convnext_base_in22k_ade20k_50k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_base_in22k_ft_in1k_384/epoch_30.pth

8 GPUs with 8 images each, 50k iterations of batch 64 at 4e-4, crops of 640 x 640: the command of the pull request,
which begins with weights fine-tuned on ImageNet-1K at 384. A tenth of the rate for the backbone is the repository's.
Stochastic depth is not printed: 0.4 is that of ConvNeXt-B with UperNet. Trained in float32, as mmseg's Mask2Former was
released; --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16 (the pull
request: float16).
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
    backbone=dict(type="convnext_base", drop_path_rate=0.4),
)

batch = dict(size=64, per_gpu=8)
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
train_cfg = dict(max_iters=50_000, val_interval=5_000)

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5_000))
