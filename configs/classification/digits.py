"""The classification recipe, shrunk to the embedded digits: the first step of tools/demo.sh.

    python tools/make_digits.py && python tools/train.py configs/classification/digits.py

At least 95 % top-1 is expected. No flips: a mirrored digit is another sign. No mixup, cutmix, RandAugment, erasing and
stochastic depth: they want longer schedules.
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet1k.py", "../_base_/runtime.py"]

classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
data_root = "data/digits/imagenet"
model = dict(
    type="ImageClassifier",
    num_classes="from_classes",
    backbone=dict(type="convnext_atto", layer_scale_init_value=1.0, init_std=0.06),
    data_preprocessor=dict(label_smoothing=0.1),
)
train_pipeline = [dict(type="ClassificationTransform", size=48, training=True, scale=(0.75, 1.0), flip=0.0)]
test_pipeline = [dict(type="ClassificationTransform", size=48, crop_ratio=1.0)]
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)

batch = dict(size=64, per_gpu=64, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    optimizer=dict(type="AdamW", lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
custom_hooks = [dict(type="ProgressBar"), dict(type="ModelEMAHook", decay=0.99)]

train_cfg = dict(type="EpochLoop", max_epochs=5)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
