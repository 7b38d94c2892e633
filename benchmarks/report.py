"""Tables of medians with their range and ratio to a reference target, from interleaved rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Row:
    """One round of one target: a value for each column, the number of requests, and of failures."""

    target: str
    values: tuple[float, ...]
    requests: int
    failures: int


@dataclass
class Table:
    """All rounds of one comparison."""

    title: str
    references: tuple[str, ...]
    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Add a round."""
        self.rows.append(row)

    def markdown(self) -> str:
        """Median [least - most] of each column, and its ratio to the median of each reference, in their order. The cheapest come first."""
        ratios = " / ".join(f"x {reference}" for reference in self.references)
        lines = [f"### {self.title}", "", f"After each figure: {ratios}.", ""]
        lines += [f"| | {' | '.join(self.columns)} | failed |", "|---|" + "---|" * len(self.columns) + "---|"]
        targets = {row.target for row in self.rows}
        for target in sorted(targets, key=lambda target: median(self._values(target, 0))):
            cells = [self._cell(target, column) for column in range(len(self.columns))]
            rows = [row for row in self.rows if row.target == target]
            failed = f"{sum(row.failures for row in rows)} of {sum(row.requests for row in rows)}"
            lines.append(f"| {target} | {' | '.join(cells)} | {failed} |")
        return "\n".join([*lines, ""])

    def _cell(self, target: str, column: int) -> str:
        values = self._values(target, column)
        bases = [median(self._values(reference, column)) for reference in self.references]
        ratios = " / ".join(f"{median(values) / base:.2f}" for base in bases if base)
        figure = f"{_figure(median(values))} [{_figure(min(values))} - {_figure(max(values))}]"
        return f"{figure} {ratios}".rstrip()

    def _values(self, target: str, column: int) -> list[float]:
        return [row.values[column] for row in self.rows if row.target == target]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
