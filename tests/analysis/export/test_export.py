"""Exports: each format against its source, through the readers that its users have; and what is refused."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from analysis.export import formats as export_formats
from analysis.export.exporter import OutputDifference, check_export, compare_outputs, export_network, load_photographs
from analysis.export.formats import EXPORT_FORMATS, MatrixAdaptiveAvgPool
from analysis.export.preprocessing import Preprocessing
from analysis.export.source import ASSUMED_PREPROCESSING, Classifier, ExportSource, source_from_config, source_from_name
from backbones import UserError, build_backbone
from backbones.convnext import ConvNeXt
from backbones.isotropic import IsotropicConvNeXt
from backbones.weights import read_checkpoint
from engine.config.load import load_config
from engine.config.world import Launch

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CONFIG = {
    "classifier": CONFIGS / "classification/digits.py",
    "detector": CONFIGS / "detection/mask_rcnn_digits.py",
    "segmentor": CONFIGS / "segmentation/upernet_digits.py",
}
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
SMALL_OPTIONS = {f"model.backbone.{name}": list(value) for name, value in SMALL.items()}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PREPARED = Preprocessing(resize="exact", resize_to=(64, 96), mean=MEAN, std=STD)


def shaken(network: nn.Module) -> nn.Module:
    """The network with numbers in all its parameters: many begin at 0 or 1, where a mistake could not be seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def source(kind: str, shape: tuple[int, int] = (64, 96)) -> ExportSource:
    """A tiny source, by kind or by what is particular about it."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "classifier": lambda: Classifier(ConvNeXt(**SMALL), nn.Linear(32, 5)),
        "v2": lambda: Classifier(ConvNeXt(**SMALL, use_grn=True, layer_scale_init_value=0.0), nn.Linear(32, 5)),
        "isotropic": lambda: Classifier(IsotropicConvNeXt(4, 16), nn.Linear(16, 5)),
        "features": lambda: Classifier(ConvNeXt(**SMALL), None),
        "pyramid": lambda: ConvNeXt(**SMALL, out_indices=(0, 2, 3)),
        "atto": lambda: Classifier(build_backbone("convnext_atto"), nn.Linear(320, 5)),
        "atto2": lambda: Classifier(build_backbone("convnextv2_atto"), nn.Linear(320, 5)),
    }
    outputs = {"pyramid": ("stage0", "stage2", "stage3"), "features": ("features",)}.get(kind, ("logits",))
    name = {"atto": "convnext_atto", "atto2": "convnextv2_atto"}.get(kind, "small")
    group = "pyramid" if kind == "pyramid" else "classifier"
    network = shaken(networks[kind]())
    prefix = "backbone." if group == "classifier" else ""
    return ExportSource(
        name, group, network, outputs, shape, "raw weights of x.pth", PREPARED, tuple("abcde"), prefix=prefix
    )


def random_images(*shape: int) -> Tensor:
    return torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()})]


def run_torch_export(path: Path, images: Tensor) -> list[Tensor]:
    outputs = torch.export.load(path).module()(images)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


RUN = {"onnx": run_onnx, "torch_export": run_torch_export}


def assert_same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def told(name: str, path: Path) -> dict[str, str]:
    """What a file says about itself."""
    if name == "onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if name == "torch_export":
        extra = {"metadata.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["metadata.json"])
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_told(said: dict[str, str], one: ExportSource) -> None:
    assert (said["network"], said["kind"], said["weights"]) == (one.name, one.kind, "raw weights of x.pth")
    assert (json.loads(said["classes"]), json.loads(said["outputs"])) == (list("abcde"), list(one.outputs))
    assert (json.loads(said["mean"]), json.loads(said["std"]), said["colour"]) == ([*MEAN], [*STD], "RGB")
    prepared = json.loads(said["preprocessing"])
    assert (prepared["resize"], prepared["resize_to"], prepared["mean"]) == ("exact", [64, 96], [*MEAN])
    assert (json.loads(said["size"]), said["input"][:24]) == ([64, 96], "images (N, 3, H, W), flo")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each digits config, with a small backbone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    files = {}
    for task, config in CONFIG.items():
        cfg = load_config(config, SMALL_OPTIONS, Launch()).cfg
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = shaken(MODELS.build(cfg.model))
        state = model.state_dict()
        for name, value in state.items():
            if name.endswith("running_var"):
                value.mul_(3)
        averages = {f"module.{name}": value + 1 if "head" in name else value for name, value in state.items()}
        files[task] = folder / f"{task}.pth"
        torch.save({"state_dict": state, "ema_state_dict": {"steps": torch.tensor(7), **averages}}, files[task])
    return files


@pytest.mark.parametrize(
    "name, kind",
    [
        *(("onnx", kind) for kind in ("classifier", "v2", "pyramid")),
        *(("torch_export", kind) for kind in ("classifier", "isotropic", "pyramid")),
    ],
)
def test_a_program_runs_on_any_batch_and_size(name: str, kind: str, tmp_path: Path) -> None:
    one = source(kind)
    out = tmp_path / f"x{EXPORT_FORMATS[name].suffix}"
    done = export_network(one, name, out)
    assert done.files == (out,)
    assert done.notes == ()
    # torch.export takes for granted that the last map has more than one row: twice the stride.
    least = {"onnx": 32, "torch_export": 32 if kind == "isotropic" else 64}[name]
    assert done.input_sizes == ((least, None), (least, None))
    assert [d.shape for d in done.differences] == [(1, 64, 96), (3, 101, 160), (2, 64, 96), (2, 101, 160)]
    assert max(d.relative for d in done.differences) < 1e-5
    for shape in ((1, 128, 64), (5, 75, 143), (2, least, least)):
        images = random_images(*shape)
        assert_same(RUN[name](out, images), one.run(images))
    said = told(name, out)
    assert_told(said, one)
    if name == "torch_export":
        assert said["heights"] == said["widths"] == f"[{least}, null]"
    else:
        assert onnx_axes(out)["images"] == ["batch", 3, "height", "width"]
        assert list(onnx_axes(out)) == ["images", *one.outputs]


def onnx_axes(path: Path) -> dict[str, list[Any]]:
    """Sizes of inputs and outputs, by name."""
    graph = onnx.load(path).graph
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


@pytest.mark.parametrize("kind", ["classifier", "features", "pyramid"])
def test_safetensors_have_our_names_and_load_as_weights(kind: str, tmp_path: Path) -> None:
    one, out = source(kind), tmp_path / "x.safetensors"
    done = export_network(one, "safetensors", out)
    assert max(d.relative for d in done.differences) == 0
    backbone = one.network if kind == "pyramid" else one.network.backbone  # type: ignore[union-attr]
    fresh = ConvNeXt(**SMALL, out_indices=backbone.out_indices, weights=str(out))
    report = fresh.init_weights()
    assert report is not None
    assert report.loaded == report.total == len(backbone.state_dict())
    for name, value in backbone.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    assert {"head.weight", "head.bias"} <= load_file(out).keys() or kind != "classifier"
    assert told("safetensors", out)["layout"] == "ours"
    assert_told(told("safetensors", out), one)


def test_a_segmentor_gives_scores_of_the_size_of_the_image(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    one = source_from_config(str(CONFIG["segmentor"]), str(checkpoints["segmentor"]), False, None, SMALL_OPTIONS)
    assert (one.kind, one.shape, one.classes[:2]) == ("segmentor", (128, 128), ("background", "zero"))
    model = one.network.model  # type: ignore[union-attr]
    images = random_images(2, 96, 135)
    (expected,) = one.run(images)
    assert expected.shape == (2, 11, 96, 135)
    # mmseg's own testing, which fixes the size in the same way.
    with torch.no_grad():
        whole = model.inference(images, [{"img_shape": (96, 135), "ori_shape": (96, 135)}] * 2)
    torch.testing.assert_close(expected, whole)
    for name in ("safetensors", "onnx"):  # the third is tried with the tool
        out = tmp_path / f"x{EXPORT_FORMATS[name].suffix}"
        done = export_network(one, name, out)
        assert [d.shape for d in done.differences] == [(1, 128, 128), (3, 165, 192), (2, 128, 128), (2, 165, 192)]
        assert max(d.relative for d in done.differences) < 1e-5
    assert load_file(tmp_path / "x.safetensors").keys() == model.state_dict().keys()
    assert_same(run_onnx(tmp_path / "x.onnx", images), [expected])


class Pooling(nn.Module):
    """The part of UperNet that ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(3))

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.pool(images), size=images.shape[-2:], mode="bilinear")


