"""DINO with five scales and ConvNeXt-L from ImageNet-22K on COCO, 36 epochs; no published number.

    bash tools/dist_train.sh configs/detection/dino_5scale_convnext_large_in22k_coco_36e.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_large_in22k_90e/epoch_90.pth

8 GPUs with 2 images each. Scales and schedule are those of mmdet's dino-5scale_swin-l_8xb2-36e_coco, which has 58.4 box
AP. Over 36 epochs, layer-wise decay in place of a tenth of the rate and the stochastic depth are those of ConvNeXt-L
from ImageNet-22K with Cascade Mask R-CNN, which is trained as long at the same rate. In float32, as released;
--cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/dino.py", "../_base_/coco_instance.py", "../_base_/schedule_dino.py", "../_base_/runtime.py"]

# DINO's crops are of images of any width, and it learns from images without an object too.
_base_.train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

model = dict(
    num_feature_levels=5,
    backbone=dict(type="convnext_large", out_indices=(0, 1, 2, 3), drop_path_rate=0.7),
    neck=dict(num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)

optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, decay_rate=0.7, decay_type="layer"))
train_cfg = dict(max_epochs=36)
_base_.param_scheduler[0].milestones = [27, 33]
