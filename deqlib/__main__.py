"""``python -m deqlib``: print the ledger, or check one theorem hard.

python -m deqlib                                      the ledger, 200 instances each
python -m deqlib conservation-law --draws 10000       one theorem, harder
python -m deqlib conservation-law --drop plain-step   without one of its hypotheses
python -m deqlib experiments                          the paper's experiments (--help says more)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from deqlib.experiments.__main__ import main as experiments
from deqlib.theorems import FINDINGS, THEOREMS
from deqlib.theorems.base import Verdict, verify
from deqlib.theorems.ledger import Row, ledger

ROLE = re.compile(r"\{(\w+)(?::\w+)?\}`([^`]+)`")


def reference(role: re.Match[str]) -> str:
    """A role of the book as plain text: where a chapter stands, or a label."""
    kind, target = role.groups()
    return f"{target.lstrip('/')}.ipynb" if kind == "doc" else target


def table(rows: Sequence[Row]) -> str:
    """The ledger as aligned text."""
    head = ("theorem", "status", "draws", "worst margin", "tightness", "fails without")
    cells = [head]
    for row in rows:
        broken = [name for name, verdict in row.dropped.items() if verdict.failures]
        cells.append(
            (
                row.theorem.label,
                row.theorem.status if row.verdict.holds else "FAILS",
                str(row.verdict.draws),
                f"{row.verdict.worst_margin:.3g}",
                f"{row.verdict.tightness:.3g}",
                ", ".join(broken) or "-",
            )
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def describe(verdict: Verdict) -> str:
    """A verdict in full: hypotheses with their slack, conclusions with their worst instance."""
    theorem = verdict.theorem
    lines = [f"{theorem.label} ({theorem.status}): {theorem.title}", theorem.statement, ""]
    for name, hypothesis in theorem.hypotheses.items():
        kind = "necessary" if hypothesis.necessary else "serves the proof"
        state = "DROPPED" if name == verdict.dropped else f"{verdict.least_slack[name]:.3g}"
        lines.append(f"  {name} ({kind}): {hypothesis.statement} Least slack: {state}")
    lines.append("")
    for name in verdict.measurements[0]:
        seen = [ms[name] for ms in verdict.measurements]
        worst = min(seen, key=lambda m: m.margin)
        lines.append(
            f"  {name}: worst measured {worst.measured:.4g} against {worst.bound:.4g}, "
            f"margin {worst.margin:.3g}, {sum(not m.margin >= 0 for m in seen)} failures"
        )
    if theorem.open_questions:
        lines += ["", "  open:"]
        lines += [f"  - {re.sub(ROLE, reference, one)}" for one in theorem.open_questions]
    return "\n".join([*lines, "", str(verdict)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 where everything is as the statements say."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["experiments"]:
        return experiments(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m deqlib", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = {**THEOREMS, **FINDINGS}
    parser.add_argument("label", nargs="?", help=f"one of: {', '.join(known)}")
    parser.add_argument("--draws", type=int, default=200, help="instances to draw (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator (default 0)")
    parser.add_argument("--drop", help="drop this hypothesis and expect a failure")
    options = parser.parse_args(words)
    if options.draws < 1:
        parser.error(f"--draws is {options.draws}; it must be at least 1")
    if options.label is None:
        if options.drop:
            parser.error("--drop needs a theorem's label")
        rows = ledger(known.values(), options.draws, options.seed)
        print(table(rows))
        surprises = [f"{r.theorem.label}: {s}" for r in rows for s in r.surprises]
        print("\n".join(["", *surprises]) if surprises else "\nEverything is as stated.")
        return 1 if surprises else 0
    if options.label not in known:
        parser.error(f"no theorem is called {options.label!r}; there are {', '.join(known)}")
    theorem = known[options.label]
    if options.drop is not None and options.drop not in theorem.drop:
        parser.error(f"--drop is {options.drop!r}; it must be one of {', '.join(theorem.drop)}")
    verdict = verify(theorem, options.draws, options.seed, drop=options.drop)
    print(describe(verdict))
    if options.drop is None:
        return 0 if verdict.holds else 1
    expected = theorem.hypotheses[options.drop].necessary
    return 0 if expected == (verdict.failures > 0) else 1


if __name__ == "__main__":
    sys.exit(main())
