"""The paper's ADE20K schedule: 160k iterations of AdamW at global batch 16, linear decay after 1,500 of warm-up.

The experiment states the groups of stage-wise decay: 6 for ConvNeXt-T, 12 for the larger ones, as in the released code.
"""

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.9, decay_type="stage"),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
train_cfg = dict(type="IterationLoop", max_iters=160_000, val_interval=16_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, begin=1500, end=160_000, eta_min=0.0, by_epoch=False),
]
