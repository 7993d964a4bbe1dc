"""Cascade Mask R-CNN with Swin-L from ImageNet-22K on COCO, 3x schedule: 53.9 box AP, 46.7 mask AP (Table 2.3).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_swin_large_in22k_coco_3x.py 8 \
        --cfg-options model.backbone.weights=swin_large_patch4_window7_224_22k.pth

8 GPUs with 2 images each; 1382 GFLOPs at 1280 x 800. The printed AP is the best of the paper's sweep over rate,
layer-wise decay and stochastic depth, whose choice is not printed: these are Swin's own 1e-4 and 0.3 without layer-wise
decay, with weight decay for all but norms and tables of positions, and docs/recipes.md launches the sweep from here.
ImageNet-22K weights: Swin's release.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(_delete_=True, type="swin_large", out_indices=(0, 1, 2, 3), drop_path_rate=0.3),
)
optim_wrapper = dict(paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")))
