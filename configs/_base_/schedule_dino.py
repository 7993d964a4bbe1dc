"""DINO's schedule of 12 epochs on COCO: AdamW at global batch 16 and 1e-4, cut after 11, with clipping, in float32.

A tenth of the rate for the backbone, as in mmdet and detrex; an experiment with layer-wise decay says so.
"""

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=0.1),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
train_cfg = dict(type="EpochLoop", max_epochs=12)
param_scheduler = [dict(type="MultiStepLR", milestones=[11], gamma=0.1, by_epoch=True)]
