"""UperNet with DINOv3's ConvNeXt-L, tuned on ADE20K for 160k iterations: no published number.

    bash tools/dist_train.sh configs/segmentation/upernet_dinov3_convnext_large_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-large-pretrain-lvd1689m

8 GPUs with 2 images each. Rate, layer-wise decay and stochastic depth are those of ConvNeXt-L from ImageNet-22K, which
was tuned at 640 pixels; no source prints them for DINOv3. Trained in float32, as ConvNeXt-L's was released;
--cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.4))

optim_wrapper = dict(type="OptimWrapper", paramwise_cfg=dict(num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
