"""UperNet with DINOv3's ConvNeXt-S, tuned on ADE20K for 160k iterations: no published number.

    bash tools/dist_train.sh configs/segmentation/upernet_dinov3_convnext_small_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-small-pretrain-lvd1689m

8 GPUs with 2 images each. Rate, layer-wise decay and stochastic depth are those of ConvNeXt-S from ImageNet-1K; no
source prints them for DINOv3.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

model = dict(backbone=dict(type="convnext_small", drop_path_rate=0.3))

optim_wrapper = dict(paramwise_cfg=dict(num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
