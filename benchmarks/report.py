"""From measured contenders to tables and one plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.timing import Contender, best_peer, ratios


@dataclass
class Group:
    """One problem: the contenders that met its targets, the names of those that did not.

    why  said in the summary where deqlib is slower than the best peer
    """

    table: str
    problem: str
    contenders: list[Contender]
    missed: list[str]
    memory: dict[str, float]
    why: str


def three(x: float) -> str:
    """Three significant digits, no exponent where it can be avoided."""
    return (
        f"{x:#.3g}".rstrip(".")
        if 1e-3 <= abs(x) < 1000
        else f"{x:.0f}"
        if x >= 1000
        else f"{x:.0e}"
    )


def span(values: tuple[float, float, float]) -> str:
    middle, least, most = (f"{v:.2f}" if v < 10 else f"{v:.1f}" for v in values)
    return f"{middle} ({least} to {most})"


HEADER = {
    "layer": ["residual", "gradient error"],
    "training": ["error"],
    "flows": ["error"],
}


def details(groups: Sequence[Group], table: str) -> list[list[str]]:
    memory = any(g.memory for g in groups if g.table == table)
    rows = [["problem", "method", "CPU ms", "ratio to the best peer", *HEADER[table]]]
    rows[0] += ["peak MB"] if memory else []
    for group in (g for g in groups if g.table == table):
        peer = best_peer(group.contenders)
        for c in sorted(group.contenders, key=lambda c: median(c.seconds)):
            row = [group.problem, c.name, three(1e3 * median(c.seconds))]
            row.append(span(ratios(c, peer)) if peer else "")
            found = [f"{e:.0e}" if e > 1e-12 else "rounding" for e in c.found]
            row += found or [""] * len(HEADER[table])
            if memory:
                size = group.memory.get(c.name, float("nan"))
                row.append(f"{size / 1e6:.0f}" if size == size else "–")
            rows.append(row)
        for name in group.missed:
            rows.append([group.problem, name, "missed the accuracy"] + [""] * (len(rows[0]) - 3))
    return rows


def summary(groups: Sequence[Group]) -> list[list[str]]:
    """A line for each problem: deqlib's fastest way beside the fastest peer."""
    rows = [["problem", "deqlib, CPU ms", "best peer, CPU ms", "ratio", "why"]]
    for group in (g for g in groups if g.table != "levers"):
        ours = min(
            (c for c in group.contenders if c.role == "deqlib"), key=lambda c: median(c.seconds)
        )
        peer = best_peer(group.contenders)
        if peer is None:
            continue
        ratio = ratios(ours, peer)
        if ratio[0] <= 1:
            why = "deqlib is the fastest"
        elif ratio[1] <= 1:
            why = f"within the spread; {group.why}"
        else:
            why = group.why
        rows.append(
            [
                group.problem,
                f"{ours.name}: {three(1e3 * median(ours.seconds))}",
                f"{peer.name}: {three(1e3 * median(peer.seconds))}",
                span(ratio),
                why,
            ]
        )
    return rows


def levers(groups: Sequence[Group], plain: str) -> list[list[str]]:
    """Every lever's time beside the time without it."""
    rows = [["problem", "lever", "CPU ms", "ratio to the time without"]]
    for group in (g for g in groups if g.table == "levers"):
        without = next(c for c in group.contenders if c.name == plain)
        for c in group.contenders:
            time = three(1e3 * median(c.seconds))
            rows.append([group.problem, c.name, time, span(ratios(c, without))])
        rows += [[group.problem, name, "missed the accuracy", ""] for name in group.missed]
    return rows


def show(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


# Okabe and Ito's colours, which do not depend on red and green being told apart
STYLES = {
    "deqlib, Picard": ("#D55E00", "o"),
    "deqlib, Picard, every 4": ("#D55E00", "^"),
    "deqlib, Picard twice": ("#D55E00", "D"),
    "deqlib, Picard twice, every 4": ("#D55E00", "v"),
    "deqlib, Anderson": ("#D55E00", "s"),
    "unrolled autograd": ("#000000", "x"),
    "torchdeq, Picard": ("#0072B2", "o"),
    "torchdeq, Anderson": ("#0072B2", "s"),
    "jaxopt, normal CG": ("#009E73", "^"),
    "jaxopt, BiCGStab": ("#009E73", "v"),
    "optimistix, BiCGStab": ("#CC79A7", "v"),
    "direct solve": ("#56B4E9", "D"),
    "hand-written loop": ("#666666", "+"),
}


def plot(groups: Sequence[Group], path: Path) -> None:
    """The implicit layer: every contender's ratio to the best peer, with its spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = [g for g in groups if g.table == "layer" and best_peer(g.contenders)]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.75 * len(layers)), layout="constrained")
    seen = set()
    for y, group in enumerate(layers):
        peer = best_peer(group.contenders)
        assert peer is not None
        axes.axhspan(y - 0.5, y + 0.5, color="0.95" if y % 2 else "white", zorder=0)
        drawn = [c for c in group.contenders if c.name in STYLES]
        for k, c in enumerate(drawn):
            middle, least, most = ratios(c, peer)
            colour, marker = STYLES[c.name]
            where = y - 0.36 + 0.72 * k / max(len(drawn) - 1, 1)
            axes.plot([least, most], [where] * 2, color=colour, linewidth=1.5)
            label = None if c.name in seen else c.name
            axes.plot(middle, where, marker, color=colour, markersize=6, label=label)
            seen.add(c.name)
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(layers)), [g.problem for g in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel("CPU time as a ratio to the best peer's (median, least and largest)")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
