"""Mask2Former for instances with ConvNeXt-L from ImageNet-22K on COCO, 100 epochs; no published number.

    bash tools/dist_train.sh configs/detection/mask2former_convnext_large_in22k_coco_100e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_large_in22k_90e/epoch_90.pth

8 GPUs with 2 images each, large-scale jitter at 1024 x 1024. 200 queries, twice the 50 epochs and all other settings
are those of facebookresearch/Mask2Former with Swin-L from ImageNet-22K, which has 50.1 mask AP; layer-wise decay, in
place of a tenth of the rate for the backbone, and stochastic depth are those of ConvNeXt-L from ImageNet-22K with
Cascade Mask R-CNN. In float32, as released by mmdet; --cfg-options optim_wrapper.type=AmpOptimWrapper
optim_wrapper.dtype=bfloat16 trains in bfloat16.
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
    backbone=dict(type="convnext_large", drop_path_rate=0.7),
    panoptic_head=dict(num_queries=200),
)
train_dataloader = dict(sampler=dict(type="InfiniteSampler", shuffle=True))

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7, decay_type="layer"))
train_cfg = dict(max_iters=737_500)
_base_.param_scheduler[0].milestones = [655_556, 710_184]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=36_875))
