"""Config files and settings that are wrong, at every level: each is one line with the file or the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.dry_run import dry_run
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.training.build import build_runner
from tests.bad_inputs.builders import CONFIG, refused

BASE = f"_base_ = [{str(CONFIG['classifier'])!r}]\n"
WRONG_FILES = {
    "an empty file": ("a.py", "", "states no batch"),
    "bytes": ("a.py", bytes(range(256)), "UnicodeDecodeError"),
    "Latin-1": ("a.py", "a = 'é'".encode("latin-1"), "UnicodeDecodeError"),
    "UTF-16": ("a.py", "a = 1".encode("utf-16"), "UnicodeDecodeError"),
    "a byte order mark": ("a.py", "a = 1".encode("utf-8-sig"), "a byte order mark: save it as UTF-8 without one"),
    "a zero byte": ("a.py", "\0", "SyntaxError"),
    "an open bracket": ("a.py", "a = (", "SyntaxError: '(' was never closed"),
    "wrong indentation": ("a.py", " a = 1\nb = 2", "IndentationError"),
    "a base that is absent": ("a.py", "_base_ = ['absent.py']", "absent.py"),
    "a base that is a folder": ("a.py", "_base_ = ['.']", "does not exist"),
    "a base that is a number": ("a.py", "_base_ = 3", "TypeError"),
    "a base of a package that is absent": ("a.py", "_base_ = 'mmfoo::a.py'", "there is no library 'mmfoo'"),
    "a function without end": ("a.py", "def f(): f()\nf()", "RecursionError"),
    "an end of the program": ("a.py", "import sys; sys.exit(3)", "SystemExit: 3"),
    "an error of two lines": ("a.py", "raise ValueError('first\\nsecond')", "ValueError: first"),
    "more memory than there is": ("a.py", "a = [0] * 10**17", "MemoryError"),
    "a variable of the base that is none": ("a.py", BASE + "a = {{_base_.nothing}}", "KeyError: 'nothing'"),
    "another kind of file": ("a.txt", "a = 1", "cannot be read"),
    "no kind of file": ("a", "a = 1", "cannot be read"),
    "half a JSON": ("a.json", '{"a":', "JSONDecodeError"),
    "half a YAML": ("a.yaml", "a: [", "ParserError"),
    "a key twice among bases": ("a.py", f"_base_ = [{str(CONFIG['classifier'])!r}, 'b.py']", "Duplicate key"),
    "no model": ("a.py", BASE + "model = None", "states no model"),
    "an empty model": ("a.py", BASE + "model = dict(_delete_=True)", "states no model"),
    "no training data": ("a.py", BASE + "train_dataloader = None", "states no train_dataloader"),
    "no optimizer": ("a.py", BASE + "optim_wrapper = None", "states no optim_wrapper"),
    "no length": ("a.py", BASE + "train_cfg = None", "states no train_cfg"),
    "no batch": ("a.py", BASE + "batch = None", "states no batch"),
    "no classes": (
        "a.py",
        BASE + "classes, data_root = None, 'absent'",
        "to take their names from: set data_root, or state classes",
    ),
    "a class at the top": ("a.py", BASE + "class Helper: pass", "unknown top-level key 'Helper'"),
    "a hook that is a function": ("a.py", BASE + "custom_hooks = [print]", "custom_hooks=[<built-in"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_is_no_config(case: str, tmp_path: Path) -> None:
    name, content, needle = WRONG_FILES[case]
    (tmp_path / "b.py").write_text("classes = ('cat', 'dog')")
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(needle):
        load_config(path, launch=Launch())


def test_a_folder_and_a_name_of_two_lines(tmp_path: Path) -> None:
    with refused(tmp_path, "is a folder"):
        load_config(tmp_path, launch=Launch())
    with refused(r"a\nb.py", "does not exist"):
        load_config(tmp_path / "a\nb.py", launch=Launch())
    (tmp_path / "a\nb.py").write_text("a = ")
    with refused(r"a\nb.py", "SyntaxError"):
        load_config(tmp_path / "a\nb.py", launch=Launch())


def test_two_files_that_are_each_other_s_base(tmp_path: Path) -> None:
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.py").write_text(f"_base_ = ['{other}.py']")
    with refused("a.py", "lead back to one another"):
        load_config(tmp_path / "a.py", launch=Launch())


# Found as soon as the config is read; what the line has beside the name of the setting.
WRONG_SETTINGS = {
    "model=3": "a mapping",
    "model.backbone=convnext_tiny": "a mapping",
    "model.backbone.type=convnext_tinny": "nearest: convnext_tiny",
    "model.backbone.weights=3": "text is needed",
    "model.num_classes=3": "follows from classes",
    "model.no.such.thing=1": "the config has no 'model.no.such'",
    "optim_wrapper=AdamW": "a mapping",
    "optim_wrapper.optimizer=AdamW": "a mapping",
    "optim_wrapper.optimizer.lr=0": "a positive number",
    "optim_wrapper.optimizer.lr=-0.001": "a positive number",
    "optim_wrapper.optimizer.lr=nan": "a positive number",
    "optim_wrapper.optimizer.lr=inf": "a positive number",
    "optim_wrapper.optimizer.lr=1e-3x": "a positive number",
    "optim_wrapper.optimizer.lr=True": "a positive number",
    "optim_wrapper.optimizer.lr=None": "a positive number",
    "optim_wrapper.optimizer.weight_decay=-0.05": "from 0 up",
    "optim_wrapper.optimizer.weight_decay=nan": "from 0 up",
    "optim_wrapper.optimizer.weight_decay=much": "from 0 up",
    "optim_wrapper.paramwise_cfg=0.8": "a mapping",
    "optim_wrapper.accumulative_counts=2": "follows from batch.size",
    "optim_wrapper.clip_grad=1": "a mapping",
    "train_cfg=10": "a mapping",
    "train_cfg.max_epochs=0": "from 1 up",
    "train_cfg.max_epochs=-1": "from 1 up",
    "train_cfg.max_epochs=1.5": "from 1 up",
    "train_cfg.max_epochs=nan": "from 1 up",
    "train_cfg.max_epochs=ten": "from 1 up",
    "train_cfg.val_interval=0": "from 1 up",
    "train_cfg.val_begin=-1": "from 0 up",
    "val_cfg=3": "a mapping",
    "param_scheduler=cosine": "a list of them",
    "param_scheduler.0.type=": "a list of them",
    "default_hooks=3": "a mapping",
    "default_hooks.checkpoint=3": "a mapping",
    "default_hooks.typo=1": "a mapping",
    "custom_hooks=KeepEMA": "a list of mappings",
    "env_cfg=cpu": "a mapping",
    "randomness=0": "a mapping",
    "randomness.seed=-1": "from 0 to 4294967295",
    "randomness.seed=4294967296": "from 0 to 4294967295",
    "randomness.seed=x": "from 0 to 4294967295",
    "log_level=LOUD": "choose from DEBUG",
    "visualizer=3": "a mapping",
    "val_evaluator=top1": "a mapping with a type",
    "default_scope=mmfoo": "choose from mmengine",
    "launcher=slurm": "follows from the launch",
    "find_unused_parameters=1": "True or False",
    "resume=maybe": "True or False",
    "load_from=3": "text",
    "work_dir=3": "text",
    "data_root=3": "text",
    "train_dataloader=3": "a mapping",
    "train_dataloader.num_workers=-1": "from 0 up",
    "train_dataloader.num_workers=two": "from 0 up",
    "train_dataloader.drop_last=maybe": "True or False",
    "train_dataloader.sampler=DefaultSampler": "a mapping",
    "train_dataloader.dataset=FolderDataset": "a mapping with a type",
    "train_dataloader.dataset.split=3": "text",
    "train_dataloader.dataset.every=0": "from 1 up",
    "train_dataloader.dataset.every=2.5": "from 1 up",
    "val_dataloader.batch_size=0": "from 1 up",
    "val_dataloader.batch_size=-8": "from 1 up",
    "train_pipeline=[]": "not an empty one",
    "train_pipeline=resize": "a list of mappings",
    "batch.size=True": "a whole number",
    "batch.size=nan": "a whole number",
    "batch.size=1e9": "a whole number",
    "batch.size=-4": "positive numbers",
    "batch.per_gpu=0": "positive numbers",
    "batch.per_gpu=some": "a whole number",
    "batch.lr_rule=3": "choose from linear",
    "classes=3": "names in order",
    "classes=[]": "at least one name",
    "classes=[zero,one,zero]": "'zero' stands twice",
    "classes=": "neither a file",
}


@pytest.mark.parametrize("option", WRONG_SETTINGS)
def test_a_wrong_setting(option: str) -> None:
    key = option.partition("=")[0]
    named = {"param_scheduler.0.type": "param_scheduler", "model.no.such.thing": "model.no.such"}.get(key, key)
    with refused(*([] if key == "model.backbone.type" else [named]), WRONG_SETTINGS[option]):
        load_config(CONFIG["classifier"], {"batch.size": 8, **parse_options([option])}, Launch())


@pytest.mark.parametrize(
    "content, needle",
    [(b"", "at least one name"), (b"\n \n", "at least one name"), (b"cat\ncat\n", "twice"), (b"\xff\xfe", "UTF-8")],
    ids=["empty", "blank", "twice", "bytes"],
)
def test_a_file_of_classes(content: bytes, needle: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with refused("classes", needle):
        load_config(CONFIG["segmentor"], {"classes": str(tmp_path / "classes.txt")}, Launch())


def test_a_file_of_classes_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("cat\r\ndog\r\n".encode("utf-8-sig"))
    cfg = load_config(CONFIG["classifier"], {"classes": str(tmp_path / "classes.txt")}, Launch()).cfg
    assert cfg.train_dataloader.dataset.metainfo.classes == ("cat", "dog")


# Found when the model, its optimizer and the schedule are made, which a dry run does too.
UNBUILDABLE = {
    "model.type=ImageClasifier": "ImageClasifier is not in the",
    "model.typo=1": "'typo'",
    "model.backbone.drop_path=0.1": "'drop_path'",
    "model.backbone.drop_path_rate=1": "drop_path_rate=1: a probability",
    "model.backbone.drop_path_rate=-0.1": "drop_path_rate=-0.1",
    "model.backbone.drop_path_rate=nan": "drop_path_rate=nan",
    "model.backbone.drop_path_rate=much": "convnext_atto: TypeError",
    "model.backbone.layer_scale_init_value=nan": "layer_scale_init_value=nan",
    "model.backbone.layer_scale_init_value=inf": "layer_scale_init_value=inf",
    "model.backbone.layer_scale_init_value=x": "convnext_atto: TypeError",
    "model.backbone.init_std=0": "init_std=0: a positive number",
    "model.backbone.init_std=-1": "init_std=-1: a positive number",
    "model.backbone.init_std=nan": "init_std=nan: a positive number",
    "model.backbone.out_indices=(9,)": "out_indices",
    "model.backbone.out_indices=3": "convnext_atto: TypeError",
    "model.backbone.depths=(0,0,0,0)": "four positive numbers",
    "model.backbone.depths=(1,2)": "depths",
    "model.backbone.kernel_size=4": "kernel_size",
    "model.backbone.kernel_size=-7": "kernel_size",
    "model.data_preprocessor.erasing=2": "erasing=2",
    "model.data_preprocessor.mixup=-1": "mixup=-1",
    "model.data_preprocessor.label_smoothing=nan": "label_smoothing=nan",
    "model.data_preprocessor.mean=(0.1,0.2)": "mean has 2 values for images of 3 channels",
    "optim_wrapper.paramwise_cfg.decay_rate=2": "decay_rate=2",
    "optim_wrapper.paramwise_cfg.decay_rate=nan": "decay_rate=nan",
    "optim_wrapper.paramwise_cfg.typo=1": "typo",
    "env_cfg.typo=1": "env_cfg has no setting 'typo'",
    "env_cfg.patience=0": "env_cfg.patience=0",
    "env_cfg.patience=nan": "env_cfg.patience=nan",
    "env_cfg.sharded=yes": "env_cfg.sharded='yes'",
    "env_cfg.compile=1": "env_cfg.compile=1",
    "env_cfg.nonfinite=ignored": "nonfinite",
}


@pytest.mark.parametrize("option", UNBUILDABLE)
def test_what_a_dry_run_cannot_build(option: str) -> None:
    config = CONFIG["segmentor" if option.startswith("optim_wrapper.paramwise_cfg") else "classifier"]
    with refused(UNBUILDABLE[option]):
        dry_run(load_config(config, parse_options([option]), Launch()), Launch())


@pytest.mark.parametrize("option", ["model.backbone.frozen_layers=1", "model.backbone.drop_path_rate=much"])
@pytest.mark.parametrize("task", ["detector", "segmentor"])
def test_a_backbone_that_tells_the_channels_cannot_be_built(task: str, option: str) -> None:
    with refused("config does not build", option.split("=")[0].rpartition(".")[2] if "1" in option else "TypeError"):
        load_config(CONFIG[task], parse_options([option]), Launch())


# Found when a training is built.
UNRUNNABLE = {
    "default_hooks.checkpoint.typo=1": "'typo'",
    "default_hooks.checkpoint.type=CheckpointHok": "CheckpointHok is not in the",
    "default_hooks.checkpoint.interval=0": "interval=0",
    "default_hooks.checkpoint.max_keep_ckpts=x": "max_keep_ckpts='x'",
    "default_hooks.checkpoint.minutes=nan": "minutes=nan",
    "default_hooks.logger.interval=-5": "LoggerHook: ValueError: interval must be greater than 0",
    "custom_hooks.0.type=ProgresBar": "ProgresBar is not in the",
    "custom_hooks.1.decay=2": "ModelEMAHook: decay=2",
    "custom_hooks.1.decay=nan": "ModelEMAHook: decay=nan",
    "custom_hooks.1.dekay=0.9": "'dekay'",
    "randomness.typo=1": "'typo'",
}


@pytest.mark.parametrize("option", UNRUNNABLE)
def test_hooks_that_cannot_be_built(option: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"work_dir": str(tmp_path / "work"), **parse_options([option])}
    with refused(UNRUNNABLE[option]):
        build_runner(load_config(CONFIG["classifier"], options, Launch()), Launch())


PARTS = {
    "train_dataloader.typo=1": "'typo'",
    "train_dataloader.sampler.type=Sampler": "Sampler is not in the",
    "train_dataloader.sampler.typo=1": "'typo'",
    "train_dataloader.dataset.typo=1": "'typo'",
    "train_dataloader.dataset.type=FolderDatset": "FolderDatset",
    "train_dataloader.collate_fn.type=colate": "colate",
    "train_pipeline.0.typo=1": "'typo'",
    "train_pipeline.0.size=0": "size=0",
    "train_pipeline.0.size=-48": "size=-48",
    "train_pipeline.0.size=nan": "size=nan",
    "train_pipeline.0.flip=2": "flip=2",
    "train_pipeline.0.scale=(2,1)": "scale=(2, 1)",
    "train_pipeline.0.rand_augment=nonsense": "nonsense",
    "train_cfg.type=EpochLop": "EpochLop is not in the",
    "train_cfg.typo=1": "'typo'",
}


@pytest.mark.parametrize("option", PARTS)
def test_data_and_loops_that_cannot_be_built(option: str, digits: Path, tmp_path: Path) -> None:
    options = {"work_dir": str(tmp_path / "work"), "data_root": str(digits / "imagenet"), "batch.size": 8}
    runner = build_runner(load_config(CONFIG["classifier"], {**options, **parse_options([option])}, Launch()), Launch())
    with refused(PARTS[option]):
        runner.build_train_loop(runner._train_loop)
