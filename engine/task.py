"""What engine and analysis have to know about a task: one :class:`TaskSpec`, registered by the task's own package.

Which task a config is of follows from its model: every specification names the classes of its models, and the nearest
one among the base classes of ``model.type`` counts. A top-level ``task = "name"`` in the config goes before that, for
two tasks that share a class. A config whose model belongs to no registered task gets :data:`CUSTOM_TASK`, which knows
mmengine's contract alone: ``model(images, mode="tensor")``.

To add a task, write a package whose ``__init__`` imports a module that calls :func:`register_task`, and name the
package in the config's ``custom_imports``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from backbones.errors import ConfigError

Shape = tuple[int, int]
VALIDATION_LOSS = "val_loss"  # metric: the mean loss on held-out images
VALIDATION_LOSS_LABEL = "loss on held-out data"


@dataclass(frozen=True)
class Score:
    """A metric as reports and papers print it: on a scale of 0 to 100.

    Attributes:
        label: Name in reports, such as ``box AP``.
        metric: Name in the logs of a validation, such as ``bbox_mAP``.
        factor: Factor from the logged value to 0..100.
    """

    label: str
    metric: str
    factor: float = 1.0


@dataclass(frozen=True)
class NamedClasses:
    """A known set of classes, which a config names: ``classes = "coco"``.

    Attributes:
        names: Returns the class names in order.
        images: Number of training images of the data set that the classes are from.
    """

    names: Callable[[], Sequence[str]]
    images: int


@dataclass(frozen=True)
class ClassLayer:
    """A layer whose number of output rows depends on the number of classes.

    Attributes:
        rows: Rows per class.
        extra_rows: Rows beside these, such as the background's.
        scores: The layer scores every class; other layers may be shared by all classes (class-agnostic).
    """

    rows: int = 1
    extra_rows: int = 0
    scores: bool = True


@dataclass(frozen=True)
class ExportedNetwork:
    """The part of a trained model that is exported.

    Attributes:
        kind: Kind of network in a word, such as ``classifier`` or ``segmentor``.
        network: Module from normalised images, (N, 3, H, W), to one tensor or a tuple of tensors.
        outputs: Name of each output.
        prefix: Beginning of the network's tensor names that exported files leave out.
        note: Remark for the user of the exported file; may be empty.
        batch_size: Number of images that it takes at once; ``None`` for any.
        recordable: Context in which an exporter records the operations of one example; ``None`` for a network whose
            operations need no example.
        align: Brings the outputs of an exported file, and those of the network, into one order before they are
            compared; ``None`` where the order is given.
    """

    kind: str
    network: nn.Module
    outputs: tuple[str, ...]
    prefix: str = ""
    note: str = ""
    batch_size: int | None = None
    recordable: Callable[[], AbstractContextManager[None]] | None = None
    align: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]] | None = None


@dataclass(frozen=True)
class SubmissionSpec:
    """How predictions of a test set without annotations become what an evaluation server takes.

    Attributes:
        result_format: Format of the predictions, one of the task's.
        pack: Packs the written files; gets their folder, the name of the method and the resolved config, and returns
            what is to be uploaded.
        list_images: Changes the settings of the test data, in place, so that it lists images without annotations.
    """

    result_format: str
    pack: Callable[[Path, str, Config], list[Path]]
    list_images: Callable[[Any], None] = lambda dataset: None


class TensorForward(nn.Module):
    """A model of mmengine as a plain network: its ``mode="tensor"``.

    Args:
        model: Model with mmengine's ``forward(inputs, data_samples, mode)``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images, mode="tensor")


def pipeline_size(cfg: Config) -> Shape | None:
    """Height and width that the test pipeline states last as ``size=...``; ``None`` if it states none."""
    sizes = [step["size"] for step in cfg.get("test_pipeline") or [] if isinstance(step.get("size"), int)]
    return (sizes[-1], sizes[-1]) if sizes else None


def pipeline_scale(cfg: Config, default: Shape) -> Shape:
    """Height and width of a landscape image that fills the ``scale=...`` of the test pipeline.

    Args:
        cfg: Config.
        default: Shape for a pipeline that states no scale.
    """
    scales = [step["scale"] for step in cfg.get("test_pipeline") or [] if isinstance(step.get("scale"), list | tuple)]
    pairs = [scale for scale in scales if len(scale) == 2 and all(isinstance(side, int) for side in scale)]
    return (min(pairs[-1]), max(pairs[-1])) if pairs else default


