"""Single mistakes in every section of a config: a dry run and a training's start refuse them with the same line."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS
from mmengine.visualization import Visualizer

from analysis import start_check
from analysis.dry_run import dry_run
from analysis.start_check import check_parts, checked_plan
from backbones import UserError, packages
from backbones.packages import LOGGER_PACKAGES
from classification.data import FolderDataset
from engine import run
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.planning import plan
from engine.planning.memory import Memory
from tests.bad_inputs.builders import CONFIG, FORMAT, contents, refused

# Task and option -> the key that the line names, and the fix or the nearest right name.
MISTAKES: dict[tuple[str, str], tuple[str, ...]] = {
    # Loops
    ("classifier", "train_cfg.max_epoch=3"): ("train_cfg: EpochLoop has no argument 'max_epoch'", "max_epochs"),
    ("classifier", "train_cfg.type=EpochLop"): ("train_cfg: EpochLop is not in the loop", "EpochLoop"),
    ("classifier", "train_cfg={'_delete_':True,'by_epoch':True}"): ("train_cfg.type is missing", "EpochLoop trains"),
    ("classifier", "train_cfg={'_delete_':True,'type':'EpochLoop'}"): (
        "train_cfg.max_epochs is missing",
        "length of the training",
    ),
    ("segmentor", "train_cfg.max_iter=10"): ("train_cfg: IterationLoop has no argument 'max_iter'", "max_iters"),
    ("segmentor", "train_cfg.val_intervall=5"): ("train_cfg: IterationLoop", "val_interval"),
    ("classifier", "val_cfg.type=ValidatonLoop"): ("val_cfg: ValidatonLoop", "ValidationLoop"),
    ("detector", "val_cfg.fp61=True"): ("val_cfg: ValidationLoop has no argument 'fp61'", "fp16"),
    ("segmentor", "test_cfg.fp61=True"): ("test_cfg: TestLoop has no argument 'fp61'", "fp16"),
    # Transforms
    ("classifier", "train_pipeline.0.type=ClasificationTransform"): ("train_pipeline.0", "ClassificationTransform"),
    ("classifier", "train_pipeline.0.sise=48"): ("train_pipeline.0: Classif", "no argument 'sise'", "size"),
    ("classifier", "train_pipeline.0.flip=2"): ("train_pipeline.0", "flip=2"),
    ("classifier", "test_pipeline.0.crop_ration=1"): ("test_pipeline.0", "crop_ratio"),
    ("detector", "train_pipeline.1.type=LoadAnotations"): ("train_pipeline.1", "LoadAnnotations"),
    ("detector", "train_pipeline.1.with_boxes=True"): ("train_pipeline.1", "'with_boxes'", "with_bbox"),
    ("detector", "test_pipeline.1.keep_ration=True"): ("test_pipeline.1: CheckedResize", "keep_ratio"),
    ("detector", "train_pipeline.3.meta_key=()"): ("train_pipeline.3: PackDetInputs", "meta_keys"),
    ("segmentor", "train_pipeline.2.type=RandomCrp"): ("train_pipeline.2", "RandomCrop"),
    ("segmentor", "train_pipeline.2.crop_sizes=(64,64)"): ("train_pipeline.2: RandomCrop", "crop_size"),
    ("segmentor", "train_pipeline.2.crop_size=(0,64)"): (
        "train_pipeline.2: RandomCrop",
        "AssertionError: crop_size[0] > 0 and crop_size[1] > 0 is needed",
    ),
    ("classifier", "train_pipeline.0.size=16"): ("train_pipeline: an image", "with 16 x 16 pixels", "needs 32 x 32"),
    ("classifier", "test_pipeline.0.size=31"): ("test_pipeline: an image of", "with 31 x 31 pixels"),
    ("segmentor", "tta_pipeline.1.transforms.0.0.type=Resise"): ("tta_pipeline.1.transforms.0.0", "Resize"),
    ("segmentor", "tta_pipeline.0.typ=x"): ("tta_pipeline.0", "'typ'"),
    ("classifier", "model.backbone.typ=convnext_tiny"): ("has no argument 'typ'", "nearest: type;"),
    # Hooks
    ("classifier", "custom_hooks.0.type=ProgresBar"): ("custom_hooks.0", "ProgressBar"),
    ("classifier", "custom_hooks.1.dekay=0.9"): ("custom_hooks.1: ModelEMAHook has no", "decay"),
    ("classifier", "custom_hooks.1.priority=HIGHST"): ("custom_hooks.1.priority='HIGHST'", "HIGHEST"),
    ("classifier", "default_hooks.logger.intervall=5"): ("default_hooks.logger: LoggerHook", "interval"),
    ("detector", "default_hooks.timer.type=IterTimerHok"): ("default_hooks.timer", "IterTimerHook"),
    ("classifier", "default_hooks.tymer=None"): ("default_hooks.tymer=None", "timer"),
    ("classifier", "default_hooks.checkpoint=None"): ("default_hooks.checkpoint=None", "large interval"),
    ("classifier", "default_hooks.checkpoint.save_best=top11"): ("default_hooks.checkpoint.save_best", "ema/top1"),
    ("detector", "default_hooks.checkpoint.save_best=bbox_map"): ("save_best='bbox_map'", "bbox_mAP"),
    ("segmentor", "default_hooks.checkpoint.max_keep_ckpt=1"): ("default_hooks.checkpoint", "max_keep_ckpts"),
    # Schedules
    ("classifier", "param_scheduler.0.type=LinearLr"): ("param_scheduler.0", "LinearLR"),
    ("classifier", "param_scheduler.0.start_facter=0.1"): ("param_scheduler.0: LinearLR has no", "start_factor"),
    ("classifier", "param_scheduler.0.start_factor=2"): ("param_scheduler.0: LinearLR", "between 0 and 1"),
    ("classifier", "param_scheduler.1.T_maxx=9"): ("param_scheduler.1: CosineAnnealingLR has no", "T_max"),
    ("segmentor", "param_scheduler.1.powr=0.9"): ("param_scheduler.1: PolyDecayLR has no", "power"),
    ("segmentor", "param_scheduler.1.begin=481"): ("param_scheduler.1", "begin"),
    # Optimizer
    ("classifier", "optim_wrapper.type=OptimWraper"): ("optim_wrapper: OptimWraper", "OptimWrapper"),
    ("classifier", "optim_wrapper.clip_gard={}"): ("optim_wrapper: OptimWrapper", "clip_grad"),
    ("classifier", "optim_wrapper.clip_grad={'max_nrom':1}"): ("optim_wrapper.clip_grad", "max_norm"),
    ("classifier", "optim_wrapper.constructor=LayerDecayConstructr"): ("optim_wrapper", "LayerDecayConstructor"),
    ("detector", "optim_wrapper.optimizer.type=AdamWW"): ("optim_wrapper.optimizer", "AdamW"),
    ("detector", "optim_wrapper.optimizer.beta=(0.9,0.99)"): ("optim_wrapper.optimizer: AdamW has no", "betas"),
    ("detector", "optim_wrapper.optimizer.betas=(0.9,2)"): ("optim_wrapper.optimizer: AdamW", "beta"),
    ("segmentor", "optim_wrapper.optimizer.weight_decy=0"): ("optim_wrapper.optimizer: AdamW", "weight_decay"),
    ("segmentor", "optim_wrapper.paramwise_cfg.decay_rat=0.9"): ("decay_rat", "decay_rate"),
    # Data
    ("classifier", "train_dataloader.shufle=True"): ("train_dataloader: DataLoader", "shuffle"),
    ("classifier", "train_dataloader.shuffle=True"): ("train_dataloader: DataLoader", "mutually exclusive"),
    ("classifier", "train_dataloader.sampler.type=DefaultSampeler"): ("train_dataloader.sampler", "DefaultSampler"),
    ("classifier", "train_dataloader.sampler.shufle=True"): ("train_dataloader.sampler", "shuffle"),
    ("classifier", "train_dataloader.collate_fn.type=default_colate"): ("collate_fn", "default_collate"),
    ("classifier", "train_dataloader.dataset.type=FolderDatset"): ("train_dataloader.dataset", "FolderDataset"),
    ("classifier", "val_dataloader.dataset.evry=2"): ("val_dataloader.dataset: FolderDataset", "every"),
    ("classifier", "train_dataloader.dataset={'_delete_':True,'type':'FolderDataset'}"): ("dataset", "'split'"),
    ("detector", "train_dataloader.batch_sampler.type=AspectRatioBatch"): ("batch_sampler", "AspectRatioBatches"),
    ("detector", "train_dataloader.dataset.filter_cgf={}"): ("train_dataloader.dataset: CocoInst", "filter_cfg"),
    ("detector", "test_dataloader.dataset.ann_fil=x"): ("test_dataloader.dataset: CocoInstances", "ann_file"),
    ("segmentor", "train_dataloader.dataset.img_sufix=.png"): ("train_dataloader.dataset: LabelP", "img_suffix"),
    ("segmentor", "val_dataloader.num_batches_per_epoch=2"): ("val_dataloader", "'num_batches_per_epoch'"),
    # Metrics
    ("classifier", "val_evaluator.type=ClassificationMetrik"): ("val_evaluator", "ClassificationMetric"),
    ("classifier", "test_evaluator.confusion=x"): ("test_evaluator: ClassificationMetric", "confusion_file"),
    ("detector", "val_evaluator.metric=[bxox]"): ("val_evaluator: metric=['bxox']", "bbox, segm"),
    ("segmentor", "val_evaluator.iou_metric=[mIoU]"): ("val_evaluator: ClassIoUMetric", "iou_metrics"),
    # Visualizer, log and the rest
    ("classifier", "visualizer.type=ClassificationVisualiser"): ("visualizer", "ClassificationVisualizer"),
    ("detector", "visualizer.save_dri=x"): ("visualizer", "save_dir"),
    ("classifier", "visualizer.vis_backends.0.type=LocalVisBackends"): ("vis_backends.0", "LocalVisBackend"),
    ("segmentor", "visualizer.vis_backends.1.savedir=x"): ("visualizer.vis_backends.1", "save_dir"),
    ("classifier", "log_processor={'window_sise':5}"): ("log_processor", "window_size"),
    ("classifier", "randomness.sed=1"): ("randomness", "'sed'", "seed"),
    ("classifier", "env_cfg.mp_cfg.mp_start_method=frok"): ("env_cfg.mp_cfg.mp_start_method='frok'", "fork"),
    ("classifier", "model.data_preprocessor.mixupp=1"): ("model.data_preprocessor", "mixup"),
    ("detector", "model.neck.num_out=5"): ("model.neck: FPN has no", "num_outs"),
    ("segmentor", "model.decode_head.channles=9"): ("model.decode_head: FastUPerHead has no", "channels"),
}


class StartedError(Exception):
    """The checks before a training are over."""


def options_of(task: str, option: str, data: Path, folder: Path) -> dict[str, Any]:
    common = {"data_root": str(data / FORMAT[task]), "work_dir": str(folder / "run"), "batch.size": 4}
    return {**common, "train_dataloader.num_workers": 0, **parse_options([option] if option else [])}


@pytest.fixture
def verdicts(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[str]]:
    """Lines with which a dry run and a start refuse a config; an empty one for a config that is accepted."""

    def stop(*_: object) -> None:
        raise StartedError

    def judge(task: str, option: str) -> list[str]:
        resolved = load_config(CONFIG[task], options_of(task, option, digits, tmp_path), Launch())
        lines = []
        for start in (dry_run, lambda *given: run.train(*given, resume=False, make_plan=checked_plan)):
            try:
                start(copy.deepcopy(resolved), Launch())
            except UserError as error:
                lines.append(str(error))
            except StartedError:
                lines.append("")
            else:
                lines.append("")
        return lines

    monkeypatch.setattr(run, "build_runner", stop)
    memory = Memory(0, 0, 0, 0, 0, None, 1, None, "it is not estimated in this test")
    monkeypatch.setattr(plan, "estimate_memory", lambda *_: memory)
    return judge


@pytest.mark.parametrize("task, option", MISTAKES, ids=map(" ".join, MISTAKES))
def test_a_dry_run_and_a_start_refuse_alike(verdicts: Any, task: str, option: str, tmp_path: Path) -> None:
    dry, started = verdicts(task, option)
    assert dry == started
    assert len(dry.splitlines()) == 1
    for needle in MISTAKES[task, option]:
        assert needle in dry
    assert contents(tmp_path) == {}


def test_a_loop_that_does_not_run_our_steps(tmp_path: Path) -> None:
    with refused("train_cfg.type='EpochBasedTrainLoop': EpochLoop trains for a number of epochs"):
        checked("classifier", tmp_path, lambda cfg: cfg.train_cfg.update(type="EpochBasedTrainLoop"))
    resolved = load_config(CONFIG["classifier"], {"train_cfg.type": "EpochBasedTrainLoop"}, Launch())
    assert resolved.cfg.train_cfg.type == "EpochLoop"
    assert "loop EpochBasedTrainLoop -> EpochLoop" in resolved.notes


@pytest.mark.parametrize("task", FORMAT)
def test_what_has_no_mistake_is_accepted(verdicts: Any, task: str, tmp_path: Path) -> None:
    random = torch.get_rng_state()
    assert verdicts(task, "") == ["", ""]
    assert contents(tmp_path) == {}
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    "task, classes, needle",
    [
        ("classifier", "[zero,one]", "10 class folders, 2 classes in the config"),
        ("detector", "[zero,unicorn]", "are no category of the annotation file ('unicorn'...)"),
        ("segmentor", "[background,zero]", "stands for no class"),
    ],
)
def test_classes_that_are_not_those_of_the_data(
    digits: Path, tmp_path: Path, task: str, classes: str, needle: str
) -> None:
    resolved = load_config(CONFIG[task], options_of(task, f"classes={classes}", digits, tmp_path), Launch())
    with refused(needle, "tools/check_data.py", "--no-data-check trains"):
        dry_run(resolved, Launch())
    assert not any("data check" in line for line in dry_run(resolved, Launch(), data_check=False))


def test_absent_data_is_said_and_what_is_there_is_checked(digits: Path, tmp_path: Path) -> None:
    resolved = load_config(CONFIG["detector"], options_of("detector", "", digits, tmp_path), Launch())
    lines = dry_run(resolved, Launch())
    assert any(line.startswith("data check: 0 errors, 0 warnings; looked at val images") for line in lines)
    resolved.cfg.train_dataloader.dataset.ann_file = "absent.json"
    lines = dry_run(resolved, Launch())
    assert any(line.startswith("train data: ") and line.endswith("absent.json (ABSENT)") for line in lines)
    looked_at = "".join(line for line in lines if line.startswith("data check: "))
    assert "val images" in looked_at
    assert "train images" not in looked_at
    resolved.cfg.val_dataloader.dataset.data_prefix.img = "absent"
    assert not any(line.startswith("data check: ") for line in dry_run(resolved, Launch()))


@DATASETS.register_module()
class FolderOfTest(FolderDataset):
    """Has options that its constructor takes out of the others, and one that it sets itself."""

    def __init__(self, **options: Any) -> None:
        self.shade = options.pop("shade", None)
        super().__init__(every=1, **options)


@HOOKS.register_module()
class HookOfTest(Hook):
    """Asks for the visualizer, as mmdet's hooks for pictures do, and for a package that is absent."""

    def __init__(self, package: str | None = None) -> None:
        self.visualizer = Visualizer.get_current_instance()
        if package:
            importlib.import_module(package)


