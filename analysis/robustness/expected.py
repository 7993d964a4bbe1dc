"""Published numbers beside which an evaluation of robustness is shown: the paper's rows, and timm's results."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.paper.printed import TABLES

TABLE = "2.8"
# Name of a suite for each column of Table 2.8 after "trained on".
PAPER_COLUMNS = ("clean", "c", "cbar", "a", "r", "sketch")
TIMM_COLUMNS = ("clean", "a", "r", "sketch", "v2", "real")
TIMM_SOURCE = "huggingface/pytorch-image-models aa4b585, results/results-*.csv"
TIMM_CROPPED_SIDE = 384  # pixels from which a centre crop is another protocol than the paper's warp


@dataclass(frozen=True)
class PublishedRow:
    """Published scores of a network.

    Attributes:
        label: Network, data of its training, size of its input, and source.
        network: Registered name; ``None`` for one that is not of this project.
        side: Side of the network's input in pixels.
        values: Scores by the name of the suite: errors for corruptions, accuracies for the others.
    """

    label: str
    network: str | None
    side: int
    values: dict[str, float]


def _timm(network: str, side: int, trained: str, *values: float) -> PublishedRow:
    how = ", --protocol crop" if side >= TIMM_CROPPED_SIDE else ""
    label = f"expected (timm{how}), {network} trained on {trained}, {side}²"
    return PublishedRow(label, network, side, dict(zip(TIMM_COLUMNS, values, strict=True)))


# Columns top1 of TIMM_SOURCE: clean, A, R, Sketch, V2, ReaL; a network's weights of ImageNet-22K at 384, else of
# ImageNet-1K.
TIMM_ROWS = (
    _timm("convnext_tiny", 224, "1K", 82.066, 24.107, 47.133, 33.825, 70.930, 87.309),
    _timm("convnext_small", 224, "1K", 83.144, 31.373, 49.540, 37.063, 72.300, 88.052),
    _timm("convnext_base", 224, "1K", 83.838, 36.693, 51.250, 38.236, 73.780, 88.377),
    _timm("convnext_large", 224, "1K", 84.304, 41.213, 53.413, 40.105, 74.190, 88.594),
    _timm("convnext_tiny", 384, "22K", 84.098, 42.013, 52.073, 39.798, 73.360, 88.859),
    _timm("convnext_small", 384, "22K", 85.752, 53.160, 59.927, 46.873, 76.170, 89.927),
    _timm("convnext_base", 384, "22K", 86.826, 63.307, 64.743, 51.551, 77.790, 90.343),
    _timm("convnext_large", 384, "22K", 87.456, 67.387, 66.510, 52.732, 78.700, 90.307),
    _timm("convnext_xlarge", 384, "22K", 87.764, 71.187, 67.780, 55.006, 78.810, 90.540),
    _timm("efficientnet_lite0", 224, "1K", 74.846, 3.053, 36.033, 24.392, 62.650, 81.957),
)


def paper_rows() -> list[PublishedRow]:
    """The rows of Table 2.8."""
    rows = []
    for row in TABLES[TABLE].rows:
        trained, *printed = row.quoted
        values = {name: float(text) for name, text in zip(PAPER_COLUMNS, printed, strict=True) if text != "-"}
        label = f"Table {TABLE}, {row.label} trained on {trained}, {row.shape[0]}²"
        rows.append(PublishedRow(label, row.network, row.shape[0], values))
    return rows


def rows_of(network: str, side: int | None) -> list[PublishedRow]:
    """The published rows of a network at a size, the paper's first.

    Args:
        network: Registered name.
        side: Side of the network's input in pixels; ``None`` if it is not known.
    """
    return [row for row in (*paper_rows(), *TIMM_ROWS) if row.network == network and row.side == side]