def tensor_forward(model: nn.Module, images: Tensor) -> object:
    """Run a model of mmengine on normalised images, (N, 3, H, W), without data samples."""
    return model(images, mode="tensor")


def image_meta(images: Tensor) -> dict[str, Any]:
    """The metadata of data samples whose images fill their batch, (N, 3, H, W), unscaled."""
    shape = (images.shape[-2], images.shape[-1])
    return {
        **dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), shape),
        "scale_factor": (1.0, 1.0),
    }


def _exported(model: nn.Module) -> ExportedNetwork:
    return ExportedNetwork("network", TensorForward(model), ("output",), prefix="model.")


@dataclass(frozen=True)
class ImageSet:
    """Images on which a trained model is evaluated in place of its test data.

    Attributes:
        name: Name with slashes between its parts, such as ``c/fog/3``.
        dataset: Settings of the data set, its pipeline among them.
        evaluator: Settings of the metric; ``None`` for that of the test data.
    """

    name: str
    dataset: Mapping[str, Any]
    evaluator: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RobustnessSuite:
    """A public suite of images for a task.

    Attributes:
        title: Name as its authors print it.
        folder: Folder below the root of the suites; ``None`` for a suite that has its images from the test data.
        source: Way to get it, for a person.
        protocols: Description of each way of preprocessing, by name; the first is the default.
        sets: Returns the sets; gets the resolved config, the folder, and the name of a protocol.
        check: Returns what is wrong with the images, a line each; gets the resolved config and the folder.
        preprocessing: Returns a description of the preprocessing; gets the resolved config and a protocol.
        score: Metric that the table shows.
        unfit: Returns the reason why the suite is of no use for a config; ``None`` if it fits.
        corrupted: Whether the sets are corruptions at severities.
    """

    title: str
    folder: str | None
    source: str
    protocols: Mapping[str, str]
    sets: Callable[[Config, Path, str], Sequence[ImageSet]]
    check: Callable[[Config, Path], Sequence[str]]
    preprocessing: Callable[[Config, str], str]
    score: str
    unfit: Callable[[Config], str | None]
    corrupted: bool = False


def transform_name(step: Mapping[str, Any]) -> str:
    """Name of a step of a pipeline without its scope: ``LoadAnnotations`` of ``mmseg.LoadAnnotations``."""
    return str(step["type"]).rpartition(".")[2]


def loads_image(step: Mapping[str, Any]) -> bool:
    """Whether a step of a pipeline loads the image, by its name: ``LoadImageFromFile``, ``LoadCheckedImage``..."""
    name = transform_name(step)
    return name.startswith("Load") and "Image" in name


def after_loading(
    pipeline: Sequence[Mapping[str, Any]], step: Mapping[str, Any], protocol: str
) -> list[Mapping[str, Any]]:
    """Put a step behind the one that loads the image, as for corruptions of whole photographs.

    Raises:
        ConfigError: If no step loads an image.
    """
    for index, one in enumerate(pipeline):
        if loads_image(one):
            return [*pipeline[: index + 1], step, *pipeline[index + 1 :]]
    raise ConfigError("test_pipeline: no step Load...Image loads the images that are to be corrupted")


WHOLE_IMAGE = {"15": "15 corruptions of the whole image at five severities"}


@dataclass(frozen=True)
class RobustnessSpec:
    """What the evaluation of robustness has to know about a task.

    Attributes:
        suites: Public suites by the name on the command line.
        place_corruption: Returns a test pipeline with a step that changes pixels in it; gets the pipeline, the step,
            and the name of a protocol.
        protocols: Description of each way of corrupting the test data, by name; the first is the default.
        severities: Corruptions with their severities for the protocols that do not use all 15 at all five.
        located: Whether labels are places in the image, so that no corruption may move what is there.
        evaluator: Settings of the metric of the test data; ``None`` for that of the config.
        error_of: Accuracy in percent, of which the errors under corruption are the complement; ``None`` where scores
            are compared as they are.
    """

    suites: Mapping[str, RobustnessSuite] = field(default_factory=dict)
    place_corruption: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any], str], Sequence[Mapping[str, Any]]] = (
        after_loading
    )
    protocols: Mapping[str, str] = field(default_factory=lambda: dict(WHOLE_IMAGE))
    severities: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    located: bool = True
    evaluator: Mapping[str, Any] | None = None
    error_of: str | None = None