def test_pooling_that_onnx_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the exporter can do it, :class:`MatrixAdaptiveAvgPool` can go; until then the second size finds it out."""
    one, out = of(Pooling()), tmp_path / "x.onnx"
    export_network(one, "onnx", out)
    out.unlink()
    monkeypatch.setattr(export_formats, "_portable", lambda network: network)
    with pytest.raises(UserError, match=r"^refused: .* of 69 x 96.*--shape H W fixes the size"):
        export_network(one, "onnx", out)
    assert not list(tmp_path.iterdir())
    assert export_network(one, "onnx", out, fixed=True).input_sizes == ((32, 32), (32, 32))


@pytest.mark.parametrize("bins", [(2, 2), (3, 3), (6, 6), (2, 5)])
def test_the_average_of_bins_is_adaptive_pooling(bins: tuple[int, int]) -> None:
    for height, width in ((1, 1), (2, 3), (5, 7), (12, 6), (16, 33)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(MatrixAdaptiveAvgPool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


@pytest.mark.parametrize("kind", ["atto", "atto2"])
def test_timm_loads_its_names_by_itself(kind: str, tmp_path: Path) -> None:
    one, out = source(kind), tmp_path / "x.safetensors"
    done = export_network(one, "timm", out)
    assert max(d.relative for d in done.differences) < 1e-5
    said = told("timm", out)
    assert (said["layout"], said["model"]) == ("timm", f"timm.create_model({one.name!r}, num_classes=5)")
    assert_told(said, one)
    settings = json.loads(said["pretrained_cfg"])
    assert (settings["input_size"], settings["crop_mode"], settings["crop_pct"]) == ([3, 64, 96], "squash", 1.0)
    model = timm.create_model(one.name, num_classes=5, checkpoint_path=str(out)).eval()
    images = random_images(2, 64, 96)
    with torch.no_grad():
        assert_same([model(images)], one.run(images))


@pytest.mark.parametrize(
    "kind, needle", [("pyramid", "no place for the output norms"), ("isotropic", "timm has no 'small'")]
)
def test_what_timm_has_no_place_for(kind: str, needle: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=needle):
        export_network(source(kind), "timm", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_of_timms_name_and_of_other_sizes(tmp_path: Path) -> None:
    one = source("classifier")
    wrong = ExportSource("convnext_atto", one.kind, one.network, one.outputs, one.shape, one.weights, prefix=one.prefix)
    with pytest.raises(UserError, match=r"timm's convnext_atto is another network: stem\.0\.weight is \(40, 3, 4, 4\)"):
        export_network(wrong, "timm", tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_fixed_size(name: str, tmp_path: Path) -> None:
    one, out = of(nn.Conv2d(3, 4, 8, 8), (48, 40)), tmp_path / f"x{EXPORT_FORMATS[name].suffix}"
    done = export_network(one, name, out, fixed=True)
    assert done.input_sizes == ((48, 48), (40, 40))
    assert [d.shape for d in done.differences] == [(1, 48, 40), (3, 48, 40), (2, 48, 40)]
    assert_same(RUN[name](out, random_images(4, 48, 40)), one.run(random_images(4, 48, 40)))
    with pytest.raises(Exception, match=r"(?i)invalid dimensions|guard failed"):
        RUN[name](out, random_images(4, 64, 40))


def test_sizes_that_a_program_does_not_take_are_told(tmp_path: Path) -> None:
    """Below 64 pixels the last map has one row, which the tracer takes for a constant."""
    done = export_network(source("classifier", (48, 48)), "torch_export", tmp_path / "x.pt2")
    assert done.input_sizes == ((32, 63), (32, 63))
    assert {d.shape[1:] for d in done.differences} == {(48, 48), (63, 63)}


class OneSize(nn.Module):
    """A network for images of one size, such as a plain vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class Branching(nn.Module):
    """A network that looks at its numbers, which no exporter follows."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def of(network: nn.Module, shape: tuple[int, int] = (32, 32)) -> ExportSource:
    return ExportSource("odd", "pyramid", network.eval(), ("stage0",), shape, "raw weights of x.pth")


@pytest.mark.parametrize("name", ["safetensors", "onnx", "torch_export"])
def test_a_network_of_one_size_is_exported_for_that_size(name: str, tmp_path: Path) -> None:
    done = export_network(of(OneSize()), name, tmp_path / f"x{EXPORT_FORMATS[name].suffix}")
    assert done.notes == ("the network takes images of one size only",)
    assert done.input_sizes[0] == ((1, None) if name == "safetensors" else (32, 32))


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_network_that_cannot_be_traced(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--format {name}: odd cannot be exported: ") as caught:
        export_network(of(Branching()), name, tmp_path / f"x{EXPORT_FORMATS[name].suffix}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def spoiled(network: nn.Module) -> nn.Module:
    """A copy with one number of its weights changed, that of the strongest effect being far from the output."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        next(network.parameters()).mul_(1.05)
    return network


