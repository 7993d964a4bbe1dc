"""Tensors among the arguments and results of modules and operators: nested dictionaries, lists and tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.utils import apply_to
from torch import Tensor


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The nested value with each tensor replaced by ``function`` of it."""
    return apply_to(tree, lambda leaf: isinstance(leaf, Tensor), function)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a nested value, in their order."""
    found: list[Tensor] = []
    apply_to(tree, lambda leaf: isinstance(leaf, Tensor), found.append)
    return found
