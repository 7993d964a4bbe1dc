"""ConvNeXt V2-Pico after FCMAE, supervised on ImageNet-1K at 224 x 224: 80.3 % top-1 (V2's paper, Table 14).

    bash tools/dist_train.sh configs/classification/convnextv2_pico_fcmae_ft_in1k.py 8 \
        --cfg-options model.backbone.weights=convnextv2_pico_1k_224_fcmae.pt

Settings of the paper's Table 9, where each block is a group of layer-wise decay. It begins with the released weights of
the masked autoencoder, which have neither final norm nor head: both are new. Hardware: 4 machines of 8 GPUs with 32
images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/fcmae_finetune.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(type="convnextv2_pico", drop_path_rate=0.0),
    data_preprocessor=dict(mixup=0.3, cutmix=0.3, label_smoothing=0.2),
)

optim_wrapper = dict(optimizer=dict(lr=2e-4 * 1024 / 256, weight_decay=0.3))

train_cfg = dict(type="EpochLoop", max_epochs=600)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-6 / 8e-4, by_epoch=True, convert_to_iter_based=True),
]
