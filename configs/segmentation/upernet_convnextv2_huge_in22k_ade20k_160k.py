"""UperNet with ConvNeXt V2-H from ImageNet-22K on ADE20K at 640: 57.0 mIoU multi-scale (Table 7 of V2).

    bash tools/dist_train.sh configs/segmentation/upernet_convnextv2_huge_in22k_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnextv2_huge_fcmae_ft_in22k/epoch_90.pth

8 GPUs with 2 images each; 707 M parameters, 5113 GFLOPs at 2560 x 640. It begins with the weights of the fine-tuning on
ImageNet-22K after FCMAE, of which no file is released without ImageNet-1K behind it; tested by tools/test.py ... --tta.

The paper gives batch 16, five scales of testing and sweeps of the rate over 1e-4 to 3e-4, of layer-wise decay over 0.8
and 0.9 and of stochastic depth over 0.1 to 0.4 (A.4), not what the sweeps chose. Rate, decay by stages, stochastic
depth and warm-up are those of ConvNeXt-B and L in their released configs; float16 is that of V2's fine-tuning.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

# Images of about 2560 x 640, crops of 640 x 640, windows two thirds of a crop apart, several scales at 0.75 to 1.25.
_base_.train_pipeline[2].scale = _base_.test_pipeline[1].scale = (2560, 640)
_base_.train_pipeline[3].crop_size = (640, 640)
_base_.tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale=(4 * side, side), keep_ratio=True) for side in range(480, 801, 80)
]
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(_delete_=True, type="convnextv2_huge", out_indices=(0, 1, 2, 3), drop_path_rate=0.4),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)

optim_wrapper = dict(paramwise_cfg=dict(num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
