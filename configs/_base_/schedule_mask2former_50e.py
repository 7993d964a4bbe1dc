"""Mask2Former's length on COCO: 50 epochs of batch 16, the rate cut to a tenth after 8/9 and again after 26/27.

An experiment of 100 epochs states steps and cuts of its own. It goes with ``schedule_mask2former.py``.
"""

train_cfg = dict(type="IterationLoop", max_iters=368_750, val_interval=36_875)
param_scheduler = [dict(type="MultiStepLR", milestones=[327_778, 355_092], gamma=0.1, by_epoch=False)]
