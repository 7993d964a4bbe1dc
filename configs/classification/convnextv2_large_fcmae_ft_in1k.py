"""ConvNeXt V2-L after FCMAE, supervised on ImageNet-1K at 224 x 224: 85.8 % top-1 (V2's paper, Table 14).

    bash tools/dist_train.sh configs/classification/convnextv2_large_fcmae_ft_in1k.py 8 \
        --cfg-options model.backbone.weights=convnextv2_large_1k_224_fcmae.pt

Settings of the paper's Table 11, where three blocks are a group of layer-wise decay. The rate that it prints for B and
L, 6.25e-3 per 256 images, is ten times that of the released TRAINING.md for B, which is taken here. It begins with the
released weights of the masked autoencoder, which have neither final norm nor head: both are new. Hardware: 4 machines
of 8 GPUs with 32 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/fcmae_finetune.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnextv2_large", drop_path_rate=0.2))

optim_wrapper = dict(
    paramwise_cfg=dict(decay_rate=0.6, decay_type="layer"),
    optimizer=dict(lr=6.25e-4 * 1024 / 256),
)

train_cfg = dict(type="EpochLoop", max_epochs=100)
param_scheduler = [
    dict(type="LinearWarmUpLR", start_factor=1e-6, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=20,
        eta_min_ratio=1e-6 / 2.5e-3,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
