"""Masked pre-training on a folder of your own images, of any size, without labels.

    bash tools/dist_train.sh configs/pretraining/own_images.py 1 --cfg-options data_root=FOLDER

FOLDER may have folders at any depth. Every twentieth image is held out: the loss and the pictures of its reconstruction
show whether training goes on to learn. Then give the checkpoint to a classifier, detector or segmentor on
convnextv2_tiny as `model.backbone.weights`. With fewer than some 10,000 images begin with published weights
(`model.backbone.weights=convnextv2_tiny_1k_224_fcmae.pt`) and a tenth of the rate. The rate is that of the paper's
Table 8 (1.5e-4 for 256 images); 300 epochs with 20 of warm-up are a compromise for tens of thousands of images.
"""

_base_ = ["../_base_/fcmae.py", "../_base_/runtime.py"]

data_root = "data/images"
model = dict(backbone=dict(type="convnextv2_tiny"))
train_dataloader = dict(num_workers=4, dataset=dict(split="", hold_out=20))
val_dataloader = dict(num_workers=4, dataset=dict(split="", hold_out=20, held_out=True))
test_dataloader = val_dataloader

batch = dict(size=256, per_gpu=64, lr_rule="linear")
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
train_cfg = dict(type="EpochLoop", max_epochs=300, val_interval=10)
param_scheduler = [
    dict(type="LinearWarmUpLR", start_factor=1e-6, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
