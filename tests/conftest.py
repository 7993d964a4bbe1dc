"""What holds for all tests."""

from __future__ import annotations

import torch

from engine import mmcv_ops

# Before any test module imports mmdet or mmseg: the order in which tests are collected never matters.
mmcv_ops.install()
# Tiny networks run faster on one thread, and two test processes do not fight over the cores.
torch.set_num_threads(1)
