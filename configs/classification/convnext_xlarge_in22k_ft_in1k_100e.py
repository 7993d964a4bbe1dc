"""ConvNeXt-XL from convnext_xlarge_in22k_a100.py fine-tuned on ImageNet-1K for 100 epochs.

    bash tools/dist_train.sh configs/classification/convnext_xlarge_in22k_ft_in1k_100e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_xlarge_in22k_a100/epoch_90.pth

The source, "ConvNeXt-XL on 128 A100", prints no accuracy. It prints epochs, rate, batch and testing by one crop at
224 x 224; the rest is that of
Table 2.6 for ConvNeXt-XL, and precision and clipping go on as in pre-training, on its 128 A100 (80 GB).
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_xlarge", drop_path_rate=0.4))

batch = dict(size=2048, per_gpu=16)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    clip_grad=dict(max_norm=1.0),
    optimizer=dict(lr=2e-4),
)
custom_hooks = [dict(type="ProgressBar"), dict(type="ModelEMAHook", decay=0.9999)]

train_cfg = dict(max_epochs=100)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-6 / 2e-4, by_epoch=True, convert_to_iter_based=True),
]
