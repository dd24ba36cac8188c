"""The one table of results: tidy, a line a record, the same bytes whatever made it first."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from deqlib.experiments.protocol import Record


class Row(NamedTuple):
    """A record and the run that it belongs to."""

    protocol: str
    variant: str
    seed: int
    record: Record


COLUMNS = ("protocol", "variant", "seed", *Record._fields)


def replace(path: Path, text: str) -> None:
    """Write a file so that at every moment it is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # where an interruption came between


def write(path: Path, command: str, rows: Iterable[Row]) -> None:
    """The rows in the order given, below a comment with the command that makes them."""
    text = io.StringIO()
    text.write(f"# {command}\n")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([*row[:-1], *row.record] for row in rows)
    replace(path, text.getvalue())


def read(path: Path) -> list[Row]:
    """The rows of a table that `write` wrote.

    Raises:
        ValueError: if the file has other columns.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(line for line in file if not line.startswith("#"))
        header = tuple(next(lines, ()))
        if header != COLUMNS:
            raise ValueError(f"{path} has columns {header}; they must be {COLUMNS}")
        return [
            Row(protocol, variant, int(seed), Record(int(step), *map(_number, values)))  # type: ignore[arg-type]
            for protocol, variant, seed, step, *values in lines
        ]


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def select(rows: Iterable[Row], variant: str, seed: int | None = None) -> list[Record]:
    """The records of one variant of one protocol's table, of one seed or of all."""
    return [
        row.record for row in rows if row.variant == variant and (seed is None or row.seed == seed)
    ]
