"""Weights of a whole model in: of this project, the released detectors and segmentors, OpenMMLab's model zoos.

Outside of the backbone nothing has to be renamed. Neck, RPN, box, mask, decode and auxiliary heads register the same
modules under the same names in mmdet 2 and mmseg 0, with which the released ConvNeXts were trained, as in mmdet 3 and
mmseg 1: OpenMMLab's own model zoo still gives the old files to the new configs. SyncBN and BN share their names, the
background is the last row of ``fc_cls`` since mmdet 2.0. The backbone of the zoos is mmpretrain's, which names its
blocks otherwise (``depthwise_conv``): :mod:`backbones.layouts` knows, and knows the classifiers of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models
from torch import Tensor, nn

from backbones.base import Backbone
from backbones.errors import CheckpointError
from backbones.layouts import check_finite, check_float_tensor, find_convnext
from backbones.weights import network_tensors, read_checkpoint
from engine.task import ClassLayer, task_of_model

BACKBONE, PREPROCESSOR = "backbone.", "data_preprocessor."
COUNTER = ".num_batches_tracked"  # read by no normalisation with a fixed momentum; the oldest files lack it
NAMED = 4  # names in a message


@dataclass(frozen=True)
class ModelLoadReport:
    """What loading a whole model did.

    Attributes:
        source: Path or URL.
        layout: The layout that was recognised; empty where the file has the model's own names.
        loaded: Tensors of the model that came from the file.
        total: Tensors of the model.
        missing: Names of the model's tensors that kept their initial values.
        unexpected: Names of tensors in the file that are not weights of the model.
        head: What became of the layers that depend on the classes; ``None`` where nothing is trained.
        averaged: Whether these are the averaged weights.
        remark: What else a person should know; may be empty.
    """

    source: str
    layout: str
    loaded: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    head: str | None = None
    averaged: bool = False
    remark: str = ""

    def __str__(self) -> str:
        parts = [f"{self.loaded}/{self.total} tensors loaded from {self.source}"]
        parts[0] += f" ({self.layout} layout)" if self.layout else ""
        parts[0] += " (averaged weights)" if self.averaged else ""
        if self.head:
            parts.append(f"head {self.head}")
        if counters := sum(name.endswith(COUNTER) for name in self.missing):
            parts.append(f"{counters} batch counters begin at 0")
        if self.unexpected:
            parts.append(f"skipped: {_some(self.unexpected)}")
        return ", ".join([*parts, *filter(None, [self.remark])])

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data; ``fresh`` and ``skipped`` are the keys in the files of a run."""
        report = asdict(self)
        report["fresh"], report["skipped"] = report.pop("missing"), report.pop("unexpected")
        return report


def load_model(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    source: str,
    averaged: bool = False,
    classes: Sequence[str] | None = None,
    training: bool = False,
) -> ModelLoadReport:
    """Load the weights of a whole model; every tensor must be there and fit, and every one must have a place.

    Args:
        model: The model, perhaps wrapped for several processes.
        checkpoint: Content of a checkpoint.
        source: Its path or URL.
        averaged: Load the averaged weights instead of the raw ones.
        classes: Names of the config, which the checkpoint's are compared with.
        training: The start of a training: layers that differ in the number of classes alone keep their initial values.

    Returns:
        The receipt.

    Raises:
        CheckpointError: If the checkpoint is of another model, has no averaged weights, NaN or infinite values, or its
            classes in another order.
    """
    # Around the trained model there may be test-time augmentation, and around that several processes.
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    wanted = model.state_dict()
    tensors, layout = _named_as_here(_tensors(checkpoint, source, averaged), model, wanted, source)
    skipped = _take_out_preprocessing(tensors, model, source)
    fresh = _absent_counters(tensors, wanted)
    head = None
    if training:
        again, head = _heads(tensors, wanted, task_of_model(model).class_layers)
        fresh |= again
    _check_names(tensors, wanted, fresh, source)
    _check_values(tensors, wanted, fresh, source)
    remark = _compare_classes(file_classes(checkpoint), classes, source)
    model.load_state_dict({name: wanted[name] if name in fresh else tensors[name] for name in wanted})
    kept = tuple(name for name in wanted if name in fresh)
    loaded, total = len(wanted) - len(kept), len(wanted)
    return ModelLoadReport(source, layout, loaded, total, kept, skipped, head, averaged, remark)


def backbones_of(model: nn.Module) -> list[Backbone]:
    """The registered networks in a model: they load ``weights`` when mmengine initialises the model."""
    return [module for module in model.modules() if isinstance(module, Backbone)]


def replace_checkpoint_loader(trust: bool = False) -> None:
    """Let mmengine's own loading path (``init_cfg``) use :func:`backbones.weights.read_checkpoint` from here on.

    mmengine itself would execute pickled code.

    Args:
        trust: Execute code that a file asks for (``--trust-checkpoint``).
    """

    def load_from_file_or_url(filename: str, map_location: str | None = None) -> dict[str, Any]:
        scheme, mark, name = filename.rpartition("://")
        if scheme.endswith(("torchvision", "modelzoo")):
            filename = get_torchvision_models()[name]
        elif mark and scheme not in ("http", "https", "file"):
            raise CheckpointError(f"checkpoint {filename!r}: {scheme}:// is not supported: give a URL or a file")
        return read_checkpoint(filename, trust)

    # The way mmengine offers for another loader is ``force``; it has no public list of its schemes.
    CheckpointLoader.register_scheme(tuple(CheckpointLoader._schemes), load_from_file_or_url, force=True)


replace_checkpoint_loader()


