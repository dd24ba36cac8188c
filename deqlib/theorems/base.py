"""What a theorem is in this book: a statement that can be drawn, measured and broken.

A theorem's file reads like its statement. The class attributes say it in words; ``draw`` makes
instances that satisfy every hypothesis; ``measure`` computes both sides of every conclusion;
``drop`` makes, for each hypothesis, instances that violate that hypothesis alone.
`verify` draws many instances, measures them all and keeps the one that fits worst.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Generator
from tqdm import tqdm  # not tqdm.auto: its notebook bar ignores "only in a terminal"

Kind = Literal["identity", "bound", "rate", "asymptotic", "evidence"]
Instance = TypeVar("Instance")


@dataclass(frozen=True)
class Hypothesis:
    """One numbered hypothesis of a theorem.

    ``necessary`` says that the conclusion fails without it: the instances that `Theorem.drop`
    draws for it must break the check. A hypothesis that only serves the proof has
    ``necessary=False``, and dropping it must leave the conclusion standing.
    """

    statement: str
    necessary: bool = True


@dataclass(frozen=True)
class Measurement:
    """One conclusion on one instance: ``measured ≤ bound`` (or ``≥`` when ``lower`` is set).

    measured : the quantity that the conclusion speaks of; for an identity, its error.
    bound    : what the theorem allows; for an identity, what rounding (or a stated solver
               tolerance) allows.
    activity : how much happened, in the theorem's own relative units. A conclusion that holds
               because nothing moved proves nothing; `verify` counts such instances apart.
    sharp    : the best possible bound where it is known.
    """

    measured: float
    bound: float
    activity: float
    sharp: float | None = None
    lower: bool = False

    @property
    def margin(self) -> float:
        """(bound − measured)/|bound|, sign turned for a lower bound: at least 0 where it holds."""
        if not (math.isfinite(self.measured) and math.isfinite(self.bound)):
            return -math.inf
        gap = self.measured - self.bound if self.lower else self.bound - self.measured
        if gap == 0:
            return 0.0
        return gap / abs(self.bound) if self.bound else math.copysign(math.inf, gap)

    @property
    def tightness(self) -> float:
        """Ratio of the two sides, at most 1 where the conclusion holds: 1 is sharp."""
        top, bottom = (self.bound, self.measured) if self.lower else (self.measured, self.bound)
        if bottom == 0:
            return 1.0 if top == 0 else math.inf
        return top / bottom


class Theorem(ABC, Generic[Instance]):
    """A statement with its hypotheses, its instances and its conclusions.

    Subclasses set the class attributes and write ``draw``, ``slack`` and ``measure``; ``drop``
    maps the name of a hypothesis to a function that draws instances without it.
    """

    label: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Kind]
    chapter: ClassVar[str]
    """Stem of the notebook that states and proves it."""
    statement: ClassVar[str]
    """One sentence, with LaTeX between dollar signs."""
    hypotheses: ClassVar[Mapping[str, Hypothesis]]
    open_questions: ClassVar[tuple[str, ...]] = ()
    """What the book leaves open about it, in MyST: the ledger page collects these."""
    least_activity: ClassVar[float] = 1e-6
    """An instance whose activity is below this counts as vacuous."""

    @property
    def status(self) -> str:
        """``proved``, ``asymptotic`` or ``evidence``: what the book claims of the statement."""
        return self.kind if self.kind in ("asymptotic", "evidence") else "proved"

    @abstractmethod
    def draw(self, generator: Generator, n: int) -> list[Instance]:
        """``n`` instances that satisfy every hypothesis, by the generator alone."""

    @abstractmethod
    def slack(self, instance: Instance) -> dict[str, float]:
        """For each hypothesis, how far inside it the instance lies: positive where it holds."""

    @abstractmethod
    def measure(self, instance: Instance) -> dict[str, Measurement]:
        """Every conclusion of the theorem on one instance, by name."""

    @property
    def drop(self) -> Mapping[str, Callable[[Generator, int], list[Instance]]]:
        """For each hypothesis, a draw of instances that violate it and satisfy all others."""
        return {}

    def margin(self, instance: Instance) -> float:
        """The smallest margin over the conclusions: at least 0 where the theorem holds."""
        return min(m.margin for m in self.measure(instance).values())

    def tightness(self, instance: Instance) -> float:
        """How nearly the bounds are attained on this instance: the largest ratio of two sides."""
        return max(m.tightness for m in self.measure(instance).values())


@dataclass(frozen=True)
class Verdict:
    """What `verify` saw. ``worst`` is the instance with the smallest margin, kept for replay."""

    theorem: Theorem[Any]
    dropped: str | None
    draws: int
    seed: int
    failures: int
    vacuous: int
    worst: Any
    worst_index: int
    worst_conclusion: str
    worst_margin: float
    tightness: float
    least_slack: Mapping[str, float]
    least_activity: float
    measurements: Sequence[Mapping[str, Measurement]]

    @property
    def holds(self) -> bool:
        """Every instance satisfied every conclusion, and on none of them nothing happened."""
        return self.failures == 0 and self.vacuous == 0

    def replay(self) -> dict[str, Measurement]:
        """Measure the worst instance again."""
        return self.theorem.measure(self.worst)

    def __str__(self) -> str:
        where = f" without '{self.dropped}'" if self.dropped else ""
        said = "holds" if self.holds else f"FAILS on {self.failures} ({self.vacuous} vacuous)"
        return (
            f"{self.theorem.label}{where}: {said} of {self.draws} instances (seed {self.seed}); "
            f"worst margin {self.worst_margin:.3g} in '{self.worst_conclusion}' "
            f"(instance {self.worst_index}), tightness {self.tightness:.3g}"
        )


def verify(
    theorem: Theorem[Any],
    draws: int = 200,
    seed: int = 0,
    *,
    drop: str | None = None,
    progress: bool | None = None,
) -> Verdict:
    """Measure a theorem on ``draws`` instances and return the verdict with the worst of them.

    Every instance is first held against the hypotheses: one that lies outside raises, because a
    check on it would say nothing. With ``drop`` the instances violate that one hypothesis, and
    only that one; then the verdict is expected to fail if the hypothesis is necessary.

    Args:
        theorem: an entry of `deqlib.theorems.THEOREMS`, or a reader's own.
        draws: how many instances, at least 1.
        seed: seed of the `torch.Generator` that draws them; the verdict is a function of
            (theorem, draws, seed, drop).
        drop: name of the hypothesis to drop.
        progress: show a bar; by default only in a terminal and after a second.

    Raises:
        ValueError: for draws < 1, an unknown hypothesis, or an instance that satisfies less (or,
            with ``drop``, more) than it must.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    if drop is not None and drop not in theorem.drop:
        raise ValueError(f"drop is {drop!r}; {theorem.label} can drop {sorted(theorem.drop)}")
    generator = torch.Generator().manual_seed(seed)
    instances = (theorem.drop[drop] if drop else theorem.draw)(generator, draws)
    if len(instances) != draws:
        raise ValueError(f"{theorem.label} drew {len(instances)} instances where {draws} were due")

    measurements: list[dict[str, Measurement]] = []
    slacks: list[dict[str, float]] = []
    quiet = None if progress is None else not progress
    for index, instance in enumerate(
        tqdm(instances, desc=theorem.label, disable=quiet, delay=1.0, leave=False)
    ):
        slack = theorem.slack(instance)
        for name in theorem.hypotheses:
            holds = slack[name] > 0
            if holds == (name == drop):
                raise ValueError(
                    f"instance {index} of {theorem.label} (seed {seed}, drop {drop!r}) has slack "
                    f"{slack[name]:.3g} in hypothesis {name!r}; it must be "
                    + ("at most 0, since it is dropped" if name == drop else "positive")
                )
        slacks.append(slack)
        measurements.append(theorem.measure(instance))

    margins = [min(m.margin for m in ms.values()) for ms in measurements]
    activities = [min(m.activity for m in ms.values()) for ms in measurements]
    worst_index = min(range(draws), key=margins.__getitem__)
    worst = measurements[worst_index]
    return Verdict(
        theorem=theorem,
        dropped=drop,
        draws=draws,
        seed=seed,
        failures=sum(not margin >= 0 for margin in margins),
        vacuous=sum(not activity >= theorem.least_activity for activity in activities),
        worst=instances[worst_index],
        worst_index=worst_index,
        worst_conclusion=min(worst, key=lambda name: worst[name].margin),
        worst_margin=margins[worst_index],
        tightness=max(m.tightness for ms in measurements for m in ms.values()),
        least_slack={name: min(s[name] for s in slacks) for name in theorem.hypotheses},
        least_activity=min(activities),
        measurements=measurements,
    )
