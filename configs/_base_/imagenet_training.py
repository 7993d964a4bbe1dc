"""Training from scratch on ImageNet: the rows that both columns of Table 2.5 share.

The experiment states the network and its stochastic depth. The table's "trunc. normal (0.2)" is a misprint of 0.02,
the standard deviation that all networks here begin with.
"""

model = dict(
    type="ImageClassifier",
    num_classes="from_classes",
    data_preprocessor=dict(mixup=0.8, cutmix=1.0, erasing=0.25, label_smoothing=0.1),
)
train_pipeline = [dict(type="ClassificationTransform", size=224, training=True, rand_augment="rand-m9-mstd0.5-inc1")]
test_pipeline = [dict(type="ClassificationTransform", size=224, crop_ratio=0.875)]

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    optimizer=dict(type="AdamW", lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
