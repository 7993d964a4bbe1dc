"""Step 1 of 6: the baseline of the guide to ConvNeXt sweeps, on a tenth of ImageNet-1K, with five seeds.

    python tools/sweep.py configs/sweeps/guide/baseline.py

AdamW at 1e-4 with batch 64, weight decay 0.01, cosine with 5 epochs of warm-up, stochastic depth 0.1. The next steps
vary one thing at a time and have these values otherwise.
"""

config = "configs/classification/convnext_tiny_in1k_subset_ablation.py"
options = {
    "batch.size": 64,
    "optim_wrapper.optimizer.lr": 1e-4,
    "optim_wrapper.optimizer.weight_decay": 0.01,
    "train_cfg.max_epochs": 100,
    "param_scheduler.0.end": 5,
    "param_scheduler.1.begin": 5,
    "model.backbone.drop_path_rate": 0.1,
}
space = {}
objective = "top1"
seeds = 5
