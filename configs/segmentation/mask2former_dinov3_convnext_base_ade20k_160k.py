"""Mask2Former with DINOv3's ConvNeXt-B, tuned on ADE20K, 160k iterations of 512 x 512 crops: no published number.

    bash tools/dist_train.sh configs/segmentation/mask2former_dinov3_convnext_base_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-base-pretrain-lvd1689m

8 GPUs with 2 images each. Length and rate are those of mmseg's Mask2Former with Swin-T; layer-wise decay and stochastic
depth are those of ConvNeXt-B from ImageNet-1K with UperNet; no source prints them for DINOv3. Trained in float32, as
released; --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = [
    "../_base_/mask2former_semantic.py",
    "../_base_/ade20k.py",
    "../_base_/schedule_mask2former.py",
    "../_base_/schedule_mask2former_160k.py",
    "../_base_/runtime.py",
]

_base_.train_pipeline[2] = _base_._shortest_edge
model = dict(backbone=dict(type="convnext_base", drop_path_rate=0.4))

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9, decay_type="stage", num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
