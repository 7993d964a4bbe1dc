"""Mask R-CNN with DINOv3's ConvNeXt-L, tuned on COCO, 3x schedule: no published number.

    bash tools/dist_train.sh configs/detection/mask_rcnn_dinov3_convnext_large_coco_3x.py 8 \
        --cfg-options model.backbone.weights=facebook/dinov3-convnext-large-pretrain-lvd1689m

8 GPUs with 2 images each. Rate, layer-wise decay and stochastic depth are those of ConvNeXt-L from ImageNet-22K with
Cascade Mask R-CNN; no source prints them for DINOv3. Trained in float32, as ConvNeXt-L's was released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.7))
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.7, decay_type="layer"),
)
