"""ConvNeXt-T from ImageNet-22K fine-tuned on ImageNet-1K at 384 x 384: 84.1 % top-1 (Tables 2.1 and 2.6).

    bash tools/dist_train.sh configs/classification/convnext_tiny_in22k_ft_in1k_384.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_tiny_in22k_90e/epoch_90.pth

It begins with the raw weights of pre-training and a new head. Layer-wise decay has T's 6 groups, as in the released
detectors and segmentors; the released fine-tuning code has 12 and refuses T, for whose 18 blocks half of them would be
empty. Hardware: 4 machines of 8 GPUs with 16 images each, the released code's for B; fewer are made up for by
accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_tiny", drop_path_rate=0.0))
# No cropping when testing at 384 x 384.
_base_.train_pipeline[0].size = _base_.test_pipeline[0].size = 384
_base_.test_pipeline[0].crop_ratio = 1.0

batch = dict(per_gpu=16)