@METRICS.register_module()
class FileMetricOfTest(BaseMetric):
    """Reads a file when it is built, as mmdet's COCO metric does."""

    def __init__(self, ann_file: str, scale: float = 1.0) -> None:
        super().__init__()
        self.lines = Path(ann_file).read_text().splitlines()

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Keep nothing."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """No score."""
        return {}


def checked(task: str, tmp_path: Path, change: Callable[[Any], object]) -> None:
    """Check the digits' config after a change, without its data."""
    cfg = load_config(CONFIG[task], {"data_root": str(tmp_path), "work_dir": str(tmp_path / "run")}, Launch()).cfg
    change(cfg)
    check_parts(cfg)
    assert contents(tmp_path) == {}


def test_a_crop_smaller_than_the_network_takes(tmp_path: Path) -> None:
    """Training pads it to ``data_preprocessor.size``, so that both have to be small; no data is there."""

    def change(cfg: Any, size: int = 16) -> None:
        cfg.train_dataloader.dataset.pipeline[2].crop_size = (16, 24)
        cfg.model.data_preprocessor.size = (size, size)

    with refused("train_pipeline: an image of 640 x 480 reaches the network with 24 x 16 pixels", "needs 32 x 32"):
        checked("segmentor", tmp_path, change)
    checked("segmentor", tmp_path, lambda cfg: change(cfg, size=32))


