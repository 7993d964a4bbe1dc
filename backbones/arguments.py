"""Which arguments a class or function takes, those included that it passes on to its base classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from inspect import Parameter
from typing import Any

_ANY = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def parameters_of(build: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """Follow ``**kwargs`` of a constructor through its base classes.

    Args:
        build: Class, function, or a :func:`functools.partial` of one.

    Returns:
        Parameters by name, without ``self``, and whether other names may be taken too: where ``**kwargs`` ends in a
        function, or nowhere.
    """
    if isinstance(build, partial):
        found, is_open = parameters_of(build.func)
        return {name: found[name] for name in [*found][len(build.args) :]}, is_open
    found = {}
    for signature in _signatures(build):
        named = [one for one in signature.parameters.values() if one.kind not in _ANY]
        found.update({one.name: one for one in named if one.name not in found})
        if not any(one.kind is Parameter.VAR_KEYWORD for one in signature.parameters.values()):
            return found, False
    return found, True


def required_by(build: Callable[..., Any]) -> list[str]:
    """Arguments that a class must be given; those of its base classes it may state itself, and of functions any may."""
    signatures = _signatures(build) if inspect.isclass(build) else iter(())
    own = next(signatures, inspect.Signature()).parameters.values()
    return [one.name for one in own if one.default is Parameter.empty and one.kind not in _ANY]


def named_in_constructors(build: Callable[..., Any]) -> set[str]:
    """Texts in the code of the constructors of a class, such as an argument's name in ``kwargs.pop("name")``."""
    bases = inspect.getmro(build) if inspect.isclass(build) else ()
    codes = [getattr(inspect.unwrap(base.__init__), "__code__", None) for base in bases]  # type: ignore[misc]
    return {text for code in codes if code for text in code.co_consts if isinstance(text, str)}


def _signatures(build: Callable[..., Any]) -> Iterator[inspect.Signature]:
    """Signatures of a function, or of the constructors of a class and its bases in the order of resolution."""
    if not inspect.isclass(build):
        yield inspect.signature(build)
        return
    for owner in build.__mro__[:-1]:  # the last is object, which takes nothing
        if "__init__" in vars(owner):
            signature = inspect.signature(vars(owner)["__init__"])
            yield signature.replace(parameters=list(signature.parameters.values())[1:])
