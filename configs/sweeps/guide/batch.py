"""Step 3 of 6: the batch, 32 to 1024 images, each with its own rates.

    python tools/sweep.py configs/sweeps/guide/batch.py

Rates around the baseline's, scaled by the square root rule and by the linear one: the points that the fits of rate
against batch need.
"""

_base_ = "baseline.py"

space = {
    "batch.size": dict(grid=[32, 64, 128, 256, 512, 1024]),
    "optim_wrapper.optimizer.lr": dict(grid=[5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]),
}
options = {"env_cfg.noise_scale": True}
seeds = 3
