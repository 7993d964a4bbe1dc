"""Linear probe of DINOv3's ConvNeXt-L on ADE20K, 40k iterations: 47.8 mIoU single-scale (model card of DINOv3).

    bash tools/dist_train.sh configs/segmentation/linear_dinov3_convnext_large_ade20k_40k.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-large-pretrain-lvd1689m

8 GPUs with 2 images each. The backbone is frozen: its output norm and the head learn. Tested by sliding windows.
Trained in float32, as released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = [
    "../_base_/linear_segmentor.py",
    "../_base_/ade20k.py",
    "../_base_/schedule_linear_40k.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_large"))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5_000))
