"""Cascade Mask R-CNN with ResNet-50 on COCO, 3x schedule: 46.3 box AP, 40.1 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_resnet50_coco_3x.py 8 \
        --cfg-options model.backbone.weights=resnet50-0676ba61.pth

8 GPUs with 2 images each; 739 GFLOPs at 1280 x 800. The printed numbers are from Swin's paper, which trained all its
detectors alike: AdamW, 1e-4, 0.05. As in mmdet, stem and first stage are frozen, and batch norms keep the statistics of
ImageNet. As in Swin's configs, batch norms and biases are subject to weight decay. Weights: torchvision's first ones of
ImageNet-1K, with which mmdet's detectors begin.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(_delete_=True, type="resnet50", out_indices=(0, 1, 2, 3), norm_eval=True, frozen_stages=1),
)
optim_wrapper = dict(paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")))
