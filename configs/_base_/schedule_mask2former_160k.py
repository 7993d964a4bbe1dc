"""Mask2Former's length on ADE20K: 160k iterations, polynomial decay to 0. It goes with ``schedule_mask2former.py``."""

train_cfg = dict(type="IterationLoop", max_iters=160_000, val_interval=16_000)
param_scheduler = [dict(type="PolyDecayLR", power=0.9, by_epoch=False)]
