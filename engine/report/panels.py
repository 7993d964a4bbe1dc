"""Pictures put together: panels with a title above each, and a legend of the classes below them.

All sizes follow that of the panels, so that pictures of any size look alike where they are shown at one width.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from engine.report.lettering import BLACK, MIN_FONT_SIZE, WHITE, Colour, Lettering, letter, text_size

FONT_SIZE_RATIO = 1 / 50  # of the longer side of a panel
PAPER, INK = (250, 250, 250), (40, 40, 40)
MAX_LEGEND_ROWS = 8  # the classes of further rows are counted
MARGIN = 0.5  # of the font size, around titles and entries of the legend


def font_size(height: int, width: int) -> int:
    """Size in pixels of the text in a panel of a height and width in pixels."""
    return max(MIN_FONT_SIZE, round(max(height, width) * FONT_SIZE_RATIO))


def ink_on(background: Colour) -> Colour:
    """Black or white, whichever can be read on a colour."""
    return BLACK if np.dot(background, (0.299, 0.587, 0.114)) > 127 else WHITE


def join_panels(panels: Mapping[str, np.ndarray], legend: Mapping[str, Colour]) -> np.ndarray:
    """Put panels side by side, with their titles above if there are several, and a legend below.

    Args:
        panels: RGB images, uint8, (H, W, 3), all of one size, by their titles.
        legend: Colours by the names that the legend shows; an empty one takes no room.

    Returns:
        The picture, RGB, uint8.
    """
    height, width = next(iter(panels.values())).shape[:2]
    size = font_size(height, width)
    gap = max(2, size // 4) if len(panels) > 1 else 0
    columns = [part for panel in panels.values() for part in (_paper(height, gap), panel)]
    picture = np.hstack(columns[1:])
    rows = [picture]
    if len(panels) > 1:
        texts = [
            Lettering(title, at * (width + gap) + MARGIN * size, MARGIN * size / 2, size, INK)
            for at, title in enumerate(panels)
        ]
        rows.insert(0, letter(_paper(_row_height(size), picture.shape[1]), texts))
    if legend:
        rows.append(_legend(legend, picture.shape[1], size))
    return np.vstack(rows)


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _row_height(size: int) -> int:
    return round(text_size("Ag", size)[1] + MARGIN * size)


def _legend(colours: Mapping[str, Colour], width: int, size: int) -> np.ndarray:
    """A strip with a square of each colour and its name, as many rows as are needed."""
    margin, row_height = round(MARGIN * size), _row_height(size)
    texts: list[Lettering] = []
    squares: list[tuple[int, int, Colour]] = []
    x, row = margin, 0
    for name, colour in colours.items():
        entry = size + margin + round(text_size(name, size)[0])
        if x > margin and x + entry + margin > width:
            x, row = margin, row + 1
        if row == MAX_LEGEND_ROWS:
            texts.append(Lettering(f"and {len(colours) - len(squares)} more", x, row * row_height, size, INK))
            break
        squares.append((x, row * row_height + margin // 2 + (row_height - margin - size) // 2, colour))
        texts.append(Lettering(name, x + size + margin // 2, row * row_height + margin / 2, size, INK))
        x += entry + margin
    strip = _paper((row + 1) * row_height, width)
    for left, top, colour in squares:
        cv2.rectangle(strip, (left, top), (left + size, top + size), colour, cv2.FILLED)
    return letter(strip, texts)
