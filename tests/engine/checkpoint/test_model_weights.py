"""Whole models of others: recognised, renamed, never half loaded and never with permuted labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

import classification  # noqa: F401  (registers what the configs name)
from backbones import UserError
from backbones.variants import CONVNEXT_V1
from backbones.weights import read_checkpoint
from demo.dataset import make_digits
from engine.checkpoint.model_weights import backbones_of, load_model_weights
from engine.config.load import Resolved, load_config
from engine.config.world import Launch
from engine.run import test as run_test
from engine.run import train

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DETECTOR, SEGMENTOR = CONFIGS / "detection/mask_rcnn_digits.py", CONFIGS / "segmentation/upernet_digits.py"
CLASSIFIER = CONFIGS / "classification/digits.py"
LARGE = sorted(path for path in CONFIGS.glob("*/*_convnext_*.py") if path.stem.startswith(("mask_rcnn", "cas", "uper")))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = {DETECTOR: DIGITS, SEGMENTOR: ("background", *DIGITS), CLASSIFIER: DIGITS}
CLASS_LAYERS = {
    DETECTOR: ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"),
    SEGMENTOR: ("decode_head.conv_seg", "auxiliary_head.conv_seg"),
    CLASSIFIER: ("head",),
}
SMALL = {"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 8, 8, 16]}

tasks = pytest.mark.parametrize("config", [DETECTOR, SEGMENTOR], ids=["detector", "segmentor"])
every_task = pytest.mark.parametrize("config", list(CLASSES), ids=["detector", "segmentor", "classifier"])


@cache
def resolved(config: Path, classes: int | None = None) -> Resolved:
    options = {} if classes is None else {"classes": [f"class {i}" for i in range(classes)]}
    return load_config(config, options | SMALL)


def built(config: Path, classes: int | None = None, **options: Any) -> nn.Module:
    cfg = resolved(config, classes).cfg
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build({**cfg.model, **options})


def released(config: Path, classes: int | None = None) -> dict[str, Any]:
    """A checkpoint as the released programs write it: random values, and what else they put into the file."""
    torch.manual_seed(1)
    state = built(config, classes).state_dict()
    state = {name: torch.randn_like(value) if value.is_floating_point() else value + 3 for name, value in state.items()}
    meta = {"mmcv_version": "1.3.1", "config": "model = dict()", "CLASSES": CLASSES[config], "epoch": 36}
    meta["PALETTE"] = [np.array([i, 2, 3]) for i in range(3)]
    return {"meta": meta, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def model_zoo(config: Path) -> dict[str, Any]:
    """A checkpoint of mmdet 3 or mmseg 1 with mmpretrain's backbone."""
    state = {}
    for name, value in released(config)["state_dict"].items():
        renamed = name.replace(".dwconv.", ".depthwise_conv.").replace(".pwconv", ".pointwise_conv")
        state[renamed if name.startswith("backbone.") else name] = value
    state["data_preprocessor.mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    state["data_preprocessor.std"] = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return {"meta": {"dataset_meta": {"classes": list(CLASSES[config])}}, "state_dict": state}


def assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def modules(*names: str, norm: bool = False) -> Iterator[str]:
    """Tensor names of layers with a bias, or of convolutions without one under a batch norm."""
    for name in names:
        if norm:
            kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            yield from (f"{name}.conv.weight", *(f"{name}.bn.{kind}" for kind in kinds))
        else:
            yield from (f"{name}.weight", f"{name}.bias")


def names_of_the_backbone(depths: tuple[int, ...]) -> Iterator[str]:
    """As in the released ``backbone/convnext.py`` of both dense tasks."""
    for i, depth in enumerate(depths):
        yield from modules(*(f"downsample_layers.{i}.{part}" for part in (0, 1)), f"norm{i}")
        for block in (f"stages.{i}.{j}" for j in range(depth)):
            yield f"{block}.gamma"
            yield from modules(*(f"{block}.{layer}" for layer in ("dwconv", "norm", "pwconv1", "pwconv2")))


def names_of_a_detector(cascade: bool) -> Iterator[str]:
    """As in mmdet 2: FPN, RPNHead, Shared2FCBBoxHead or three ConvFCBBoxHeads with SyncBN, FCNMaskHead."""
    yield from modules(*(f"neck.{kind}_convs.{i}.conv" for kind in ("lateral", "fpn") for i in range(4)))
    yield from modules("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
    for stage in (".0", ".1", ".2") if cascade else ("",):
        box, mask = f"roi_head.bbox_head{stage}", f"roi_head.mask_head{stage}"
        yield from modules(f"{box}.fc_cls", f"{box}.fc_reg", f"{box}.shared_fcs.0")
        yield from modules(*(f"{box}.shared_convs.{i}" for i in range(4)), norm=True) if cascade else ()
        yield from () if cascade else modules(f"{box}.shared_fcs.1")
        yield from modules(*(f"{mask}.convs.{i}.conv" for i in range(4)), f"{mask}.upsample", f"{mask}.conv_logits")


def names_of_a_segmentor() -> Iterator[str]:
    """As in mmseg 0: UPerHead and FCNHead with SyncBN."""
    yield from modules("decode_head.conv_seg", "auxiliary_head.conv_seg")
    yield from modules(*(f"decode_head.psp_modules.{i}.1" for i in range(4)), norm=True)
    yield from modules(*(f"decode_head.{kind}_convs.{i}" for kind in ("lateral", "fpn") for i in range(3)), norm=True)
    yield from modules("decode_head.bottleneck", "decode_head.fpn_bottleneck", "auxiliary_head.convs.0", norm=True)


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_the_released_names_are_those_of_the_config(path: Path) -> None:
    cfg = load_config(path).cfg
    if cfg.model.backbone.type not in CONVNEXT_V1:
        pytest.skip("released with V1 alone")
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        model = MODELS.build(cfg.model)
    expected = [f"backbone.{name}" for name in names_of_the_backbone(model.backbone.depths)]
    heads = names_of_a_segmentor() if "upernet" in path.stem else names_of_a_detector("cascade" in path.stem)
    expected += heads
    assert sorted(expected) == sorted(model.state_dict())
    report = load_model_weights(model, {"state_dict": model.state_dict()}, "released.pth")
    assert (report.loaded, report.total, report.layout) == (len(expected), len(expected), "")


@tasks
def test_a_released_model_is_loaded_whole(config: Path, tmp_path: Path) -> None:
    torch.save(released(config), tmp_path / "released.pth")
    checkpoint, model = read_checkpoint(str(tmp_path / "released.pth")), built(config)
    total = len(model.state_dict())
    report = load_model_weights(model, checkpoint, "released.pth", classes=CLASSES[config])
    assert str(report) == f"{total}/{total} tensors loaded from released.pth"
    assert_holds(model, checkpoint["state_dict"])


@tasks
def test_a_model_of_the_zoo_is_renamed(config: Path) -> None:
    model, total = built(config), len(released(config)["state_dict"])
    report = load_model_weights(model, model_zoo(config), "zoo.pth", classes=CLASSES[config])
    kept = "data_preprocessor.mean, data_preprocessor.std"
    assert str(report) == f"{total}/{total} tensors loaded from zoo.pth (mmpretrain layout), skipped: {kept}"
    assert_holds(model, released(config)["state_dict"])
    assert not model.backbone._weights_pending


def test_other_normalisation_is_refused() -> None:
    checkpoint = model_zoo(SEGMENTOR)
    checkpoint["state_dict"]["data_preprocessor.std"] = torch.ones(3, 1, 1)
    with pytest.raises(UserError, match=r"data_preprocessor\.std \[1\.0, 1\.0, 1\.0\], the config has \[58\.39"):
        load_model_weights(built(SEGMENTOR), checkpoint, "zoo.pth")


@pytest.mark.parametrize("of", [released, model_zoo])
def test_what_is_missing_and_what_has_no_place_is_named(of: Any) -> None:
    checkpoint, model = of(DETECTOR), built(DETECTOR)
    state = checkpoint["state_dict"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in ("weight", "bias"):
        state[f"roi_head.mask_head.deconv.{kind}"] = state.pop(f"roi_head.mask_head.upsample.{kind}")
    lost, foreign = (
        f"{name}.weight, {name}.bias" for name in ("roi_head.mask_head.upsample", "roi_head.mask_head.deconv")
    )
    message = rf"lacks 2/{len(before)} tensors \({lost}\), and 2 of its tensors have no place here \({foreign}\)$"
    with pytest.raises(UserError, match=message):
        load_model_weights(model, checkpoint, "model.pth")
    assert_holds(model, before)


def test_a_backbone_that_is_not_whole_is_refused() -> None:
    checkpoint = model_zoo(DETECTOR)
    del checkpoint["state_dict"]["backbone.stages.2.0.pointwise_conv1.weight"]
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors: stages\.2\.0\.pwconv1"):
        load_model_weights(built(DETECTOR), checkpoint, "zoo.pth")


@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
@pytest.mark.parametrize(
    "value, message",
    [
        (torch.full((20,), torch.nan), "does not fit"),
        (torch.tensor(1.0), "does not fit"),
        (torch.full((11,), torch.nan), "fc_cls.bias has 11 NaN or infinite values of 11$"),
        (torch.zeros(11).to_sparse(), "fc_cls.bias is no array of floating-point numbers"),
    ],
    ids=["shape", "axes", "NaN", "sparse"],
)
def test_a_damaged_tensor_is_named(value: Tensor, message: str, training: bool) -> None:
    checkpoint = released(DETECTOR)
    checkpoint["state_dict"]["roi_head.bbox_head.fc_cls.bias"] = value
    with pytest.raises(UserError, match=message):
        load_model_weights(built(DETECTOR), checkpoint, "a.pth", training=training)


def test_old_files_have_no_batch_counters() -> None:
    checkpoint, model = released(SEGMENTOR), built(SEGMENTOR)
    state = checkpoint["state_dict"]
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    for name in counters:
        del state[name]
    report = load_model_weights(model, checkpoint, "old.pth")
    assert report.missing == tuple(counters)
    assert str(report).endswith(f"old.pth, {len(counters)} batch counters begin at 0")
    del state["decode_head.bottleneck.bn.running_var"]
    with pytest.raises(UserError, match=r"lacks 2/\d+ tensors \(decode_head\.bottleneck\.bn\.running_var, "):
        load_model_weights(built(SEGMENTOR), checkpoint, "old.pth")


@every_task
@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
def test_permuted_classes_are_refused(config: Path, training: bool) -> None:
    checkpoint, names = released(config), CLASSES[config]
    permuted = (*names[:3], names[4], names[3], *names[5:])
    message = f"'a.pth' has the classes in another order: {names[3]!r} is number 3 there and 4 in the config; give"
    for meta in (checkpoint["meta"], {"dataset_meta": {"classes": names}, "CLASSES": permuted}):
        with pytest.raises(UserError, match=message):
            load_model_weights(built(config), checkpoint | {"meta": meta}, "a.pth", classes=permuted, training=training)


def test_other_spellings_of_classes_are_told() -> None:
    checkpoint = released(DETECTOR)
    same = ["Zero", "one ", *DIGITS[2:]]
    assert not load_model_weights(built(DETECTOR), checkpoint, "a.pth", classes=same).remark
    other = load_model_weights(built(DETECTOR), checkpoint, "a.pth", classes=["nought", *DIGITS[1:]])
    assert str(other).endswith(
        ", 1 of 10 classes have other names in the file (number 0 is 'zero' there, 'nought' here)"
    )
    twice = {"CLASSES": ("one", "one", *("x" * i for i in range(1, 9)))}  # ImageNet has two cranes
    remark = load_model_weights(built(DETECTOR), checkpoint | {"meta": twice}, "a.pth", classes=DIGITS).remark
    assert remark.startswith("10 of 10 classes have other names")
    for meta in ({}, "text", {"CLASSES": None}, {"dataset_meta": None}):
        assert not load_model_weights(
            built(DETECTOR), checkpoint | {"meta": meta}, "a.pth", classes=DIGITS[::-1]
        ).remark


@every_task
def test_another_number_of_classes_begins_with_new_heads(config: Path) -> None:
    checkpoint, model, old = released(config), built(config, 4), len(CLASSES[config])
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_model_weights(model, checkpoint, "coco.pth", classes=["zero", "nine", "a", "b"], training=True)
    layers = CLASS_LAYERS[config]
    assert set(report.missing) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    loaded, total = len(fresh) - 2 * len(layers), len(fresh)
    head = report.head or ""
    assert str(report) == f"{loaded}/{total} tensors loaded from coco.pth, head {head}"
    assert head.startswith(f"re-initialised: {old} -> 4 classes: ")
    assert set(head.rpartition(": ")[2].split(", ")) == set(layers)
    assert_holds(model, checkpoint["state_dict"] | {name: fresh[name] for name in report.missing})
    with pytest.raises(UserError, match=r"does not fit: .* check classes and model"):
        load_model_weights(built(config, 4), checkpoint, "coco.pth")


@every_task
def test_the_same_number_of_classes_keeps_the_heads(config: Path) -> None:
    checkpoint, model = released(config), built(config)
    report = load_model_weights(model, checkpoint, "coco.pth", classes=CLASSES[config], training=True)
    assert (report.head, report.missing) == (f"kept: {len(CLASSES[config])} classes", ())
    assert_holds(model, checkpoint["state_dict"])


@pytest.mark.parametrize(
    "layer, reason",
    [
        ("roi_head.bbox_head.fc_cls", "one head of another number than the others"),
        ("roi_head.bbox_head.fc_reg", "boxes that do not depend on the class"),
        ("rpn_head.rpn_conv", "no head at all"),
    ],
)
@pytest.mark.parametrize("classes", [10, 4])
def test_other_differences_of_shape_stay_errors_in_training(classes: int, layer: str, reason: str) -> None:
    checkpoint = released(DETECTOR)
    for kind in ("weight", "bias"):
        checkpoint["state_dict"][f"{layer}.{kind}"] = checkpoint["state_dict"][f"{layer}.{kind}"][:4]
    with pytest.raises(UserError, match="does not fit"):
        load_model_weights(built(DETECTOR, classes), checkpoint, "coco.pth", training=True)


def test_a_released_classifier_is_a_whole_model() -> None:
    state = released(CLASSIFIER)["state_dict"]
    bare = {name.removeprefix("backbone."): value for name, value in state.items()}
    model = built(CLASSIFIER)
    report = load_model_weights(model, {"model": bare, "model_ema": {}}, "released.pth")
    assert (report.loaded, report.total, report.layout) == (len(state), len(state), "official")
    assert_holds(model, state)
    zoo = {
        name.replace("head.", "head.fc.").replace("backbone.norm.", "backbone.norm3."): v for name, v in state.items()
    }
    zoo = {n.replace(".dwconv.", ".depthwise_conv.").replace(".pwconv", ".pointwise_conv"): v for n, v in zoo.items()}
    model = built(CLASSIFIER)
    assert load_model_weights(model, {"state_dict": zoo}, "zoo.pth").layout == "mmpretrain"
    assert_holds(model, state)
    model = built(CLASSIFIER)
    load_model_weights(
        model, {"model": {}, "model_ema": {f"module.{n}": value for n, value in bare.items()}}, "a.pth", True
    )
    assert_holds(model, state)


def test_a_classifier_is_no_detector() -> None:
    state = released(CLASSIFIER)["state_dict"]
    bare = {name.removeprefix("backbone."): value for name, value in state.items()}
    for checkpoint, head in (({"model": bare}, "norm.weight"), ({"state_dict": state}, "backbone.norm.weight")):
        with pytest.raises(UserError, match=rf"another model: it lacks \d+/\d+ tensors .*no place here \({head}, "):
            load_model_weights(built(DETECTOR), checkpoint, "classifier.pth")


def test_load_reports_of_backbones_are_kept(tmp_path: Path) -> None:
    torch.save(released(DETECTOR), tmp_path / "released.pth")
    path = str(tmp_path / "released.pth")
    model = built(DETECTOR, backbone={**resolved(DETECTOR).cfg.model.backbone, "weights": path})
    model.init_weights()
    assert [backbone.load_report.source for backbone in backbones_of(model)] == [path]
    assert "init_weights" not in vars(model.backbone)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    make_digits(root, train_images=20, val_images=10, train_scenes=1, val_scenes=1)
    return root / "imagenet"


def run(data: Path, work_dir: Path, epochs: int = 1, **options: Any) -> Resolved:
    """A resolved classification on a few digits that lasts a moment."""
    settings = {"data_root": str(data), "work_dir": str(work_dir), "batch.size": 10, "train_cfg.max_epochs": epochs}
    settings |= {"train_dataloader.num_workers": 0, "val_dataloader.num_workers": 0, "param_scheduler": []}
    settings |= {"train_pipeline.0.size": 32, "test_pipeline.0.size": 32, "custom_hooks": []}
    settings["visualizer.vis_backends"] = []  # writing the config takes longer than these trainings
    return load_config(CLASSIFIER, settings | SMALL | {name.replace("__", "."): v for name, v in options.items()})


def load_reports_of(work_dir: Path, name: str = "weights.json") -> list[dict[str, Any]]:
    return json.loads((work_dir / name).read_text())["receipts"]


def test_a_run_leaves_its_load_reports(data: Path, tmp_path: Path) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    train(run(data, first), Launch(), resume=False)
    assert load_reports_of(first) == []
    weights = str(first / "epoch_1.pth")

    train(run(data, second, model__backbone__weights=weights), Launch(), resume=False)
    (report,) = load_reports_of(second)
    total = len(built(CLASSIFIER).state_dict())
    assert (report["part"], report["source"], report["head"]) == ("backbone", weights, "loaded: 10 classes")
    assert (report["loaded"], report["total"]) == (total - 2, total - 2)
    assert report["line"].startswith(f"{total - 2}/{total - 2} backbone tensors loaded from {weights}")
    assert report["line"].endswith("; classifier's head loaded: 10 classes")
    log = next(second.glob("*/*.log")).read_text()
    assert f"classifier's head loaded: 10 classes ({weights})" in log

    torch.save({"model": released(CLASSIFIER, 4)["state_dict"]}, tmp_path / "other.pth")
    begin = {"load_from": str(tmp_path / "other.pth"), "model__backbone__weights": weights}
    train(run(data, third, **begin), Launch(), resume=True)  # it was interrupted before its first checkpoint
    parts = [(report["part"], report["loaded"], report["head"]) for report in load_reports_of(third)]
    new = "re-initialised: 4 -> 10 classes: head"
    assert parts == [("backbone", total - 2, "loaded: 10 classes"), ("model", total - 2, new)]

    train(run(data, third, epochs=2, **begin), Launch(), resume=True)
    resumed = load_reports_of(third)[1]
    assert (resumed["source"], resumed["loaded"], resumed["head"]) == (str(third / "epoch_1.pth"), total, None)
    assert (third / "epoch_2.pth").is_file()

    tested = run(data, third)
    run_test(tested, Launch(), str(third / "epoch_2.pth"))
    (report,) = load_reports_of(third, "test.json")
    assert report["line"] == f"{total}/{total} tensors loaded from {third / 'epoch_2.pth'}"
    assert len(load_reports_of(third)) == 2


def test_trust_reaches_all_that_a_run_reads_and_ends_with_it(data: Path, tmp_path: Path) -> None:
    """The files hold a decimal number, which is no plain data: of the backbone, of the run itself, and of a test."""
    folder, weights = tmp_path / "run", str(tmp_path / "weights.pth")
    torch.save({"model": built(CLASSIFIER).backbone.state_dict(), "home": Decimal(1)}, weights)
    begin = {"model__backbone__weights": weights}
    for resume in (False, True):
        with pytest.raises(UserError, match=r"refers to decimal"):
            train(run(data, folder, epochs=1 + resume, **begin), Launch(), resume)
        train(run(data, folder, epochs=1 + resume, **begin), Launch(), resume, trust=True)
        saved = torch.load(folder / f"epoch_{1 + resume}.pth", weights_only=False)
        torch.save(saved | {"home": Decimal(1)}, folder / f"epoch_{1 + resume}.pth")
        begin = {}  # what is refused in the second round is the checkpoint of the run
    assert [report["part"] for report in load_reports_of(folder)] == ["model"]
    for trust in (True, False):
        with nullcontext() if trust else pytest.raises(UserError, match=r"refers to decimal"):
            run_test(run(data, tmp_path), Launch(), str(folder / "epoch_2.pth"), trust=trust)


def test_permuted_classes_are_refused_in_a_test(data: Path, tmp_path: Path) -> None:
    checkpoint = released(CLASSIFIER)
    checkpoint["meta"]["CLASSES"] = DIGITS[::-1]
    torch.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(UserError, match="has the classes in another order: 'nine' is number 0 there and 9 in the"):
        run_test(run(data, tmp_path), Launch(), str(tmp_path / "a.pth"))


@pytest.mark.parametrize("setting", ["load_from", "model__backbone__weights"])
def test_absent_files_to_begin_with(data: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting.replace('__', '.')} 'absent.pth' does not exist"):
        train(run(data, tmp_path, **{setting: "absent.pth"}), Launch(), resume=False)
