"""ResNet-50 on ImageNet-1K at 224 x 224 under ConvNeXt's own recipe: 78.8 % top-1 (Table 2.10 of the dissertation).

    bash tools/dist_train.sh configs/classification/resnet50_in1k_300e.py 8

The network and its initialisation, Table 2.5's, are those of roadmap50_in1k_300e.py; the names are timm's, which the
detectors load. No averaged weights, which harm batch norm (section 2.8); stochastic depth is ConvNeXt-T's. The released
code's hardware: 4 machines of 8 GPUs with 128 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="resnet50", drop_path_rate=0.1, init_std=0.02))

custom_hooks = [dict(type="ProgressBar")]
