"""Report: the table on the console and in Markdown, and everything as JSON. Ratios come first."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench
from benchmarks.rows import ROWS, SELF, Figures, Medians, Row, Verdict

THOUSAND = 1_000
WIDEST = 120  # characters of a line of an error
NOTE = (
    "Ratios: how many times better Knapsaq is. In brackets: medians of the rounds, least and most. "
    "Other load on the machine is not controlled; see benchmarks/README.md for what not to trust."
)


class Report:
    """All figures of a run.

    Args:
        figures: The values by row and system.
        about: The machine, the options and the systems.
        bench: What ran and what was queued.
        errors: What failed.
    """

    def __init__(self, figures: Figures, about: dict[str, Any], bench: Bench, errors: list[str]) -> None:
        self._figures, self._about, self._bench, self._errors = figures, about, bench, errors
        self._medians = Medians(figures)
        self._rows = [replace(row, title=row.title.format(**about["options"])) for row in ROWS if figures.get(row.key)]
        self._peers = [name for name in about["systems"] if name not in (SELF, "saq")]

    def data(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        rows = [self._row_data(row) for row in self._rows]
        counted = {"ran": self._bench.counts, "queued": self._bench.queued}
        return {**self._about, "rows": rows, **counted, "errors": self._errors}

    def show(self, console: Console) -> None:
        """Print the tables."""
        main = Table("measure", "x SAQ", "Knapsaq", "SAQ", "bar: measured", box=box.SIMPLE, title="Knapsaq beside SAQ")
        for row in self._rows:
            bars = "\n".join(_coloured(verdict) for verdict in self._verdicts(row))
            main.add_row(row.title, self._ratio(row, "saq"), self._cell(row, SELF), self._cell(row, "saq"), bars)
        console.print(main)
        if self._peers:
            table = Table("x better than", *self._peers, box=box.SIMPLE, title="Knapsaq beside the others")
            for row in self._rows:
                cells = [self._peer_cell(row, name) for name in self._peers]
                if any(cells):
                    table.add_row(row.title, *cells)
            console.print(table)
        console.print(NOTE)
        for error in self._errors:
            console.print(
                f"failed: {error.splitlines()[0][:WIDEST]} ... {error.splitlines()[-1][:WIDEST]}", style="red"
            )

    def markdown(self) -> str:
        """Return the table in Markdown."""
        header = ["measure", "x SAQ", "Knapsaq", "SAQ", "bar: measured", *(f"x {name}" for name in self._peers)]
        lines = [header, ["---"] * len(header)]
        for row in self._rows:
            bars = "; ".join(_verdict(verdict) for verdict in self._verdicts(row))
            cells = [self._ratio(row, "saq"), self._cell(row, SELF), self._cell(row, "saq"), bars]
            lines.append([row.title, *cells, *(self._peer_cell(row, name) for name in self._peers)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        failed = "".join(f"\nFailed: {error.splitlines()[0]}\n" for error in self._errors)
        return f"{table}\n\n{NOTE}\n\n{_sentence(self._about)}\n{failed}"

    def _row_data(self, row: Row) -> dict[str, Any]:
        measured = self._figures[row.key]
        return {
            "key": row.key,
            "title": row.title,
            "better": row.better or None,
            "figures": {
                name: {"median": statistics.median(values), "least": min(values), "most": max(values), "values": values}
                for name, values in measured.items()
            },
            "ratios": {name: self._medians.ratio(row, name) for name in measured if name != SELF},
            "bars": [vars(verdict) for verdict in self._verdicts(row)],
        }

    def _verdicts(self, row: Row) -> Iterable[Verdict]:
        verdicts = [bar(row, self._medians) for bar in row.bars]
        return [verdict for verdict in verdicts if verdict.value is not None]

    def _ratio(self, row: Row, other: str) -> str:
        ratio = self._medians.ratio(row, other)
        return "" if ratio is None else f"{ratio:.2f}"

    def _cell(self, row: Row, name: str) -> str:
        values = self._figures[row.key].get(name)
        if not values:
            return ""
        middle, least, most = (_number(value) for value in (statistics.median(values), min(values), max(values)))
        return f"({middle}; {least}-{most})" if len(values) > 1 else f"({middle})"

    def _peer_cell(self, row: Row, name: str) -> str:
        values = self._figures[row.key].get(name)
        return f"{self._ratio(row, name)} ({_number(statistics.median(values))})".lstrip() if values else ""


def _verdict(verdict: Verdict) -> str:
    return f"{verdict.bar}: {_number(verdict.value or 0)} {'holds' if verdict.holds else 'MISSED'}"


def _coloured(verdict: Verdict) -> str:
    return f"[{'green' if verdict.holds else 'red'}]{_verdict(verdict)}[/]"


def _number(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= THOUSAND else 1 if size >= THOUSAND / 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def _sentence(about: dict[str, Any]) -> str:
    machine, options = about["machine"], about["options"]
    return (
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['server']}, Python {machine['python']}; "
        f"{options['rounds']} rounds, {options['jobs']:,} jobs a drain, {options['backlog']:,} in the backlog."
    )
