"""Cascade Mask R-CNN with ConvNeXt-XL from ImageNet-22K on COCO, 3x schedule: 55.2 box AP, 47.7 mask AP (Table 2.3).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_convnext_xlarge_in22k_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_xlarge_in22k_90e/epoch_90.pth

8 GPUs with 2 images each; 1898 GFLOPs at 1280 x 800. Trained in float32, as released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_xlarge", drop_path_rate=0.8))
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.7, decay_type="layer"),
)
