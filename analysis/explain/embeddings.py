"""Embeddings of a data set: the nearest neighbours of an image, and a map of all images."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.browse.draws import NetworkInputs
from analysis.explain.network import TrainedNetwork, enlarge, with_progress
from backbones.errors import DataError
from engine.config.classes import class_colours
from engine.data.image_files import DamagedImageError
from engine.prediction.visualize import read_picture, spread_evenly
from engine.report.html import ScatterPoint, note, pixels_figure, scatter

MAX_EMBEDDED_IMAGES = 1000  # spread evenly over a split
SHOWN_NEIGHBOURS = 5
NEIGHBOUR_SIDE = 160  # pixels
MIXED = "no class alone"  # images without a class that most of their objects have


@dataclass(frozen=True)
class SplitImages:
    """Images of the test data.

    Attributes:
        paths: Files.
        labels: Position of the class of each; ``None`` where there is none that most of its objects have.
        total: Number of images of the test data.
        colours: Colour of each class, as CSS.
    """

    paths: list[Path]
    labels: list[int | None]
    total: int
    colours: list[str]

    def spread(self, count: int) -> list[Path]:
        """Files of so many images, spread evenly over them."""
        return [self.paths[place] for place in spread_evenly(len(self.paths), count)]


def find_test_images(network: TrainedNetwork) -> SplitImages:
    """Images that are spread evenly over the test data, with their classes where these need not be loaded."""
    with tempfile.TemporaryDirectory() as folder:
        source = NetworkInputs(network.cfg, "test", Path(folder))
        entries = [source.entry(index) for index in spread_evenly(len(source), MAX_EMBEDDED_IMAGES)]
    counted = None if source.spec.counts_labels else source.spec.classes
    labels = [None if counted is None else main_class(counted(entry)) for entry in entries]
    colours = [f"rgb{colour}" for colour in class_colours({**source.dataset.metainfo, "classes": network.classes})]
    return SplitImages([Path(str(entry["img_path"])) for entry in entries], labels, len(source), colours)


def main_class(found: Sequence[int]) -> int | None:
    """The class that more objects of an image have than any other; ``None`` if there is none."""
    ranked = Counter(int(one) for one in found if int(one) >= 0).most_common(2)
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return ranked[0][0] if ranked and not tied else None


def pooled_features(network: TrainedNetwork, path: Path) -> Tensor:
    """The pooled vector of the last stage of an image, float32 (C,): that of a classifier, else the mean of the map."""
    with torch.no_grad():
        found = network.backbone(network.batch(str(path))["inputs"])
    last = found if isinstance(found, Tensor) else found[-1].mean((2, 3))
    return last[0].float().cpu()


def principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Principal component analysis: coordinates on the first two axes, (N, 2), and their shares of the variance, (2,).

    Args:
        features: Features, (N, C), N and C at least 2. The sign of an axis makes its largest coordinate positive.
    """
    left, values, _ = torch.linalg.svd(features.double() - features.double().mean(0), full_matrices=False)
    places = (left * values)[:, :2]
    largest = places.gather(0, places.abs().argmax(0, keepdim=True))
    shares = values.square() / values.square().sum().clamp_min(1e-300)
    return places * torch.where(largest < 0, -1.0, 1.0), shares[:2]


def nearest_images(query: Tensor, features: Tensor, left_out: Sequence[int] = ()) -> list[tuple[int, float]]:
    """The images whose features have the largest cosine with those of a query.

    Args:
        query: Features of the query, (C,).
        features: Features of the images, (N, C).
        left_out: Indices of images that do not count, such as the query itself.

    Returns:
        Index and cosine of each, the nearest first.
    """
    similarity = F.normalize(features, dim=1) @ F.normalize(query, dim=0)
    similarity[list(left_out)] = -torch.inf
    count = min(SHOWN_NEIGHBOURS, len(features) - len(left_out))
    values, indices = similarity.topk(count)
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def embedding_section(
    network: TrainedNetwork, known: SplitImages, queries: Sequence[Path]
) -> tuple[str, dict[str, Any]]:
    """Draw the map of the test images and the neighbours of some images.

    Args:
        network: Network.
        known: Test images.
        queries: Files whose neighbours are shown.

    Returns:
        HTML; and for JSON the map and the neighbours.

    Raises:
        DataError: If fewer than three images can be read.
    """
    kept, vectors = [], []
    for place, path in enumerate(with_progress(known.paths, "embeddings")):
        try:
            vectors.append(pooled_features(network, path))
        except DamagedImageError:
            continue
        kept.append(place)
    if len(kept) < 3:
        raise DataError(f"--parts embeddings: {len(kept)} test images are too few, 3 are needed: name other --parts")
    features, labels = torch.stack(vectors), [known.labels[place] for place in kept]
    paths = [known.paths[place] for place in kept]
    places, shares = principal_axes(features)
    words = (
        f"{len(kept):,} of {known.total:,} test images, pooled features of the last stage, {features.shape[1]} numbers"
    )
    chart = _map(network, known, places, shares, paths, labels)
    parts, neighbours = [note(words), chart], {}
    for path in queries:
        own = [place for place, other in enumerate(paths) if other == path]
        found = nearest_images(pooled_features(network, path), features, own)
        neighbours[path.name] = [{"image": paths[place].name, "cosine": cosine} for place, cosine in found]
        shown = [
            (path, _caption(network, labels[own[0]] if own else None, "")),
            *((paths[place], _caption(network, labels[place], f"{cosine:.3f}")) for place, cosine in found),
        ]
        figures = "".join(_thumbnail(network, one, caption) for one, caption in shown)
        parts.append(f'<h3>{escape(path.name)}</h3><div class="gallery tiles">{figures}</div>')
    parts.insert(2, note(f"Below: images, and the {SHOWN_NEIGHBOURS} test images of the largest cosine beside each."))
    listed = [
        {"image": path.name, "place": place, "class": None if label is None else network.classes[label]}
        for path, place, label in zip(paths, places.tolist(), labels, strict=True)
    ]
    return "".join(parts), {"variance": shares.tolist(), "map": listed, "neighbours": neighbours}


def _map(
    network: TrainedNetwork,
    known: SplitImages,
    places: Tensor,
    shares: Tensor,
    paths: Sequence[Path],
    labels: Sequence[int | None],
) -> str:
    names = [MIXED if label is None else network.classes[label] for label in labels]
    points = [
        ScatterPoint(x, y, "var(--faint)" if label is None else known.colours[label], f"{path.name}: {name}")
        for (x, y), path, label, name in zip(places.tolist(), paths, labels, names, strict=True)
    ]
    legend = {network.classes[label]: known.colours[label] for label in sorted({*labels} - {None})}  # type: ignore
    if legend and None in labels:
        legend[MIXED] = "var(--faint)"
    first, second = (
        f"axis {axis}: {100 * share:.1f} % of the variance" for axis, share in enumerate(shares.tolist(), 1)
    )
    return scatter(f"principal axes: together {100 * float(shares.sum()):.1f} %", points, first, second, legend)


def _caption(network: TrainedNetwork, label: int | None, words: str) -> str:
    return " · ".join(part for part in ("" if label is None else network.classes[label], words) if part)


def _thumbnail(network: TrainedNetwork, path: Path, caption: str) -> str:
    return pixels_figure(enlarge(read_picture(network.cfg, str(path)), NEIGHBOUR_SIDE), caption, path.name)
