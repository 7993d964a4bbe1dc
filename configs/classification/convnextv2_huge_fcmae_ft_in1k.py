"""ConvNeXt V2-H after FCMAE, supervised on ImageNet-1K at 224 x 224: 86.3 % top-1 (V2's paper, Table 14).

    bash tools/dist_train.sh configs/classification/convnextv2_huge_fcmae_ft_in1k.py 8 \
        --cfg-options model.backbone.weights=convnextv2_huge_1k_224_fcmae.pt

Settings of the paper's Table 11, with groups of three blocks for layer-wise decay. Its row of rates is ten times the
released one for B (TRAINING.md), so 1.25e-4 per 256 images is taken for the printed 1.25e-3; that is a conjecture, and
`--cfg-options optim_wrapper.optimizer.lr=5e-3` is the printed rate. It begins with the released weights of the masked
autoencoder, which have neither final norm nor head: both are new. Hardware: 4 machines of 8 GPUs with 32 images each;
fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/fcmae_finetune.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnextv2_huge", drop_path_rate=0.3))

optim_wrapper = dict(
    paramwise_cfg=dict(decay_rate=0.75, decay_type="layer"),
    optimizer=dict(lr=1.25e-4 * 1024 / 256),
)

train_cfg = dict(type="EpochLoop", max_epochs=50)
param_scheduler = [
    dict(type="LinearWarmUpLR", start_factor=1e-6, end=10, by_epoch=True, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=10,
        eta_min_ratio=1e-6 / 5e-4,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
