"""The schedule of the digits' detectors: 4 epochs of AdamW at batch 4, 31 steps of warm-up, cosine decay.

Mask R-CNN, a step of the demo, takes two epochs at a higher rate.
"""

batch = dict(size=4, per_gpu=4, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.9, decay_type="layer"),
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
train_cfg = dict(type="EpochLoop", max_epochs=4, val_interval=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=31, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=0, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
