"""What a check of data found: lines for a screen, all of it for a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from backbones.errors import UserError, printable

Level = Literal["error", "warning"]
SCREEN = 22  # lines of findings at most, besides the summary
EXAMPLES = 3  # lines of one kind at most


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with the data.

    Attributes:
        level: ``error`` for what makes a training wrong or ends it, ``warning`` for the rest.
        kind: Name under which equal findings are counted together.
        split: Of the data, such as ``train``.
        file: Where.
        what: What is wrong there.
        mend: What to do about it.
    """

    level: Level
    kind: str
    split: str
    file: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.what}; {self.mend}"


@dataclass
class Findings:
    """All findings of a check.

    Attributes:
        items: In the order found.
        looked_at: Files that were looked at, of those there are, by split and by what they were asked.
        seconds: How long it took.
        notes: What was found that is neither right nor wrong, a line each.
    """

    items: list[Finding]
    looked_at: dict[str, tuple[int, int]]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[Finding]:
        """The errors among them."""
        return [item for item in self.items if item.level == "error"]

    def screen(self, rest: str = "the JSON that --json writes") -> list[str]:
        """Lines of text: errors first, kind by kind with count and examples, then a summary; at most some 25.

        Args:
            rest: Where what does not fit can be read.
        """
        groups = sorted(_grouped(self.items), key=lambda group: group[0].level != "error")
        shown, left_out = groups[:SCREEN], groups[SCREEN:]
        examples = max(1, min(EXAMPLES, SCREEN // max(1, len(shown))))
        lines = []
        for group in shown:
            first = group[0]
            count = f" ({len(group)} in {first.split})" if len(group) > 1 else f" ({first.split})"
            lines.append(f"{first.level}{count}: {first}")
            lines += [f"    also {printable(other.file)}: {other.what}" for other in group[1:examples]]
        if left_out:
            lines.append(f"and {len(left_out)} more kinds: {rest}")
        elif any(len(group) > examples for group in shown):
            lines.append(f"the others: {rest}")
        return [*lines, *self.notes, self.summary()]

    def summary(self) -> str:
        """What was looked at and found, in a line."""
        files = sum(seen for seen, _ in self.looked_at.values())
        parts = [
            f"{what} {'all' if seen == of else 'a sample of'} {seen:,}" + ("" if seen == of else f" of {of:,}")
            for what, (seen, of) in self.looked_at.items()
        ]
        rate = f", {files / self.seconds:,.0f} files/s" if files >= 100 and self.seconds else ""
        warnings = len(self.items) - len(self.errors)
        return (
            f"{_counted(len(self.errors), 'error')}, {_counted(warnings, 'warning')}; looked at "
            f"{', '.join(parts) or 'no file'} in {self.seconds:.1f} s{rate}"
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "summary": self.summary(),
            "errors": len(self.errors),
            "warnings": len(self.items) - len(self.errors),
            "looked_at": {what: {"files": seen, "of": of} for what, (seen, of) in self.looked_at.items()},
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "findings": [asdict(item) for item in self.items],
        }

    def write(self, path: str | Path, **more: Any) -> None:
        """Write it as JSON.

        Args:
            path: The file; its folder is made.
            more: Further entries.

        Raises:
            UserError: If it cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps({**more, **self.as_dict()}, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _grouped(items: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for item in items:
        groups.setdefault((item.level, item.kind, item.split), []).append(item)
    return list(groups.values())


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
