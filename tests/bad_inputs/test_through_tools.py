"""One bad input of each kind as a person meets it: exit code 2, one line on stderr, the data as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from engine.config.load import load_config
from engine.config.world import Launch
from tests.bad_inputs.builders import CONFIG, FORMAT, UNUSUAL, contents
from tests.bad_inputs.test_checkpoints import HOSTILE


def assert_one_line(ended: Any, *needles: object) -> None:
    assert ended.code == 2, ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    for needle in needles:
        assert str(needle) in line
    assert "Traceback" not in ended.out


@pytest.fixture
def data(digits: Path, tmp_path: Path) -> Any:
    """A copy of the digits of a task, with the options that lead to it; what was in it is there at the end."""

    def make(task: str) -> tuple[Path, list[str]]:
        root = tmp_path / "data"
        shutil.copytree(digits / FORMAT[task], root)
        return root, ["--cfg-options", f"data_root={root}", f"work_dir={tmp_path / 'work'}", "batch.size=4"]

    return make


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "sound.pth"
    model = MODELS.build(load_config(CONFIG["classifier"], {}, Launch()).cfg.model)
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def test_a_setting(tool: Any, data: Any, tmp_path: Path) -> None:
    root, options = data("classifier")
    before = contents(root)
    assert_one_line(tool("train.py", CONFIG["classifier"], *options, "optim_wrapper.optimizer.lr=nan"), "lr=nan")
    assert_one_line(tool("train.py", CONFIG["classifier"], *options, "train_pipeline.0.size=-1"), "size=-1")
    assert_one_line(tool("train.py", CONFIG["classifier"], *options, "a=[1,(2"), "'a'", "do not match")
    assert contents(root) == before


def test_an_annotation_file(tool: Any, data: Any) -> None:
    root, options = data("detector")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "../val2017/" + content["images"][1]["file_name"]
    path.write_text(json.dumps(content))
    before = contents(root)
    assert_one_line(tool("train.py", CONFIG["detector"], *options), path, "leads out of")
    assert_one_line(tool("train.py", CONFIG["detector"], "--no-data-check", *options), path, "leads out of")
    ended = tool("check_data.py", CONFIG["detector"], *options[:3])
    assert (ended.code, ended.err) == (1, "")
    assert "leads out of" in ended.out
    assert contents(root) == before


def test_a_test_image(tool: Any, data: Any, weights: Path) -> None:
    root, options = data("classifier")
    path = sorted((root / "val").rglob("*.png"))[3]
    path.write_bytes(b"notes")
    before = contents(root)
    ended = tool("test.py", CONFIG["classifier"], weights, *options)
    assert_one_line(ended, path, "is no image", "--no-data-check tests all the same")
    ended = tool("test.py", CONFIG["classifier"], weights, "--no-data-check", *options)
    assert_one_line(ended, path, "cannot be decoded")
    assert contents(root) == before


@pytest.mark.parametrize("tta", [False, True])
def test_labels_of_the_test_data(tool: Any, data: Any, tta: bool, tmp_path: Path) -> None:
    """Scores would be of other labels than those of the training, without a word; seen behind augmentation too."""
    _, options = data("segmentor")
    path = tmp_path / "segmentor.pth"
    cfg = load_config(CONFIG["segmentor"], {}, Launch()).cfg
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, path)
    for split in ("test", "val"):
        options.append(f"{split}_dataloader.dataset.reduce_zero_label=False")
    ended = tool("test.py", CONFIG["segmentor"], path, *(["--tta"] if tta else []), *options)
    assert_one_line(ended, "reduce_zero_label is False of the data set and True of LoadLabels")


@pytest.mark.parametrize("case", ["a payload", "a payload in the old format", "a pickle with a payload"])
def test_a_hostile_checkpoint(tool: Any, data: Any, case: str, tmp_path: Path) -> None:
    _, options = data("classifier")
    path = tmp_path / "hostile.pth"
    path.write_bytes(HOSTILE[case](tmp_path / "marker"))
    for arguments in (
        ("test.py", CONFIG["classifier"], path, *options),
        ("train.py", CONFIG["classifier"], *options, f"load_from={path}"),
        ("train.py", CONFIG["classifier"], *options, f"model.backbone.weights={path}"),
    ):
        assert_one_line(tool(*arguments), path)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    shutil.copy(path, work / "epoch_1.pth")
    assert_one_line(tool("train.py", CONFIG["classifier"], "--resume", *options), work / "epoch_1.pth")
    assert not (tmp_path / "marker").exists()


def test_unusual_images_are_drawn_and_nothing_else_is_written(tool: Any, weights: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, make in UNUSUAL.items():
        (folder / name).write_bytes(make())
    before = contents(folder)
    options = ["--cfg-options", f"work_dir={tmp_path / 'work'}"]
    ended = tool("predict.py", CONFIG["classifier"], weights, folder, "--out", out, *options)
    assert ended.code == 0, ended.err
    assert len(list(out.glob("*.png"))) == len(UNUSUAL)
    assert [path.name for path in out.iterdir() if path.suffix != ".png"] == [".done"]
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("out", ["file", "link", "x" * 300], ids=["file", "link", "long"])
def test_a_place_for_drawings_that_is_none(tool: Any, weights: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "image.png").write_bytes(UNUSUAL["palette.png"]())
    (tmp_path / "file").write_text("notes")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "where")
    before = contents(tmp_path)
    ended = tool("predict.py", CONFIG["classifier"], weights, tmp_path / "image.png", "--out", tmp_path / out)
    assert_one_line(ended, "--out")
    assert contents(tmp_path) == before


LIBRARIES = {  # base, what its model states, what the line says
    "a box head of other channels": (
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        "roi_head=dict(bbox_head=dict(in_channels=128))",
        "model.roi_head.bbox_head.shared_fcs.0 takes 6272 channels and gets 12544: correct in_channels of",
    ),
    "an op that is not served": (
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        'roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type="RoIAlignRotated")))',
        "mmcv op 'roi_align_rotated_forward' (for rotated boxes) is missing: ",
    ),
    "a form of an op that is not served": (
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        'roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(pool_mode="max")))',
        "mmcv op 'roi_align(pool_mode=\"max\")' is missing: ",
    ),
}


def library_config(file: Path, base: str, settings: str = "") -> Path:
    """A config of mmdet on one of our backbones, and nothing at its data's place."""
    lines = [
        f"_base_ = [{base!r}]",
        'custom_imports = dict(imports=["detection"])',
        'classes = "coco"',
        f"data_root = {str(file.parent / 'absent')!r}",
        "batch = dict(size=2, per_gpu=2)",
        f'model = dict(backbone=dict(type="convnext_atto"), {settings})',
    ]
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("flag", [[], ["--dry-run"]], ids=["train", "dry-run"])
@pytest.mark.parametrize("what", LIBRARIES)
def test_a_model_of_a_library_that_cannot_train(tool: Any, tmp_path: Path, what: str, flag: list[str]) -> None:
    base, settings, line = LIBRARIES[what]
    config = library_config(tmp_path / "own.py", base, settings)
    ended = tool("train.py", config, "--work-dir", tmp_path / "work", *flag)
    assert_one_line(ended, line, "in_channels" if "channels" in what else "MMCV_WITH_OPS=1 pip install")


def test_a_config_of_a_library_whose_data_set_is_absent(tool: Any, tmp_path: Path) -> None:
    config = library_config(tmp_path / "own.py", "mmdet::atss/atss_r50_fpn_1x_coco.py")
    options = ["--work-dir", tmp_path / "work"]
    ended = tool("train.py", config, *options)
    assert_one_line(ended, f"train data: '{tmp_path / 'absent'}' does not exist", "--cfg-options data_root=FOLDER")
    ended = tool("train.py", config, *options, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "memory: about" in ended.out
    config.write_text(config.read_text().replace('"coco"', '"lvis"'))
    for flag in ([], ["--dry-run"]):
        ended = tool("train.py", config, *options, *flag)
        assert_one_line(ended, "classes='lvis' is neither a file with one name per line nor one of ")
