"""Batches as plain data and back, so that a file of them is read without executing anything in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from torch import Tensor

from backbones.errors import UserError
from engine.task import TASK_SPECS

KIND, VALUE = "__kind__", "value"
ARRAY, UNKNOWN = "ndarray", "unknown"
# Classes of every task; those of a task alone are in its TaskSpec.sample_types.
ELEMENTS = (BaseDataElement, InstanceData, LabelData, PixelData)


def encode(value: Any) -> Any:
    """Turn a batch into mappings, lists, tuples, tensors on the CPU, numbers and strings.

    Args:
        value: Any tree of these, of NumPy arrays, and of the data elements of mmengine and the registered tasks.
            What else is in it is replaced by the name of its class.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Tensor):
        # A copy: a file would take the whole memory behind a view.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        plain = value.dtype.kind in "biufc"
        return {KIND: ARRAY, VALUE: torch.from_numpy(np.ascontiguousarray(value).copy()) if plain else value.tolist()}
    if isinstance(value, Mapping):
        return {encode(key): encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(encode, value))
    return {KIND: _kind(value), **_fields(value)}


def decode(value: Any) -> Any:
    """The batch that :func:`encode` described.

    Raises:
        UserError: If it names a class that is not among those of a batch.
    """
    if isinstance(value, dict) and KIND in value:
        return _built(value[KIND], value)
    if isinstance(value, dict):
        return {key: decode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(decode, value))
    return value


def samples(part: Any) -> list[dict[str, Any]]:
    """Path and id of each image of a micro-batch, in its order, with what its pixels are.

    Returns:
        Mappings with ``path``, ``id`` (``None`` where the batch does not say it) and the image's :func:`describe`.
    """
    inputs = part.get("inputs", []) if isinstance(part, Mapping) else []
    elements = part.get("data_samples") or [] if isinstance(part, Mapping) else []
    paths = part.get("img_path", []) if isinstance(part, Mapping) else []
    names = [(path, None) for path in paths] or [
        (element.get("img_path"), element.get("img_id")) for element in elements if isinstance(element, BaseDataElement)
    ]
    images = [describe(image) if isinstance(image, Tensor) else None for image in inputs]
    count = max(len(names), len(images))
    names += [(None, None)] * (count - len(names))
    images += [None] * (count - len(images))
    return [
        {"path": None if path is None else str(path), "id": encode(number), "image": image}
        for (path, number), image in zip(names, images, strict=True)
    ]


def describe(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype, number of NaN and Inf, and the range of all other values."""
    values = tensor.detach()
    finite = values[values.isfinite()]
    return {
        "shape": list(values.shape),
        "dtype": str(values.dtype).removeprefix("torch."),
        "nan": int(values.isnan().sum()),
        "inf": int(values.isinf().sum()),
        "min": finite.min().item() if finite.numel() else None,
        "max": finite.max().item() if finite.numel() else None,
    }


def _batch_types() -> dict[str, tuple[type, tuple[str, ...]]]:
    """Every class that a file may name, with the attributes that its constructor takes: no other is ever called."""
    types = {**dict.fromkeys(ELEMENTS, ()), **TASK_SPECS.sample_types()}
    return {kind.__name__: (kind, fields) for kind, fields in types.items()}


def _kind(value: Any) -> str:
    name = type(value).__name__
    return name if _batch_types().get(name, (None,))[0] is type(value) else UNKNOWN


def _fields(value: Any) -> dict[str, Any]:
    name = _kind(value)
    if name == UNKNOWN:
        return {VALUE: f"{type(value).__module__}.{type(value).__qualname__}"}
    if isinstance(value, BaseDataElement):
        return {
            "meta": encode(dict(value.metainfo_items())),
            # mmdet keeps what it names gt_instances in a field _gt_instances behind a property.
            "data": {
                public: encode(getattr(value, public))
                for public in sorted({_public(value, field) for field in value._data_fields})
            },
        }
    return {field: encode(getattr(value, field)) for field in _batch_types()[name][1]}


def _public(element: BaseDataElement, field: str) -> str:
    public = field.removeprefix("_")
    return public if isinstance(getattr(type(element), public, None), property) else field


def _built(name: Any, fields: dict[str, Any]) -> Any:
    if name == ARRAY:
        values = fields[VALUE]
        return values.numpy() if isinstance(values, Tensor) else np.array(values)
    if name == UNKNOWN:
        raise UserError(f"the batch holds a {fields[VALUE]}, which was not recorded: it cannot be replayed")
    types = _batch_types()
    if not isinstance(name, str) or name not in types:
        raise UserError(f"the batch was refused: it names {name!r}, which is no part of a batch")
    kind, arguments = types[name]
    if not issubclass(kind, BaseDataElement):
        return kind(*(decode(fields[argument]) for argument in arguments))
    element = kind(metainfo=decode(fields["meta"]))
    for field, value in fields["data"].items():
        if not field.isidentifier() or field.startswith("__"):
            raise UserError(f"the batch was refused: {field!r} is no field of a sample")
        setattr(element, field, decode(value))
    return element
