"""Cascade Mask R-CNN with Swin-B on COCO, 3x schedule: 51.9 box AP, 45.0 mask AP (Table 2.3 of the dissertation).

    bash tools/dist_train.sh configs/detection/cascade_mask_rcnn_swin_base_coco_3x.py 8 \
        --cfg-options model.backbone.weights=work_dirs/swin_base_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 982 GFLOPs at 1280 x 800. Rate, weight decay and stochastic depth are those of Swin's own
configs: 1e-4, 0.05 and 0.3, without layer-wise decay; all is subject to weight decay but norms and tables of positions.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/schedule_3x.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(_delete_=True, type="swin_base", out_indices=(0, 1, 2, 3), drop_path_rate=0.3),
)
optim_wrapper = dict(paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")))
