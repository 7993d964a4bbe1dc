"""The sweep of Section 2.8 on COCO: rate, layer-wise decay and stochastic depth of Cascade Mask R-CNN, 48 trainings.

    python tools/sweep.py configs/sweeps/paper/coco.py --gpus-per-trial 8

Written for ConvNeXt-B from ImageNet-22K, whose weights options names; the other sizes are other configs.
"""

config = "configs/detection/cascade_mask_rcnn_convnext_base_in22k_coco_3x.py"
options = {"model.backbone.weights": "work_dirs/convnext_base_in22k_90e/epoch_90.pth"}
space = {
    "optim_wrapper.optimizer.lr": dict(grid=[1e-4, 2e-4]),
    "optim_wrapper.paramwise_cfg.decay_rate": dict(grid=[0.7, 0.8, 0.9, 0.95]),
    "model.backbone.drop_path_rate": dict(grid=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
}
objective = "bbox_mAP"
gpus_per_trial = 8
