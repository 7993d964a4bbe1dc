"""UperNet with ConvNeXt V2-B on ADE20K, 160k iterations: 52.1 mIoU multi-scale (Table 7 of V2).

    bash tools/dist_train.sh configs/segmentation/upernet_convnextv2_base_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnextv2_base_fcmae_ft_in1k/epoch_100.pth

8 GPUs with 2 images each; 122 M parameters, 1170 GFLOPs at 2048 x 512. It begins with the supervised
fine-tuning after FCMAE (released: convnextv2_base_1k_224_ema.pt) and is tested by tools/test.py ... --tta.

The paper gives batch 16, five scales of testing and sweeps of the rate over 1e-4 to 3e-4, of layer-wise decay over 0.8
and 0.9 and of stochastic depth over 0.1 to 0.4 (A.4), not what the sweeps chose. Rate, decay by stages, stochastic
depth and warm-up are those of ConvNeXt-B and L in their released configs; float16 is that of V2's fine-tuning.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

model = dict(
    backbone=dict(_delete_=True, type="convnextv2_base", out_indices=(0, 1, 2, 3), drop_path_rate=0.4),
)
# 0.75 to 1.25 of the size that one-scale testing has.
_base_.tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale=(4 * side, side), keep_ratio=True) for side in range(384, 641, 64)
]

optim_wrapper = dict(paramwise_cfg=dict(num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
