"""What is ImageNet-22K's alone in Table 2.5: 90 epochs with 5 of warm-up. It has no validation images."""

classes = "imagenet-22k"
data_root = "data/imagenet22k"

batch = dict(size=4096, per_gpu=32, lr_rule="linear")
custom_hooks = [dict(type="ProgressBar")]

train_cfg = dict(type="EpochLoop", max_epochs=90)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
