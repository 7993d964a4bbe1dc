"""Loading weights of a whole model: of this project, released detectors and segmentors, OpenMMLab's model zoos.

Only the backbone has to be renamed. Neck, RPN, box, mask, decode and auxiliary heads have the same names in mmdet 2
and mmseg 0, with which the released ConvNeXts were trained, as in mmdet 3 and mmseg 1: OpenMMLab's own model zoo still
lists the old files for the new configs. SyncBN and BN share their names, the background is the last row of ``fc_cls``
since mmdet 2.0. The backbone of the zoos is mmpretrain's, with other names of the blocks (``depthwise_conv``), see
:mod:`backbones.layouts`.
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
from backbones.channels import adapt_input_layer
from backbones.errors import CheckpointError
from backbones.layouts import check_constant, check_finite, check_float_tensor, find_convnext
from backbones.weights import network_tensors, read_checkpoint
from engine.optim.param_groups import BACKBONE_PREFIX
from engine.task import ClassLayer, task_of_model

PREPROCESSOR_PREFIX = "data_preprocessor."
# Not used by batch normalisation with a fixed momentum; the oldest files lack it.
BATCH_COUNTER = ".num_batches_tracked"
MAX_NAMES_IN_MESSAGE = 4
# Prefix, a regular expression, that matches every path; mmengine tries prefixes in descending order, this one first.
ANY_PATH = "~?"


@dataclass(frozen=True)
class ModelLoadReport:
    """Result of loading a whole model.

    Attributes:
        source: Path or URL.
        layout: Layout that was recognised; empty if the file has the model's own names.
        loaded: Number of the model's tensors that came from the file.
        total: Number of the model's tensors.
        missing: Names of the model's tensors that kept their initial values.
        unexpected: Names of tensors in the file that are not weights of the model.
        head: Result for the layers that depend on the classes; ``None`` outside of training.
        averaged: Whether the averaged weights were loaded.
        remark: Remark for the user; may be empty.
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
        if counters := sum(name.endswith(BATCH_COUNTER) for name in self.missing):
            parts.append(f"{counters} batch counters begin at 0")
        if self.unexpected:
            parts.append(f"skipped: {_first_names(self.unexpected)}")
        return ", ".join([*parts, *filter(None, [self.remark])])

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data; ``fresh`` and ``skipped`` are the keys in the files of a run."""
        report = asdict(self)
        report["fresh"], report["skipped"] = report.pop("missing"), report.pop("unexpected")
        return report


def load_model_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    source: str,
    averaged: bool = False,
    classes: Sequence[str] | None = None,
    training: bool = False,
) -> ModelLoadReport:
    """Load the weights of a whole model strictly: no tensor may be missing, unexpected or of another shape.

    Args:
        model: The model, with or without wrappers for several processes and test-time augmentation.
        checkpoint: Content of the file, from :func:`backbones.weights.read_checkpoint`.
        source: Path or URL, for messages.
        averaged: Load the averaged weights (EMA) instead of the raw ones.
        classes: Class names of the config, compared with those of the checkpoint.
        training: Start of a training: layers that differ only in the number of classes keep their initial values.

    Raises:
        CheckpointError: If the checkpoint is of another model, has no averaged weights, NaN or infinite values, or its
            classes in another order.
    """
    # Test-time augmentation may wrap the trained model, and data parallelism both.
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    expected = model.state_dict()
    tensors, layout = _rename_backbone(_tensors(checkpoint, source, averaged, expected), model, expected, source)
    unexpected = _remove_normalization(tensors, model, source)
    kept = _missing_counters(tensors, expected)
    head, adapted = None, ""
    if training:
        adapted = adapt_input_layer(tensors, expected)
        changed_names, head = _changed_heads(tensors, expected, task_of_model(model).class_layers)
        kept |= changed_names
    _check_names(tensors, expected, kept, source)
    _check_values(tensors, expected, kept, source)
    constant = check_constant({name: tensors[name] for name in expected if name not in kept}, source)
    remarks = (
        adapted,
        constant and f"WARNING: {constant}",
        _compare_classes(file_classes(checkpoint), classes, source),
    )
    model.load_state_dict({name: expected[name] if name in kept else tensors[name] for name in expected})
    missing = tuple(name for name in expected if name in kept)
    loaded, total, remark = len(expected) - len(missing), len(expected), ", ".join(filter(None, remarks))
    return ModelLoadReport(source, layout, loaded, total, missing, unexpected, head, averaged, remark)


def backbones_of(model: nn.Module) -> list[Backbone]:
    """The registered networks in a model: they load ``weights`` when mmengine initialises the model."""
    return [module for module in model.modules() if isinstance(module, Backbone)]


@dataclass
class LoaderSettings:
    """Settings of mmengine's own loading path (``init_cfg``), which itself would execute pickled code.

    Attributes:
        trust: Whether code that a file asks for is executed (``--trust-checkpoint``).
    """

    trust: bool = False


LOADER_SETTINGS = LoaderSettings()


@CheckpointLoader.register_scheme(ANY_PATH)
def load_from_file_or_url(filename: str, map_location: str | None = None) -> dict[str, Any]:
    """Read what mmengine loads by :func:`backbones.weights.read_checkpoint`, on the CPU.

    Args:
        filename: Path, URL, or ``torchvision://NAME``.
        map_location: Ignored.

    Raises:
        CheckpointError: If another scheme is asked for, or the file is damaged or not trusted.
    """
    scheme, mark, name = filename.rpartition("://")
    if scheme.endswith(("torchvision", "modelzoo")):
        filename = get_torchvision_models()[name]
    elif mark and scheme not in ("http", "https", "file"):
        raise CheckpointError(f"checkpoint {filename!r}: {scheme}:// is not supported: give a URL or a file")
    return read_checkpoint(filename, LOADER_SETTINGS.trust)


def file_classes(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names in a checkpoint of this project or of OpenMMLab, old or new; may be empty."""
    meta = checkpoint.get("meta")
    places = (meta.get("dataset_meta"), meta) if isinstance(meta, Mapping) else ()
    found = (place.get(key) for place in places if isinstance(place, Mapping) for key in ("classes", "CLASSES"))
    lists = (names for names in found if isinstance(names, list | tuple))
    return next((tuple(names) for names in lists if all(isinstance(name, str) for name in names)), ())


