"""Cards and tables that the reader of a page can filter and sort, by a few lines of JavaScript in the page itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from engine.report.html import table

MIN_FILTERED_ROWS = 12  # of a table; a shorter one is seen at a glance
MAX_OPEN_ROWS = 40  # of a table; a longer one scrolls in a box


@dataclass(frozen=True)
class Card:
    """A picture with what it can be found by.

    Attributes:
        figure: HTML of the picture and its caption.
        text: Text that a search looks at.
        kinds: Amount of each kind of thing that it shows, by which the cards of a kind are sorted.
        classes: Names of the classes that it is about.
    """

    figure: str
    text: str
    kinds: Mapping[str, float] = field(default_factory=dict)
    classes: Sequence[str] = ()


def gallery(cards: Sequence[Card]) -> str:
    """Return cards as HTML, below a choice of kind and class and a search for words; empty without cards."""
    if not cards:
        return ""
    kinds = list(dict.fromkeys(kind for card in cards for kind in card.kinds))
    classes = sorted({name for card in cards for name in card.classes})
    controls = _choice("kind", kinds) + _choice("class", classes)
    shown = "".join(
        f'<div class="card" data-kinds="{escape(json.dumps(dict(card.kinds)))}" '
        f'data-classes="{escape(json.dumps(list(card.classes)))}" data-text="{escape(card.text.lower())}">'
        f"{card.figure}</div>"
        for card in cards
    )
    return (
        f'<div class="filtered"><div class="filters">{controls}<label>search <input type="search" data-by="text">'
        f'</label><output aria-live="polite">{len(cards)} pictures</output></div>'
        f'<div class="gallery large">{shown}</div></div>'
    )


def _choice(name: str, values: Sequence[str]) -> str:
    """A drop-down list of values, or nothing where there is nothing to choose."""
    if len(values) < 2:
        return ""
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    return f'<label>{name} <select data-by="{name}"><option value="">all</option>{options}</select></label>'


def sortable_table(head: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] = ()) -> str:
    """Return a table as HTML whose columns sort it when their heads are clicked; a long one with a search.

    Args:
        head: Names of the columns.
        rows: Cells.
        total: A last row in bold, which stays there.
    """
    search = '<label>search <input type="search"></label>' if len(rows) >= MIN_FILTERED_ROWS else ""
    filters = f'<div class="filters">{search}</div>' if search else ""
    kind = "sortable long" if len(rows) > MAX_OPEN_ROWS else "sortable"
    return f'<div class="{kind}">{filters}{table(head, rows, total)}</div>'


SCRIPT = """<script>
for (const box of document.querySelectorAll(".filtered")) {
  const cards = [...box.querySelectorAll(".card")], place = box.querySelector(".gallery");
  const all = cards.map((card, at) => ({card, at, kinds: JSON.parse(card.dataset.kinds),
    classes: JSON.parse(card.dataset.classes), text: card.dataset.text}));
  const value = by => box.querySelector(`[data-by=${by}]`)?.value ?? "";
  const update = () => {
    const kind = value("kind"), name = value("class"), words = value("text").toLowerCase();
    const shown = all.filter(one => (!kind || one.kinds[kind]) && (!name || one.classes.includes(name))
      && one.text.includes(words));
    shown.sort((a, b) => (kind ? b.kinds[kind] - a.kinds[kind] : 0) || a.at - b.at);
    for (const card of cards) card.hidden = true;
    for (const {card} of shown) { card.hidden = false; place.append(card); }
    box.querySelector("output").textContent = `${shown.length} of ${all.length} pictures`;
  };
  box.addEventListener("input", event => { if (event.target.dataset.by) update(); });
}
for (const box of document.querySelectorAll(".sortable")) {
  const body = box.querySelector("tbody"), [head, ...rows] = [...body.rows];
  const sorted = rows.filter(row => !row.classList.contains("total"));
  const last = rows.filter(row => row.classList.contains("total"));
  const read = (row, at) => row.cells[at].textContent;
  const amount = text => Number(text.replace(/[, %]/g, "").replace("\u2212", "-"));
  let previous = -1, turned = 1;
  [...head.cells].forEach((cell, at) => cell.addEventListener("click", () => {
    turned = previous === at ? -turned : 1;
    previous = at;
    sorted.sort((a, b) => {
      const [x, y] = [amount(read(a, at)), amount(read(b, at))];
      if (isNaN(x) || isNaN(y)) return at ? isNaN(x) - isNaN(y) : turned * read(a, at).localeCompare(read(b, at));
      return turned * (at ? y - x : x - y);
    });
    body.append(...sorted, ...last);
  }));
  box.querySelector("input")?.addEventListener("input", event => {
    for (const row of sorted) row.hidden = !read(row, 0).toLowerCase().includes(event.target.value.toLowerCase());
  });
}
</script>"""