def test_parts_of_one_s_own_are_accepted(tmp_path: Path) -> None:
    def change(cfg: Any) -> None:
        cfg.train_dataloader.dataset.update(type="FolderOfTest", shade=1)
        cfg.custom_hooks.append(dict(type="HookOfTest", priority=30))
        cfg.default_hooks.timer = None
        cfg.val_evaluator = [cfg.val_evaluator, dict(type="FileMetricOfTest", ann_file="absent.txt")]
        cfg.default_hooks.checkpoint.save_best = "of a metric that does not tell its scores"
        cfg.test_evaluator = dict(type="Evaluator", metrics=[cfg.test_evaluator])
        cfg.optim_wrapper.optimizer.fused = True
        cfg.visualizer.vis_backends = cfg.visualizer.vis_backends[0]

    checked("classifier", tmp_path, change)


def test_a_metric_s_arguments_are_checked_without_its_file(tmp_path: Path) -> None:
    wrong = dict(type="FileMetricOfTest", ann_file="absent.txt", scales=2.0)
    with refused("val_evaluator.1: FileMetricOfTest has no argument 'scales'; nearest: scale"):
        checked("classifier", tmp_path, lambda cfg: cfg.update(val_evaluator=[cfg.val_evaluator, wrong]))


@pytest.mark.parametrize(
    "change, needle",
    [
        (lambda cfg: cfg.randomness.pop("seed"), "randomness.seed is missing"),
        (lambda cfg: cfg.train_dataloader.pop("sampler"), "train_dataloader.sampler is missing: dict(type='DefaultS"),
        (
            lambda cfg: cfg.optim_wrapper.update(constructor=None, paramwise_cfg=dict(norm_decay=0)),
            "optim_wrapper.paramwise_cfg.norm_decay: nothing reads it; nearest: norm_decay_mult",
        ),
        (
            lambda cfg: cfg.param_scheduler.append(dict(type="ReduceOnPlateauLR", monitor="topp1")),
            "ReduceOnPlateauLR.monitor='topp1' is no score of the validation: choose from top1",
        ),
    ],
)
def test_what_is_left_out_or_would_be_ignored(tmp_path: Path, change: Callable[[Any], object], needle: str) -> None:
    with refused(needle):
        checked("classifier", tmp_path, change)


