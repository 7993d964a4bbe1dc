"""ImageNet-1K fine-tuning: Table 2.6 at 224 x 224 after ImageNet-22K; what differs at 384 x 384 is in the experiments.

Layer scale comes with the weights. Under layer-wise decay the cosine ends at a share of each group's own rate: 1e-6 for
the head, as in the released code, and less below it.
"""

model = dict(
    type="ImageClassifier",
    num_classes="from_classes",
    head_init_scale=0.001,
    data_preprocessor=dict(erasing=0.25, label_smoothing=0.1),
)
train_pipeline = [dict(type="ClassificationTransform", size=224, training=True, rand_augment="rand-m9-mstd0.5-inc1")]
test_pipeline = [dict(type="ClassificationTransform", size=224, crop_ratio=0.875)]

batch = dict(size=512, per_gpu=32, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.8, decay_type="layer"),
    optimizer=dict(type="AdamW", lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-8),
)
custom_hooks = [dict(type="ProgressBar")]

train_cfg = dict(type="EpochLoop", max_epochs=30)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-6 / 5e-5, by_epoch=True, convert_to_iter_based=True),
]
