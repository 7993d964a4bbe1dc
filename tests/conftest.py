"""What holds for all tests."""

from __future__ import annotations

import pytest
import torch

from engine import mmcv_ops
from tests.programs import digits, program, terminal, tool  # noqa: F401  (fixtures)

# Before any test module imports mmdet or mmseg: the order in which tests are collected never matters.
mmcv_ops.install()
# Tiny networks run faster on one thread, and two test processes do not fight over the cores.
torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``gpu`` are for machines that have one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")
