"""Parts of the self-contained HTML reports of trainings and of the demo: numbers, tables, plots, pictures.

A page loads nothing from elsewhere, its colours follow the reader's light or dark setting, and it can be sent around:
of the machine's folders it keeps as much as tells files apart.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

Point = TypeVar("Point")

NONE = "–"
GIB = 2**30
JPEG_QUALITY = 88
# Absolute paths in text; a slash after a letter or a colon is one of a relative path or an address. The groups are what
# follows the first folder, or a home folder with the name of its user.
ABSOLUTE_PATH = re.compile(
    r"""(?<![\w:/.~-])(?:/(?:home|Users)/[^\s/"'<>&,;()]+((?:/[^\s/"'<>&,;()]+)*)|"""
    r"""/[^\s/"'<>&,;()]+((?:/[^\s/"'<>&,;()]+)+))"""
)
MARKUP = re.compile(r"(<style>.*?</style>|<[^>]*>)", re.DOTALL)
KEPT_PARTS = 2  # of a path, the last ones
MAX_POINTS = 400  # of a line; a plot has about as many pixels
MIN_UNMARKED_POINTS = 30  # a line with fewer points marks each of them
PLOT_LEFT, PLOT_RIGHT = 54, 444  # pixels of the SVG
LEGEND_Y, LEGEND_ROW, LEGEND_MARK, LEGEND_GAP = 30, 16, 20, 14
LETTER_WIDTH = 7  # pixels at the size of a plot's text, of wide fonts

# Colours of plots and page by name: in light mode, in dark mode.
COLOURS = {
    "text": ("#1c2126", "#e4e7ea"),
    "faint": ("#6a737d", "#98a1ab"),
    "line": ("#d9dee3", "#343b42"),
    "page": ("#fbfbfa", "#16191c"),
    "card": ("#ffffff", "#1e2226"),
    "trained": ("#2367b0", "#78b0ee"),
    "scratch": ("#c06a1c", "#e8a15c"),
    "averaged": ("#3b8a52", "#7cc791"),
    "wrong": ("#c23b3b", "#ee8080"),
    "violet": ("#7d4fb0", "#b795e0"),
    "teal": ("#14808a", "#5cc0ca"),
    "olive": ("#7d7a1c", "#c0bc5a"),
    "pink": ("#b8437f", "#e88fbb"),
}
CURVE_COLOURS = (
    "trained",
    "scratch",
    "averaged",
    "violet",
    "teal",
    "wrong",
    "olive",
    "pink",
)  # of lines that are alike


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory(count: int | None) -> str:
    """Bytes in GiB."""
    return NONE if not count else f"{count / GIB:.2f} GiB"


def number(value: float | None, signed: bool = False) -> str:
    """A score in 0..100, or a difference of two."""
    if value is None:
        return NONE
    return f"{value:{'+' if signed else ''}.1f}".replace("-", "−")


def document(title: str, lead: str, sections: Mapping[str, str]) -> str:
    """Return a whole page as HTML; bytes of file names that are no UTF-8 are escaped, so that it can be written.

    Args:
        title: Title, as text.
        lead: HTML below the title.
        sections: HTML of each section by its heading; empty sections are left out.
    """
    parts = [f"<section><h2>{escape(name)}</h2>\n{text}</section>" for name, text in sections.items() if text]
    body = "\n".join(parts)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1>\n{lead}\n{body}\n</main></body></html>\n"
    )
    page = page.encode(errors="backslashreplace").decode()
    return "".join(one if MARKUP.match(one) else without_folders(one) for one in MARKUP.split(page))


def without_folders(text: str) -> str:
    """Text whose absolute paths are those from here or from the home folder, and the last parts of all others."""
    for folder, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        text = re.sub(rf"(?<![\w:/.~-]){re.escape(escape(str(folder)))}/", short, text)

    def shortened(found: re.Match[str]) -> str:
        parts = (found[1] or found[2] or "").split("/")[1:]
        return "/".join(["…", *parts[-KEPT_PARTS:]])

    return ABSOLUTE_PATH.sub(shortened, text)