@pytest.mark.parametrize("name", list(EXPORT_FORMATS))
def test_an_export_that_differs_is_refused_and_not_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, out = (
        source("atto") if name == "timm" else of(nn.Conv2d(3, 4, 8, 8)),
        tmp_path / f"x{EXPORT_FORMATS[name].suffix}",
    )
    out.write_text("the last good export")
    tensors, exported = ExportSource.tensors, torch.export.export
    if name in ("safetensors", "timm"):
        first = next(iter(one.tensors()))
        monkeypatch.setattr(
            ExportSource, "tensors", lambda self: {k: v * (1.05 if k == first else 1) for k, v in tensors(self).items()}
        )
    elif name == "onnx":
        monkeypatch.setattr(export_formats, "_portable", spoiled)
    else:
        monkeypatch.setattr(torch.export, "export", lambda net, *args, **more: exported(spoiled(net), *args, **more))
    shown: list[OutputDifference] = []
    with pytest.raises(UserError, match=rf"^refused: the {name} file differs .* \(0\.001 is allowed\)"):
        export_network(one, name, out, show=shown.extend)
    assert len(shown) == 4
    assert max(d.relative for d in shown) > 1e-3
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "the last good export"


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    one = source("classifier")
    with torch.no_grad():
        one.network.head.bias[2] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="are not finite"):
        export_network(one, "safetensors", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_how_a_difference_is_measured() -> None:
    one = of(nn.Identity())
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0], images[1, 1, 1, 1] = -8, 5
    found = images.clone()
    found[1, 2, 3, 3] += 2
    assert compare_outputs(one, lambda x: (found,), "random", images)[0] == OutputDifference(
        "random", (2, 4, 4), "stage0", 2.0, 0.25
    )
    zero = torch.zeros(1, 3, 2, 2)
    assert compare_outputs(one, lambda x: (x,), "random", zero)[0].relative == 0
    assert compare_outputs(one, lambda x: (x + 1,), "random", zero)[0].relative == float("inf")
    with pytest.raises(UserError, match=r"refused: the exported file gives \(2, 3, 4\)"):
        compare_outputs(one, lambda x: (x[..., 0],), "random", images)
    with pytest.raises(UserError, match="does not run on 2 random images of 4 x 4: ZeroDivisionError"):
        compare_outputs(one, lambda x: (x, 1 / 0), "random", images)  # type: ignore[arg-type]
    labels = torch.tensor([3, 0, 2, 1, 1]).view(1, 1, 1, 5)  # of whole values the share that differs
    (difference,) = compare_outputs(one, lambda x: (x.where(x != 2, 9),), "random", labels)
    assert (difference.absolute, difference.relative) == (1, 0.25)


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    out = tmp_path / "new/folder/x.safetensors"
    export_network(source("features"), "safetensors", out)
    assert out.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert os.listdir(out.parent) == [out.name]


