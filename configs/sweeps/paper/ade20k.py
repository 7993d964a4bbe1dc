"""The sweep of Section 2.8 on ADE20K: rate, layer-wise decay and stochastic depth of UperNet, 12 trainings.

    python tools/sweep.py configs/sweeps/paper/ade20k.py --gpus-per-trial 8

Written for ConvNeXt-B from ImageNet-1K. Scores are those of one scale; tools/test.py --tta tests the best at several.
"""

config = "configs/segmentation/upernet_convnext_base_ade20k_160k.py"
options = {"model.backbone.weights": "work_dirs/convnext_base_in1k_300e/epoch_300.pth"}
space = {
    "optim_wrapper.optimizer.lr": dict(grid=[8e-5, 1e-4]),
    "optim_wrapper.paramwise_cfg.decay_rate": dict(grid=[0.8, 0.9]),
    "model.backbone.drop_path_rate": dict(grid=[0.3, 0.4, 0.5]),
}
objective = "mIoU"
gpus_per_trial = 8
