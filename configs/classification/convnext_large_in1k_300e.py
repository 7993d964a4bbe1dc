"""ConvNeXt-L on ImageNet-1K at 224 x 224: 84.3 % top-1 (Tables 2.1 and 2.5 of the dissertation).

    bash tools/dist_train.sh configs/classification/convnext_large_in1k_300e.py 8

The released code's hardware: 8 machines of 8 GPUs with 64 images each; fewer are made up for by accumulation. This
network overfits: the averaged weights are the better ones, and fine-tuning at 384 begins with the best of them, which
the run keeps as best_ema_top1.pth (section 2.8).
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.5, layer_scale_init_value=1e-6))

batch = dict(per_gpu=64)

default_hooks = dict(checkpoint=dict(save_best="ema/top1"))
