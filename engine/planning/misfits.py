"""Layers that do not fit together: channels that a layer does not take, maps that a backbone does not return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from backbones.errors import ConfigError
from engine.config.datasets import mappings

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


class MisfitError(ConfigError):
    """A part of a model cannot read what another one gives."""


@contextmanager
def refusing_misfits(model: nn.Module, settings: Mapping[str, Any]) -> Iterator[None]:
    """Refuse, by forward hooks, a layer that gets another number of channels than it takes, and missing maps.

    Args:
        model: The model, whose attribute ``backbone`` gives the maps.
        settings: ``model`` of the config.

    Raises:
        MisfitError: With the part and the setting.
    """
    backbone = getattr(model, "backbone", None)
    maps = tuple(getattr(backbone, "out_channels", ()))

    def check(name: str, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0] if arguments else None
        if not isinstance(x, Tensor) or x.ndim < 2:
            return
        takes, gets = 0, 0  # images without a batch are left to the layer
        if isinstance(layer, nn.Linear):
            takes, gets = layer.in_features, x.shape[-1]
        elif isinstance(layer, _CONVOLUTIONS) and x.ndim == layer.weight.ndim:
            takes, gets = layer.in_channels, x.shape[1]
        if takes != gets:
            raise MisfitError(_wrong_channels(name, takes, gets, maps, settings))

    layers = {name: one for name, one in model.named_modules() if isinstance(one, (*_CONVOLUTIONS, nn.Linear))}
    outside = {name: one for name, one in layers.items() if not name.startswith("backbone.")}
    hooks = [one.register_forward_pre_hook(partial(check, name)) for name, one in outside.items()]
    try:
        yield
    except MisfitError:
        raise
    except Exception as error:  # a library may refuse a missing map in any way
        if maps and (found := _missing_maps(model, settings, len(maps))):
            raise MisfitError(found) from error
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _wrong_channels(name: str, takes: int, gets: int, maps: tuple[int, ...], settings: Mapping[str, Any]) -> str:
    part = name.partition(".")[0]
    line = f"model.{name} takes {takes} channels and gets {gets}: correct in_channels of model.{part}"
    if part != "neck" and settings.get("neck"):
        return f"{line}; it reads the maps of model.neck"
    given = ", ".join(map(str, maps))
    return f"{line}; the backbone gives {given}, which 'from_backbone' stands for" if given else line


def _missing_maps(model: nn.Module, settings: Mapping[str, Any], maps: int) -> str:
    """The first part that reads other maps than the backbone returns; empty if there is none."""
    reads_maps = any(key == "neck" or key.endswith("head") for key in settings)  # a classifier reads the vector
    if reads_maps and getattr(model.backbone, "out_indices", ()) is None:
        return "model.backbone returns one vector for each image, and no map: state out_indices=(0, 1, 2, 3)"
    neck = settings.get("neck") or {}
    first = neck[0] if isinstance(neck, list) else neck
    stated = first.get("in_channels")
    if isinstance(stated, list | tuple) and len(stated) != maps:
        return (
            f"model.neck.in_channels has {len(stated)} numbers, and the backbone returns {maps} maps: state "
            "in_channels='from_backbone', or other out_indices of the backbone"
        )
    for key in [] if first else [key for key in settings if key.endswith("head")]:
        for part in mappings(settings[key]):
            index = part.get("in_index", ())
            wanted = max((index,) if isinstance(index, int) else index, default=0)
            if wanted >= maps:
                return (
                    f"model.{key}.in_index={index}, and the backbone returns {maps} maps: state its out_indices, such "
                    "as (0, 1, 2, 3)"
                )
    return ""