@dataclass(frozen=True)
class ZooSpec:
    """What a trial of every method of a package has to know (:mod:`analysis.zoo`).

    Attributes:
        package: Name of the package that brings the configs, one folder for each method.
        out_of_scope: Reason why the methods of a folder are not tried, by its name.
        kinds: Contents of a folder without a method of its own, such as a backbone: without it, neck and head of
            another method remain.
        bound: Reason why a method in scope works on no backbone, or on none but its own, by its folder.
        configs: Name of the config that is tried, by its folder; where none is stated, the simplest name decides.
        stages: Index of the stage whose map takes the place of each map of the config's own backbone, by the folder;
            where none is stated, the stage of the same stride.
        shapes: Height and width of the images, by the folder, for a method that does not take any.
        before_swap: Changes a config before the backbone is swapped in; gets the folder and the config.
        after_swap: Changes a config afterwards; gets the folder, the config, and the channels of all four stages.
        complete_batch: Returns a batch as the model's data preprocessor takes it; gets the folder, the model, a batch
            with the annotations of ``dummy_batch``, and whether it is for training.
    """

    package: str
    out_of_scope: Mapping[str, str]
    kinds: Mapping[str, str] = field(default_factory=dict)
    bound: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    before_swap: Callable[[str, Config], None] = lambda folder, cfg: None
    after_swap: Callable[[str, Config, Sequence[int]], None] = lambda folder, cfg, channels: None
    complete_batch: Callable[[str, nn.Module, dict[str, Any], bool], dict[str, Any]] = (
        lambda folder, model, batch, training: batch
    )


@dataclass(frozen=True)
class BrowseSpec:
    """What the page of the images that a network gets (:mod:`analysis.browse`) has to know about a task.

    Attributes:
        preprocessor: Returns the settings of the data preprocessor of a resolved config's model.
        targets: Returns the labels of each image from the ``data_samples`` of a preprocessed batch.
        original_target: Returns the labels of an image whose pipeline is one step, from its entry in the data set.
        draw: Returns a picture of an image with its labels, and a caption, which may be empty; gets the resolved
            config, the visualizer, the image, RGB, uint8, (H, W, 3), and its labels.
        counted: Word for what is counted by class.
        counts_labels: Whether the classes of an image are in its labels alone, which have to be loaded.
        classes: Returns the class of each thing that is counted in an image; gets its entry in the data set, or its
            labels where these are loaded. ``None`` for images without classes.
        object_sizes: Returns the width and height of each object in the network's input in pixels, (N, 2), from the
            labels of an image; ``None`` for a task without objects.
        reference_sizes: Returns the sizes in pixels with which a detector begins, from the resolved config, by their
            name.
        kept_share: Returns the share of an image's area that is left after a crop; gets the steps of the pipeline, what
            is known of the image before the last one, its height and width, and the seed of its augmentation. ``None``
            where it is not known.
    """

    preprocessor: Callable[[Config], Mapping[str, Any]] = lambda cfg: (
        cfg.model.get("data_preprocessor") or {"type": "BaseDataPreprocessor"}
    )
    targets: Callable[[Any], Sequence[Any]] = lambda samples: [] if samples is None else list(samples)
    original_target: Callable[[Mapping[str, Any]], Any] = lambda entry: None
    draw: Callable[[Config, Any, Any, Any], tuple[Any, str]] = lambda cfg, visualizer, image, target: (image, "")
    counted: str = "images"
    counts_labels: bool = False
    classes: Callable[[Any], Sequence[int]] | None = None
    object_sizes: Callable[[Any], Any] | None = None
    reference_sizes: Callable[[Config], Mapping[str, Sequence[float]]] = lambda cfg: {}
    kept_share: Callable[[Sequence[Any], Mapping[str, Any], Shape, int], float | None] = (
        lambda steps, results, size, seed: None
    )


@dataclass(frozen=True)
class ExplainSpec:
    """What maps of the places that speak for a class (:mod:`analysis.explain`) have to know about a task.

    Attributes:
        class_scores: Returns the score of each class in an image, (1, K), which is differentiable; ``-inf`` for a class
            that is not predicted. Gets the model, a preprocessed batch of one image, and K.
        score: Description of the score.
    """

    class_scores: Callable[[Any, Mapping[str, Any], int], Tensor]
    score: str


