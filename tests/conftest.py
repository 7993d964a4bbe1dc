"""What holds for all tests."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from backbones.kernels.cpu import native
from backbones.kernels.cpu.dispatch import simd_name
from engine import mmcv_ops
from tests.programs import digits, program, terminal, tool  # noqa: F401  (fixtures)

# Before any test module imports mmdet or mmseg: the order in which tests are collected never matters.
mmcv_ops.install()
# Tiny networks run faster on one thread, and two test processes do not fight over the cores.
torch.set_num_threads(1)
# Programs that tests start inherit it: under nohup they would ignore it, as they should, and not be stopped.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module", autouse=True)
def no_scope() -> Iterator[None]:
    """A run within a test or a fixture leaves mmengine's registries set to its scope: not for the next module."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test draws the same random numbers, alone and after any other.

    Tests marked ``gpu`` and ``native`` are for machines that have one, and what the compiled form needs.

    Those marked ``zoo`` are long, and run where the mark is asked for.

    A compiler that is there and fails is no reason to skip.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if item.get_closest_marker("zoo") and "zoo" not in item.config.option.markexpr:
        pytest.skip("long: only with -m zoo")
    if item.get_closest_marker("native") and not (
        simd_name() in native.VECTOR_FORMS and any(map(shutil.which, native.COMPILERS))
    ):
        pytest.skip("no AVX-512, AVX2 or NEON, or no C compiler")