def test_the_run_s_visualizer_is_its_own(tmp_path: Path) -> None:
    """mmseg's and mmdet's configs name theirs; by that name the run got the check's, which writes beside its logs."""
    name = f"visualizer of {tmp_path}"
    checked("segmentor", tmp_path, lambda cfg: cfg.visualizer.update(name=name))
    assert not Visualizer.check_instance_created(name)


@pytest.mark.parametrize("visualizer", [None, dict(type="Visualizer")])
def test_hooks_that_ask_for_the_visualizer(tmp_path: Path, visualizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Visualizer, "_instance_dict", type(Visualizer._instance_dict)())

    def change(cfg: Any) -> None:
        cfg.visualizer = visualizer
        cfg.custom_hooks.append(dict(type="HookOfTest"))

    checked("classifier", tmp_path, change)


def test_wrapped_data_sets_are_checked_one_by_one(tmp_path: Path) -> None:
    def change(cfg: Any) -> None:
        inner = cfg.train_dataloader.dataset
        outer = dict(
            type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[inner, {**inner, "x": 1}])
        )
        cfg.train_dataloader.dataset = ConfigDict(outer)

    with refused("train_dataloader.dataset.dataset.datasets.1: FolderDataset has no argument 'x'"):
        checked("classifier", tmp_path, change)


