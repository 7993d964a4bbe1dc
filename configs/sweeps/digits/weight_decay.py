"""Step 4 of 6 in miniature: the weight decay, in rungs of 2 and 6 epochs.

python tools/sweep.py configs/sweeps/digits/weight_decay.py --jobs 2
"""

_base_ = "baseline.py"

space = {"optim_wrapper.optimizer.weight_decay": dict(grid=[1e-5, 1e-3, 1e-1])}
seeds = 1
rungs = dict(lengths=(2, 6), keep=0.34)
