"""What is ImageNet-1K's alone in Table 2.5: 300 epochs with 20 of warm-up, and averaged weights."""

batch = dict(size=4096, per_gpu=128, lr_rule="linear")
custom_hooks = [dict(type="ProgressBar"), dict(type="ModelEMAHook", decay=0.9999)]

train_cfg = dict(type="EpochLoop", max_epochs=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
