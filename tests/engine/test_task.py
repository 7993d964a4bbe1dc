"""Tasks: how a config finds its own, and a task of a user that runs through every tool without a change of ours."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

import classification
import detection
import segmentation
from backbones.errors import ConfigError
from engine.config.load import load_config
from engine.config.world import Launch
from engine.task import CUSTOM_TASK, TASK_SPECS, TaskRegistry, TaskSpec, task_of

ROOT = Path(__file__).resolve().parents[2]
OF_CONFIGS = {
    "classification/digits.py": classification.task.CLASSIFICATION,
    "detection/mask_rcnn_digits.py": detection.task.DETECTION,
    "segmentation/upernet_digits.py": segmentation.task.SEGMENTATION,
}
CONFIG = """
_base_ = [{runtime!r}]
custom_imports = dict(imports=["mean_colour"], allow_failed_imports=False)
default_scope = "mmengine"
classes = "channels"
data_root = {data!r}
model = dict(type="ColourRegressor", backbone=dict(type="convnext_atto", depths=[1, 1, 1, 1], dims=[8, 8, 8, 16]))
train_pipeline = [dict(type="ReadColour", size=32)]
test_pipeline = [dict(type="ReadColour", size=32)]
train_dataloader = dict(
    num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True), dataset=dict(type="ColourImages", split="train")
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ColourImages", split="val"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ColourError")
test_evaluator = val_evaluator
val_cfg = dict(type="ValidationLoop")
test_cfg = dict()
visualizer = dict(type="ColourVisualizer", vis_backends=[dict(type="LocalVisBackend")])
batch = dict(size=4, per_gpu=4, lr_rule="linear")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(type="EpochLoop", max_epochs=2)
work_dir = {work!r}
"""


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OF_CONFIGS)
def test_a_config_is_of_the_task_of_its_model(path: str) -> None:
    cfg = load_config(ROOT / "configs" / path, None, Launch()).cfg
    assert task_of(cfg) is OF_CONFIGS[path]
    assert (
        task_of(Config(dict(model=dict(type="TTA", module=cfg.model), default_scope=cfg.default_scope)))
        is (OF_CONFIGS[path])
    )


def test_the_nearest_base_class_counts() -> None:
    class Base(nn.Module):
        pass

    class Derived(Base):
        pass

    tasks = TaskRegistry()
    near, far = TaskSpec("near", (Derived,)), TaskSpec("far", (Base,))
    for spec in (far, near):
        tasks.register(spec)
    assert tasks.of_model(type("Ours", (Derived,), {})) is near
    assert tasks.of_model(type("Theirs", (Base,), {})) is far
    assert tasks.of_model(nn.Linear) is CUSTOM_TASK
    with pytest.raises(KeyError, match="'near' is registered already"):
        tasks.register(TaskSpec("near"))
    with pytest.raises(KeyError, match="Base belongs to task 'far'"):
        tasks.register(TaskSpec("third", (Base,)))


def test_a_config_may_name_its_task() -> None:
    model = dict(type="ImageClassifier")
    assert task_of(Config(dict(model=model, task="segmentation"))) is segmentation.task.SEGMENTATION
    with pytest.raises(ConfigError, match="task='nonsense' is not registered: choose from classification, "):
        task_of(Config(dict(model=model, task="nonsense")))


def test_a_model_of_no_task_is_run_by_mmengines_contract() -> None:
    @MODELS.register_module(name="OfNoTask")
    class OfNoTask(BaseModel):
        def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
            return mode

    found = task_of(Config(dict(model=dict(type="OfNoTask"))))
    assert found is CUSTOM_TASK
    assert found.count_forward(OfNoTask(), None) == "tensor"
    assert task_of(Config(dict(model=dict(type="Unknown")))) is CUSTOM_TASK


# --- a fourth task through the tools ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the task's module, which Python finds, its config and its data."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copy(ROOT / "tests/data/mean_colour.py", folder)
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (folder / "data" / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((40, 48, 3), random.integers(0, 256, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "data" / split / f"{i}.png")
    names = {"runtime": str(ROOT / "configs/_base_/runtime.py"), "data": str(folder / "data")}
    (folder / "colour.py").write_text(CONFIG.format(**names, work=str(folder / "run")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def trained(toy: Path, program: Callable[..., Any]) -> Path:
    """The folder after a training."""
    done = program("train.py", toy / "colour.py")
    assert done.code == 0, done.err
    return toy


def test_it_trains_and_reports(trained: Path) -> None:
    folder = trained / "run"
    assert {path.name for path in folder.glob("*.pth")} == {"epoch_1.pth", "epoch_2.pth", "best_colour_error.pth"}
    assert json.loads((folder / "starts.json").read_text())["starts"][0]["about"]["task"] == "mean colour"
    page = (folder / "report.html").read_text()
    for words in ("Mean colour: ColourRegressor", "error of the colour", "The error is the mean over the channels."):
        assert words in page
    assert "mIoU" not in page


def test_it_tests_and_predicts(trained: Path, program: Callable[..., Any]) -> None:
    config, checkpoint = trained / "colour.py", trained / "run/epoch_2.pth"
    done = program("test.py", config, checkpoint)
    assert done.code == 0, done.err
    assert set(json.loads((trained / "run/test.json").read_text())["metrics"]) == {"other", "colour_error"}
    assert len(list((trained / "run/pictures").glob("*.png"))) == 4
    done = program("predict.py", config, checkpoint, trained / "data/val", "--out", trained / "drawn")
    assert done.code == 0, done.err
    assert np.array(Image.open(trained / "drawn/0.png")).shape == (480, 2 * 576 - 2, 3)


def test_its_flops_are_counted(toy: Path, program: Callable[..., Any]) -> None:
    done = program("flops.py", toy / "colour.py", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert (data["parts"], data["shape"]) == ("backbone and colour layer", [32, 32])
    assert data["by_module"]["colour"] == 16 * 3


def test_its_memory_is_estimated(toy: Path, program: Callable[..., Any]) -> None:
    done = program("train.py", toy / "colour.py", "--dry-run")
    assert done.code == 0, done.err
    assert "activations of 4 images of 32 x 32" in done.out
    assert "2 epochs of 2 steps = 4 steps (8 images)" in done.out  # counted
    unread = program("train.py", toy / "colour.py", "--dry-run", "--no-data-check")
    assert "2 epochs of 2 steps = 4 steps (8 images if the data is all of channels)" in unread.out


def test_it_is_exported(trained: Path, program: Callable[..., Any]) -> None:
    out = trained / "colour.pt2"
    arguments = (trained / "colour.py", trained / "run/epoch_2.pth", "--format", "torch_export", "--out", out)
    done = program("export.py", *arguments)
    assert done.code == 0, done.err
    assert "colourist of convnext_atto" in done.out
    assert out.is_file()


def test_its_data_is_checked(toy: Path, program: Callable[..., Any]) -> None:
    done = program("check_data.py", toy / "colour.py")
    assert done.code == 0, done.err + done.out
    (toy / "small/train").mkdir(parents=True)
    shutil.copy(toy / "data/train/0.png", toy / "small/train")
    options = ("--splits", "train", "--cfg-options", f"data_root={toy / 'small'}")
    done = program("check_data.py", toy / "colour.py", *options)
    assert done.code == 1, done.err + done.out
    assert "has 1 images" in done.out


# --- nothing below the tasks names one -------------------------------------------------------------------------------

# The packages whose versions are recorded; the imports of mmcv's ops by name; the tables and trials above the tasks.
MAY_NAME_TASKS = (
    *("engine/report/environment.py", "engine/mmcv_ops/", "analysis/paper/", "analysis/doctor/"),
    *("analysis/__init__.py", "analysis/own_data/"),
    *("analysis/benchmark/detection.py", "analysis/benchmark/loading.py", "analysis/benchmark/synthetic_detections.py"),
    "analysis/benchmark/large_data.py",
)
TASK_NAME = re.compile(
    r"mmdet\b.*|mmseg\b.*|classification|detection|segmentation|ImageClassifier|EncoderDecoder|\w*(Det|Seg)DataSample"
    r"|top1|mIoU|(coco/)?\w*_mAP|roi_head|rpn_head|bbox_head|decode_head|fc_cls|conv_seg|coco|ade20k"
)


def strings_and_names(path: Path) -> Iterator[str]:
    """String constants but for docstrings, names, attributes and imported modules of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_engine_and_the_general_analysis_name_no_task() -> None:
    files = [path for package in ("engine", "analysis") for path in sorted((ROOT / package).rglob("*.py"))]
    files = [path for path in files if not str(path.relative_to(ROOT)).startswith(MAY_NAME_TASKS)]
    assert len(files) > 60
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in strings_and_names(path)
        if TASK_NAME.fullmatch(name)
    }
    assert not found


def test_all_three_tasks_are_registered() -> None:
    assert {"classification", "detection", "segmentation"} <= TASK_SPECS.keys()
