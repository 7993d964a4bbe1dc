"""Step 2 of 6: the rate, 1e-5 to 1e-2.

    python tools/sweep.py configs/sweeps/guide/rate.py

Each point is trained for 11 epochs, the better half of them for 33, and a quarter for 100, with a whole schedule each.
"""

_base_ = "baseline.py"

space = {"optim_wrapper.optimizer.lr": dict(log_uniform=(1e-5, 1e-2))}
sampler = "qmc"
budget = dict(trials=16)
seeds = 3
rungs = dict(lengths=(11, 33, 100), keep=0.5)
