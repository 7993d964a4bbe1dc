"""Mask R-CNN with ConvNeXt V2-B after FCMAE on COCO, 3x schedule: 52.9 box AP, 46.6 mask AP (Table 6 of V2).

    bash tools/dist_train.sh configs/detection/mask_rcnn_convnextv2_base_coco_lsj_3x.py 8 \
        --cfg-options model.backbone.weights=convnextv2_base_1k_224_fcmae.pt

8 GPUs with 4 images each; 486 GFLOPs at 1280 x 800.

The paper gives batch 32, 1e-4, large-scale jitter at 1024 x 1024, soft-NMS and sweeps of layer-wise decay over 0.9 and
0.95 and of stochastic depth over 0.2 to 0.5 (A.3), not what the sweeps chose. Decay, stochastic depth, warm-up and
float16 are those of mmdet's projects/ConvNeXt-V2, which has 52.9 box AP and 46.4 mask AP with them.
"""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_lsj.py", "../_base_/schedule_3x.py", "../_base_/runtime.py"]

model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type="BatchFixedSizePad", size=(1024, 1024), pad_mask="from_model")],
    ),
    backbone=dict(_delete_=True, type="convnextv2_base", out_indices=(0, 1, 2, 3), drop_path_rate=0.4),
    test_cfg=dict(rcnn=dict(nms=dict(type="soft_nms"))),
)

batch = dict(size=32, per_gpu=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95, decay_type="layer"))
_base_.param_scheduler[0].end = 1000
