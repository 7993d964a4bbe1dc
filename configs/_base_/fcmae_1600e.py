"""The schedule of FCMAE on ImageNet-1K: batch 4,096, 1,600 epochs with 40 of warm-up, cosine to 0 (Table 8)."""

batch = dict(size=4096, per_gpu=64, lr_rule="linear")
train_cfg = dict(type="EpochLoop", max_epochs=1600)
param_scheduler = [
    dict(type="LinearWarmUpLR", start_factor=1e-6, end=40, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=40, eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
