"""ConvNeXt-L pre-trained on ImageNet-22K at 224 x 224 (Table 2.5 of the dissertation).

    bash tools/dist_train.sh configs/classification/convnext_large_in22k_90e.py 8

Its number is that of fine-tuning: 86.6 % top-1 on ImageNet-1K by convnext_large_in22k_ft_in1k_224.py (Table 2.1).
Images lie in data/imagenet22k/train/<WordNet id>/ for each of the 21,841 classes. The released code's hardware: 16
machines of 8 GPUs with 32 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet_training.py",
    "../_base_/in22k_90e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.1, layer_scale_init_value=1e-6))