def test_mixed_precision_is_checked_on_a_machine_without_gpu() -> None:
    options = {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "float16"}
    cfg = load_config(CONFIG["classifier"], options, Launch.on_gpus(2)).cfg
    check_parts(cfg)
    for key, value, needle in (
        ("los_scale", 512.0, "AmpOptimWrapper has no argument 'los_scale'; nearest: loss_scale"),
        ("dtype", "bfloat61", "optim_wrapper.dtype='bfloat61'; nearest: bfloat16"),
        ("loss_scale", "dynamc", "optim_wrapper.loss_scale='dynamc': 'dynamic' or"),
    ):
        wrong = copy.deepcopy(cfg)
        wrong.optim_wrapper[key] = value
        with refused(needle):
            check_parts(wrong)


@pytest.mark.parametrize(
    "logger, package",
    [(name, package) for name, packages in LOGGER_PACKAGES.items() for package in packages],
)
def test_loggers_whose_package_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str, package: str
) -> None:
    for place in (start_check, packages):
        monkeypatch.setattr(place, "is_absent", package.__eq__)
    install = packages.install_command(package)
    with refused(f"visualizer.vis_backends.0: {logger}: package {package!r} is missing: {install}"):
        checked("classifier", tmp_path, lambda cfg: cfg.visualizer.update(vis_backends=[dict(type=logger)]))


