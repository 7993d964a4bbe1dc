"""Step 1 of 6 in miniature: the digits' baseline with three seeds.

    python tools/make_digits.py && python tools/sweep.py configs/sweeps/digits/baseline.py --jobs 2

A twelfth of the digits for 3 epochs, so that all six steps run on a laptop; the scores say nothing about ImageNet.
"""

config = "configs/classification/digits.py"
options = {
    "batch.size": 16,
    "optim_wrapper.optimizer.lr": 2e-3,
    "optim_wrapper.optimizer.weight_decay": 0.05,
    "train_cfg.max_epochs": 3,
    "train_dataloader.dataset.every": 12,
    "val_dataloader.dataset.every": 4,
    "train_dataloader.num_workers": 0,
    "val_dataloader.num_workers": 0,
    "train_pipeline.0.size": 32,
    "test_pipeline.0.size": 32,
}
space = {}
objective = "top1"
seeds = 3
