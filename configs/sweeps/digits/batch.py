"""Step 3 of 6 in miniature: two batches with three rates each.

python tools/sweep.py configs/sweeps/digits/batch.py --jobs 2
"""

_base_ = "baseline.py"

space = {
    "batch.size": dict(grid=[8, 32]),
    "optim_wrapper.optimizer.lr": dict(grid=[5e-4, 2e-3, 8e-3]),
}
seeds = 1
