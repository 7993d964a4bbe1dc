"""Mask2Former with ConvNeXt-B from ImageNet-22K on COCO, panoptic, 50 epochs; no published number.

    bash tools/dist_train.sh configs/detection/mask2former_convnext_base_in22k_coco_panoptic_50e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_base_in22k_90e/epoch_90.pth

8 GPUs with 2 images each, large-scale jitter at 1024 x 1024. All other settings are those of
facebookresearch/Mask2Former with Swin-B from ImageNet-22K, which has 56.4 PQ; layer-wise decay, in place of a tenth of
the rate for the backbone, and stochastic depth are those of ConvNeXt-B from ImageNet-22K with Cascade Mask R-CNN. In
float32, as released by mmdet; --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in
bfloat16.
"""

_base_ = [
    "../_base_/mask2former.py",
    "../_base_/coco_panoptic.py",
    "../_base_/schedule_mask2former.py",
    "../_base_/schedule_mask2former_50e.py",
    "../_base_/runtime.py",
]

model = dict(
    data_preprocessor=dict(
        pad_seg=True,
        seg_pad_value=255,
        batch_augments=[
            dict(type="BatchFixedSizePad", size=(1024, 1024), pad_mask=True, pad_seg=True, seg_pad_value=255),
        ],
    ),
    backbone=dict(type="convnext_base", drop_path_rate=0.6),
    test_cfg=dict(instance_on=False),
)

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8, decay_type="layer"))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=36_875))
