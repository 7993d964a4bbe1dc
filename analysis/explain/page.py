"""The page about what a network looks at, and its numbers as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from analysis.explain.cams import cam_section, check_cams
from analysis.explain.collapse import collapse_section, measure_collapse
from analysis.explain.embeddings import SplitImages, embedding_section, find_test_images
from analysis.explain.feature_maps import feature_section
from analysis.explain.network import TrainedNetwork
from backbones.convnext import Block
from backbones.errors import ConfigError, DataError, first_line
from engine.data.image_files import image_suffixes
from engine.data.preflight import check_data_paths
from engine.prediction.images import find_images
from engine.prediction.visualize import spread_evenly
from engine.report.html import document, facts, note
from engine.report.recorder import command_line
from engine.report.run_dir import numbers_file, write_page

PARTS = ("cam", "features", "embeddings", "collapse")
DEFAULT_IMAGES = 4
MAX_COMPARED_IMAGES = 100  # for the distances of channels, spread evenly over the test data


@dataclass(frozen=True)
class ExplainOptions:
    """What is asked for.

    Attributes:
        parts: Parts of the page; empty for all that the network has.
        images: Files and folders; empty for test images.
        count: Number of images; ``None`` for 4, or as many as are named.
        classes: Names of the classes whose maps are drawn; empty for those with the highest scores.
        stage: Stage whose output is weighted, from 1 to 4; ``None`` for the last one with enough positions.
        page: File of the page; ``None`` for ``explain.html`` in the work directory.
    """

    parts: Sequence[str] = ()
    images: Sequence[Path] = ()
    count: int | None = None
    classes: Sequence[str] = ()
    stage: int | None = None
    page: Path | None = None

    def check(self, beside: bool) -> None:
        """Check that what is asked for belongs to a part that is asked for.

        Args:
            beside: Whether another network is compared.

        Raises:
            ConfigError: If it does not.
        """
        if beside and self.parts and "collapse" not in self.parts:
            raise ConfigError("--beside: the other network is compared by collapse, which is not among --parts")
        if self.classes and self.parts and "cam" not in self.parts:
            raise ConfigError("--classes: the classes are those of cam, which is not among --parts")


def explain(network: TrainedNetwork, options: ExplainOptions, beside: TrainedNetwork | None = None) -> Path:
    """Write the page, and its numbers beside it.

    Args:
        network: Network.
        options: Choices of the user.
        beside: Another network for the distances of channels; ``None`` for none.

    Returns:
        The page.

    Raises:
        UserError: If a part does not fit the network, data is missing, or the page cannot be written.
    """
    parts = options.parts or fitting_parts(network)
    if "cam" in parts:
        check_cams(network, options.classes)
    if not options.images or "embeddings" in parts:
        check_data_paths(network.cfg, ("test",))
    page = Path(network.cfg.work_dir) / "explain.html" if options.page is None else options.page
    numbers_file(page)  # a name that is none is said before the work
    known = find_test_images(network) if not options.images or "embeddings" in parts else None
    images = _images(network, options, known)
    sections: dict[str, str] = {}
    numbers: dict[str, Any] = {"command": command_line(sys.argv, os.environ)}
    if "cam" in parts:
        sections["Class activation maps"], numbers["cam"] = cam_section(network, images, options.stage, options.classes)
    if "features" in parts:
        sections["Feature maps"], numbers["features"] = feature_section(network, images)
    if "embeddings" in parts and known is not None:
        alone = list(parts) == ["embeddings"]
        sections["Embeddings"], numbers["embeddings"] = embeddings_or_reason(network, known, images, alone)
    if "collapse" in parts:
        compared = images if options.images or known is None else known.spread(MAX_COMPARED_IMAGES)
        found = [measure_collapse(one, compared) for one in (network, beside) if one is not None]
        sections["Feature collapse"] = collapse_section(found, len(compared))
        numbers["collapse"] = {"images": len(compared), "networks": [asdict(one) for one in found]}
    sections["How it was made"] = facts({"command": numbers["command"]})
    lead = f'<p class="lead">{escape("What the network looks at, and what its layers hold.")}</p>'
    write_page(page, document(f"{network.name}: explained", lead, sections), numbers)
    return page


def embeddings_or_reason(
    network: TrainedNetwork, known: SplitImages, images: Sequence[Path], alone: bool
) -> tuple[str, dict[str, Any]]:
    """The embeddings of the test images or, where they are too few, the reason why the page has none.

    Raises:
        DataError: If they are too few, and the page would have nothing else.
    """
    try:
        return embedding_section(network, known, images)
    except DataError as error:
        if alone:
            raise
        reason = first_line(error)
        return note(f"Left out: {reason}"), {"left_out": reason}


def fitting_parts(network: TrainedNetwork) -> list[str]:
    """The parts of the page that a network has."""
    fits = {
        "cam": network.has_maps and network.task.explain is not None,
        "features": network.has_maps,
        "embeddings": True,
        "collapse": any(isinstance(module, Block) for module in network.backbone.modules()),
    }
    return [part for part in PARTS if fits[part]]


def _images(network: TrainedNetwork, options: ExplainOptions, known: SplitImages | None) -> list[Path]:
    """Images whose maps and neighbours are shown: those that are named, or test images, as many as are asked for."""
    count = options.count or max(DEFAULT_IMAGES, len(options.images))
    if known is not None and not options.images:
        return known.spread(count)
    paths = find_images(options.images, image_suffixes(network.channels))
    return [paths[place] for place in spread_evenly(len(paths), count)]
