"""Tables of medians with their range and ratio to a reference target, from interleaved rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Row:
    """One round of one target: a value for each column, requests sent, and how many of them failed."""

    target: str
    values: tuple[float, ...]
    requests: int
    failures: int


@dataclass
class Table:
    """All rounds of one comparison."""

    title: str
    reference: str
    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Take a round in."""
        self.rows.append(row)

    def markdown(self) -> str:
        """Median [least - most] of each column, and the ratio of medians to the reference."""
        lines = [f"### {self.title}", ""]
        head = [f"{column} | x" for column in self.columns]
        lines += [f"| | {' | '.join(head)} | failed |", "|---|" + "---|---|" * len(self.columns) + "---|"]
        for target in dict.fromkeys(row.target for row in self.rows):
            rows = [row for row in self.rows if row.target == target]
            cells = []
            for column in range(len(self.columns)):
                values = [row.values[column] for row in rows]
                base = median(row.values[column] for row in self.rows if row.target == self.reference)
                ratio = f"{median(values) / base:.2f}" if base else "-"
                cells.append(f"{_figure(median(values))} [{_figure(min(values))} - {_figure(max(values))}] | {ratio}")
            failed = f"{sum(row.failures for row in rows)} of {sum(row.requests for row in rows)}"
            lines.append(f"| {target} | {' | '.join(cells)} | {failed} |")
        return "\n".join([*lines, ""])


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
