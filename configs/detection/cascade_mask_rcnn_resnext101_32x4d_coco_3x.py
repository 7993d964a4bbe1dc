"""Cascade Mask R-CNN with ResNeXt-101 32x4d on COCO, 3x schedule: 48.1 box AP, 41.6 mask AP (Table 2.3).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_resnext101_32x4d_coco_3x.py 8 \
        --cfg-options model.backbone.weights=resnext101_32x4d.pth

8 GPUs with 2 images each; 819 GFLOPs at 1280 x 800. The printed numbers are from Swin's paper, which trained all its
detectors alike: AdamW, 1e-4, 0.05. As in mmdet, stem and first stage are frozen, and batch norms keep the statistics of
ImageNet. As in Swin's configs, batch norms and biases are subject to weight decay. Weights: any ImageNet-1K checkpoint
of the network under torchvision's or timm's names.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(_delete_=True, type="resnext101_32x4d", out_indices=(0, 1, 2, 3), norm_eval=True, frozen_stages=1),
)
optim_wrapper = dict(paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")))
