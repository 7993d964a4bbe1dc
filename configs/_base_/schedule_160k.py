"""The paper's ADE20K schedule: 160k iterations of AdamW at global batch 16, linear decay, 1,500 of warm-up.

The rate of step t is lr * (1 - t / 160,000), in the first 1,500 steps scaled by a warm-up that rises linearly to 1 at
step 1,500: mmcv's policy. A warm-up of mmengine reaches its last value one step before ``end``; the decay follows the
length of the training.

The experiment states the groups of stage-wise decay: 6 for ConvNeXt-T, 12 for the larger ones, as in the released code.
Precision is float16; the experiments that were released in float32 say so.
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
    dict(type="LinearLR", start_factor=1e-6, end=1501, by_epoch=False),
    dict(type="PolyDecayLR", power=1.0, by_epoch=False),
]
