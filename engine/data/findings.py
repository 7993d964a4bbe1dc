"""Result of a data check: a screen of text for people, all of it as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backbones.errors import MachineError, printable

FindingLevel = Literal["error", "warning"]
MAX_FINDING_LINES = 22  # on a screen, besides the summary
MAX_EXAMPLES = 3  # lines of one kind of finding


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One problem in the data.

    Attributes:
        level: ``error`` for what makes a training wrong or ends it, ``warning`` for the rest.
        kind: Name under which equal findings are counted together.
        split: Split of the data, such as ``train``.
        file: File with the problem.
        problem: Description of the problem, continuing a sentence that starts with the file.
        fix: Advice on how to fix it, continuing the sentence.
    """

    level: FindingLevel
    kind: str
    split: str
    file: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.problem}; {self.fix}"

    def to_dict(self) -> dict[str, str]:
        """Entry of ``data_check.json``, under the keys that it has had from the start."""
        entry = {"level": self.level, "kind": self.kind, "split": self.split, "file": self.file}
        return {**entry, "what": self.problem, "fix": self.fix}


@dataclass
class DataCheckResult:
    """All findings of a data check.

    Attributes:
        findings: Findings in the order found.
        inspected: Numbers of inspected and of existing files, by split and role, such as ``train images``.
        seconds: Duration of the check.
        notes: Facts that are neither right nor wrong, a line each.
    """

    findings: list[DataFinding]
    inspected: dict[str, tuple[int, int]]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[DataFinding]:
        """Findings of the level ``error``."""
        return [finding for finding in self.findings if finding.level == "error"]

    def to_lines(self, full_report: str = "the JSON that --json writes") -> list[str]:
        """Lines of text, about 25 at most: the findings, the notes, and a summary.

        Args:
            full_report: Place of the findings that do not fit.
        """
        return [*self.finding_lines(full_report), *self.notes, self.summary()]

    def finding_lines(self, full_report: str) -> list[str]:
        """Lines about the findings: errors first, each kind with count and examples.

        Args:
            full_report: Place of the findings that do not fit.
        """
        by_kind: dict[tuple[str, str, str], list[DataFinding]] = {}
        for finding in self.findings:
            by_kind.setdefault((finding.level, finding.kind, finding.split), []).append(finding)
        groups = sorted(by_kind.values(), key=lambda group: group[0].level != "error")
        shown, omitted = groups[:MAX_FINDING_LINES], groups[MAX_FINDING_LINES:]
        examples = max(1, min(MAX_EXAMPLES, MAX_FINDING_LINES // max(1, len(shown))))
        lines = []
        for group in shown:
            first = group[0]
            count = f" ({len(group)} in {first.split})" if len(group) > 1 else f" ({first.split})"
            lines.append(f"{first.level}{count}: {first}")
            lines += [f"    also {printable(other.file)}: {other.problem}" for other in group[1:examples]]
        if omitted:
            lines.append(f"and {len(omitted)} more kinds: {full_report}")
        elif any(len(group) > examples for group in shown):
            lines.append(f"the others: {full_report}")
        return lines

    def summary(self) -> str:
        """Numbers of findings and of inspected files, in one line."""
        files = sum(seen for seen, _ in self.inspected.values())
        parts = [
            f"{group} {'all' if seen == total else 'a sample of'} {seen:,}"
            + ("" if seen == total else f" of {total:,}")
            for group, (seen, total) in self.inspected.items()
        ]
        rate = f", {files / self.seconds:,.0f} files/s" if files >= 100 and self.seconds else ""
        warnings = len(self.findings) - len(self.errors)
        return (
            f"{_counted(len(self.errors), 'error')}, {_counted(warnings, 'warning')}; looked at "
            f"{', '.join(parts) or 'no file'} in {self.seconds:.1f} s{rate}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Content of ``data_check.json``."""
        return {
            "summary": self.summary(),
            "errors": len(self.errors),
            "warnings": len(self.findings) - len(self.errors),
            "looked_at": {group: {"files": seen, "of": total} for group, (seen, total) in self.inspected.items()},
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def write(self, path: str | Path, **entries: Any) -> None:
        """Write the result as JSON.

        Args:
            path: Output file; its folder is created.
            entries: Further entries at the top level.

        Raises:
            MachineError: If the file cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps({**entries, **self.to_dict()}, indent=1), encoding="utf-8")
        except OSError as error:
            raise MachineError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
