"""Link functions: a scalar, non-decreasing φ with its derivative, inverse and slope bounds.

The slope bounds are the α ≤ β of α(s − t) ≤ φ(s) − φ(t) ≤ β(s − t) for s ≥ t. They decide what a
deep equilibrium model may do: z = φ(a z + s) has exactly one solution for every s when a β < 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu
from torch.nn.functional import leaky_relu as torch_leaky_relu
from torch.nn.functional import softplus as torch_softplus

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Link:
    """A link function φ.

    name       : as it is called in tables.
    value      : s ↦ φ(s), elementwise.
    derivative : s ↦ φ′(s); at a kink the right-hand derivative.
    inverse    : z ↦ φ⁻¹(z) on the range of φ, or None where φ is not one-to-one.
    alpha      : infimum of the slopes of φ (negative where φ is not monotone).
    beta       : supremum of the slopes of φ.
    """

    name: str
    value: Scalar
    derivative: Scalar
    inverse: Scalar | None
    alpha: float
    beta: float

    def __call__(self, s: Tensor) -> Tensor:
        """φ(s)."""
        return self.value(s)

    @property
    def monotone(self) -> bool:
        """Whether φ never decreases, as the theory asks."""
        return self.alpha >= 0

    def secant(self, s: Tensor, t: Tensor) -> Tensor:
        """Slope (φ(s) − φ(t))/(s − t) of the secant between s and t, which broadcast.

        It lies in [α, β], is φ′ where s = t, and is never worse than rounding makes it: where the
        two points are closer than 1e-5 (1 + |s|), the derivative at their middle stands for the
        quotient (an error of |s − t|²|φ‴|/24), unless the derivatives at the two ends do not
        average to it within 1e-9 β: then φ′ or φ″ has a jump between them.
        """
        h = s - t
        middle = self.derivative(t + h / 2)
        bend = (self.derivative(s) + self.derivative(t) - 2 * middle).abs()
        close = (h.abs() <= 1e-5 * (1 + s.abs())) & (bend <= 1e-9 * self.beta)
        quotient = (self(s) - self(t)) / torch.where(h == 0, torch.ones_like(h), h)
        slope = torch.where(close | (h == 0), middle, quotient)
        return slope.clamp(self.alpha, self.beta)

    def check(self, generator: torch.Generator, n: int = 2000, reach: float = 20.0) -> None:
        """Hold value, derivative, inverse and slope bounds against each other on n random points.

        Slopes of random secants must lie in [α, β]; a secant of width h must have a slope within
        the range of the derivative near it (h = 1e-5: an error of at most h·max|φ″|/2 where φ is
        smooth, so 1e-4 is allowed there and a kink inside the secant is excused by the two
        one-sided slopes); φ⁻¹(φ(s)) must be s to 1e-6 relative where the slope exceeds 1e-4.

        Raises:
            ValueError: naming the property that fails and the point where it does.
        """
        if not (isfinite(self.alpha) and isfinite(self.beta) and self.alpha <= self.beta):
            raise ValueError(
                f"link {self.name!r}: alpha is {self.alpha:.6g} and beta {self.beta:.6g}; they "
                "must be finite, alpha at most beta"
            )
        s = reach * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        t = reach * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        secant = (self(s) - self(t)) / (s - t)
        rounding = 1e-9
        # Written so that NaN is outside.
        outside = ~((secant >= self.alpha - rounding) & (secant <= self.beta + rounding))
        if bool(outside.any()):
            i = int(outside.nonzero()[0, 0])
            raise ValueError(
                f"link {self.name!r}: the secant from {float(s[i]):.6g} to {float(t[i]):.6g} has "
                f"slope {float(secant[i]):.6g}; it must lie in [alpha, beta] = "
                f"[{self.alpha:.6g}, {self.beta:.6g}]"
            )
        h = 1e-5
        slope = (self(s + h) - self(s)) / h
        ends = torch.stack([self.derivative(s), self.derivative(s + h)])
        low, high = ends.amin(0) - 1e-4, ends.amax(0) + 1e-4
        wrong = ~((slope >= low) & (slope <= high))
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"link {self.name!r}: derivative says {float(ends[0, i]):.6g} at "
                f"{float(s[i]):.6g}, where the value rises at {float(slope[i]):.6g}"
            )
        if self.inverse is not None:
            steep = self.derivative(s) > 1e-4
            error = (self.inverse(self(s)) - s).abs() / (1 + s.abs())
            bad = steep & ~(error < 1e-6)
            if bool(bad.any()):
                i = int(bad.nonzero()[0, 0])
                raise ValueError(
                    f"link {self.name!r}: inverse(value(s)) misses s = {float(s[i]):.6g} by "
                    f"{float(error[i]):.3g} relative"
                )


def leaky_relu(leak: float = 0.2) -> Link:
    """φ(s) = s for s ≥ 0 and leak·s below, with 0 < leak ≤ 1. Slopes in [leak, 1]."""
    if not 0 < leak <= 1:
        raise ValueError(f"leak is {leak}; it must lie in (0, 1]")
    return Link(
        f"leaky ReLU {leak:g}",
        lambda s: torch_leaky_relu(s, leak),
        lambda s: torch.where(s >= 0, torch.ones_like(s), torch.full_like(s, leak)),
        lambda z: torch.where(z >= 0, z, z / leak),
        leak,
        1.0,
    )


def smooth_leaky_relu(leak: float = 0.2) -> Link:
    """φ(s) = leak·s + (1 − leak) log(1 + eˢ), with 0 < leak ≤ 1. Slopes in [leak, 1]."""
    if not 0 < leak <= 1:
        raise ValueError(f"leak is {leak}; it must lie in (0, 1]")
    return Link(
        f"smooth leaky ReLU {leak:g}",
        lambda s: leak * s + (1 - leak) * softplus(s),
        lambda s: leak + (1 - leak) * torch.sigmoid(s),
        None,
        leak,
        1.0,
    )


def linear_plus_tanh(share: float = 0.3) -> Link:
    """φ(s) = share·s + (1 − share) tanh s, with 0 < share ≤ 1. Slopes in [share, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    return Link(
        f"{share:g} s + {1 - share:g} tanh s",
        lambda s: share * s + (1 - share) * torch.tanh(s),
        lambda s: share + (1 - share) * (1 - torch.tanh(s).square()),
        None,
        share,
        1.0,
    )


def weakly_nonlinear(epsilon: float = 0.5) -> Link:
    """φ(s) = s + ε tanh s with ε > 0. Slopes in [1, 1 + ε]."""
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; it must be positive")
    return Link(
        f"s + {epsilon:g} tanh s",
        lambda s: s + epsilon * torch.tanh(s),
        lambda s: 1 + epsilon / torch.cosh(s).square(),
        None,
        1.0,
        1.0 + epsilon,
    )


identity = Link("identity", lambda s: s, torch.ones_like, lambda z: z, 1.0, 1.0)
tanh = Link("tanh", torch.tanh, lambda s: 1 / torch.cosh(s).square(), torch.atanh, 0.0, 1.0)
logistic = Link(
    "logistic",
    torch.sigmoid,
    lambda s: torch.sigmoid(s) * torch.sigmoid(-s),
    torch.logit,
    0.0,
    0.25,
)
arctan = Link("arctan", torch.atan, lambda s: 1 / (1 + s.square()), torch.tan, 0.0, 1.0)
softsign = Link(
    "softsign",
    lambda s: s / (1 + s.abs()),
    lambda s: 1 / (1 + s.abs()).square(),
    lambda z: z / (1 - z.abs()),
    0.0,
    1.0,
)
softplus = Link(
    "softplus",
    lambda s: torch_softplus(s, threshold=40.0),
    torch.sigmoid,
    lambda z: z + torch.log(-torch.expm1(-z)),
    0.0,
    1.0,
)
relu = Link("ReLU", torch.relu, lambda s: (s >= 0).to(s.dtype), None, 0.0, 1.0)
gelu = Link(
    "GELU",
    torch_gelu,
    lambda s: torch.special.ndtr(s) + s * torch.exp(-s.square() / 2) / (2 * torch.pi) ** 0.5,
    None,
    # Slope extremes at s = ∓√2, where φ″(s) = (2 − s²) times the normal density vanishes.
    float(
        torch.special.ndtr(torch.tensor(-(2.0**0.5), dtype=torch.float64))
        - 2.0**0.5 * torch.exp(torch.tensor(-1.0, dtype=torch.float64)) / (2 * torch.pi) ** 0.5
    ),
    float(
        torch.special.ndtr(torch.tensor(2.0**0.5, dtype=torch.float64))
        + 2.0**0.5 * torch.exp(torch.tensor(-1.0, dtype=torch.float64)) / (2 * torch.pi) ** 0.5
    ),
)

LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        identity, tanh, logistic, arctan, softsign, softplus, relu,
        leaky_relu(0.2), smooth_leaky_relu(0.2), linear_plus_tanh(0.3), weakly_nonlinear(0.5), gelu,
    )
}  # fmt: skip
"""The book's links by name. GELU stands there as the one that the theory does not cover."""


def register(link: Link, *, seed: int = 0, n: int = 5000) -> Link:
    """Check a link of your own (`Link.check`, n points) and add it to `LINKS`; returns it.

    Raises:
        ValueError: where value, derivative, inverse and slope bounds contradict each other, or
            where another link has this name.
    """
    if link.name in LINKS and LINKS[link.name] is not link:
        raise ValueError(f"link.name is {link.name!r}; another link of LINKS has this name")
    link.check(torch.Generator().manual_seed(seed), n)
    LINKS[link.name] = link
    return link
