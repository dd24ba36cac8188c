"""Rows that can be compared: equal accuracy first, then interleaved repeats, then ratios.

A contender is a function of a tolerance. `tuned` finds a tolerance at which it is as accurate as
asked; `measured` runs all of them in turn, again and again, so that whatever else the machine does
meets all alike, and counts CPU time, which a busy machine changes little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

TRIES = 8


@dataclass
class Contender:
    """One way to do the work.

    name      as the table shows it
    run       tolerance ↦ result
    errors    result ↦ its accuracies, each at most its target
    role      "deqlib", "peer", or "reference": a time to look at that is not a competitor's
    scale     the run does 1/scale of the work
    """

    name: str
    run: Callable[[float], Any]
    errors: Callable[[Any], tuple[float, ...]] = lambda result: ()
    role: str = "peer"
    scale: float = 1.0
    tol: float = float("nan")
    found: tuple[float, ...] = ()
    seconds: list[float] = field(default_factory=list)


def tuned(contender: Contender, target: Sequence[float], tol: float) -> bool:
    """Find a tolerance at which every error is below its target and one is above half of it.

    Where the contender brings a tolerance of its own, it is only checked. Errors grow about in
    proportion to the tolerance, which says where to look next; between a success and a failure that
    does not help, the middle does. False where no try met the targets; ``tol`` and ``found`` keep
    the loosest success.
    """
    if contender.tol == contender.tol:  # not NaN
        contender.found = contender.errors(contender.run(contender.tol))
        return not contender.found or all(  # a bare time has nothing to judge
            e <= t for e, t in zip(contender.found, target, strict=True)
        )
    met, failed = False, float("inf")
    for _ in range(TRIES):
        errors = contender.errors(contender.run(tol))
        excess = max((e / t for e, t in zip(errors, target, strict=True)), default=0.5)
        if excess <= 1 and (not met or tol > contender.tol):
            met, contender.tol, contender.found = True, tol, errors
        if not excess <= 1:  # NaN too
            failed = min(failed, tol)
        if 0.5 <= excess <= 1 or (met and failed < 1.2 * contender.tol):
            break
        if not excess < float("inf"):
            tol /= 10
        else:
            tol = min(max(tol * 0.8 / max(excess, 1e-6), 1e-14), 0.1)
        if met and not contender.tol < tol < failed:
            if failed == float("inf"):
                break
            tol = (contender.tol * failed) ** 0.5
    return met


def measured(contenders: Sequence[Contender], repeats: int, least: float = 0.03) -> None:
    """Fill ``seconds``, one entry a repeat: CPU time of one run, from enough runs to be read."""
    inner = []
    for c in contenders:
        began = time.process_time()
        c.run(c.tol)
        inner.append(max(1, round(least / max(time.process_time() - began, 1e-6))))
    for _ in range(repeats):
        for c, n in zip(contenders, inner, strict=True):
            began = time.process_time()
            for _ in range(n):
                c.run(c.tol)
            c.seconds.append((time.process_time() - began) / n * c.scale)


def best_peer(contenders: Sequence[Contender]) -> Contender | None:
    peers = [c for c in contenders if c.role == "peer" and c.seconds]
    return min(peers, key=lambda c: median(c.seconds), default=None)


def ratios(contender: Contender, peer: Contender) -> tuple[float, float, float]:
    """Median, least and largest of the ratios of the times, repeat by repeat."""
    each = [a / b for a, b in zip(contender.seconds, peer.seconds, strict=True)]
    return median(each), min(each), max(each)