def test_where_the_file_cannot_go(tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "x.safetensors", tmp_path / "folder.onnx"
    checkpoint.touch()
    folder.mkdir()
    with pytest.raises(UserError, match=r"a file of --format onnx ends with \.onnx"):
        check_export("onnx", tmp_path / "x.pth", str(checkpoint))
    for name, out in (("safetensors", checkpoint), ("onnx", folder)):
        with pytest.raises(UserError, match="is the checkpoint itself, or a folder"):
            check_export(name, out, str(checkpoint))
    with pytest.raises(UserError, match=r"--out .* cannot be written: File exists"):
        export_network(source("features"), "safetensors", checkpoint / "x.safetensors")


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.export.exporter.is_absent", lambda name: "onnx" in name)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript, onnxruntime: .* pip install -e '\.\[export\]'"):
        check_export("onnx", tmp_path / "x.onnx", "x.pth")
    check_export("torch_export", tmp_path / "x.pt2", "x.pth")


def test_images_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shape 16 64: at least 32 x 32 are needed"):
        export_network(source("classifier", (16, 64)), "onnx", tmp_path / "x.onnx", fixed=True)


def test_photographs_are_those_of_a_folder_or_of_a_package(tmp_path: Path) -> None:
    assert [photograph.size for photograph in load_photographs(None)] == [(640, 427)] * 2
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    for i in range(6):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found = load_photographs(tmp_path)
    assert [(photograph.mode, photograph.size) for photograph in found] == [("RGB", (50, 40))] * 4
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:500])
    with pytest.raises(UserError, match=r"0\.png' cannot be read: it is damaged"):
        load_photographs(tmp_path)


