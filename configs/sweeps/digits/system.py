"""Step 6 of 6 in miniature: torch.compile and gradient checkpointing, on and off.

python tools/sweep.py configs/sweeps/digits/system.py --jobs 1
"""

_base_ = "baseline.py"

space = {
    "env_cfg.compile": dict(grid=[False, True]),
    "model.backbone.grad_checkpointing": dict(grid=[False, True]),
}
seeds = 1