def facts(rows: Mapping[str, Any]) -> str:
    """Return a table of names and values as HTML; rows whose value is ``None`` are left out."""
    lines = "".join(_row(name, str(value)) for name, value in rows.items() if value is not None)
    return f'<div class="wide"><table class="facts">{lines}</table></div>'


def table(head: Iterable[str], rows: Sequence[Sequence[str]], total: Sequence[str] = ()) -> str:
    """Return a table as HTML; the first column names the row, and ``total`` is a last row in bold."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(_row(*row) for row in rows) + (_row(*total, kind=' class="total"') if total else "")
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _row(first: str, *others: str, kind: str = "") -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr{kind}><th scope="row">{escape(first)}</th>{cells}</tr>'


def note(text: str) -> str:
    """Return a remark as HTML."""
    return f'<p class="faint">{escape(text)}</p>'


def load_report_line(load_reports: Sequence[Mapping[str, Any]] | None, nothing: str) -> str:
    """Return the loaded weights in one line of text: ``no record`` for ``None``, ``nothing`` for an empty list."""
    if load_reports is None:
        return "no record"
    return "; then ".join(str(load_report.get("line")) for load_report in load_reports) or nothing


class CurveLine(NamedTuple):
    """A line of a plot.

    Attributes:
        colour: Key of ``COLOURS``.
        points: Pairs of (place, value), the place such as an optimizer step; ``None`` for a line without data.
        factor: Factor on the values.
        band: Triples of (place, lowest value, highest value) of what the line is the mean of; may be empty.
    """

    colour: str
    points: Sequence[tuple[float, float]] | None
    factor: float = 1.0
    band: Sequence[tuple[float, float, float]] = ()


def plot(heading: str, title: str, lines: Mapping[str, CurveLine], x_label: str = "optimizer steps") -> str:
    """Return a line plot as inline SVG.

    Args:
        heading: Heading of the group of plots, for screen readers.
        title: Title of the plot.
        lines: Lines by their labels.
        x_label: Name of what the plot is over.

    Returns:
        The SVG, or an empty string where no line has points.
    """
    drawn = {
        label: (line.colour, [(x, line.factor * y) for x, y in thinned(line.points)])
        for label, line in lines.items()
        if line.points
    }
    if not drawn:
        return ""
    bands = [
        (line.colour, [(x, line.factor * low, line.factor * high) for x, low, high in thinned(line.band)])
        for line in lines.values()
        if line.band
    ]
    values = [y for _, points in drawn.values() for _, y in points]
    values += [y for _, band in bands for _, *limits in band for y in limits]
    places = _legend_places(drawn) if len(lines) > 1 else {}
    top = max((y for _, y in places.values()), default=LEGEND_Y) + 14
    xs = _Axis(0, max(x for _, points in drawn.values() for x, _ in points), PLOT_LEFT, PLOT_RIGHT)
    ys = _Axis(min(0, *values), max(0, *values), 246, top)
    rows = "".join(
        f'<path class="grid" d="M{PLOT_LEFT} {ys(at):.1f}H{PLOT_RIGHT}"/>'
        f'<text x="48" y="{ys(at) + 4:.1f}" text-anchor="end">{at:.4g}</text>'
        for at in ys.ticks()
    )
    columns = "".join(f'<text x="{xs(at):.1f}" y="262" text-anchor="middle">{at:,.4g}</text>' for at in xs.ticks())
    areas = "".join(
        _drawn_band(colour, [(xs(x), ys(low), ys(high)) for x, low, high in band]) for colour, band in bands
    )
    curves = areas + "".join(
        _drawn_line(colour, [(xs(x), ys(y)) for x, y in points])
        + (_legend(*places[label], label, colour) if label in places else "")
        for label, (colour, points) in drawn.items()
    )
    return (
        f'<svg viewBox="0 0 460 288" role="img" aria-label="{escape(f"{heading}, {title}")}">'
        f'<text x="8" y="16" class="title">{escape(title)}</text>{rows}{columns}'
        f'<path class="axis" d="M{PLOT_LEFT} {top}V246H{PLOT_RIGHT}"/>'
        f'<text x="249" y="280" text-anchor="middle">{escape(x_label)}</text>'
        f"{curves}</svg>"
    )


class ScatterPoint(NamedTuple):
    """A point of a scatter plot.

    Attributes:
        x: Place across.
        y: Place upwards.
        colour: CSS colour.
        words: Text that is shown where the mouse is on it.
    """

    x: float
    y: float
    colour: str
    words: str


def scatter(title: str, points: Sequence[ScatterPoint], x_label: str, y_label: str, legend: Mapping[str, str]) -> str:
    """Return a scatter plot as inline SVG, with a legend below it.

    Args:
        title: Title of the plot.
        points: Points, at least one.
        x_label: Name of what is across.
        y_label: Name of what is upwards.
        legend: CSS colours by the names that the legend shows; an empty one takes no room.
    """
    (left, right), (low, high) = ((min(values), max(values)) for values in list(zip(*points, strict=True))[:2])
    xs, ys = _Axis(left, right, PLOT_LEFT + 6, PLOT_RIGHT - 6), _Axis(low, high, 240, 36)
    dots = "".join(
        f'<circle cx="{xs(one.x):.1f}" cy="{ys(one.y):.1f}" r="3" style="fill:{one.colour}" fill-opacity="0.75">'
        f"<title>{escape(one.words)}</title></circle>"
        for one in points
    )
    entries = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span> ' for name, colour in legend.items()
    )
    return (
        f'<svg viewBox="0 0 460 288" role="img" aria-label="{escape(title)}">'
        f'<text x="8" y="16" class="title">{escape(title)}</text>'
        f'<path class="axis" d="M{PLOT_LEFT} 30V246H{PLOT_RIGHT}"/>'
        f'<text x="249" y="268" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(40 138) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>{dots}</svg>'
        + (f'<p class="legend spread">{entries}</p>' if legend else "")
    )


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return at most ``most`` points at even distances, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


class _Axis:
    """Maps values to pixels; the limits are round numbers."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        span = (high - low) or abs(high) or 1.0
        power = 10.0 ** math.floor(math.log10(span / 5))
        self.step = next(m * power for m in (1, 2, 2.5, 5, 10) if 5.001 * m * power >= span)
        self.low = math.floor(low / self.step) * self.step
        # The x axis ends at the last step, the y axis at a round number above the values.
        self.high = high if start < end else math.ceil(high / self.step) * self.step
        self.high = self.high if self.high > self.low else self.low + span
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        count = math.floor((self.high - self.low) / self.step + 1e-6)
        return [round(self.low + index * self.step, 12) for index in range(count + 1)]


