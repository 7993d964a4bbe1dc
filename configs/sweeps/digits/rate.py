"""Step 2 of 6 in miniature: the rate.

python tools/sweep.py configs/sweeps/digits/rate.py --jobs 2
"""

_base_ = "baseline.py"

space = {"optim_wrapper.optimizer.lr": dict(grid=[1e-5, 1e-4, 1e-3, 1e-2])}
seeds = 2
