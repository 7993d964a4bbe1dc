"""RTMDet-l with ConvNeXt-B from ImageNet-22K on COCO, 100 epochs at 640 x 640: 53.1 box AP (mmdet, PR 11259).

    bash tools/dist_train.sh configs/detection/rtmdet_convnext_base_in22k_coco_100e.py 4 \
        --cfg-options model.backbone.weights=work_dirs/convnext_base_in22k_ft_in1k_384/epoch_30.pth

4 GPUs with 32 images each. All settings are those of mmdet's rtmdet_l_convnext_b_4xb32-100e_coco: 1e-3 for batch 128,
layer-wise decay 0.8, stochastic depth 0.7, constant for 50 epochs and then a cosine to a twentieth, weights fine-tuned
on ImageNet-1K at 384; 53.1 is of the averaged weights. A layer's rate falls to a twentieth of its own here, to 5e-5
there. In float32, as released; --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in
bfloat16.
"""

_base_ = ["../_base_/rtmdet.py", "../_base_/coco_mosaic.py", "../_base_/runtime.py"]

model = dict(backbone=dict(type="convnext_base", drop_path_rate=0.7))

batch = dict(size=128, per_gpu=32, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.8, decay_type="layer"),
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
)

train_cfg = dict(type="EpochLoop", max_epochs=100, val_interval=10)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-5, end=1000, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=50, eta_min_ratio=0.05, by_epoch=True, convert_to_iter_based=True),
]
