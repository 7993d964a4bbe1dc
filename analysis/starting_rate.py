"""Whether pre-trained weights would be trained at a rate for training from scratch."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper
from torch import nn

SCRATCH_RATE, SCRATCH_BATCH = 4e-3, 4096  # Table 2.5: training from scratch, one rate for all layers
FINE_TUNING = "5e-05 for 512 images and layer-wise decay of 0.7 to 0.9"  # Table 2.6; V2 after ImageNet-22K
SMALLEST_BATCH = 512  # of a table with both kinds; the rates of smaller batches here are not in proportion to them
RATED_ALIKE = ("Adam", "AdamW")  # rates of other optimizers are of another size


def starting_rate_note(cfg: Any, model: nn.Module, optimizer: OptimWrapper) -> str | None:
    """Text about a rate for training from scratch in a training that begins with pre-trained weights.

    That is a peak rate of Adam or AdamW of at least Table 2.5's, in proportion to the batch and below 512 images as for
    512, which is the same for all pre-trained layers. With layer-wise decay there is none: ConvNeXt V2 is fine-tuned at
    up to 4e-3 after masked pre-training, the detectors and segmentors of the demo at 1e-3 and 2e-3 for 4 images.

    Args:
        cfg: Config that was resolved for training.
        model: Its model, without content.
        optimizer: Optimizer on the model's parameter groups, at its peak rates.

    Returns:
        The text; ``None`` if there is nothing to say.
    """
    backbone = getattr(model, "backbone", None)
    pretrained = (cfg.model.get("backbone") or {}).get("weights")
    source, part = ("load_from", model) if cfg.get("load_from") else ("model.backbone.weights", backbone)
    if not (pretrained or cfg.get("load_from")) or part is None:
        return None
    sizes = {id(param): param.numel() for param in part.parameters()}
    rates: dict[float, int] = {}
    for group in optimizer.param_groups:
        trained = sum(sizes.get(id(param), 0) for param in group["params"])
        if trained and group["lr"]:
            rates[group["lr"]] = rates.get(group["lr"], 0) + trained
    if len(rates) != 1 or 2 * sum(rates.values()) < sum(sizes.values()):  # a linear probe trains the last norm
        return None
    ((rate, _),) = rates.items()
    scratch = SCRATCH_RATE * max(cfg.batch.size, SMALLEST_BATCH) / SCRATCH_BATCH
    if type(optimizer.optimizer).__name__ not in RATED_ALIKE or rate < scratch * (1 - 1e-6):
        return None
    return (
        f"optim_wrapper.optimizer.lr={rate:g} for {cfg.batch.size:,} images is a rate for training from scratch, and "
        f"{source} is set: the recipes of fine-tuning have {FINE_TUNING} (docs/recipes.md)"
    )
