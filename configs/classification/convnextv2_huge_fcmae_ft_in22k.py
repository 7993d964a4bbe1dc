"""ConvNeXt V2-H after FCMAE, supervised on ImageNet-22K at 224 x 224 (Table 12 of ConvNeXt V2).

    bash tools/dist_train.sh configs/classification/convnextv2_huge_fcmae_ft_in22k.py 8 \
        --cfg-options model.backbone.weights=convnextv2_huge_1k_224_fcmae.pt

Its number is that of fine-tuning: 88.7 % top-1 on ImageNet-1K by convnextv2_huge_in22k_ft_in1k_384.py (Table 15). In
layer-wise decay three blocks are a group. Hardware: 16 machines of 8 GPUs with 32 images each; fewer are made
up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet_training.py",
    "../_base_/in22k_90e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnextv2_huge", drop_path_rate=0.3), head_init_scale=0.001)

# 2.5e-4 for 256 images, in float16 as the released fine-tuning.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    paramwise_cfg=dict(decay_rate=0.8, decay_type="layer"),
    optimizer=dict(lr=2.5e-4 * 4096 / 256),
)
