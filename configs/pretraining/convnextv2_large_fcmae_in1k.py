"""Masked pre-training (FCMAE) of ConvNeXt V2-L on ImageNet-1K without its labels: 1,600 epochs.

    bash tools/dist_train.sh configs/pretraining/convnextv2_large_fcmae_in1k.py 8

Fine-tuned on ImageNet-1K at 224 x 224 it reaches 85.8 % top-1 in the paper, 85.6 after 800 epochs (`--cfg-options
train_cfg.max_epochs=800`); the same network without pre-training 84.5 (ConvNeXt V2's release and paper). Encoder and
decoder are initialised with 0.02, where the released code has a standard deviation of 1 in part. Hardware: 8 machines
of 8 GPUs with 64 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/fcmae.py",
    "../_base_/fcmae_1600e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnextv2_large"))