@dataclass(frozen=True)
class TaskSpec:
    """A task as engine and analysis see it.

    Attributes:
        name: Name in reports and for the config's ``task`` key.
        model_types: Classes of its models; their subclasses belong to the task too.
        scores: Metrics of reports and their curves, the most important one first.
        scores_note: Remark below the table of scores.
        metric_labels: Names in reports of further metrics, and of scores of a class, by those in the logs.
        main_metric: Metric whose best weights are kept by default; ``None`` for the first one that a validation gives.
        default_shape: Returns the (height, width) at which FLOPs are counted and speed is measured, from the config:
            that of its test images; of a released config that of the task's papers.
        count_forward: Runs the part of a model whose FLOPs are counted; gets the model and images, (1, 3, H, W), which
            may be on the ``meta`` device.
        counted_parts: Returns a description of what ``count_forward`` runs.
        detailed_modules: Modules of a model whose children are listed one by one in the table of FLOPs.
        activation_forward: Runs the part of a model whose activations are counted and returns what keeps the graph
            alive; gets the model in training mode and images, (N, 3, H, W), without content.
        dummy_batch: Returns the keyword arguments of the model's ``forward`` for a step on made-up annotations; gets
            the model, normalised images, (N, 3, H, W), and whether it is a training step.
        export_wrapper: Returns the part of a trained model that is exported.
        channel_order: Order of the colour channels in which the pipelines read images.
        class_layers: Layers that depend on the number of classes, by the last part of their names.
        named_classes: Known sets of classes by the name that a config uses.
        visualizers: Visualizers that draw the panels of pages, by the name of the library's in whose place they come.
        class_metrics: Metrics that keep the scores of each class, by the name of the library's metric whose arguments
            they take and in whose place they are used.
        coloured_classes: Whether pictures show each class in a colour of its own (the data set's ``palette``).
        sample_types: Classes of mmengine's data elements and of other objects in a batch; for the latter, the
            attributes that their constructors take, in order.
        image_fields: Fields that the test pipeline expects of an image without annotations, beside its path and id.
        draw_options: Arguments of the visualizer's ``add_datasample``.
        scale_sample: Scales boxes, masks and label maps of a sample to a picture enlarged by a whole factor, in place.
        result_formats: Formats in which predictions are written to files, by name. Each returns the
            ``engine.prediction.result_files.ResultWriter`` for an ``engine.prediction.result_files.ResultRequest``.
        predicted_fields: Fields of a sample that its models predict and its metrics need.
        submission: Files for an evaluation server; ``None`` for a task without one.
        prediction: Subclass of ``engine.prediction.predictor.Prediction`` with what its models predict.
        loss_inputs: Returns the keyword arguments of the model's ``forward`` for the loss of a batch of the validation
            data, with the truth at the size of the network's input; gets the model, the batch as it is loaded, and the
            settings of the pipeline's steps. It leaves out images without truth, and returns ``None`` if there are no
            others. ``None`` where no loss is computed beside the scores.
        loss_metric: Metric of a validation that is drawn with the training's loss.
        error_analysis: Returns the ``engine.prediction.error_analysis.ErrorAnalysis`` of a test, from an
            ``engine.prediction.error_analysis.AnalysisRequest``; ``None`` for a task without one.
        drivers: Names of the task's own settings at the top level of a config, which ``complete_config`` copies.
        complete_config: Fills in, in place, what follows from other settings; gets the config, and a list for notes.
        count_classes: Sets, in place, the numbers of classes of parts that know only some of them or count them apart;
            gets the config, whose every ``num_classes`` is that of all, and a list for notes.
        data_classes: Returns the class names that the files of a data set tell; gets the data set's settings.
        check_training: Raises ConfigError where a training would learn nothing, or fail with a number of images per
            process.
        robustness: Suites and corruptions by which the robustness of its models is measured.
        zoo: Package of methods that can be tried on any backbone; ``None`` for a task without one.
        browse: Labels, classes and sizes for the page of the images that its networks get.
        explain: Score of a class, whose gradient says which places speak for it; ``None`` for a task without one.
    """

    name: str
    model_types: tuple[type[nn.Module], ...] = ()
    scores: tuple[Score, ...] = ()
    scores_note: str = ""
    metric_labels: Mapping[str, str] = field(default_factory=dict)
    main_metric: str | None = None
    default_shape: Callable[[Config], Shape | None] = pipeline_size
    count_forward: Callable[[Any, Tensor], object] = tensor_forward
    counted_parts: Callable[[Any], str] = lambda _: "whole model"
    detailed_modules: tuple[str, ...] = ("backbone",)
    activation_forward: Callable[[Any, Tensor], object] = tensor_forward
    dummy_batch: Callable[[Any, Tensor, bool], dict[str, Any]] = lambda model, images, training: {
        "inputs": images,
        "mode": "tensor",
    }
    export_wrapper: Callable[[Any], ExportedNetwork] = _exported
    channel_order: Literal["RGB", "BGR"] = "RGB"
    class_layers: Mapping[str, ClassLayer] = field(default_factory=dict)
    named_classes: Mapping[str, NamedClasses] = field(default_factory=dict)
    visualizers: Mapping[str, str] = field(default_factory=dict)
    class_metrics: Mapping[str, str] = field(default_factory=dict)
    coloured_classes: bool = False
    sample_types: Mapping[type, tuple[str, ...]] = field(default_factory=dict)
    image_fields: Mapping[str, Any] = field(default_factory=dict)
    draw_options: Mapping[str, Any] = field(default_factory=dict)
    scale_sample: Callable[[BaseDataElement, int], None] = lambda sample, factor: None
    result_formats: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    predicted_fields: tuple[str, ...] = ()
    submission: SubmissionSpec | None = None
    prediction: Callable[..., Any] | None = None
    loss_inputs: Callable[[Any, Any, Sequence[Mapping[str, Any]]], dict[str, Any] | None] | None = None
    loss_metric: str = VALIDATION_LOSS
    error_analysis: Callable[[Any], Any] | None = None
    drivers: tuple[str, ...] = ()
    complete_config: Callable[[Config, list[str]], None] = lambda cfg, notes: None
    count_classes: Callable[[Config, list[str]], None] = lambda cfg, notes: None
    data_classes: Callable[[Mapping[str, Any]], Sequence[str]] = lambda dataset: ()
    check_training: Callable[[Config, int], None] = lambda cfg, per_process: None
    robustness: RobustnessSpec = field(default_factory=RobustnessSpec)
    zoo: ZooSpec | None = None
    browse: BrowseSpec = field(default_factory=BrowseSpec)
    explain: ExplainSpec | None = None


