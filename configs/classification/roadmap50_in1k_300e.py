"""ResNet-50, the roadmap's first network, on ImageNet-1K: 78.82 % top-1 (Table 2.10 of the dissertation).

    bash tools/dist_train.sh configs/classification/roadmap50_in1k_300e.py 8

Any other row of the table: --cfg-options model.backbone.type=roadmap50_patchify. The table gives mean and deviation of
three seeds: python tools/repeat.py, see docs/recipes.md.

Table 2.5 without averaged weights, which harm batch norm (section 2.8). Stochastic depth is not printed for these runs:
here 0.1, ConvNeXt-T's. The released code's hardware: 4 machines of 8 GPUs with 128 images each; fewer are made up for
by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="roadmap50_resnet", drop_path_rate=0.1))

custom_hooks = [dict(type="ProgressBar")]