def recorded_classes(source: str, trust: bool = False) -> tuple[str, ...]:
    """Class names in a checkpoint file, see :func:`file_classes`; ``trust`` executes code that it asks for."""
    return file_classes(read_checkpoint(source, trust))


def _tensors(
    checkpoint: Mapping[str, Any], source: str, averaged: bool, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file without what holds the whole model in all of their names (``module.``, ``model.``)."""
    tensors = network_tensors(checkpoint, source, averaged)
    own = {name.partition(".")[0] for name in expected}
    while len(holders := {name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
        (holder,) = holders
        if holder in own:
            break
        tensors = {name.removeprefix(f"{holder}."): value for name, value in tensors.items()}
    return tensors


def _rename_backbone(
    tensors: dict[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], str]:
    """Rename the tensors of backbone and classifier to this project's names; also returns the recognised layout."""
    known = all(name in tensors for name in expected if name.startswith(BACKBONE_PREFIX))
    if known or not isinstance(getattr(model, "backbone", None), Backbone):
        return tensors, ""
    found = find_convnext(tensors, source)
    if found is None:
        return tensors, ""
    renamed = {}
    for name, value in found.tensors.items():
        here = name if name.startswith("head.") else BACKBONE_PREFIX + name
        renamed[here if here in expected else found.names[name]] = value
    return renamed | {name: tensors[name] for name in found.others}, found.layout


def _remove_normalization(tensors: dict[str, Tensor], model: nn.Module, source: str) -> tuple[str, ...]:
    """Remove mean and deviation of the images, saved as weights by some programs, after comparing them with ours."""
    ours = {name: buffer for name, buffer in model.named_buffers() if name.startswith(PREPROCESSOR_PREFIX)}
    found = tuple(name for name in tensors if name in ours and name not in model.state_dict())
    for name in found:
        theirs, here = tensors.pop(name).flatten().cpu().float(), ours[name].flatten().cpu().float()
        if theirs.shape != here.shape or not torch.allclose(theirs, here, rtol=1e-3):
            raise CheckpointError(
                f"checkpoint {source!r} was trained on images with {name} {theirs.tolist()}, the config has "
                f"{here.tolist()}: change model.data_preprocessor"
            )
    return found


def _missing_counters(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> set[str]:
    """Batch counters that the file lacks while it has the running statistics."""
    counters = (name for name in expected if name.endswith(BATCH_COUNTER) and name not in tensors)
    return {name for name in counters if name.removesuffix(BATCH_COUNTER) + ".running_var" in tensors}


def _changed_heads(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], class_layers: Mapping[str, ClassLayer]
) -> tuple[set[str], str | None]:
    """Names of tensors that differ only in the number of classes, and a description of the result for the head."""
    counts, scores, changed = set(), [], []
    for name, value in expected.items():
        layer = class_layers.get(name.split(".")[-2]) if "." in name else None
        if layer is None or name.startswith(BACKBONE_PREFIX) or name not in tensors:
            continue
        theirs, ours = tensors[name].shape, value.shape
        if len(theirs) != len(ours):
            continue
        if layer.scores:
            scores.append(name)
        elif theirs[0] == ours[0] == layer.rows:  # class-agnostic boxes or masks
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


def _check_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], kept: set[str], source: str) -> None:
    lost = [name for name in expected if name not in tensors and name not in kept]
    foreign = [name for name in tensors if name not in expected]
    parts = [f"it lacks {len(lost)}/{len(expected)} tensors ({_first_names(lost)})"] if lost else []
    parts += [f"{len(foreign)} of its tensors have no place here ({_first_names(foreign)})"] if foreign else []
    around = [name for name in expected if not name.startswith(BACKBONE_PREFIX)]
    if not foreign and lost == around != list(expected):
        raise CheckpointError(
            f"checkpoint {source!r} holds a backbone alone, without {_first_names(lost)}: give it as "
            "model.backbone.weights"
        )
    if parts:
        raise CheckpointError(f"checkpoint {source!r} is of another model: {', and '.join(parts)}")


def _check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], kept: set[str], source: str) -> None:
    for name, value in expected.items():
        if name not in kept and tensors[name].shape != value.shape:
            theirs, ours = tuple(tensors[name].shape), tuple(value.shape)
            raise CheckpointError(
                f"checkpoint {source!r} does not fit: {name} is {theirs}, the config wants {ours}; check classes and "
                "model"
            )
        if name not in kept and value.is_floating_point() and not value.is_meta:  # no values on the meta device
            check_float_tensor(name, tensors[name], source)
            check_finite(name, tensors[name], source)


def _compare_classes(theirs: Sequence[str], ours: Sequence[str] | None, source: str) -> str:
    """Refuse the same names in another order; describe how many names differ, which may be spelling.

    Case and blanks are ignored, since some versions of ADE20K's names end in blanks, and so are names that occur twice,
    as in ImageNet.
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


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (", ..." if len(names) > MAX_NAMES_IN_MESSAGE else "")
