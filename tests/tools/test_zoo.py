"""``tools/zoo.py``: what it prints, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_the_list_of_ops(program: Callable[..., Any]) -> None:
    done = program("zoo.py", "ops")
    assert done.code == 0, done.err
    assert "| `psa_mask` | `psamask_forward`, `psamask_backward` | mmseg.models.decode_heads.psa_head |" in done.out


def test_a_named_method(program: Callable[..., Any]) -> None:
    done = program("zoo.py", "mmseg", "ccnet")
    assert done.code == 0, done.err
    assert "ccnet_r50-d8_4xb4-80k_ade20k-512x512.py" in done.out
    assert done.out.splitlines()[-1] == "1 of 1 methods work on convnext_atto"


def test_a_named_method_that_does_not_work(program: Callable[..., Any]) -> None:
    done = program("zoo.py", "mmseg", "ddrnet")
    assert done.code == 1
    assert "0 of 1 methods work on convnext_atto" in done.out
    assert "Traceback" in done.err


def test_wrong_arguments(program: Callable[..., Any]) -> None:
    done = program("zoo.py", "mmseg", "fnc")
    assert (done.code, done.err.strip()) == (2, "error: mmseg has no method 'fnc': did you mean fcn?")
    done = program("zoo.py", "mmdet", "atsss")
    assert (done.code, done.err.strip()) == (2, "error: mmdet has no method 'atsss': did you mean atss?")
    done = program("zoo.py", "mmseg", "ccnet", "--backbone", "convnext_ato")
    assert done.code == 2
    assert "convnext_ato" in done.err
    done = program("zoo.py", "mmseg", "ccnet", "--write")
    assert done.code == 2
    assert "--write is for whole tables" in done.err
