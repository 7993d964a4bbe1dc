"""Text in pictures, in any script for which this machine has a font; what it cannot draw is written in other letters.

matplotlib's DejaVu Sans has the Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew and Arabic letters and many symbols;
the system's fonts are searched for the rest. OpenCV draws question marks for all but ASCII, matplotlib empty boxes.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

Colour = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
MIN_FONT_SIZE = 11  # pixels
DRAWN_NAMES = "class_names.json"  # in a folder of pictures: classes by the names that the pictures show
MAX_LISTED_NAMES = 3  # in a message
BUNDLED_FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
HAS_LAYOUT = bool(features.check("raqm"))  # whether Pillow can join letters and write from right to left
# Fonts whose glyphs are placeholders, or bitmaps of one size.
UNUSABLE_FONTS = ("lastresort", "adobeblank", "color", "emoji")
SECOND_CHOICES = ("bold", "italic", "oblique", "light", "thin", "mono", "serif", "condensed")
READABLE_LETTERS = ("HANGUL SYLLABLE ", "HIRAGANA LETTER ", "KATAKANA LETTER ", "REGIONAL INDICATOR SYMBOL LETTER ")


@dataclass(frozen=True)
class Lettering:
    """A text in a picture.

    Attributes:
        text: The text, in one line.
        x: Left edge in pixels, or the centre if ``centred``.
        y: Upper edge in pixels.
        size: Size of the font in pixels.
        colour: Colour, RGB.
        background: Colour of a box behind the text; ``None`` for none.
        centred: Whether ``x`` is the centre.
    """

    text: str
    x: float
    y: float
    size: int
    colour: Colour
    background: Colour | None = None
    centred: bool = False


def text_size(text: str, size: int) -> tuple[float, float]:
    """Width and height in pixels of a text in a font of a size in pixels, with the box behind it."""
    fonts = [(run, _font(path, size)) for path, run in _runs(text)]
    heights = [sum(font.getmetrics()) for _, font in fonts]
    return sum(font.getlength(run) for run, font in fonts) + 3, max(heights, default=0) + 1


def letter(image: np.ndarray, texts: Sequence[Lettering]) -> np.ndarray:
    """Write texts into a picture, each inside of its edges as far as it fits.

    Args:
        image: RGB image, uint8, (H, W, 3).
        texts: Texts in the order in which they are drawn.

    Returns:
        The picture with the texts, a copy.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    direction = "ltr" if HAS_LAYOUT else None  # a number before an Arabic name stays before it
    for one in texts:
        runs = [(run, _font(path, one.size)) for path, run in _runs(one.text)]
        width = sum(font.getlength(run) for run, font in runs)
        ascent, descent = (max((font.getmetrics()[i] for _, font in runs), default=0) for i in (0, 1))
        left = one.x - width / 2 if one.centred else one.x
        left = max(0, min(left, picture.width - width - 1))
        top = max(0, min(one.y, picture.height - ascent - descent))
        if one.background is not None:
            draw.rectangle((left - 1, top, left + width + 1, top + ascent + descent), fill=one.background)
        for run, font in runs:
            draw.text((left, top + ascent), run, fill=one.colour, font=font, anchor="ls", direction=direction)
            left += font.getlength(run)
    return np.asarray(picture)


def drawn_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes as pictures show them.

    A name with signs that no font has is written in Latin letters, an emoji by its name in brackets, and where that
    says nothing, as for Chinese characters, the class is numbered from 0.
    """
    drawn: list[str] = []
    for index, name in enumerate(names):
        text = _in_known_signs(name) or f"class {index}"
        drawn.append(f"{text} ({index})" if text != name and (text in drawn or text in names) else text)
    return tuple(drawn)


def write_drawn_names(names: Sequence[str], folder: Path) -> str | None:
    """Write which names stand for which classes into a folder of pictures.

    Args:
        names: Names of the classes.
        folder: Folder of the pictures, which exists.

    Returns:
        A line about them; ``None``, and no file, where the pictures show all names as they are.
    """
    others = {drawn: name for drawn, name in zip(drawn_names(names), names, strict=True) if drawn != name}
    path = folder / DRAWN_NAMES
    if not others:
        path.unlink(missing_ok=True)
        return None
    path.write_text(json.dumps(others, ensure_ascii=False, indent=1), encoding="utf-8")
    return f"{name_legend(others, MAX_LISTED_NAMES)}; all in {path}. A font with their signs, such as Noto Sans, helps"


def name_legend(others: Mapping[str, str], most: int) -> str:
    """A sentence that says which names in the pictures stand for which classes, for the first ``most`` of them."""
    listed = ", ".join(f"{drawn!r} is {name!r}" for drawn, name in list(others.items())[:most])
    more = f" and {len(others) - most} more" if len(others) > most else ""
    return f"in the pictures {listed}{more}: no font of the machine has their signs"


def _in_known_signs(name: str) -> str | None:
    """The name in signs that can be drawn, ``None`` if it cannot be read then."""
    parts = [_known(sign) for sign in unicodedata.normalize("NFC", name)]
    text = " ".join("".join(part for part in parts if part is not None).split())
    return None if None in parts else text or None


def _known(sign: str) -> str | None:
    """A sign itself or what stands for it; ``None`` if nothing does."""
    kind = unicodedata.category(sign)
    if kind in ("Cc", "Zl", "Zp"):
        return " "
    if kind == "Cf" or unicodedata.name(sign, "").startswith(("VARIATION SELECTOR", "EMOJI MODIFIER")):
        return ""
    if _font_of(sign):
        return sign
    plain = [part for part in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(part)]
    if plain and plain != [sign] and all(map(_font_of, plain)):
        return "".join(plain)
    name = unicodedata.name(sign, "")
    if name.startswith(READABLE_LETTERS):
        return name.rpartition(" ")[2].lower()
    return f"[{name.lower()}]" if name and kind[0] in "SP" else None


def _runs(text: str) -> list[tuple[str, str]]:
    """The parts of a text that have a font in common, each with the font's file."""
    signs = [sign for sign in unicodedata.normalize("NFC", text) if unicodedata.category(sign) not in ("Cc", "Cf")]
    groups = groupby(signs, key=lambda sign: _font_of(sign) or BUNDLED_FONT)
    return [(path, "".join(group)) for path, group in groups]


@lru_cache(maxsize=2**14)
def _font_of(sign: str) -> str | None:
    """File of the first font that has a sign, ``None`` if none has."""
    needs_layout = unicodedata.bidirectional(sign) in ("R", "AL", "AN") or unicodedata.category(sign) == "Mc"
    if needs_layout and not HAS_LAYOUT:
        return None
    if ord(sign) in _coverage(BUNDLED_FONT):
        return BUNDLED_FONT
    return next((path for path in _system_fonts() if ord(sign) in _coverage(path)), None)


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Files of the system's fonts, upright ones of regular weight first."""
    names = {path: Path(path).name.lower() for path in findSystemFonts()}
    usable = [path for path, name in names.items() if not any(word in name for word in UNUSABLE_FONTS)]
    return tuple(sorted(usable, key=lambda path: (sum(word in names[path] for word in SECOND_CHOICES), names[path])))


@cache
def _coverage(path: str) -> frozenset[int]:
    """Code points that a font has; none for a file that cannot be used."""
    try:
        _font(path, 16)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=256)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
