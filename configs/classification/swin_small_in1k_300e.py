"""Swin-S on ImageNet-1K at 224 x 224 under ConvNeXt's own recipe (Table 2.5 of the dissertation).

    bash tools/dist_train.sh configs/classification/swin_small_in1k_300e.py 8

No source prints this run: the 83.0 % top-1 of Table 2.1 are of Swin's recipe. Stochastic depth is ConvNeXt-S's. The
released code's hardware: 4 machines of 8 GPUs with 128 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="swin_small", drop_path_rate=0.4))
