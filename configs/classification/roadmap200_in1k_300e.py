"""ResNet-200, the roadmap's first network, on ImageNet-1K: 81.14 % top-1 (Table 2.11 of the dissertation).

    bash tools/dist_train.sh configs/classification/roadmap200_in1k_300e.py 8

Any other row of the table: --cfg-options model.backbone.type=roadmap200_patchify. The table gives one run per row.

Table 2.5 without averaged weights, which harm batch norm (section 2.8). Stochastic depth is not printed for these runs:
here 0.5, ConvNeXt-B's, the network it ends as. The released code's hardware: 4 machines of 8 GPUs with 128 images each;
fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="roadmap200_resnet", drop_path_rate=0.5))

custom_hooks = [dict(type="ProgressBar")]
