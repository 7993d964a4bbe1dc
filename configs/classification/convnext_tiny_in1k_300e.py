"""ConvNeXt-T on ImageNet-1K at 224 x 224: 82.1 % top-1 (Tables 2.1 and 2.5 of the dissertation; the paper's Table 5).

    bash tools/dist_train.sh configs/classification/convnext_tiny_in1k_300e.py 32

The paper's hardware was 4 machines of 8 GPUs with 128 images each; any other number is spread over accumulation.
"""

_base_ = ["../_base_/classification.py", "../_base_/runtime.py"]

classes = "imagenet-1k"
model = dict(
    backbone=dict(type="convnext_tiny", drop_path_rate=0.1, layer_scale_init_value=1e-6),
    data_preprocessor=dict(mixup=0.8, cutmix=1.0, erasing=0.25, label_smoothing=0.1),
)
train_pipeline = [dict(type="ClassificationTransform", size=224, training=True, rand_augment="rand-m9-mstd0.5-inc1")]
test_pipeline = [dict(type="ClassificationTransform", size=224, crop_ratio=0.875)]

batch = dict(size=4096, per_gpu=128, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    optimizer=dict(type="AdamW", lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
custom_hooks = [dict(type="ProgressBar"), dict(type="KeepEMA", decay=0.9999)]

train_cfg = dict(type="EpochLoop", max_epochs=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, T_max=280, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
