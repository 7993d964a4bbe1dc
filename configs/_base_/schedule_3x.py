"""The paper's COCO schedule: 36 epochs of AdamW at global batch 16, rate cut at 27 and 33, in float16.

The experiment states the learning rate, the layer-wise decay and the stochastic depth, which the paper swept; what is
here alone is Swin's schedule. The warm-up rises linearly to 1 at step 500, as in mmcv; a schedule of mmengine reaches
its last value one step before ``end``. The experiments that were released in float32 say so.
"""

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
train_cfg = dict(type="EpochLoop", max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, end=501, by_epoch=False),
    dict(type="MultiStepLR", milestones=[27, 33], gamma=0.1, by_epoch=True),
]
