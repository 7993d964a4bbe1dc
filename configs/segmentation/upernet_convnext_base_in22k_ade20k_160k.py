"""UperNet with ConvNeXt-B from ImageNet-22K on ADE20K: 52.6 mIoU single-scale, 53.1 multi-scale (Tables 2.4 and 2.7).

    bash tools/dist_train.sh configs/segmentation/upernet_convnext_base_in22k_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_base_in22k_90e/epoch_90.pth

8 GPUs with 2 images each; 122 M parameters, 1828 GFLOPs at 2560 x 640. One scale is tested by sliding windows, several
on whole images (tools/test.py ... --tta).
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

# Images of about 2560 x 640, crops of 640 x 640, windows two thirds of a crop apart.
_base_.train_pipeline[2].scale = _base_.test_pipeline[1].scale = (2560, 640)
_base_.train_pipeline[3].crop_size = (640, 640)
_base_.tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale=(4 * side, side), keep_ratio=True) for side in range(320, 1121, 160)
]
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(type="convnext_base", drop_path_rate=0.4),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)

optim_wrapper = dict(paramwise_cfg=dict(num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
