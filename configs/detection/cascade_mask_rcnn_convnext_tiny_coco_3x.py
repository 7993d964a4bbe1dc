"""Cascade Mask R-CNN with ConvNeXt-T on COCO, 3x schedule: 50.4 box AP, 43.7 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_tiny_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 741 GFLOPs at 1280 x 800.
"""

_base_ = ["../_base_/cascade_mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/runtime.py"]

model = dict(backbone=dict(type="convnext_tiny", drop_path_rate=0.4))

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.7, decay_type="layer"),
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
)

train_cfg = dict(type="EpochLoop", max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, end=500, by_epoch=False),
    dict(type="MultiStepLR", milestones=[27, 33], gamma=0.1, by_epoch=True),
]
