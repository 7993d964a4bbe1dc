"""Supervised training after ConvNeXt V2's masked autoencoder (FCMAE), as in its released TRAINING.md.

That file gives rates per 256 images; here the rate is that of the batch of 1,024. The experiment states rate, decay,
stochastic depth and schedule.
"""

model = dict(
    type="ImageClassifier",
    num_classes="from_classes",
    head_init_scale=0.001,
    data_preprocessor=dict(mixup=0.8, cutmix=1.0, erasing=0.25, label_smoothing=0.1),
)
train_pipeline = [dict(type="ClassificationTransform", size=224, training=True, rand_augment="rand-m9-mstd0.5-inc1")]
test_pipeline = [dict(type="ClassificationTransform", size=224, crop_ratio=0.875)]

batch = dict(size=1024, per_gpu=32, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.9, decay_type="block"),
    optimizer=dict(type="AdamW", betas=(0.9, 0.999), weight_decay=0.05),
)
custom_hooks = [dict(type="ProgressBar"), dict(type="ModelEMAHook", decay=0.9999)]
