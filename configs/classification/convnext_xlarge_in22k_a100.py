"""ConvNeXt-XL pre-trained on ImageNet-22K on 128 A100 GPUs in bfloat16 ("ConvNeXt-XL on 128 A100").

    bash tools/dist_train.sh configs/classification/convnext_xlarge_in22k_a100.py 8

16 machines of 8 A100 (80 GB): 128 GPUs x 8 images x 4 steps of accumulation = 4,096. The source prints no accuracy; its
fine-tuning is convnext_xlarge_in22k_ft_in1k_100e.py. What it leaves open is Table 2.5's: 90 epochs, erasing, smoothing,
stochastic depth, layer scale, no averaged weights.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet_training.py",
    "../_base_/in22k_90e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_xlarge", drop_path_rate=0.2, layer_scale_init_value=1e-6))

batch = dict(per_gpu=8)
optim_wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16", clip_grad=dict(max_norm=1.0))

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
