"""Step 6 of 6: torch.compile and gradient checkpointing, on and off; steps per second and memory are in each run's log.

python tools/sweep.py configs/sweeps/guide/system.py --jobs 1
"""

_base_ = "baseline.py"

space = {
    "env_cfg.compile": dict(grid=[False, True]),
    "model.backbone.grad_checkpointing": dict(grid=[False, 0.5, True]),
}
seeds = 3
