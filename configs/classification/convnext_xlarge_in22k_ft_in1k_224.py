"""ConvNeXt-XL from ImageNet-22K fine-tuned on ImageNet-1K at 224 x 224: 87.0 % top-1 (Tables 2.1 and 2.6).

    bash tools/dist_train.sh configs/classification/convnext_xlarge_in22k_ft_in1k_224.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_xlarge_in22k_90e/epoch_90.pth

It begins with the raw weights of pre-training and a new head. The released code's hardware: 4 machines of 8 GPUs with
16 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_xlarge", drop_path_rate=0.4))

batch = dict(per_gpu=16)
custom_hooks = [dict(type="ProgressBar"), dict(type="ModelEMAHook", decay=0.9999)]
