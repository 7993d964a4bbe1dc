"""UperNet with ConvNeXt-T on ADE20K, 160k iterations: 46.0 mIoU single-scale, 46.7 multi-scale (Tables 2.4 and 2.7).

    bash tools/dist_train.sh configs/segmentation/upernet_convnext_tiny_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_tiny_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 60 M parameters, 939 GFLOPs at 2048 x 512. Multi-scale: tools/test.py ... --tta.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/runtime.py"]

model = dict(backbone=dict(type="convnext_tiny", drop_path_rate=0.4))

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.9, decay_type="stage", num_groups=6),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)

train_cfg = dict(type="IterationLoop", max_iters=160_000, val_interval=16_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, begin=1500, end=160_000, eta_min=0.0, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
