"""What engine and analysis have to know about semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import mmseg.datasets
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.structures import BaseDataElement, PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from backbones.errors import ConfigError
from engine.config.classes import class_names
from engine.config.datasets import inner_datasets, mappings
from engine.prediction.panel_visualizer import truth_picture
from engine.task import (
    WHOLE_IMAGE,
    BrowseSpec,
    ClassLayer,
    ExplainSpec,
    ExportedNetwork,
    NamedClasses,
    RobustnessSpec,
    Score,
    Shape,
    SubmissionSpec,
    TaskSpec,
    image_meta,
    pipeline_scale,
    register_task,
)
from segmentation.data import IGNORE_INDEX
from segmentation.errors import SegmentationErrors
from segmentation.loss_inputs import segmentor_loss_inputs
from segmentation.results import (
    LabelPngs,
    LabelPrediction,
    RegionList,
    RegionPolygons,
    RegionTable,
    list_label_images,
    pack_labels,
)
from segmentation.zoo import SEGMENTATION_ZOO

LABEL_SETTINGS = ("reduce_zero_label", "unlabelled", "label_values")  # of ``LoadLabels``
FEW_CLASSES = 8  # in a made-up image whose losses are counted: each is a mask, compared at thousands of points
SEGMENTOR_SHAPE = (512, 2048)  # of the papers' FLOPs, which they write "2048 x 512"
# Kamann and Rother, "Benchmarking the Robustness of Semantic Segmentation Models" (CVPR 2020), whose practice others
# follow: 16 corruptions, the four noises at severities 1 to 3.
SIXTEEN_CORRUPTIONS = {
    **dict.fromkeys(("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"), (1, 2, 3)),
    **dict.fromkeys(("motion_blur", "defocus_blur", "glass_blur", "gaussian_blur"), (1, 2, 3, 4, 5)),
    **dict.fromkeys(("brightness", "contrast", "saturate", "jpeg_compression"), (1, 2, 3, 4, 5)),
    **dict.fromkeys(("snow", "spatter", "fog", "frost"), (1, 2, 3, 4, 5)),
}


class FullSizeSegmentor(nn.Module):
    """A segmentor in one pass over the whole image: (N, 3, H, W) to scores, (N, K, H, W), before any softmax.

    mmseg's scores have a quarter of the image's size; they are resized as in its own testing, so that the argmax over
    the classes is the label map.

    Args:
        model: The trained model.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if _wants_samples(self.model.decode_head):
            features, settings = self.model.extract_feat(images), self.model.test_cfg
            scores: Tensor = self.model.decode_head.predict(features, [image_meta(images)], settings)
            return scores
        scores = self.model(images, mode="tensor")
        corners = bool(self.model.align_corners)
        return F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=corners)


def _count_forward(model: EncoderDecoder, images: Tensor) -> object:
    """Run the model up to the decode head's scores at stride 4: resizing them to the image belongs to testing."""
    return _scores(model, model.decode_head, model.extract_feat(images), images)


def _scores(model: EncoderDecoder, head: nn.Module, features: Sequence[Tensor], images: Tensor) -> Any:
    """What a head returns for maps of the backbone; those of mmdet, such as Mask2Former's, want the samples too."""
    samples = [_dummy_batch(model, images, True)["data_samples"]] if _wants_samples(head) else []
    return head(features, *samples)


def _wants_samples(head: nn.Module) -> bool:
    return "batch_data_samples" in signature(head.forward).parameters


def _counted_parts(model: EncoderDecoder) -> str:
    """Backbone and decode head."""
    without = " (of the auxiliary head the parameters alone: it works in training)"
    return "backbone and decode head" + (without if model.with_auxiliary_head else "")


def _activation_forward(model: EncoderDecoder, images: Tensor) -> object:
    """Run both heads and their losses: at the full resolution of the image, of masks of queries at points."""
    features = model.extract_feat(images)
    losses: list[object] = []
    heads: list[Any] = [*_heads(model)]
    for head in heads:
        if _wants_samples(head):
            samples = _label_maps(images, min(FEW_CLASSES, model.num_classes))
            losses.append(head.loss(features, samples, model.train_cfg))
            continue
        scores = F.interpolate(head(features), size=images.shape[-2:], mode="bilinear")
        labels = torch.zeros(scores.shape[0], *scores.shape[2:], dtype=torch.long, device=images.device)
        losses.append(F.cross_entropy(scores.float(), labels))
    return features, losses


def _dummy_batch(model: EncoderDecoder, images: Tensor, training: bool) -> dict[str, Any]:
    """Label maps in which all classes alternate."""
    samples = _label_maps(images, model.num_classes)
    return {"inputs": images, "data_samples": samples, "mode": "loss" if training else "predict"}


def _label_maps(images: Tensor, classes: int) -> list[SegDataSample]:
    """A label map for each image in which the first classes alternate."""
    height, width = images.shape[-2:]
    labels = torch.arange(height * width, device=images.device).view(1, height, width) % classes
    return [SegDataSample(metainfo=image_meta(images), gt_sem_seg=PixelData(data=labels)) for _ in images]


