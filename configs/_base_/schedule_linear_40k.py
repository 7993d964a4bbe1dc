"""DINOv3's schedule of linear segmentation: 40k iterations of AdamW at global batch 16, cosine to 0, 1,500 of warm-up.

As in the released config-ade20k-linear-training.yaml, all that learns is decayed, and precision is float32. The
released warm-up falls along a line meanwhile, the one here along the cosine.
"""

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(no_decay=[]),
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3),
)
train_cfg = dict(type="IterationLoop", max_iters=40_000, val_interval=5_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=1501, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False),
]
