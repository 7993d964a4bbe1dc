"""ConvNeXt-L from ImageNet-1K fine-tuned on it at 384 x 384: 85.5 % top-1 (Tables 2.1 and 2.6 of the dissertation).

    bash tools/dist_train.sh configs/classification/convnext_large_in1k_ft_in1k_384.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_large_in1k_300e/ema.safetensors

It begins with the best averaged weights of training, head included (section 2.8), which are taken out by

    python tools/convert_weights.py work_dirs/convnext_large_in1k_300e/best_ema_top1.pth \
        work_dirs/convnext_large_in1k_300e/ema.safetensors --to ours --ema

The released code's hardware: 2 machines of 8 GPUs with 32 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_large", drop_path_rate=0.95))
# No cropping when testing at 384 x 384.
_base_.train_pipeline[0].size = _base_.test_pipeline[0].size = 384
_base_.test_pipeline[0].crop_ratio = 1.0

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
