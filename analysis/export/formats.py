"""The formats of exported networks: how each is written, and how each is opened again and run."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim

from analysis.export.source import Range, Shape, Source, as_tuple
from backbones.convnext import ConvNeXt
from backbones.errors import UserError
from backbones.layouts import from_ours

OPSET = 20  # the first in which GELU is one operator
TRACED_BATCH = 2  # torch.export takes a size of 1 for a constant

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        suffix: Of its files.
        packages: Needed beyond the project's own.
        traced: The file holds the computation, not the tensors alone: the image's size may have to be fixed.
        write: Called with the source, the path, and whether the size of the image is fixed; gives the heights and the
            widths that the file takes, each as the least and the greatest.
        open: Reads the file back.
    """

    suffix: str
    packages: tuple[str, ...]
    traced: bool
    write: Callable[[Source, Path, bool], tuple[Range, Range]]
    open: Callable[[Source, Path], Run]


def missing_packages(name: str) -> list[str]:
    """Packages that a format needs and that are not installed."""
    return [package for package in FORMATS[name].packages if find_spec(package) is None]


class AverageOfBins(nn.Module):
    """Adaptive average pooling by two products with matrices of weights, the same numbers to rounding.

    ONNX has no such operator. Torch's exporter unrolls it for the size of the example and lets the result pass for one
    of any size: at other sizes it is wrong, or does not run.

    Args:
        size: Height and width of the output.
    """

    def __init__(self, size: Shape) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._weights(self.size[0], x.shape[-2], x), self._weights(self.size[1], x.shape[-1], x)
        return rows @ x @ columns.mT

    @staticmethod
    def _weights(bins: int, length: int, like: Tensor) -> Tensor:
        """``(bins, length)``; bin ``i`` averages from ``floor(i length / bins)`` to ``ceil((i + 1) length / bins)``."""
        i, place = torch.arange(bins, device=like.device).unsqueeze(1), torch.arange(length, device=like.device)
        inside = (place >= i * length // bins) & (place < ((i + 1) * length + bins - 1) // bins)
        weights = inside.to(like.dtype)
        return weights / weights.sum(1, keepdim=True)


def _portable(network: nn.Module) -> nn.Module:
    """A copy of a network without the operator that ONNX lacks; one bin is a plain mean and stays."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.AdaptiveAvgPool2d):
                continue
            size: Any = child.output_size
            pair = (size, size) if isinstance(size, int) else tuple(size)
            if pair != (1, 1) and None not in pair:
                setattr(parent, name, AverageOfBins(pair))
    return network


def _example(source: Source) -> Tensor:
    return torch.zeros(TRACED_BATCH, 3, *source.shape)


@contextmanager
def _quietly() -> Iterator[None]:
    """Trace without gradients, and without the exporters' remarks about themselves."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _write_safetensors(source: Source, path: Path, fixed: bool) -> tuple[Range, Range]:
    _save(source.tensors(), path, {**source.metadata(), "layout": "ours"})
    return source.taken


def _open_safetensors(source: Source, path: Path) -> Run:
    network = copy.deepcopy(source.network)
    source.load(network, load_file(path))
    return _runner(network)


def _write_timm(source: Source, path: Path, fixed: bool) -> tuple[Range, Range]:
    shapes = {name: tuple(value.shape) for name, value in _timm_model(source).state_dict().items()}
    tensors = from_ours(source.tensors(), "timm")
    for name in {**shapes, **tensors}:
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise UserError(
                f"--format timm: timm's {source.name} is another network: {name} is {shapes.get(name)}, here {found}"
            )
    outputs = shapes["head.fc.weight"][0] if "head.fc.weight" in shapes else 0
    model = f"timm.create_model({source.name!r}, num_classes={outputs})"
    _save(tensors, path, {**source.metadata(), "layout": "timm", "model": model})
    return source.taken


def _open_timm(source: Source, path: Path) -> Run:
    model = _timm_model(source)
    model.load_state_dict(load_file(path), strict=True)
    return _runner(model.eval())


def _timm_model(source: Source) -> nn.Module:
    if source.kind != "classifier":
        raise UserError(
            f"--format timm: timm has no place for the output norms and heads of a {source.kind}; export it as "
            "safetensors, onnx or torch_export"
        )
    network: Any = source.network
    if not isinstance(network.backbone, ConvNeXt) or source.name not in timm.list_models():
        raise UserError(f"--format timm: timm has no {source.name!r} of this project's making")
    outputs = 0 if network.head is None else network.head.out_features
    return timm.create_model(source.name, pretrained=False, num_classes=outputs)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path, metadata)
    path.chmod(mode)  # the library lets nobody but the owner read its files


def _runner(network: nn.Module) -> Run:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return as_tuple(network(images))

    return run


def _write_onnx(source: Source, path: Path, fixed: bool) -> tuple[Range, Range]:
    import onnx

    sizes = {} if fixed else {2: "height", 3: "width"}
    with _quietly():
        program = torch.onnx.export(
            _portable(source.network),
            (_example(source),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=source.outputs,
            dynamic_shapes=({0: "batch", **sizes},),
            verbose=False,
        )
    if program is None:
        raise UserError("--format onnx: the exporter gave no program")
    program.model.metadata_props.update(source.metadata())
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    return _only(source.shape) if fixed else source.taken


def _open_onnx(source: Source, path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is raised anyway; its text need not be printed too
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))


def _write_torch_export(source: Source, path: Path, fixed: bool) -> tuple[Range, Range]:
    sizes = {} if fixed else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with _quietly():
        program = torch.export.export(source.network, (_example(source),), dynamic_shapes=({0: Dim.DYNAMIC, **sizes},))
    taken = _taken(program)
    metadata = {**source.metadata(), "heights": json.dumps(taken[0]), "widths": json.dumps(taken[1])}
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    return taken


def _open_torch_export(source: Source, path: Path) -> Run:
    with _quietly():
        return _runner(torch.export.load(path).module())


def _taken(program: torch.export.ExportedProgram) -> tuple[Range, Range]:
    """Heights and widths that a program takes: what its operators need, as the tracer has found out."""
    (name,) = program.graph_signature.user_inputs
    example = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    ranges: list[Range] = []
    for size in example.shape[-2:]:
        if isinstance(size, int):
            ranges.append((size, size))
            continue
        allowed = program.range_constraints[size.node.expr]
        ranges.append((int(allowed.lower), int(allowed.upper) if allowed.upper.is_Integer else None))
    return ranges[0], ranges[1]


def _only(shape: Shape) -> tuple[Range, Range]:
    return (shape[0], shape[0]), (shape[1], shape[1])


FORMATS = {
    "safetensors": Format(".safetensors", (), False, _write_safetensors, _open_safetensors),
    "timm": Format(".safetensors", (), False, _write_timm, _open_timm),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), True, _write_onnx, _open_onnx),
    "torch_export": Format(".pt2", (), True, _write_torch_export, _open_torch_export),
}
