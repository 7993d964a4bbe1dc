"""What engine and analysis have to know about image classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from backbones.errors import ConfigError, DataError
from classification.data import class_folders, folder_fix
from classification.errors import ClassificationErrors
from classification.model import ImageClassifier, preprocessor_settings
from classification.results import ClassList, ClassPrediction, ClassTable
from classification.stored import stored_names
from classification.suites import CLASSIFIER_ROBUSTNESS
from engine.checkpoint.rng import seeded
from engine.config.classes import class_names
from engine.data.shards import find_shards
from engine.task import (
    BrowseSpec,
    ClassLayer,
    ExplainSpec,
    ExportedNetwork,
    NamedClasses,
    Score,
    Shape,
    TaskSpec,
    register_task,
)

MIN_NAMED_SHARE = 0.01  # of a target, beyond its smoothing


def _counted_parts(model: ImageClassifier) -> str:
    """The whole classifier."""
    return f"backbone with a head of {model.head.out_features} classes"


def _dummy_batch(model: ImageClassifier, images: Tensor, training: bool) -> dict[str, Any]:
    """Uniform soft targets, (N, K), in training; a test step gives logits and needs none."""
    if not training:
        return {"inputs": images, "mode": "tensor"}
    classes = model.head.out_features
    targets = torch.full((len(images), classes), 1 / classes, device=images.device)
    return {"inputs": images, "data_samples": targets, "mode": "loss"}


def _export_wrapper(model: ImageClassifier) -> ExportedNetwork:
    """The classifier itself: images, (N, 3, H, W), to logits, (N, K)."""
    return ExportedNetwork("classifier", model, ("logits",), prefix="backbone.")


def _check_training(cfg: Config, images: int) -> None:
    """Refuse targets that are always the same, and an odd number of images where mixup or cutmix pairs them.

    Raises:
        ConfigError: If there is one class, all labels are smoothed away, or the number is odd and images are mixed.
    """
    if len(names := class_names(cfg.classes)) == 1:
        raise ConfigError(
            f"classes={names}: a softmax over one class is always 1, and nothing would be learnt: name a second one "
            "for all other images"
        )
    mixing = cfg.model.get("data_preprocessor") or {}
    if mixing.get("label_smoothing", 0) >= 1:
        raise ConfigError(
            f"model.data_preprocessor.label_smoothing={mixing['label_smoothing']}: the targets would be the same for "
            "every image, and nothing would be learnt: give less than 1, such as 0.1"
        )
    if images % 2 and (mixing.get("mixup") or mixing.get("cutmix")):
        raise ConfigError(f"{images} images per process: mixup pairs them, so it has to be even")


def _folder_names(dataset: Mapping[str, Any]) -> Sequence[str]:
    """Names of the class folders of a data set, sorted as text; of shards, those of their labels.

    Raises:
        DataError: If the folder is absent or holds no class folders, or shards have no names.
    """
    shards = find_shards(dataset.get("data_root") or "", dataset.get("split") or "", dataset.get("shard_cache"))
    if shards is not None:
        return stored_names(shards)
    root = Path(dataset.get("data_root") or "", dataset.get("split") or "")
    if not root.is_dir():
        raise DataError(f"classes: no folder {str(root)!r} to take their names from: set data_root, or state classes")
    if not (names := sorted(class_folders(root, ()))):
        raise DataError(f"classes: {str(root)!r} has no folders to take their names from: {folder_fix(root)}")
    return names


def _imagenet_names(subset: str) -> Sequence[str]:
    """WordNet ids of ``imagenet-1k`` or ``imagenet-22k``, which are the names of ImageNet's folders."""
    from timm.data import ImageNetInfo

    return ImageNetInfo(subset).label_names()


def _hard_or_soft(samples: Any) -> Sequence[Any]:
    """The targets of a batch: soft ones, (N, K), in training, else the labels."""
    return samples["label"].tolist() if isinstance(samples, Mapping) else list(samples)


def _name_classes(cfg: Config, visualizer: Any, image: np.ndarray, target: Any) -> tuple[np.ndarray, str]:
    """The image, and its class; of one that is mixed or smoothed each class with its share of the target."""
    names = visualizer.dataset_meta["classes"]
    if not isinstance(target, Tensor):
        return image, names[target] if target >= 0 else "no class"
    rest = float(target.min())  # of the smoothing, which every class has
    shares = (target - rest).topk(min(2, len(names)))
    parts = [
        f"{names[index]} {share + rest:.2f}"
        for share, index in zip(shares.values.tolist(), shares.indices.tolist(), strict=True)
        if share > MIN_NAMED_SHARE
    ]
    return image, " + ".join(parts) or "all classes alike"


def kept_by_crop(steps: Sequence[Any], results: Mapping[str, Any], size: Shape, seed: int) -> float | None:
    """Share of an image that the random crop keeps, which is drawn again; see :class:`engine.task.BrowseSpec`."""
    choose = getattr(getattr(steps[0], "load", None), "choose_crop", None)
    if choose is None:
        return None
    with seeded(seed):
        _, _, height, width = choose(torch.empty(1, 1, 1).expand(3, *size))
    return float(height * width / (size[0] * size[1]))


CLASSIFICATION = register_task(
    TaskSpec(
        name="classification",
        model_types=(ImageClassifier,),
        scores=(Score("top-1", "top1"), Score("top-5", "top5")),
        main_metric="top1",
        counted_parts=_counted_parts,
        dummy_batch=_dummy_batch,
        export_wrapper=_export_wrapper,
        class_layers={"head": ClassLayer()},
        # Russakovsky et al., 2015; ImageNet as of autumn 2011.
        named_classes={
            "imagenet-1k": NamedClasses(partial(_imagenet_names, "imagenet-1k"), 1_281_167),
            "imagenet-22k": NamedClasses(partial(_imagenet_names, "imagenet-22k"), 14_197_122),
        },
        result_formats={"csv": ClassTable, "json": ClassList},
        predicted_fields=("scores", "pred_label", "gt_label", "loss"),
        prediction=ClassPrediction,
        error_analysis=ClassificationErrors,
        data_classes=_folder_names,
        check_training=_check_training,
        robustness=CLASSIFIER_ROBUSTNESS,
        browse=BrowseSpec(
            preprocessor=preprocessor_settings,
            targets=_hard_or_soft,
            original_target=lambda entry: entry.get("gt_label", -1),
            draw=_name_classes,
            classes=lambda entry: [entry["gt_label"]],
            kept_share=kept_by_crop,
        ),
        explain=ExplainSpec(lambda model, batch, classes: model(batch["inputs"]), "the logit of the class"),
    )
)
