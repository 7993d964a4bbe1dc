"""ConvNeXt-S from ImageNet-22K fine-tuned on ImageNet-1K at 224 x 224: 84.6 % top-1 (Tables 2.1 and 2.6).

    bash tools/dist_train.sh configs/classification/convnext_small_in22k_ft_in1k_224.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_small_in22k_90e/epoch_90.pth

It begins with the raw weights of pre-training and a new head. Hardware: 2 machines of 8 GPUs with 32 images each, the
released code's for B; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_small", drop_path_rate=0.1))
