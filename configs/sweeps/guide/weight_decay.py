"""Step 4 of 6: the weight decay, 1e-5 to 1e-1.

python tools/sweep.py configs/sweeps/guide/weight_decay.py
"""

_base_ = "baseline.py"

space = {"optim_wrapper.optimizer.weight_decay": dict(grid=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1])}
seeds = 5
