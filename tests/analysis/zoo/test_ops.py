"""The list of the functions of mmcv's compiled module is complete, and every one has an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.zoo.ops import CompiledFunction, compiled_functions, ops_markdown, served_functions
from engine.mmcv_ops.unserved import UNSERVED_OPS

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mmdet", "mmseg")


@pytest.fixture(scope="module")
def functions() -> dict[str, CompiledFunction]:
    return {function.name: function for function in compiled_functions(PACKAGES)}


def test_every_function_is_served_or_has_a_reason(functions: dict[str, CompiledFunction]) -> None:
    served = served_functions()
    assert len(functions) > 100
    assert not served.keys() & UNSERVED_OPS.keys()
    assert functions.keys() == served.keys() | UNSERVED_OPS.keys()


def test_what_detectors_and_segmentors_use_is_served(functions: dict[str, CompiledFunction]) -> None:
    assert not {name for name, function in functions.items() if function.users and not function.served}


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("deform_conv_forward", "mmdet.models.dense_heads.fovea_head"),  # by import
        ("modulated_deform_conv_forward", "mmdet.models.dense_heads.anchor_free_head"),  # by the string "DCNv2"
        ("deform_roi_pool_forward", "mmdet's configs"),
        ("psamask_forward", "mmseg.models.decode_heads.psa_head"),
        ("carafe_forward", "mmdet.models.necks.fpn_carafe"),
    ],
)
def test_users_are_found(functions: dict[str, CompiledFunction], name: str, user: str) -> None:
    assert user in functions[name].users


def test_the_page_has_the_list() -> None:
    assert ops_markdown(PACKAGES) in (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
