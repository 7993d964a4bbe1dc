"""UperNet with Swin-L from ImageNet-22K on ADE20K, 160k iterations: 53.5 mIoU multi-scale (Table 2.4).

    bash tools/dist_train.sh configs/segmentation/upernet_swin_large_in22k_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=swin_large_patch4_window7_224_22k.pth

8 GPUs with 2 images each; 234 M parameters, 2468 GFLOPs at 2560 x 640. One scale is tested by sliding windows, several
on whole images (tools/test.py ... --tta). The settings are those of Swin's own configs: 6e-5, weight decay 0.01,
stochastic depth 0.3, no stage-wise decay; all is subject to weight decay but norms and tables of positions.
ImageNet-22K weights: Swin's release, of 224 x 224. Trained in float32, as released; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
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
    backbone=dict(_delete_=True, type="swin_large", out_indices=(0, 1, 2, 3), drop_path_rate=0.3),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(_delete_=True, no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")),
)

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
