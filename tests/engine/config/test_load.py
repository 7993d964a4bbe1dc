"""From a config file to the config that runs: each driver reaches every place, and every mistake is named."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from backbones import UserError
from engine.config.load import Resolved, load_config
from engine.config.options import parse_options
from engine.config.world import Launch

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CLASSIFICATION = CONFIGS / "classification/convnext_tiny_in1k_300e.py"
V2 = CONFIGS / "classification/convnextv2_atto_fcmae_ft_in1k.py"
MASK = CONFIGS / "detection/mask_rcnn_convnext_tiny_coco_3x.py"
CASCADE = CONFIGS / "detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py"
UPERNET = CONFIGS / "segmentation/upernet_convnext_tiny_ade20k_160k.py"
ALL = [CLASSIFICATION, MASK, CASCADE, UPERNET]
CPU, CLUSTER = Launch(), Launch(processes=8, device="cuda", local_processes=8)
PETS = {"classes": ("cat", "dog", "newt")}


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from mappings(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from mappings(value)


def values(node: Any, key: str) -> list[Any]:
    return [one[key] for one in mappings(node) if key in one]


def types(node: Any) -> set[str]:
    return set(values(node, "type"))


def load(path: Path, launch: Launch = CPU, **options: Any) -> Resolved:
    return load_config(path, options, launch)


def datasets(cfg: Config) -> list[Any]:
    return [cfg[f"{split}_dataloader"].dataset for split in ("train", "val", "test")]


@pytest.mark.parametrize(
    "path, places", [(CLASSIFICATION, 1), (MASK, 2), (CASCADE, 4), (UPERNET, 2)], ids=lambda p: getattr(p, "stem", None)
)
def test_classes_drive_heads_data_sets_and_pipelines(path: Path, places: int) -> None:
    cfg = load(path, **PETS).cfg
    assert values(cfg.model, "num_classes") == [3] * places
    for dataset in datasets(cfg):
        assert dataset.metainfo.classes == PETS["classes"]
        # A classifier draws no colours.
        assert len(set(dataset.metainfo.get("palette", ()))) == (0 if path == CLASSIFICATION else 3)
        assert all(count == 3 for count in values(dataset.pipeline, "num_classes"))
    assert "from_classes" not in str(cfg)


def test_classes_reach_the_loading_of_labels_everywhere() -> None:
    cfg = load(UPERNET, **PETS).cfg
    for pipeline in [cfg.tta_pipeline, *(dataset.pipeline for dataset in datasets(cfg))]:
        assert values(pipeline, "num_classes") == [3]


@pytest.mark.parametrize("path, count", [(CLASSIFICATION, 1000), (MASK, 80), (CASCADE, 80), (UPERNET, 150)])
def test_known_sets_of_classes(path: Path, count: int) -> None:
    cfg = load(path).cfg
    assert set(values(cfg.model, "num_classes")) == {count}
    assert {len(dataset.metainfo.classes) for dataset in datasets(cfg)} == {count}


def test_classes_from_a_file(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\n newt \n", encoding="utf-8")
    cfg = load(MASK, classes=str(names)).cfg
    assert datasets(cfg)[0].metainfo.classes == PETS["classes"]
    assert set(values(cfg.model, "num_classes")) == {3}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_data_root_and_pipelines_reach_every_data_set(path: Path) -> None:
    cfg = load(path, data_root="elsewhere/pets").cfg
    train, val, test = datasets(cfg)
    assert {dataset.data_root for dataset in (train, val, test)} == {"elsewhere/pets"}
    assert train.pipeline == cfg.train_pipeline
    assert val.pipeline == test.pipeline == cfg.test_pipeline
    assert train.pipeline != val.pipeline


def test_the_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names.txt").write_text("cat\ndog~\n~newt\n", encoding="utf-8")
    options = {"data_root": "~/pets", "classes": "~/names.txt", "model.backbone.weights": "~/w.pth"}
    cfg = load(MASK, **options, **{"train_dataloader.dataset.data_root": "~", "work_dir": "a~b"}).cfg
    assert [dataset.data_root for dataset in datasets(cfg)] == [str(tmp_path), *2 * [str(tmp_path / "pets")]]
    assert cfg.val_evaluator.ann_file == str(tmp_path / "pets" / cfg.val_dataloader.dataset.ann_file)
    assert cfg.model.backbone.weights == str(tmp_path / "w.pth")
    assert datasets(cfg)[0].metainfo.classes == ("cat", "dog~", "~newt")
    assert cfg.work_dir == "a~b"


@pytest.mark.parametrize("path", [MASK, CASCADE], ids=lambda path: path.stem)
def test_the_evaluator_reads_the_annotations_of_its_data_set(path: Path) -> None:
    options = {"data_root": "pets", "val_dataloader.dataset.ann_file": "val.json"}
    cfg = load(path, **options).cfg
    assert cfg.val_evaluator.ann_file == str(Path("pets/val.json"))
    assert cfg.test_evaluator.ann_file == str(Path("pets") / cfg.test_dataloader.dataset.ann_file)


def test_the_confusion_matrix_goes_to_the_work_dir() -> None:
    cfg = load(CLASSIFICATION, work_dir="runs/a").cfg
    assert cfg.val_evaluator.confusion_file == str(Path("runs/a/confusion.json"))
    assert cfg.test_evaluator.confusion_file == str(Path("runs/a/test/confusion.json"))


def test_a_librarys_metric_is_the_one_that_keeps_the_scores_of_the_classes() -> None:
    cfg = load(UPERNET, **{"val_evaluator.type": "mmseg.IoUMetric", "test_evaluator.type": "IoUMetric"}).cfg
    assert (cfg.val_evaluator.type, cfg.test_evaluator.type) == ("ClassIoUMetric", "ClassIoUMetric")
    settings = {"type": "CocoMetric", "metric": "bbox", "classwise": True, "ann_file": "a.json"}
    cfg = load(MASK, val_evaluator=[settings]).cfg
    assert cfg.val_evaluator[0].type == "ClassCocoMetric"
    assert cfg.val_evaluator[0].classwise


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_work_dir_is_named_after_the_config(path: Path) -> None:
    assert load(path).cfg.work_dir == str(Path("work_dirs") / path.stem)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_dumped_config_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    launch = Launch(2, "cpu", 2)
    first = load_config(path, {"batch.size": 32, **PETS}, launch)
    dumped = tmp_path / "dumped.py"
    first.cfg.dump(dumped)
    second = load_config(dumped, None, launch)
    assert second.plan == first.plan
    assert second.notes == ()
    assert second.cfg.to_dict() == first.cfg.to_dict()


def test_channels_follow_the_backbone() -> None:
    tiny, atto = load(UPERNET).cfg.model, load(UPERNET, **{"model.backbone.type": "convnext_atto"}).cfg.model
    assert tiny.decode_head.in_channels == [96, 192, 384, 768]
    assert tiny.auxiliary_head.in_channels == 384
    assert atto.decode_head.in_channels == [40, 80, 160, 320]
    assert atto.auxiliary_head.in_channels == 160
    assert load(MASK, **{"model.backbone.type": "convnext_base"}).cfg.model.neck.in_channels == [128, 256, 512, 1024]


def test_channels_are_known_before_the_weights_are_there() -> None:
    cfg = load(MASK, **{"model.backbone.weights": "absent.pth"}).cfg
    assert cfg.model.neck.in_channels == [96, 192, 384, 768]
    assert cfg.model.backbone.weights == "absent.pth"


def test_the_batch_is_spread_over_eight_processes() -> None:
    resolved = load(CLASSIFICATION, CLUSTER)
    assert (resolved.plan.per_process, resolved.plan.accumulation) == (128, 4)
    assert resolved.cfg.train_dataloader.batch_size == 512
    assert resolved.cfg.optim_wrapper.accumulative_counts == 4
    assert resolved.cfg.train_dataloader.collate_fn == dict(
        type="micro_batch_collate", parts=4, collate="default_collate"
    )
    assert resolved.cfg.launcher == "pytorch"
    assert resolved.cfg.env_cfg.dist_cfg == dict(backend="nccl")
    assert resolved.notes == ()


def test_without_accumulation_the_plain_collation_runs() -> None:
    cfg = load(MASK, CLUSTER).cfg
    assert cfg.train_dataloader.collate_fn == dict(type="pseudo_collate")
    assert cfg.train_dataloader.batch_size == 2


def test_two_cpu_processes_talk_over_gloo() -> None:
    cfg = load(MASK, Launch(2, "cpu", 2)).cfg
    assert (cfg.launcher, cfg.env_cfg.dist_cfg) == ("pytorch", dict(backend="gloo"))
    assert load(MASK).cfg.launcher == "none"


def test_a_changed_batch_changes_the_learning_rate_and_says_so() -> None:
    same, larger = load(CLASSIFICATION, CLUSTER), load(CLASSIFICATION, CLUSTER, **{"batch.size": 8192})
    assert same.cfg.optim_wrapper.optimizer.lr == 4e-3
    assert larger.cfg.optim_wrapper.optimizer.lr == pytest.approx(8e-3)
    assert larger.notes == ("global batch 4096 -> 8192: learning rate 0.004 -> 0.008 (linear rule)",)
    root = load(MASK, CLUSTER, **{"batch.size": 64, "batch.lr_rule": "sqrt"})
    assert root.cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4)
    kept = load(MASK, CLUSTER, **{"batch.size": 64, "batch.lr_rule": "none"})
    assert kept.cfg.optim_wrapper.optimizer.lr == 1e-4


def test_a_rate_that_is_given_with_a_batch_belongs_to_it() -> None:
    given = load(MASK, CLUSTER, **{"batch.size": 64, "optim_wrapper.optimizer.lr": 3e-4})
    assert given.cfg.optim_wrapper.optimizer.lr == 3e-4
    assert given.notes == ()


def test_a_network_of_the_task_s_library_is_known() -> None:
    options = {"model.backbone": {"_delete_": True, "type": "ResNet", "depth": 18}, "model.neck.in_channels": [64] * 4}
    assert load(MASK, CLUSTER, **options).cfg.model.backbone.type == "ResNet"


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"global batch 16 does not divide among 3 processes.*batch\.size=15"):
        load(MASK, Launch(3, "cuda", 3))


@pytest.mark.parametrize("path, places", [(CASCADE, 3), (UPERNET, 2)], ids=["cascade", "upernet"])
@pytest.mark.parametrize(
    "launch, where",
    [
        (CPU, "one process"),
        (Launch(1, "cuda", 1), "one process"),
        (Launch(2, "cpu", 2), "CPU"),
        (Launch(2, "cuda", 2), None),
        (CLUSTER, None),
    ],
    ids=["1 cpu", "1 gpu", "2 cpu", "2 gpu", "8 gpu"],
)
def test_synchronised_norms_need_several_gpus(path: Path, places: int, launch: Launch, where: str | None) -> None:
    resolved = load(path, launch)
    said = [note for note in resolved.notes if "SyncBN" in note]
    assert said == ([f"SyncBN -> BN in {places} places ({where})"] if where else [])
    assert ("SyncBN" in types(resolved.cfg.model)) == (where is None)
    norms = [norm["type"] for norm in values(resolved.cfg.model, "norm_cfg") if norm]
    assert norms.count("BN" if where else "SyncBN") == places


@pytest.mark.parametrize("path", [MASK, CASCADE, UPERNET], ids=lambda path: path.stem)
def test_mixed_precision_is_for_gpus(path: Path) -> None:
    on_cpu = load(path)
    assert any(note.startswith("mixed precision -> float32: float16 is for GPUs") for note in on_cpu.notes)
    assert on_cpu.cfg.optim_wrapper.type == "OptimWrapper"
    for launch in (Launch(1, "cuda", 1), CLUSTER):
        on_gpu = load(path, launch)
        assert on_gpu.cfg.optim_wrapper.type == "AmpOptimWrapper"
        assert not any("precision" in note for note in on_gpu.notes)


@pytest.mark.parametrize("launch", [Launch(), Launch(8, "cuda", 8)], ids=["cpu", "gpu"])
def test_float32_by_the_type_alone_takes_the_dtype_of_the_recipe_out(launch: Launch) -> None:
    wrapper = load_config(V2, {"optim_wrapper.type": "OptimWrapper"}, launch).cfg.optim_wrapper
    assert wrapper.type == "OptimWrapper"
    assert not {"dtype", "loss_scale", "use_fp64"} & wrapper.keys()
    stated = {"optim_wrapper.type": "OptimWrapper", "optim_wrapper.dtype": "bfloat16"}
    with pytest.raises(UserError, match="OptimWrapper has no argument 'dtype'"):
        load_config(V2, stated, launch)


def test_options_of_mixed_precision_go_with_it() -> None:
    cfg = load(MASK, **{"optim_wrapper.dtype": "bfloat16", "optim_wrapper.loss_scale": "dynamic"}).cfg
    assert set(cfg.optim_wrapper) == {"type", "constructor", "paramwise_cfg", "optimizer", "accumulative_counts"}


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert load(CLASSIFICATION, Launch(1, "cuda", 1)).cfg.train_dataloader.num_workers == 10
    assert load(CLASSIFICATION, CLUSTER).cfg.train_dataloader.num_workers == 2
    cfg = load(CLASSIFICATION, **{"train_dataloader.num_workers": 0}).cfg
    assert (cfg.train_dataloader.num_workers, cfg.train_dataloader.persistent_workers) == (0, False)


def test_hooks_of_former_names_are_found(tmp_path: Path) -> None:
    """As a run of before has them in its resolved config, which is still taken up."""
    options = {"default_hooks.checkpoint": {"type": "CheckpointHook", "interval": 3}}
    options["custom_hooks"] = [
        *({"type": "KeepEMA", "decay": 0.99}, {"type": "ProgressBar"}, {"type": "EarlyStoppingHook", "monitor": "top1"})
    ]
    resolved = load(CLASSIFICATION, **options)
    assert resolved.cfg.default_hooks.checkpoint.type == "ResumableCheckpointHook"
    assert resolved.cfg.default_hooks.checkpoint.interval == 3
    assert [hook["type"] for hook in resolved.cfg.custom_hooks] == [
        *("ModelEMAHook", "ProgressBar", "ResumableEarlyStoppingHook")
    ]
    assert resolved.notes[:3] == (
        "hook CheckpointHook -> ResumableCheckpointHook",
        "hook EarlyStoppingHook -> ResumableEarlyStoppingHook",
        "hook KeepEMA -> ModelEMAHook",
    )
    resolved.cfg.dump(tmp_path / "resolved.py")
    assert load(tmp_path / "resolved.py").notes == ()


@pytest.mark.parametrize("stated", [None, {}, {"type": "LogProcessor"}], ids=["none", "empty", "mmengine's"])
def test_every_config_logs_the_scores_of_each_validation_alone(stated: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"_base_ = [{str(CLASSIFICATION)!r}]\nlog_processor = {stated!r}\n")
    assert load(tmp_path / "a.py").cfg.log_processor == {"type": "ScoreLogProcessor"}


@pytest.mark.parametrize("hooks", [None, {"_delete_": True}, {"checkpoint": None}], ids=["none", "empty", "refused"])
def test_a_config_without_a_checkpoint_hook_gets_one(hooks: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"_base_ = [{str(CLASSIFICATION)!r}]\ndefault_hooks = {hooks!r}\n")
    found = load(tmp_path / "a.py").cfg.default_hooks.checkpoint
    assert found == (None if hooks == {"checkpoint": None} else {"type": "ResumableCheckpointHook"})


def test_mmengine_s_own_checkpoint_hook_keeps_its_name() -> None:
    import mmengine.hooks
    from mmengine.registry import HOOKS

    import engine.training.runner  # noqa: F401

    assert HOOKS.get("CheckpointHook") is mmengine.hooks.CheckpointHook


def test_launch_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (Launch.from_environment().processes, Launch.from_environment().local_processes) == (1, 1)
    monkeypatch.setenv("WORLD_SIZE", "32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (Launch.from_environment().processes, Launch.from_environment().local_processes) == (32, 8)


def test_options_as_they_are_typed() -> None:
    assert parse_options(None) == {}
    typed = ["batch.size=64", "a.b=[1,2]", "lr=1e-3", "name=convnext_tiny", "flag=True", "path=a=b"]
    assert parse_options(typed) == {
        "batch.size": 64,
        "a.b": [1, 2],
        "lr": 1e-3,
        "name": "convnext_tiny",
        "flag": True,
        "path": "a=b",
    }
    quoted = ["""classes=["01","2","traffic light"]""", "classes=('a', 1)", "name='1'", "word=it's", "c=[01,2]"]
    assert [parse_options([one]).popitem()[1] for one in quoted] == [
        ["01", "2", "traffic light"],
        ("a", 1),
        "1",
        "it's",
        [1, 2],
    ]
    for wrong in ("batch.size", "=3"):
        with pytest.raises(UserError, match="write key=value"):
            parse_options([wrong])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"modle.backbone.type": "convnext_tiny"}, "no 'modle.backbone'"),
        ({"model.bakbone.type": "convnext_tiny"}, "no 'model.bakbone'"),
        ({"clases": ("a",)}, "unknown top-level key 'clases'; did you mean 'classes'"),
        ({"zzz": 1}, "unknown top-level key 'zzz'"),
        ({"batch.sise": 1}, "batch has no setting sise"),
        ({"batch.lr_rule": "cubic", "batch.size": 32}, "lr_rule='cubic'"),
        ({"model.backbone.type": "convnext_tinny"}, "unknown backbone 'convnext_tinny'; nearest: convnext_tiny"),
        ({"classes": "no_such_file.txt"}, "classes='no_such_file.txt'"),
        ({"classes": ()}, "at least one name"),
        ({"classes": ("a", "b", "a")}, "'a' stands twice"),
        ({"classes": None}, "states no classes"),
        ({"val_evaluator": None}, "val_evaluator is missing: val_dataloader, val_cfg, val_evaluator belong together"),
        ({"val_dataloader": None, "val_cfg": None}, "val_dataloader is missing"),
        ({"test_cfg": None}, "test_cfg is missing"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(UPERNET, options, CPU)
    assert "\n" not in str(caught.value)


def test_an_option_reaches_into_lists() -> None:
    cfg = load(CLASSIFICATION, **{"train_pipeline.0.size": 160, "param_scheduler.0.end": 5}).cfg
    assert cfg.train_dataloader.dataset.pipeline[0]["size"] == 160
    assert cfg.param_scheduler[0]["end"] == 5
    with pytest.raises(UserError, match=r"no 'train_pipeline\.7'"):
        load(CLASSIFICATION, **{"train_pipeline.7.size": 160})


def test_imports_of_a_config_add_to_those_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_transforms.py").write_text("")
    (tmp_path / "other_transforms.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    base = f"_base_ = [{str(MASK.resolve())!r}]\n"
    (tmp_path / "middle.py").write_text(base + "custom_imports = dict(imports=['my_transforms'])")
    path = tmp_path / "mine.py"
    path.write_text("_base_ = 'middle.py'\ncustom_imports = dict(imports='other_transforms')")
    cfg = load_config(path).cfg
    assert cfg.custom_imports.imports == ["detection", "my_transforms", "other_transforms"]
    assert {"my_transforms", "other_transforms"} <= set(sys.modules)
    dumped = tmp_path / "dumped.py"
    cfg.dump(dumped)
    assert load_config(dumped).cfg.custom_imports == cfg.custom_imports


@pytest.mark.parametrize("stated", ["dict(imports=1)", "['detection']", "dict(imports=[1])"])
def test_imports_that_are_no_names_are_refused(stated: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"custom_imports = {stated}")
    with pytest.raises(UserError, match="write dict"):
        load_config(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a = ", "SyntaxError"),
        ("a = b", "NameError"),
        ("_base_ = 'absent.py'", "cannot be read"),
        ("model = dict()", "states no batch"),
        (
            "custom_imports = dict(imports=['absent_module'], allow_failed_imports=False)",
            "Failed to import absent_module",
        ),
        ("a = int('x')", "ValueError"),
        (
            "_base_ = []\nfrom backbones import UserError\nraise UserError('the helper of broken.py says no')",
            "^the helper",
        ),
    ],
)
def test_a_broken_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "broken.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(UserError, match=r"did you mean configs/detection/mask_rcnn_convnext_tiny_coco_3x\.py"):
        load_config("configs/detection/mask_rcnn_convnext_tiny_coco.py")


def test_channels_of_a_reader_of_one_s_own() -> None:
    options = {f"{name}_pipeline": [{"type": "ReadBands"}] for name in ("train", "test")}
    options |= {f"model.data_preprocessor.{name}": [1.0] * 5 for name in ("mean", "std")}
    cfg = load(UPERNET, **options, **{"model.backbone.in_channels": 5}).cfg
    assert cfg.model.backbone.in_channels == 5
    assert list(cfg.train_dataloader.dataset.pipeline[0]) == ["type"]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch", 5, "states no batch: add batch"),
        ("model", [1], r"model=\[1\]: a mapping with a type is needed"),
        ("model.type", {"a": 1}, "model={.*: a mapping with a type is needed"),
        ("model.backbone", None, "model.backbone=None: a mapping is needed"),
        ("model.data_preprocessor", 5, "model.data_preprocessor=5: a mapping is needed"),
        ("val_dataloader", {"a": 1}, "val_dataloader states no dataset: take it from"),
        ("val_dataloader.dataset.type", 5, "val_dataloader.dataset={.*: a mapping with a type is needed"),
        ("val_dataloader.sampler.type", [1], None),
        ("val_dataloader.dataset.ann_file", None, "val_dataloader.dataset states no ann_file, which its metric reads"),
        ("default_scope", None, None),
        ("data_root", None, None),
    ],
)
def test_a_setting_of_a_wrong_kind_is_one_line(key: str, value: Any, message: str | None, tmp_path: Path) -> None:
    cfg = Config.fromfile(MASK if "ann_file" in key else CLASSIFICATION)
    *outer, name = key.split(".")
    place = cfg
    for part in outer:
        place = place[part]
    place[name] = value
    cfg.dump(tmp_path / "a.py")
    if message is None:
        load(tmp_path / "a.py")
        return
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "a.py")
    assert "\n" not in str(caught.value)


def test_what_a_config_of_another_version_leaves_out_is_filled_in(tmp_path: Path) -> None:
    settings = load(CLASSIFICATION).cfg.to_dict()
    for key in ("env_cfg", "default_scope"):
        del settings[key]
    for split in ("train", "val", "test"):
        del settings[f"{split}_dataloader"]["num_workers"]
    Config(settings).dump(tmp_path / "a.py")
    cfg = load(tmp_path / "a.py").cfg
    assert cfg.env_cfg.dist_cfg == {"backend": "gloo"}
    assert cfg.default_scope == "mmengine"
    assert cfg.val_dataloader.num_workers == 0


@pytest.mark.parametrize("key, message", [("dataset", "states no dataset"), ("backbone", "model states no backbone")])
def test_a_part_that_is_left_out_is_named(key: str, message: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(UPERNET)
    (cfg.model if key == "backbone" else cfg.val_dataloader).pop(key)
    cfg.dump(tmp_path / "a.py")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.py")


def test_a_file_of_a_wrong_kind_for_the_confusion_matrix_is_named() -> None:
    with pytest.raises(UserError, match=r"^val_evaluator: confusion_file=5: text is needed$"):
        load(CLASSIFICATION, **{"val_evaluator.confusion_file": 5})