def _legend_places(labels: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Where the entry of each label begins: side by side as far as they fit, then in further rows."""
    x, y, places = PLOT_LEFT, LEGEND_Y, dict[str, tuple[int, int]]()
    for label in labels:
        width = LEGEND_MARK + LETTER_WIDTH * len(label)
        if places and x + width > PLOT_RIGHT:
            x, y = PLOT_LEFT, y + LEGEND_ROW
        places[label] = (x, y)
        x += width + LEGEND_GAP
    return places


def _legend(x: int, y: int, label: str, colour: str) -> str:
    line = f'<path class="line" style="stroke:var(--{colour})" d="M{x} {y}h16"/>'
    return f'{line}<text x="{x + LEGEND_MARK}" y="{y + 4}">{escape(label)}</text>'


def _drawn_line(colour: str, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = (
        "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
        if len(points) < MIN_UNMARKED_POINTS
        else ""
    )
    line = f'<polyline class="line" style="stroke:var(--{colour})" points="{path}"/>'
    return f'{line}<g style="fill:var(--{colour})">{dots}</g>' if dots else line


def _drawn_band(colour: str, limits: Sequence[tuple[float, float, float]]) -> str:
    there = [f"{x:.1f},{high:.1f}" for x, _, high in limits]
    back = [f"{x:.1f},{low:.1f}" for x, low, _ in reversed(limits)]
    return f'<polygon class="band" style="fill:var(--{colour})" points="{" ".join(there + back)}"/>'


def bars(rows: Sequence[tuple[str, float, str]], colours: Mapping[str, str] | None = None) -> str:
    """Return horizontal bars as HTML, one below the other.

    Args:
        rows: Name, value from 0 up, and the text of the value, of each bar.
        colours: CSS colour of the square before a name, for the names that have one.
    """
    most = max((value for _, value, _ in rows), default=0) or 1
    lines = []
    for name, value, text in rows:
        colour = (colours or {}).get(name)
        square = f'<i class="swatch" style="background:{colour}"></i>' if colour else ""
        lines.append(
            f'<tr><th scope="row">{square}{escape(name)}</th><td class="bar"><span>'
            f'<i class="trained" style="width:{100 * value / most:.1f}%"></i></span></td><td>{escape(text)}</td></tr>'
        )
    return f'<table class="bars">{"".join(lines)}</table>'


def confusion_table(
    confusion: Mapping[str, Any], said: str = "the classifier said", counted: str = "Number of held-out images"
) -> str:
    """Return a confusion matrix as an HTML table.

    Args:
        confusion: Mapping with ``classes``, (K,) names, and ``matrix``, (K, K) counts with a row per true class.
        said: Words about the columns.
        counted: Words about the numbers.
    """
    classes, matrix = confusion["classes"], confusion["matrix"]
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in classes)
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts) or 1
        cells = (_confusion_cell(count, count / total, predicted == true) for predicted, count in enumerate(counts))
        rows.append(f'<tr><th scope="row">{escape(str(name))}</th>{"".join(cells)}</tr>')
    return (
        f'<p class="faint">Rows: what it is. Columns: what {said}. {counted}.</p>'
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _confusion_cell(count: int, share: float, right: bool) -> str:
    # The square root keeps rare mistakes visible; at most 75 % of a colour leaves the number legible.
    colour = f"var(--{'trained' if right else 'wrong'}) {75 * math.sqrt(share):.0f}%"
    shade = f"background:color-mix(in srgb, {colour}, transparent)" if count else ""
    return f'<td style="{shade}">{count or ""}</td>'


def shaded_table(values: Sequence[Sequence[float | None]]) -> str:
    """Return a grid of numbers as an HTML table in which the largest are shaded most; ``None`` is a dash."""
    known = [value for row in values for value in row if value is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    rows = []
    for row in values:
        cells = []
        for value in row:
            share = 0.0 if value is None else (value - low) / span
            shade = f"background:color-mix(in srgb, var(--trained) {60 * share:.0f}%, transparent)"
            cells.append(f'<td style="{shade}">{NONE if value is None else f"{value:.3f}"}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="confusion">{"".join(rows)}</table></div>'


def figure(path: Path, caption: str) -> str:
    """Return an embedded picture as HTML, in JPEG: a quarter of the PNG's size. A click makes it fill the window."""
    try:
        file = io.BytesIO()
        Image.open(path).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    except OSError:
        return f"<figure><figcaption>{escape(caption)}: no picture</figcaption></figure>"
    return picture(file.getvalue(), caption, f"prediction {path.parent.parent.name} {path.stem}")


def picture(content: bytes, caption: str, alt: str) -> str:
    """Return a picture, a JPEG file, as HTML; a click makes it fill the window.

    Args:
        content: Content of the file.
        caption: Text below it; may be empty.
        alt: Description for screen readers.
    """
    data = base64.b64encode(content).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
    return f'<figure><label class="zoom"><input type="checkbox" aria-label="enlarge">{shown}</label>{words}</figure>'


def pixels_figure(pixels: np.ndarray, caption: str, alt: str, quality: int = JPEG_QUALITY) -> str:
    """Return a picture, RGB, uint8, (H, W, 3), as HTML: :func:`picture` of a JPEG file of a quality, 1 to 95."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return picture(file.getvalue(), caption, alt)


def _style() -> str:
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}"


STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:1rem 0 .5rem}
h2{font-size:1.35rem;margin:2.75rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.25rem 0 .5rem}
p{margin:.4rem 0}
.lead{max-width:46rem}
.faint,.label,figcaption{color:var(--faint);font-size:.875rem}
.cards,.gallery,.plots{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}
.plots{grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}
.gallery{gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,9rem),1fr))}
.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.large{grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem}
.card h3{margin-top:0}
.gallery .card{padding:.5rem}
.big{font-size:2.6rem;font-weight:650;line-height:1.1;color:var(--trained);font-variant-numeric:tabular-nums}
.big small{font-size:1rem;font-weight:400;color:var(--faint)}
.label{margin:.75rem 0 .15rem}
.bar{display:flex;align-items:center;gap:.6rem;margin:.2rem 0}
.bar span{flex:1;background:var(--line);border-radius:.3rem;overflow:hidden}
.bar i{display:block;height:.7rem}
.bar b{min-width:3rem;text-align:right;font-weight:500;font-variant-numeric:tabular-nums}
i.trained{background:var(--trained)}i.scratch{background:var(--scratch)}
.bars{width:100%;max-width:46rem}
.bars td,.bars th{padding:.15rem .5rem .15rem 0;border:0}
.bars th{width:35%;overflow-wrap:anywhere}
.bars td:last-child{text-align:left;white-space:nowrap;width:1%}
td.bar{display:table-cell}
td.bar span{display:block}
.swatch{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.4rem}
.draws{grid-template-columns:repeat(auto-fit,minmax(min(100%,9.5rem),1fr));margin-bottom:1rem;align-items:start}
.tiles{margin-bottom:1rem;align-items:start}
.quads{grid-template-columns:repeat(auto-fill,minmax(max(9rem,22%),1fr))}
.draws figure+figure,.tiles figure+figure{margin-top:0}
.legend{font-size:.875rem;margin-top:1rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.35rem}
.legend .scratch{margin-left:.6rem}
.spread{display:flex;flex-wrap:wrap;gap:.2rem .9rem}
svg{width:100%;height:auto;max-width:34rem}
svg text{font:11px system-ui,sans-serif;fill:var(--faint)}
svg .title{font-size:13px;fill:var(--text)}
svg .grid,svg .axis{stroke:var(--line);fill:none}
svg .line{stroke-width:2;fill:none;stroke-linejoin:round}
svg .band{opacity:.2}
figure{margin:0}
figure+figure{margin-top:.6rem}
img{display:block;width:100%;height:auto;border-radius:.3rem}
.zoom{display:block;cursor:zoom-in}
.zoom input{position:absolute;opacity:0}
.zoom input:focus-visible+img{outline:2px solid var(--trained)}
.zoom input:checked+img{position:fixed;inset:0;z-index:1;width:100%;height:100%;object-fit:contain;border-radius:0;
background:var(--page);cursor:zoom-out}
.filters{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;margin:.5rem 0 .75rem;font-size:.875rem}
.filters select,.filters input{font:inherit;max-width:12rem;padding:.2rem .4rem;color:inherit;background:var(--card);
border:1px solid var(--line);border-radius:.3rem}
.filters output{color:var(--faint)}
.card[hidden]{display:none}
.sortable tr:first-child th{cursor:pointer}
.wide{overflow-x:auto}
.long .wide{max-height:36rem;overflow-y:auto}
.long tr:first-child th{position:sticky;top:0;background:var(--page)}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.35rem .8rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--faint)}
th:first-child{text-align:left;padding-left:0;color:var(--text)}
.facts td,.words td:last-child,.words th:last-child{text-align:left}
.total th,.total td{font-weight:650}
.confusion td,.confusion th{padding:.3rem .5rem;border:1px solid var(--line);min-width:2.6rem;font-size:.8rem}
.confusion th:first-child{padding-left:.5rem}
pre{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.75rem 1rem;margin:.25rem 0;
white-space:pre-wrap;overflow-wrap:anywhere;font-size:.82rem}
li,figcaption,.facts td{overflow-wrap:anywhere}
.state{border-left:.3rem solid var(--averaged);padding:.4rem .8rem;background:var(--card)}
.state.wrong{border-color:var(--wrong)}
.state.faint{border-color:var(--scratch)}
details{margin:.75rem 0}
summary{cursor:pointer;color:var(--faint)}
"""
