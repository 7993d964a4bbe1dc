"""What engine and analysis have to know about masked pre-training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from backbones.masked import hidden_mask
from classification.pretraining.data import UNIT
from classification.pretraining.errors import ReconstructionErrors
from classification.pretraining.model import MASK_RATIO, PREPROCESSOR, MaskedAutoencoder, visible_units
from classification.pretraining.visualizer import HIDDEN_COLOUR
from classification.task import kept_by_crop
from engine.task import BrowseSpec, ExportedNetwork, Score, TaskSpec, register_task


def _counted_parts(model: MaskedAutoencoder) -> str:
    """The whole model in its form."""
    return f"encoder ({model.form}, {100 * model.mask_ratio:g} % hidden) and decoder"


def _dummy_batch(model: MaskedAutoencoder, images: Tensor, training: bool) -> dict[str, Any]:
    """Units in the order of reading: the first ones are visible, which costs as much as any others."""
    units = (images.shape[-2] // UNIT) * (images.shape[-1] // UNIT)
    order = torch.arange(units, device=images.device).repeat(len(images), 1)
    samples = {"order": order, "img_path": [""] * len(images)}
    return {"inputs": images, "data_samples": samples, "mode": "loss" if training else "tensor"}


def _activation_forward(model: MaskedAutoencoder, images: Tensor) -> object:
    """The loss of a training step."""
    return model(**_dummy_batch(model, images, training=True))


def _export_wrapper(model: MaskedAutoencoder) -> ExportedNetwork:
    """The encoder, whose last map is all that a pre-training is for."""
    note = "whole images, without masks; the norm of the pooled vector begins with the fine-tuning"
    return ExportedNetwork("encoder", model.backbone, ("features",), prefix="backbone.", note=note)


def _draw_mask(cfg: Config, visualizer: Any, image: np.ndarray, order: Tensor | None) -> tuple[np.ndarray, str]:
    """The image as the encoder sees it, with hidden units in grey."""
    if order is None:
        return image, ""
    rows, columns = (side // UNIT for side in image.shape[:2])
    visible = order[: visible_units(len(order), cfg.model.get("mask_ratio", MASK_RATIO))]
    hidden = hidden_mask(visible[None], (rows, columns))[0].numpy()
    drawn = image[: rows * UNIT, : columns * UNIT].copy()
    drawn[np.kron(hidden, np.ones((UNIT, UNIT), bool)).astype(bool)] = HIDDEN_COLOUR
    return drawn, f"{hidden.sum()} of {hidden.size} units hidden"


PRETRAINING = register_task(
    TaskSpec(
        name="pretraining",
        model_types=(MaskedAutoencoder,),
        scores=(Score("loss on hidden units", "reconstruction_loss"),),
        scores_note="Mean squared error of normalised pixels on held-out images, each with the same mask every time.",
        main_metric="reconstruction_loss",
        loss_metric="reconstruction_loss",
        counted_parts=_counted_parts,
        dummy_batch=_dummy_batch,
        activation_forward=_activation_forward,
        export_wrapper=_export_wrapper,
        predicted_fields=("loss", "hidden", "predicted_units"),
        error_analysis=ReconstructionErrors,
        browse=BrowseSpec(
            preprocessor=lambda cfg: cfg.model.get("data_preprocessor") or PREPROCESSOR,
            targets=lambda samples: list(samples["order"]),
            draw=_draw_mask,
            kept_share=kept_by_crop,
        ),
    )
)
