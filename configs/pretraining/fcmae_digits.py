"""Masked pre-training on the embedded digits, without their labels.

    python tools/make_digits.py && python tools/train.py configs/pretraining/fcmae_digits.py

Then configs/classification/digits.py and the like take the checkpoint as `model.backbone.weights`.
"""

_base_ = ["../_base_/fcmae.py", "../_base_/runtime.py"]

data_root = "data/digits/imagenet"
model = dict(backbone=dict(type="convnextv2_atto", init_std=0.06), decoder_dim=128)
train_pipeline = [dict(type="MaskedImageTransform", size=96, training=True, scale=(0.75, 1.0), flip=0.0)]
test_pipeline = [dict(type="MaskedImageTransform", size=96, crop_ratio=1.0)]
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
batch = dict(size=64, per_gpu=64, lr_rule="linear")
optim_wrapper = dict(optimizer=dict(lr=1e-3))

train_cfg = dict(type="EpochLoop", max_epochs=10)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