def test_photographs_are_normalised_as_the_metadata_says(tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), (51, 102, 204)).save(tmp_path / "x.png")
    seen: list[Tensor] = []

    class Watching(nn.Identity):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images

    one = ExportSource("odd", "pyramid", Watching(), ("stage0",), (32, 32), "raw weights of x.pth", PREPARED)
    export_network(one, "safetensors", tmp_path / "x.safetensors", tmp_path)
    expected = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(seen[-1], expected.view(1, 3, 1, 1).expand(1, 3, 69, 96))


def test_a_name_takes_any_checkpoint_and_finds_its_head(tmp_path: Path) -> None:
    model = shaken(timm.create_model("convnext_atto", num_classes=7))
    averaged = {name: value * 1.5 for name, value in model.state_dict().items()}
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": averaged}, tmp_path / "timm.pth")
    images = random_images(2, 64, 64)
    for average in (False, True):
        one = source_from_name("convnext_atto", str(tmp_path / "timm.pth"), average, None, (64, 64))
        assert (one.kind, one.outputs, one.notes) == ("classifier", ("logits",), (ASSUMED_PREPROCESSING,))
        assert one.weights == f"{'averaged' if average else 'raw'} weights of timm.pth"
        with torch.no_grad():
            model.load_state_dict(averaged if average else model.state_dict())
            assert_same(one.run(images), [model(images)])


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_is_read_once(averaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = timm.create_model("convnext_atto", num_classes=7).state_dict()
    torch.save({"state_dict": tensors, "state_dict_ema": tensors}, tmp_path / "timm.pth")
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: read.append(str(file)) or load(file, **options))
    source_from_name("convnext_atto", str(tmp_path / "timm.pth"), averaged, None, (64, 64))
    assert read == [str(tmp_path / "timm.pth")]


def test_a_name_without_a_head_or_with_maps(tmp_path: Path) -> None:
    backbone = shaken(build_backbone("convnext_atto"))
    torch.save(backbone.state_dict(), tmp_path / "x.pth")
    one = source_from_name("convnext_atto", str(tmp_path / "x.pth"), False, None, None)
    assert (one.kind, one.outputs, one.shape) == ("classifier", ("features",), (224, 224))
    assert "no head" in one.notes[0]
    images = random_images(1, 64, 64)
    with torch.no_grad():
        assert torch.equal(one.run(images)[0], backbone(images))
    one = source_from_name("convnext_atto", str(tmp_path / "x.pth"), False, (1, 3), (64, 64))
    assert (one.kind, one.outputs) == ("pyramid", ("stage1", "stage3"))
    assert [tuple(m.shape) for m in one.run(images)] == [(1, 80, 8, 8), (1, 320, 2, 2)]
    with pytest.raises(UserError, match="no averaged weights"):
        source_from_name("convnext_atto", str(tmp_path / "x.pth"), True, None, None)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_config_takes_the_weights_that_are_asked_for(checkpoints: dict[str, Path], averaged: bool) -> None:
    path = str(checkpoints["classifier"])
    one = source_from_config(str(CONFIG["classifier"]), path, averaged, None, SMALL_OPTIONS)
    state = read_checkpoint(path)["state_dict"]
    assert (one.name, one.kind, one.shape, one.preprocessing.colour) == ("convnext_atto", "classifier", (48, 48), "RGB")
    assert (one.classes[3], len(one.classes)) == ("three", 10)
    assert one.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert one.preprocessing.std == pytest.approx((0.229, 0.224, 0.225))
    assert torch.equal(one.tensors()["head.bias"], state["head.bias"] + averaged)


def test_a_detector_is_exported_whole(checkpoints: dict[str, Path]) -> None:
    one = source_from_config(str(CONFIG["detector"]), str(checkpoints["detector"]), False, None, SMALL_OPTIONS)
    assert (one.kind, one.outputs, one.shape) == ("detector", ("boxes", "scores", "labels", "masks"), (160, 160))
    assert one.batch_size == 1
    assert one.metadata()["input"].startswith("images (1, 3, H, W), float32")
    state = read_checkpoint(str(checkpoints["detector"]))["state_dict"]
    assert one.tensors().keys() == state.keys()
    assert all(torch.equal(one.tensors()[name], value) for name, value in state.items())


def test_a_checkpoint_of_another_model(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="is of another model"):
        source_from_config(str(CONFIG["segmentor"]), str(checkpoints["classifier"]), False, None, SMALL_OPTIONS)
    with pytest.raises(UserError, match="is of another model"):
        source_from_config(str(CONFIG["classifier"]), str(checkpoints["classifier"]), False, None)
