"""ConvNeXt V2-H from ImageNet-22K fine-tuned on ImageNet-1K at 384 x 384: 88.7 % top-1 (Tables 13 and 15 of V2).

    bash tools/dist_train.sh configs/classification/convnextv2_huge_in22k_ft_in1k_384.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnextv2_huge_fcmae_ft_in22k/epoch_90.pth

It begins with the raw weights of the fine-tuning on ImageNet-22K and a new head. In layer-wise decay three blocks are a
group. Hardware: 4 machines of 8 GPUs with 16 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnextv2_huge", drop_path_rate=0.5))
# No cropping when testing at 384 x 384.
_base_.train_pipeline[0].size = _base_.test_pipeline[0].size = 384
_base_.test_pipeline[0].crop_ratio = 1.0

batch = dict(per_gpu=16)
# In float16, as the released fine-tuning.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", paramwise_cfg=dict(decay_rate=0.85))
