"""What an experiment is here: a protocol with its variants and seeds, run by one pure function.

A run is one (protocol, variant, seed). It returns records of one form whatever the protocol, so
that all of them fit one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlib.dynamics import Trajectory
from deqlib.single_index import Objective, SingleIndexDEQ, distance, predict


class Record(NamedTuple):
    """One moment of one run, in the paper's conventions.

    step : steps of descent taken.
    w : the input weight θ₁; with several inputs, its component along the target direction.
    a : the self-weight θ₂.
    intercept : the third parameter where there is one.
    risk : mean square error on the training inputs, without the ½: twice the book's L.
    evaluation_risk : the same on fresh inputs, where the protocol draws them.
    error : distance of the parameters from the target; from the nearest minimiser where the
        minimisers are a ray.
    radius : distance from the singular point (w, a) = (0, 1).
    """

    step: int
    w: float
    a: float
    intercept: float | None
    risk: float
    evaluation_risk: float | None
    error: float
    radius: float


Run = Callable[[str, int, int], list[Record]]


@dataclass(frozen=True)
class Protocol:
    """An experiment of the paper, as the runner and the chapter use it.

    name : as the command line calls it.
    says : one sentence.
    run : (variant, seed, steps) ↦ records; a pure function.
    variants : what is varied within the protocol.
    first_seed, stride, recorded : the seeds are first_seed + k·stride; `recorded` of them are the
        paper's own.
    steps : how long it runs.
    milestones : the steps that are recorded, beside the last.
    seconds : what a run costs on one core, roughly.
    """

    name: str
    says: str
    run: Run
    variants: tuple[str, ...]
    first_seed: int
    recorded: int
    steps: int
    milestones: tuple[int, ...]
    seconds: float
    stride: int = 1

    def seeds(self, count: int | None = None) -> tuple[int, ...]:
        """The first ``count`` seeds; without it those that the paper used."""
        number = self.recorded if count is None else count
        if number < 1:
            raise ValueError(f"count is {count}; it must be at least 1")
        return tuple(self.first_seed + k * self.stride for k in range(number))

    def __call__(
        self, variant: str | None = None, seed: int | None = None, steps: int | None = None
    ) -> list[Record]:
        """One run: by default the first variant, the first seed and the full length.

        A shorter run returns the first records of the full one, and its own last step.
        """
        variant = self.variants[0] if variant is None else variant
        if variant not in self.variants:
            raise ValueError(f"variant is {variant!r}; {self.name} has {', '.join(self.variants)}")
        seed = self.first_seed if seed is None else seed
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be at least 0")
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        records = self.run(variant, seed, steps)
        return [r for r in records[:-1] if r.step in self.milestones] + records[-1:]


def every(milestones: Sequence[int], steps: int) -> int:
    """The largest interval at which a run of so many steps records all milestones it passes."""
    return math.gcd(*[k for k in milestones if 0 < k <= steps], steps)


def single_index_records(
    run: Trajectory[Any],
    objective: Objective,
    target: SingleIndexDEQ,
    fresh: Tensor | None = None,
) -> list[Record]:
    """Records of a descent of one single-index model; ``fresh`` (n, d) are evaluation inputs.

    A run whose loss stopped being finite ends with its last finite step.
    """
    thetas = SingleIndexDEQ(*run.theta)
    length = target.w.norm()
    along = thetas.w @ (target.w / length)
    error = distance(thetas, target)
    radius = (thetas.w.square().sum(-1) + (1 - thetas.a).square()).sqrt()
    records = []
    for k, step in enumerate(run.t.tolist()):
        if step > float(run.stopped):
            break
        evaluation = None
        if fresh is not None:
            theta = SingleIndexDEQ(thetas.a[k], thetas.w[k])
            truth = predict(objective.link, target, fresh)
            evaluation = float((predict(objective.link, theta, fresh) - truth).square().mean())
        records.append(
            Record(
                int(step), float(along[k]), float(thetas.a[k]), None, 2 * float(run.loss[k]),
                evaluation, float(error[k]), float(radius[k]),
            )
        )  # fmt: skip
    return records


def vector(values: Any) -> Tensor:
    """A numpy array as a float64 tensor."""
    return torch.as_tensor(values, dtype=torch.float64)