def file_classes(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names that OpenMMLab's programs, old and new, and this project write into a checkpoint; may be empty."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return ()
    described = meta.get("dataset_meta")
    for place in (described if isinstance(described, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = place.get(key)
            if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
                return tuple(names)
    return ()


def _tensors(checkpoint: Mapping[str, Any], source: str, averaged: bool) -> dict[str, Tensor]:
    tensors = network_tensors(checkpoint, source, averaged)
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _named_as_here(
    tensors: dict[str, Tensor], model: nn.Module, wanted: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], str]:
    """Bring the names of backbone and classifier to this project's; the rest stays as it is."""
    known = all(name in tensors for name in wanted if name.startswith(BACKBONE))
    if known or not isinstance(getattr(model, "backbone", None), Backbone):
        return tensors, ""
    found = find_convnext(tensors, source)
    if found is None:
        return tensors, ""
    renamed = {}
    for name, value in found.tensors.items():
        here = name if name.startswith("head.") else BACKBONE + name
        renamed[here if here in wanted else found.names[name]] = value
    return renamed | {name: tensors[name] for name in found.others}, found.layout


def _take_out_preprocessing(tensors: dict[str, Tensor], model: nn.Module, source: str) -> tuple[str, ...]:
    """Remove mean and deviation of the images, which some programs save as weights, once they are found to agree."""
    ours = {name: buffer for name, buffer in model.named_buffers() if name.startswith(PREPROCESSOR)}
    found = tuple(name for name in tensors if name in ours and name not in model.state_dict())
    for name in found:
        theirs, here = tensors.pop(name).flatten().cpu().float(), ours[name].flatten().cpu().float()
        if theirs.shape != here.shape or not torch.allclose(theirs, here, rtol=1e-3):
            raise CheckpointError(
                f"checkpoint {source!r} was trained on images with {name} {theirs.tolist()}, the config has "
                f"{here.tolist()}: change model.data_preprocessor"
            )
    return found


def _absent_counters(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> set[str]:
    """Counters that a file lacks although it has the statistics they count."""
    counters = (name for name in wanted if name.endswith(COUNTER) and name not in tensors)
    return {name for name in counters if name.removesuffix(COUNTER) + ".running_var" in tensors}


def _heads(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], class_layers: Mapping[str, ClassLayer]
) -> tuple[set[str], str | None]:
    """The layers that differ from the model's in the number of classes alone, and what is to be said of the head."""
    counts, scores, changed = set(), [], []
    for name, value in wanted.items():
        layer = class_layers.get(name.split(".")[-2]) if "." in name else None
        if layer is None or name.startswith(BACKBONE) or name not in tensors:
            continue
        theirs, ours = tensors[name].shape, value.shape
        if len(theirs) != len(ours):
            continue
        if layer.scores:
            scores.append(name)
        elif theirs[0] == ours[0] == layer.rows:  # the same boxes or masks for all classes
            continue
        counts.add(((theirs[0] - layer.extra_rows) / layer.rows, (ours[0] - layer.extra_rows) / layer.rows))
        if theirs != ours and theirs[1:] == ours[1:]:
            changed.append(name)
    if len(counts) != 1 or not scores:
        return set(), None
    old, new = counts.pop()
    if old == new:
        return set(), f"kept: {new:.0f} classes"
    layers = dict.fromkeys(name.rpartition(".")[0] for name in changed)
    return set(changed), f"re-initialised: {old:.0f} -> {new:.0f} classes: {', '.join(layers)}"


def _check_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], fresh: set[str], source: str) -> None:
    lost = [name for name in wanted if name not in tensors and name not in fresh]
    foreign = [name for name in tensors if name not in wanted]
    parts = [f"it lacks {len(lost)}/{len(wanted)} tensors ({_some(lost)})"] if lost else []
    parts += [f"{len(foreign)} of its tensors have no place here ({_some(foreign)})"] if foreign else []
    if parts:
        raise CheckpointError(f"checkpoint {source!r} is of another model: {', and '.join(parts)}")


def _check_values(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], fresh: set[str], source: str) -> None:
    for name, value in wanted.items():
        if name not in fresh and tensors[name].shape != value.shape:
            theirs, ours = tuple(tensors[name].shape), tuple(value.shape)
            raise CheckpointError(
                f"checkpoint {source!r} does not fit: {name} is {theirs}, the config wants {ours}; check classes and "
                "model"
            )
        if name not in fresh and value.is_floating_point() and not value.is_meta:  # names alone are compared there
            check_float_tensor(name, tensors[name], source)
            check_finite(name, tensors[name], source)


def _compare_classes(theirs: Sequence[str], ours: Sequence[str] | None, source: str) -> str:
    """Refuse another order of the same names; say how many names differ, which may be another spelling.

    ADE20K's names have blanks at their ends in some versions, ImageNet's words name two classes alike: case, blanks and
    names that stand twice do not count.
    """
    if not ours or len(theirs) != len(ours):
        return ""
    place = {name.strip().casefold(): index for index, name in enumerate(ours)}
    times = Counter(theirs)
    others = []
    for index, name in enumerate(theirs):
        here = place.get(name.strip().casefold()) if times[name] == 1 else None
        if here is None:
            others.append(index)
        elif here != index:
            raise CheckpointError(
                f"checkpoint {source!r} has the classes in another order: {name!r} is number {index} there and {here} "
                "in the config; give classes in the checkpoint's order"
            )
    if not others:
        return ""
    first = others[0]
    return (
        f"{len(others)} of {len(ours)} classes have other names in the file (number {first} is {theirs[first]!r} "
        f"there, {ours[first]!r} here)"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
