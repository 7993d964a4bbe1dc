"""Cascade Mask R-CNN with ResNet-50 on COCO, 3x schedule: 46.3 box AP, 40.1 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_resnet50_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/resnet50_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 739 GFLOPs at 1280 x 800. The printed numbers are from Swin's paper, which trained all its
detectors alike: AdamW, 1e-4, 0.05. Batch norms keep the statistics of ImageNet, as detectors do with 2 images per GPU.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(_delete_=True, type="resnet50", out_indices=(0, 1, 2, 3), norm_eval=True),
)
