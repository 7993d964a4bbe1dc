"""Export formats: a writer and a reader for each."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim

from analysis.export.source import ExportSource, Shape, SizeRange
from backbones.convnext import ConvNeXt
from backbones.errors import ConfigError
from backbones.layouts import from_ours

ONNX_OPSET = 20  # the first with GELU as an operator
EXAMPLE_BATCH_SIZE = 2  # torch.export specialises on a size of 1

RunFunction = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class ExportFormat:
    """An export format.

    Attributes:
        suffix: Suffix of its files.
        packages: Optional packages that it needs.
        traced: Whether the file holds the computation and not only tensors; the image size may have to be fixed then.
        write: Writer, called with the source, the path, and whether the image size is fixed; returns the ranges of
            height and width that the file accepts.
        open: Reader; returns a function that runs the file.
    """

    suffix: str
    packages: tuple[str, ...]
    traced: bool
    write: Callable[[ExportSource, Path, bool], tuple[SizeRange, SizeRange]]
    open: Callable[[ExportSource, Path], RunFunction]


class MatrixAdaptiveAvgPool(nn.Module):
    """Adaptive average pooling as two matrix products, equal up to rounding.

    ONNX has no such operator. Torch's exporter unrolls it for the size of the example but declares the result valid for
    any size: at other sizes it is wrong or does not run.

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
        weights = ((place >= i * length // bins) & (place < ((i + 1) * length + bins - 1) // bins)).to(like.dtype)
        return weights / weights.sum(1, keepdim=True)


def _portable(network: nn.Module) -> nn.Module:
    """A copy of a network without adaptive average pooling, except to a single bin, which ONNX has."""
    network = copy.deepcopy(network)
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            size: Any = layer.output_size
            pair = (size, size) if isinstance(size, int) else tuple(size)
            if pair != (1, 1) and None not in pair:
                network.set_submodule(name, MatrixAdaptiveAvgPool(pair))
    return network


@contextmanager
def _quietly() -> Iterator[None]:
    """Trace without gradients and without the exporters' warnings."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _write_safetensors(source: ExportSource, path: Path, fixed: bool) -> tuple[SizeRange, SizeRange]:
    _save(source.tensors(), path, {**source.metadata(), "layout": "ours"})
    return source.input_sizes


def _open_safetensors(source: ExportSource, path: Path) -> RunFunction:
    network = copy.deepcopy(source.network)
    names = {name.removeprefix(source.prefix): name for name in network.state_dict()}
    network.load_state_dict({names.get(name, name): value for name, value in load_file(path).items()}, strict=True)
    return replace(source, network=network).run


def _write_timm(source: ExportSource, path: Path, fixed: bool) -> tuple[SizeRange, SizeRange]:
    shapes = {name: tuple(value.shape) for name, value in _timm_model(source).state_dict().items()}
    tensors = from_ours(source.tensors(), "timm")
    for name in {**shapes, **tensors}:
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise ConfigError(
                f"--format timm: timm's {source.name} is another network: {name} is {shapes.get(name)}, here {found}"
            )
    outputs = shapes["head.fc.weight"][0] if "head.fc.weight" in shapes else 0
    model = f"timm.create_model({source.name!r}, num_classes={outputs})"
    settings = {**source.preprocessing.timm_settings(source.shape), "architecture": source.name, "num_classes": outputs}
    about = {**source.metadata(), "layout": "timm", "model": model, "pretrained_cfg": json.dumps(settings)}
    _save(tensors, path, about)
    return source.input_sizes


def _open_timm(source: ExportSource, path: Path) -> RunFunction:
    model = _timm_model(source)
    model.load_state_dict(load_file(path), strict=True)
    return replace(source, network=model.eval()).run


def _timm_model(source: ExportSource) -> nn.Module:
    if source.kind != "classifier":
        raise ConfigError(
            f"--format timm: timm has no place for the output norms and heads of a {source.kind}; export it as "
            "safetensors, onnx or torch_export"
        )
    network: Any = source.network
    if not isinstance(network.backbone, ConvNeXt) or source.name not in timm.list_models():
        raise ConfigError(f"--format timm: timm has no {source.name!r} of this project's making")
    outputs = 0 if network.head is None else network.head.out_features
    return timm.create_model(source.name, pretrained=False, num_classes=outputs)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path, metadata)
    path.chmod(mode)  # safetensors makes its files readable for the owner only


def _write_onnx(source: ExportSource, path: Path, fixed: bool) -> tuple[SizeRange, SizeRange]:
    import onnx

    (_write_traced if source.recordable is None else _write_recorded)(source, path, fixed)
    onnx.checker.check_model(path, full_check=True)
    height, width = source.shape
    return ((height, height), (width, width)) if fixed else source.input_sizes


def _write_traced(source: ExportSource, path: Path, fixed: bool) -> None:
    """By torch.export, which follows symbolic sizes and no contents."""
    with _quietly():
        program = torch.onnx.export(
            _portable(source.network),
            (torch.zeros(EXAMPLE_BATCH_SIZE, source.channels, *source.shape),),
            dynamo=True,
            opset_version=ONNX_OPSET,
            input_names=["images"],
            output_names=source.outputs,
            dynamic_shapes=({0: "batch"} if fixed else {0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    if program is None:
        raise ConfigError("--format onnx: the exporter gave no program")
    program.model.metadata_props.update(source.metadata())
    program.save(path)


def _write_recorded(source: ExportSource, path: Path, fixed: bool) -> None:
    """By TorchScript, which records one example: the number of objects, and so the shapes, are left open."""
    import onnx

    assert source.recordable is not None
    axes = {} if source.batch_size else {0: "batch"}
    axes |= {} if fixed else {2: "height", 3: "width"}
    network = _portable(source.network).eval()
    with _quietly(), source.recordable():
        torch.onnx.export(
            network,
            (source.example,),
            path,
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=["images"],
            output_names=list(source.outputs),
            dynamic_axes={"images": axes},
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, source.metadata())
    onnx.save(model, path)


def _open_onnx(source: ExportSource, path: Path) -> RunFunction:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions, they need not be printed too
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))


def _write_torch_export(source: ExportSource, path: Path, fixed: bool) -> tuple[SizeRange, SizeRange]:
    if source.recordable is not None:
        raise ConfigError(
            f"--format torch_export: what a {source.kind} gives depends on the contents of the image, which this "
            "format does not follow: take onnx, or the backbone alone by its name with --out-indices"
        )
    example = torch.zeros(EXAMPLE_BATCH_SIZE, source.channels, *source.shape)
    dynamic = dict.fromkeys((0,) if fixed else (0, 2, 3), Dim.DYNAMIC)
    with _quietly():
        program = torch.export.export(source.network, (example,), dynamic_shapes=(dynamic,))
    input_sizes = _input_sizes(program)
    metadata = {**source.metadata(), "heights": json.dumps(input_sizes[0]), "widths": json.dumps(input_sizes[1])}
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    return input_sizes


def _open_torch_export(source: ExportSource, path: Path) -> RunFunction:
    with _quietly():
        return replace(source, network=torch.export.load(path).module()).run


def _input_sizes(program: torch.export.ExportedProgram) -> tuple[SizeRange, SizeRange]:
    """Ranges of height and width that a program accepts, as inferred by the tracer."""
    (name,) = program.graph_signature.user_inputs
    example = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    ranges: list[SizeRange] = []
    for size in example.shape[-2:]:
        if isinstance(size, int):
            ranges.append((size, size))
            continue
        allowed = program.range_constraints[size.node.expr]
        ranges.append((int(allowed.lower), int(allowed.upper) if allowed.upper.is_Integer else None))
    return ranges[0], ranges[1]


EXPORT_FORMATS = {
    "safetensors": ExportFormat(".safetensors", (), False, _write_safetensors, _open_safetensors),
    "timm": ExportFormat(".safetensors", (), False, _write_timm, _open_timm),
    "onnx": ExportFormat(".onnx", ("onnx", "onnxscript", "onnxruntime"), True, _write_onnx, _open_onnx),
    "torch_export": ExportFormat(".pt2", (), True, _write_torch_export, _open_torch_export),
}


def format_of(out: Path | None) -> str:
    """Name of the format of a file to write, by its suffix; of two with one suffix the first.

    Raises:
        ConfigError: If no format has the suffix, or there is no file.
    """
    if out is not None:
        for name, one in EXPORT_FORMATS.items():
            if one.suffix == out.suffix:
                return name
    raise ConfigError(f"no format: state --format {', '.join(EXPORT_FORMATS)}, or --out with one of their suffixes")