CUSTOM_TASK = TaskSpec("custom task")


class TaskRegistry(dict[str, TaskSpec]):
    """The registered specifications by name, in the order of registration."""

    def register(self, spec: TaskSpec) -> TaskSpec:
        """Add a specification.

        Raises:
            KeyError: If its name or one of its models belongs to another task.
        """
        if spec.name in self:
            raise KeyError(f"task {spec.name!r} is registered already: choose another name")
        for kind in spec.model_types:
            if kind in self._by_model():
                raise KeyError(
                    f"{kind.__name__} belongs to task {self._by_model()[kind].name!r}: state task in configs"
                )
        self[spec.name] = spec
        return spec

    def named_classes(self) -> dict[str, NamedClasses]:
        """The known sets of classes of all tasks, by name."""
        return {name: classes for spec in self.values() for name, classes in spec.named_classes.items()}

    def drivers(self) -> list[str]:
        """Names of the settings at the top level of configs that the tasks add."""
        return [name for spec in self.values() for name in spec.drivers]

    def sample_types(self) -> dict[type, tuple[str, ...]]:
        """The classes of objects in the batches of all tasks, with the attributes that their constructors take."""
        return {kind: fields for spec in self.values() for kind, fields in spec.sample_types.items()}

    def of_model(self, model_type: type) -> TaskSpec:
        """The specification of the nearest base class, :data:`CUSTOM_TASK` if there is none."""
        known = self._by_model()
        return next((known[base] for base in model_type.__mro__ if base in known), CUSTOM_TASK)

    def _by_model(self) -> dict[type, TaskSpec]:
        return {kind: spec for spec in self.values() for kind in spec.model_types}


TASK_SPECS = TaskRegistry()


register_task = TASK_SPECS.register  # called once by the package of each task


def task_of(cfg: Config) -> TaskSpec:
    """The task of a config, by its ``task`` key or by the class of its model.

    Args:
        cfg: A config whose ``custom_imports`` have been imported.

    Returns:
        The specification; :data:`CUSTOM_TASK` for a model of no registered task.

    Raises:
        ConfigError: If the config states a ``task`` that is not registered.
    """
    name = cfg.get("task")
    if name is not None:
        if (spec := TASK_SPECS.get(name)) is None:
            known = ", ".join(sorted(TASK_SPECS))
            raise ConfigError(f"task={name!r} is not registered: choose from {known}, or import its package")
        return spec
    model = cfg.get("model") or {}
    while "module" in model:  # test-time augmentation around the trained model
        model = model["module"]
    kind = model.get("type")
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
            kind = registry.get(kind)
    return TASK_SPECS.of_model(kind) if isinstance(kind, type) else CUSTOM_TASK


def task_of_model(model: nn.Module) -> TaskSpec:
    """The task of a built model, by its class; :data:`CUSTOM_TASK` for a model of no registered task."""
    return TASK_SPECS.of_model(type(model))
