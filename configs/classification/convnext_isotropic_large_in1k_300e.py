"""Isotropic ConvNeXt-L on ImageNet-1K at 224 x 224: 82.6 % top-1 (Table 2.2 of the dissertation).

    bash tools/dist_train.sh configs/classification/convnext_isotropic_large_in1k_300e.py 8

Table 2.5 but for 50 epochs of warm-up and stochastic depth 0.5 (section 2.8). The released code's hardware: 8 machines
of 8 GPUs with 64 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_isotropic_large", drop_path_rate=0.5, layer_scale_init_value=1e-6))

batch = dict(per_gpu=64)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=50, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=50, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
