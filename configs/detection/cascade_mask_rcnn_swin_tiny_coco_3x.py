"""Cascade Mask R-CNN with Swin-T on COCO, 3x schedule: 50.4 box AP, 43.7 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_swin_tiny_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/swin_tiny_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 745 GFLOPs at 1280 x 800. Rate, weight decay and stochastic depth are those of Swin's own
configs: 1e-4, 0.05 and 0.2, without layer-wise decay; all is subject to weight decay but norms and tables of positions.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(_delete_=True, type="swin_tiny", out_indices=(0, 1, 2, 3), drop_path_rate=0.2),
)
optim_wrapper = dict(paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")))