def _export_wrapper(model: EncoderDecoder) -> ExportedNetwork:
    """The whole model in one pass, with scores of the image's size."""
    recordable = nullcontext if _wants_samples(model.decode_head) else None  # attention over maps of several sizes
    return ExportedNetwork("segmentor", FullSizeSegmentor(model), ("scores",), prefix="model.", recordable=recordable)


def _scale_sample(sample: BaseDataElement, factor: int) -> None:
    """Enlarge the label maps of a sample, true and predicted ones, by a whole factor."""
    for name, labels in list(sample.items()):
        if name.endswith("_sem_seg"):
            enlarged = labels.data.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
            setattr(sample, name, PixelData(data=enlarged))  # a PixelData accepts no other size once it has one


def _class_scores(model: EncoderDecoder, batch: Mapping[str, Any], classes: int) -> Tensor:
    """The logits of each class, added up over the pixels where it is predicted, (1, K).

    One pass over the whole image; see :class:`engine.task.ExplainSpec`.
    """
    logits = FullSizeSegmentor(model)(batch["inputs"])
    if logits.shape[1] == 1:  # a sigmoid: the second of two classes where it is above one half
        logits = torch.cat([-logits, logits], 1) / 2
    region = F.one_hot(logits.argmax(1), classes).permute(0, 3, 1, 2)
    return ((logits * region).sum((2, 3))).masked_fill(region.sum((2, 3)) == 0, -torch.inf)


def _heads(model: EncoderDecoder) -> list[nn.Module]:
    """The decode head and the auxiliary heads."""
    if not model.with_auxiliary_head:
        return [model.decode_head]
    auxiliary = model.auxiliary_head
    return [model.decode_head, *(auxiliary if isinstance(auxiliary, nn.ModuleList) else [auxiliary])]


def _complete_config(cfg: Config, notes: list[str]) -> None:
    """Copy :data:`LABEL_SETTINGS` from the top level to data sets and pipelines that state none.

    In pipelines of mmseg, ``LoadLabels``, which knows them, takes the place of ``LoadAnnotations``, and of a data set
    with other classes ``LabelPngDataset``.
    """
    loaders = [cfg[key] for key in ("train_dataloader", "val_dataloader", "test_dataloader") if cfg.get(key)]
    datasets = [one for loader in loaders for one in inner_datasets(loader.dataset)]
    own_classes = [one for one in datasets if _replace_dataset(one, class_names(cfg.classes), notes)]
    if own_classes or any(cfg.get(name) is not None for name in LABEL_SETTINGS):
        _load_labels(cfg, notes)
    steps = [node for node in mappings(dict(cfg)) if str(node.get("type")).rpartition(".")[2] == "LoadLabels"]
    for name in LABEL_SETTINGS:
        places = [*datasets, *steps] if name == "reduce_zero_label" else steps
        if (value := cfg.get(name)) is None:
            continue
        if not places:
            raise ConfigError(f"{name}={value!r}: no pipeline loads labels by LoadLabels, which knows it")
        for place in places:
            if place.get(name) is None:
                place[name] = value
            elif place[name] != value:
                notes.append(f"{name}={place[name]} of {place['type']} goes before {name}={value} of the config")
    notes[:] = dict.fromkeys(notes)


def _replace_dataset(dataset: ConfigDict, classes: Sequence[str], notes: list[str]) -> bool:
    """Put ``LabelPngDataset`` in the place of a data set of mmseg that has other classes; whether it did."""
    kind = getattr(mmseg.datasets, str(dataset.get("type")).rpartition(".")[2], None)
    theirs = getattr(kind, "METAINFO", {}).get("classes")
    if kind is None or not theirs or set(classes) <= set(theirs):
        return False
    defaults = {name: one.default for name, one in signature(kind).parameters.items() if name.endswith("_suffix")}
    notes.append(
        f"{dataset.type} -> LabelPngDataset: the config's classes are others; labels 0, 1, 2... in their order"
    )
    dataset.update(type="LabelPngDataset", **{name: dataset.get(name, value) for name, value in defaults.items()})
    return True


def _load_labels(cfg: Config, notes: list[str]) -> None:
    """Put ``LoadLabels`` in the place of mmseg's step, whose own statements about labels are another data set's."""
    steps = [node for node in mappings(dict(cfg)) if str(node.get("type")).rpartition(".")[2] == "LoadAnnotations"]
    for step in steps:
        step.clear()
        step.update(type="LoadLabels", num_classes=len(class_names(cfg.classes)))
    if steps:
        notes.append(f"LoadAnnotations -> LoadLabels in {len(steps)} places: it knows {', '.join(LABEL_SETTINGS)}")


def _no_names(dataset: Mapping[str, Any]) -> Sequence[str]:
    """Class names of label images, which hold none.

    Raises:
        ConfigError: In every case.
    """
    raise ConfigError(
        "config states no classes: label images hold numbers alone; state the names in the order of the numbers, "
        "classes=(...), or a text file with one name per line, classes='classes.txt'"
    )


