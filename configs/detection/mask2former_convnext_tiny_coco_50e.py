"""Mask2Former for instances with ConvNeXt-T on COCO, 50 epochs; no published number.

    bash tools/dist_train.sh configs/detection/mask2former_convnext_tiny_coco_50e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_tiny_in1k_300e/epoch_300.pth

8 GPUs with 2 images each, large-scale jitter at 1024 x 1024. The settings are those of mmdet's Mask2Former with Swin-T,
which has 47.7 box AP and 44.7 mask AP; layer-wise decay, in place of a tenth of the rate for the backbone, and
stochastic depth are those of ConvNeXt-T with Mask R-CNN. In float32, as released by mmdet; --cfg-options
optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = [
    "../_base_/mask2former.py",
    "../_base_/coco_lsj.py",
    "../_base_/schedule_mask2former.py",
    "../_base_/schedule_mask2former_50e.py",
    "../_base_/runtime.py",
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type="BatchFixedSizePad", size=(1024, 1024), pad_mask=True)]),
    backbone=dict(type="convnext_tiny", drop_path_rate=0.4),
)
train_dataloader = dict(sampler=dict(type="InfiniteSampler", shuffle=True))

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95, decay_type="layer"))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=36_875))
