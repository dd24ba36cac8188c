"""The ledger: every theorem beside what was seen when it was checked and when it was broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deqlib.theorems.base import Theorem, Verdict, verify


@dataclass(frozen=True)
class Row:
    """One theorem: the verdict under all its hypotheses, and one for each hypothesis dropped."""

    theorem: Theorem[Any]
    verdict: Verdict
    dropped: Mapping[str, Verdict]

    @property
    def surprises(self) -> list[str]:
        """What was not as the statement says, one sentence each; empty where all is well."""
        found = [] if self.verdict.holds else [f"it does not hold: {self.verdict}"]
        for name, verdict in self.dropped.items():
            necessary = self.theorem.hypotheses[name].necessary
            if necessary and verdict.failures == 0:
                found.append(f"'{name}' is called necessary, but the check stands without it")
            if not necessary and not verdict.holds:
                found.append(f"'{name}' is called unnecessary, but the check fails without it")
        for name, hypothesis in self.theorem.hypotheses.items():
            if hypothesis.necessary and name not in self.dropped:
                found.append(f"'{name}' is called necessary, but nothing drops it")
        return found


def ledger(
    theorems: Iterable[Theorem[Any]],
    draws: int = 200,
    seed: int = 0,
    *,
    progress: bool | None = None,
) -> list[Row]:
    """Check every theorem on ``draws`` instances, and on a quarter as many for each dropped
    hypothesis (at least 10), where one failure is enough."""
    return [
        Row(
            theorem,
            verify(theorem, draws, seed, progress=progress),
            {
                name: verify(theorem, max(10, draws // 4), seed, drop=name, progress=progress)
                for name in theorem.drop
            },
        )
        for theorem in theorems
    ]