def _check_training(cfg: Config, images: int) -> None:
    """Refuse heads whose loss is constant, by one class, a softmax of one score or a weight of 0, or ignores a class.

    Raises:
        ConfigError: With the ways out.
    """
    one_class = len(class_names(cfg.classes)) == 1
    for place in ("decode_head", "auxiliary_head"):
        found = cfg.model.get(place) or []
        for head in found if isinstance(found, list | tuple) else [found]:
            if "num_classes" not in head or "loss_cls" in head:  # Mask2Former has a class "no object" beside its own
                continue
            losses = head.get("loss_decode") or []
            losses = losses if isinstance(losses, list | tuple) else [losses]
            if head.get("ignore_index", IGNORE_INDEX) != IGNORE_INDEX:
                raise ConfigError(
                    f"model.{place}.ignore_index={head['ignore_index']}: pixels without a label are loaded and padded "
                    f"as {IGNORE_INDEX}, so leave it out; for another value state unlabelled=N at the top"
                )
            if place == "decode_head" and losses and not any(loss.get("loss_weight", 1.0) for loss in losses):
                raise ConfigError(
                    "model.decode_head.loss_decode: loss_weight is 0, and the head that is tested would learn nothing: "
                    "give it a weight, such as 1.0"
                )
            sigmoid = any(loss.get("use_sigmoid") or loss.get("loss_type") == "binary" for loss in losses)
            if one_class or (head.get("out_channels") == 1 and not sigmoid):
                what = "there is one class" if one_class else "out_channels=1 with a softmax"
                raise ConfigError(
                    f"model.{place}: {what}, whose loss is 0 whatever the network says: use two classes, such as "
                    "classes=['background','road'] with labels 0 and 1, and either out_channels=2 or a sigmoid "
                    "(out_channels=1 and loss_decode.use_sigmoid=True in each head)"
                )


def _classes_of(sample: BaseDataElement) -> list[int]:
    """The classes that have a pixel in the label map of a sample."""
    present: list[int] = sample.gt_sem_seg.data.unique().tolist()
    return [one for one in present if one != IGNORE_INDEX]


def _kept_share(steps: Sequence[Any], results: Mapping[str, Any], size: Shape, seed: int) -> float | None:
    """Share of the resized image that the crop keeps."""
    if "img_shape" not in results:
        return None
    across, down = results.get("scale_factor") or (1.0, 1.0)
    resized, kept = (size[0] * down, size[1] * across), results["img_shape"][:2]
    return float(np.prod([min(1.0, side / whole) for side, whole in zip(kept, resized, strict=True)]))


SEGMENTATION = register_task(
    TaskSpec(
        name="segmentation",
        model_types=(EncoderDecoder,),
        scores=(Score("mIoU", "mIoU"), Score("mean class accuracy", "mAcc")),
        metric_labels={"aAcc": "pixel accuracy", "Acc": "accuracy"},
        main_metric="mIoU",
        default_shape=lambda cfg: pipeline_scale(cfg, SEGMENTOR_SHAPE),
        count_forward=_count_forward,
        counted_parts=_counted_parts,
        activation_forward=_activation_forward,
        dummy_batch=_dummy_batch,
        export_wrapper=_export_wrapper,
        channel_order="BGR",
        class_layers={"conv_seg": ClassLayer()},
        visualizers={"SegLocalVisualizer": "SegmentationVisualizer"},
        class_metrics={"IoUMetric": "ClassIoUMetric"},
        # Training images of ADE20K's scene parsing benchmark: Zhou et al., 2017.
        named_classes={"ade20k": NamedClasses(lambda: mmseg.datasets.ADE20KDataset.METAINFO["classes"], 20_210)},
        coloured_classes=True,
        sample_types={SegDataSample: ()},
        image_fields={"reduce_zero_label": False, "seg_fields": []},
        scale_sample=_scale_sample,
        drivers=LABEL_SETTINGS,
        complete_config=_complete_config,
        data_classes=_no_names,
        check_training=_check_training,
        result_formats={"png": LabelPngs, "json": RegionList, "csv": RegionTable, "labelme": RegionPolygons},
        predicted_fields=("pred_sem_seg",),
        submission=SubmissionSpec("png", pack_labels, list_label_images),
        prediction=LabelPrediction,
        error_analysis=SegmentationErrors,
        loss_inputs=segmentor_loss_inputs,
        robustness=RobustnessSpec(
            protocols={
                **WHOLE_IMAGE,
                "16": "16 corruptions of the whole image, the four noises at severities 1 to 3: 72 sets",
            },
            severities={"16": SIXTEEN_CORRUPTIONS},
        ),
        zoo=SEGMENTATION_ZOO,
        explain=ExplainSpec(_class_scores, "the logits of the class, added up over the pixels where it is predicted"),
        browse=BrowseSpec(draw=truth_picture, counts_labels=True, classes=_classes_of, kept_share=_kept_share),
    )
)
