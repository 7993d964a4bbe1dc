"""ConvNeXt-B from ImageNet-1K fine-tuned on it at 384 x 384: 85.1 % top-1 (Tables 2.1 and 2.6 of the dissertation).

    bash tools/dist_train.sh configs/classification/convnext_base_in1k_ft_in1k_384.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_base_in1k_300e/epoch_300.pth

It begins with the raw weights of training, head included. The released code's hardware: 2 machines of 8 GPUs with 32
images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_base", drop_path_rate=0.8))
# No cropping when testing at 384 x 384.
_base_.train_pipeline[0].size = _base_.test_pipeline[0].size = 384
_base_.test_pipeline[0].crop_ratio = 1.0

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
