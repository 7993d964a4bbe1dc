"""Encoding of batches as plain data and back, so that a file of them is read without executing anything in it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from torch import Tensor

from backbones.errors import DataError
from engine.task import TASK_SPECS

KIND, VALUE = "__kind__", "value"
ARRAY, UNKNOWN = "ndarray", "unknown"
# Classes common to all tasks; a task's own are in its TaskSpec.sample_types.
ELEMENTS = (BaseDataElement, InstanceData, LabelData, PixelData)


def encode(value: Any) -> Any:
    """Encode a batch as mappings, lists, tuples, tensors on the CPU, numbers and strings.

    Args:
        value: Tree of these, of NumPy arrays, and of the data elements of mmengine and the registered tasks. Any other
            object in it is replaced by the name of its class.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, str):  # of another type, such as the path of an image in a shard
        return str(value)
    if isinstance(value, Tensor):
        # A copy: saving a view would save all of the memory behind it.
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
    name = type(value).__name__
    kind, fields = _batch_types().get(name, (None, ()))
    if kind is not type(value):
        return {KIND: UNKNOWN, VALUE: f"{type(value).__module__}.{type(value).__qualname__}"}
    if isinstance(value, BaseDataElement):
        data = {field: encode(value.get(field)) for field in sorted(value.keys())}
        return {KIND: name, "meta": encode(dict(value.metainfo_items())), "data": data}
    return {KIND: name, **{field: encode(getattr(value, field)) for field in fields}}


def decode(value: Any) -> Any:
    """Decode what :func:`encode` returned.

    Raises:
        DataError: If it names a class that is not registered as a part of batches.
    """
    if isinstance(value, dict) and KIND in value:
        return _built(value[KIND], value)
    if isinstance(value, dict):
        return {key: decode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(decode, value))
    return value


def describe_samples(micro_batch: Any) -> list[dict[str, Any]]:
    """Describe the images of a micro-batch, in its order.

    Args:
        micro_batch: Collated samples, as the data loader gives them.

    Returns:
        Mappings with ``path``, ``id`` (each ``None`` if unknown) and ``image``, by :func:`describe_tensor`.
    """
    fields = micro_batch if isinstance(micro_batch, Mapping) else {}
    paths = list(fields.get("img_path", []))
    elements = [] if paths else [one for one in fields.get("data_samples") or [] if isinstance(one, BaseDataElement)]
    paths = paths or [element.get("img_path") for element in elements]
    numbers = [element.get("img_id") for element in elements]
    images = [describe_tensor(image) if isinstance(image, Tensor) else None for image in fields.get("inputs", [])]
    return [
        {"path": None if path is None else str(path), "id": encode(number), "image": image}
        for path, number, image in zip_longest(paths, numbers, images)
    ]


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Describe a tensor by shape, dtype, number of NaN and Inf, and the range of its finite values."""
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
    """Classes that a file may name, by name, with the attributes that their constructors take; no other is called."""
    types = {**dict.fromkeys(ELEMENTS, ()), **TASK_SPECS.sample_types()}
    return {kind.__name__: (kind, fields) for kind, fields in types.items()}


def _built(name: Any, fields: dict[str, Any]) -> Any:
    if name == ARRAY:
        values = fields[VALUE]
        return values.numpy() if isinstance(values, Tensor) else np.array(values)
    if name == UNKNOWN:
        raise DataError(f"the batch holds a {fields[VALUE]}, which was not recorded: it cannot be replayed")
    types = _batch_types()
    if not isinstance(name, str) or name not in types:
        raise DataError(f"the batch was refused: it names {name!r}, which is no part of a batch")
    kind, arguments = types[name]
    if not issubclass(kind, BaseDataElement):
        return kind(*(decode(fields[argument]) for argument in arguments))
    element = kind(metainfo=decode(fields["meta"]))
    for field, value in fields["data"].items():
        if not field.isidentifier() or field.startswith("__"):
            raise DataError(f"the batch was refused: {field!r} is no field of a sample")
        setattr(element, field, decode(value))
    return element