def test_types_whose_package_is_absent(tmp_path: Path) -> None:
    with refused("optim_wrapper.optimizer: Lion: package 'lion_pytorch' is missing: pip install lion-pytorch"):
        checked("classifier", tmp_path, lambda cfg: cfg.optim_wrapper.optimizer.update(type="Lion"))
    with refused("model.roi_head: mmpretrain.Head: package 'mmpretrain' is missing: pip install onedl-mmpretrain"):
        checked("detector", tmp_path, lambda cfg: cfg.model.roi_head.update(type="mmpretrain.Head"))


def test_other_packages_that_parts_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("custom_hooks.0: HookOfTest: package 'absent_package' is missing: pip install absent_package"):
        checked(
            "segmentor",
            tmp_path,
            lambda cfg: cfg.update(custom_hooks=[dict(type="HookOfTest", package="absent_package")]),
        )
    for place in (start_check, packages):
        monkeypatch.setattr(place, "is_absent", "turbojpeg".__eq__)
    step = dict(type="mmcv.LoadImageFromFile", imdecode_backend="turbojpeg")
    with refused(
        "val_dataloader.dataset.pipeline.0.imdecode_backend: package 'turbojpeg' is missing: pip install PyTurboJPEG"
    ):
        checked("segmentor", tmp_path, lambda cfg: cfg.val_dataloader.dataset.update(pipeline=[step]))
