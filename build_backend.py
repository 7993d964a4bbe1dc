"""The build backend: setuptools', which is told here whether it builds an editable install or a wheel for any place."""

from __future__ import annotations

from typing import Any

from setuptools import build_meta

_editable = [False]


def is_editable() -> bool:
    """Whether this process builds an editable install, which stays on the machine of its checkout."""
    return _editable[0]


def prepare_metadata_for_build_editable(*args: Any, **kwargs: Any) -> str:
    """Write the metadata of an editable install, with setuptools' arguments; the name of its folder."""
    _editable[0] = True
    return build_meta.prepare_metadata_for_build_editable(*args, **kwargs)


def build_editable(*args: Any, **kwargs: Any) -> str:
    """Write the wheel of an editable install, with setuptools' arguments; its name."""
    _editable[0] = True
    return build_meta.build_editable(*args, **kwargs)


def __getattr__(name: str) -> Any:
    """The other hooks are setuptools'."""
    return getattr(build_meta, name)
