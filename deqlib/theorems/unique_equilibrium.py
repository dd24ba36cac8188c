"""Theorem `unique-equilibrium`: below 1/β one equilibrium, a learned link, layers that find it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import activations, single_index
from deqlib.activations import Link
from deqlib.fixed_point import NotConvergedError
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import STRICT, uniform

EPS = torch.finfo(torch.float64).eps
REACH = 30.0
"""Slopes of links are read on [−REACH, REACH]; zeros of g are counted there and further out."""
GRID = torch.linspace(-REACH, REACH, 3000, dtype=torch.float64)  # an even number: 0 is not in it
SHRINK = 1e-2
"""The layers run until q^K says that the error is this part of the first one."""

KINKED = (activations.relu, activations.leaky_relu(0.2), activations.leaky_relu(0.6))
SINE = Link(
    "s/2 + sin s", lambda s: s / 2 + torch.sin(s), lambda s: 0.5 + torch.cos(s), None, -0.5, 1.5
)
SMOOTH = (
    activations.identity, *(link for link in STRICT if link.name != KINKED[1].name),
    activations.gelu, SINE,
)  # fmt: skip
"""Differentiable links; the last two fall somewhere: α < 0."""


@dataclass(frozen=True)
class Instance:
    """One link at n points: self-weights a, indices s ≠ t, a guess v, a start z₀ and a damping τ.

    All of shape (n,). The claims are computed from link.alpha and link.beta.
    """

    link: Link
    a: Tensor
    s: Tensor
    t: Tensor
    v: Tensor
    z0: Tensor
    tau: Tensor


def slopes(link: Link, a: Tensor) -> tuple[Tensor, Tensor]:
    """(m, M): the least and the greatest slope of u ↦ u − a φ(u)."""
    ends = 1 - a * link.alpha, 1 - a * link.beta
    return torch.minimum(*ends), torch.maximum(*ends)


def layer_factor(link: Link, a: Tensor, tau: Tensor) -> Tensor:
    """q = max(|1 − τm|, |1 − τM|): what a layer z ← (1 − τ) z + τ φ(a z + s) leaves of an error."""
    m, M = slopes(link, a)
    return torch.maximum((1 - tau * m).abs(), (1 - tau * M).abs())


def bracket(link: Link, a: Tensor, s: Tensor) -> Tensor:
    """|g(s)|/m: no zero of g is further from s. Where m is not positive, 4 REACH."""
    m = slopes(link, a)[0]
    return torch.where(m > 0, (a * link(s)).abs() / m.abs().clamp(min=EPS), 4 * REACH)


def bisect(link: Link, a: Tensor, s: Tensor) -> Tensor:
    """A zero of g(u) = u − a φ(u) − s by bisection alone, in its bracket around s.

    Where m is not positive there may be no zero, or several.
    """
    far = bracket(link, a, s)
    low, high = s - far, s + far
    for _ in range(110):
        u = low + (high - low) / 2
        above = u - a * link(u) > s
        low, high = torch.where(above, low, u), torch.where(above, u, high)
    return low + (high - low) / 2


def _solved(link: Link, a: Tensor, s: Tensor) -> Tensor:
    """The solver's answer; NaN where a is not admissible, or where the link misled the solver."""
    try:
        return single_index.preactivation(link, a, s, throw=False)
    except NotConvergedError:
        return torch.full_like(s, torch.nan)


class UniqueEquilibrium(Theorem[Instance]):
    label = "unique-equilibrium"
    title = "One equilibrium and a learned link"
    kind = "bound"
    chapter = "11_single_index_model"
    statement = (
        r"Let the slopes of $\varphi$ lie in $[\alpha,\beta]$, $a\beta<1$ and $a\alpha<1$, and let "
        r"$m\le M$ be the two numbers $1-a\alpha$ and $1-a\beta$. Then $z=\varphi(az+s)$ has "
        r"exactly one solution $z=h_a(s)$ for every $s$; the slopes of $h_a$ lie in "
        r"$[\frac{\alpha}{1-a\alpha},\frac{\beta}{1-a\beta}]$, and no smaller interval will do; "
        r"the residual $g(v)=v-a\varphi(v)-s$ satisfies $m|v-u|\le|g(v)|\le M|v-u|$ with "
        r"$u=az+s$; and for $0<\tau<2/M$ each layer $z\leftarrow(1-\tau)z+\tau\varphi(az+s)$ "
        r"multiplies the error by at most $q=\max(|1-\tau m|,|1-\tau M|)<1$."
    )
    hypotheses = {
        "slopes": Hypothesis(
            r"$\alpha(s-t)\le\varphi(s)-\varphi(t)\le\beta(s-t)$ for all $s\ge t$, with finite "
            r"$\alpha\le\beta$ and $\beta>0$."
        ),
        "self-weight": Hypothesis(
            r"$a\beta<1$ and $a\alpha<1$; for $\alpha\ge0$ that is $a<1/\beta$."
        ),
        "step": Hypothesis(r"$0<\tau<2/M$ (for the layers only)."),
    }
    least_activity = 1e-3

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        """Every link in turn; those with a kink have half of their equilibria on it."""
        links = (*SMOOTH, *KINKED)
        return [_points(generator, links[i % len(links)]) for i in range(n)]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def repeat(*families: Callable[[Generator], Instance]) -> Callable[..., list[Instance]]:
            return lambda generator, n: [families[i % len(families)](generator) for i in range(n)]

        return {
            "slopes": repeat(_steeper_than_said, _cube, _falling_unsaid),
            "self-weight": repeat(_folded_tanh, _relu_runs_off, _relu_twice, _folded_gelu),
            "step": repeat(_overdamped),
        }

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        link, tau = instance.link, instance.tau
        rise = link.derivative(GRID)
        _, M = slopes(link, instance.a)
        steep = torch.maximum(instance.a * link.alpha, instance.a * link.beta)
        return {
            "slopes": 1e-9 + min(float(link.beta - rise.max()), float(rise.min() - link.alpha)),
            "self-weight": float(1 - steep.max()),
            "step": float(torch.minimum(tau, 2 / M.clamp(min=EPS) - tau).min()),
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        link, a, s, t, v = instance.link, instance.a, instance.s, instance.t, instance.v
        m, M = slopes(link, a)
        high, low = link.beta / (1 - a * link.beta), link.alpha / (1 - a * link.alpha)

        def g(u: Tensor) -> Tensor:
            return u - a * link(u) - s

        stretch = 1 + torch.where(m > 0, bracket(link, a, s) + s.abs(), 0) / REACH
        positive = g(GRID[:, None] * stretch) > 0
        zeros = (positive[1:] != positive[:-1]).sum(0)

        u = _solved(link, a, s)
        z = link(u)
        z_t = link(_solved(link, a, t))
        reference = bisect(link, a, s)
        # g is known up to this much, so a root up to unit/m.
        unit = (
            8 * EPS * (u.abs() + (a * z).abs() + s.abs() + t.abs() + v.abs() + (a * link(v)).abs())
        )
        apart = (u - reference).abs() * m / unit

        # A learned slope of size `high` is off by 2β·unit/m, divided by |s − t|.
        rise = (z - z_t) / (s - t)
        noise = 1 + 2 * (unit / (s - t).abs() * (M / m)).max()
        wide = (rise / high).max()
        narrow = 1 + ((low - rise) / high).max()

        error, residual = (v - u).abs(), g(v).abs()
        # One layer after the other. z and each layer are known up to blur, so a ratio of errors
        # above 1e6 blur is known up to 4e-6.
        blur = unit * (1 + link.beta) / m
        q = layer_factor(link, a, instance.tau)
        depth = min(1000, math.ceil(math.log(SHRINK) / math.log(min(0.99, float(q.max())))))
        state = instance.z0
        e = e0 = (state - z).abs()
        worst = torch.zeros_like(e)
        for _ in range(depth):
            state = state + instance.tau * (link(a * state + s) - state)
            after = (state - z).abs()
            worst = torch.where(e > 1e6 * blur, torch.maximum(worst, after / e), worst)
            e = after
        left = e / (SHRINK * e0 + 1e6 * blur)
        late = (1 - instance.tau * (1 - a * link.derivative(u))).abs()
        around = link(reference)
        activity = float(((instance.z0 - around).abs() / (1 + around.abs())).min())

        def said(
            measured: Tensor, bound: float | Tensor, sharp: float | None = None
        ) -> Measurement:
            return Measurement(float(measured), float(bound), activity, sharp)

        i = int((worst / (q + 4e-6)).nan_to_num(nan=torch.inf).argmax())
        return {
            "one zero of g": said((zeros - 1).abs().max(), 0.5),
            "the solver finds it": said(apart.max(), 1.0),
            "slope of h_a ≤ β/(1 − aβ)": said(wide, noise, sharp=1.0),
            "slope of h_a ≥ α/(1 − aα)": said(narrow, noise, sharp=1.0),
            "m|v − u| ≤ |g(v)|": said((m * error / (residual + unit)).max(), 1.0),
            "|g(v)| ≤ M|v − u|": said((residual / (M * error + unit)).max(), 1.0),
            "error of a layer ≤ q": said(worst[i], q[i] + 4e-6, sharp=float(late[i])),
            "the layers converge": said(left.max(), 1.0),
        }


# Instances inside the theorem -------------------------------------------------------------------


def _points(generator: Generator, link: Link, n: int = 24) -> Instance:
    """a in [−20, 0.95]/β, or from 0.95/α on where the link falls: half near 0, half anywhere."""
    least = -20 / link.beta if link.alpha >= 0 else 0.95 / link.alpha
    a = torch.cat(
        [
            uniform(generator, least, 0.95 / link.beta, n // 2),
            uniform(generator, max(least, -1.2 / link.beta), 0.95 / link.beta, n - n // 2),
        ]
    )
    s, gap = 6 * uniform(generator, -0.5, 0.5, n), uniform(generator, 0.1, 2, n)
    if link in KINKED:
        s[::2] = 0  # the equilibrium is at the kink, u = 0
    t = s - torch.where(uniform(generator, 0, 1, n) < 0.5, gap, 4 * gap)
    u = bisect(link, a, s)
    return Instance(
        link, a, s, t, v=u + uniform(generator, 0.1, 3, n),
        z0=link(u) + uniform(generator, 0.1, 3, n),
        tau=uniform(generator, 0.3, 0.95, n) * 2 / slopes(link, a)[1],
    )  # fmt: skip


def _placed(generator: Generator, link: Link, a: Tensor, u: Tensor) -> Instance:
    """The instance that has an equilibrium at the pre-activation u: s = u − a φ(u)."""
    one = _points(generator, link, len(a))
    s = u - a * link(u)
    tau = 1 / slopes(link, a)[1].clamp(min=EPS)
    return replace(one, a=a, s=s, t=s - 1, v=u + 1, z0=link(u) + 1, tau=tau)


# Instances with one hypothesis less -------------------------------------------------------------


def _steeper_than_said(generator: Generator) -> Instance:
    """φ = c tanh with c a > 1, said to have slopes of at most 1: it folds around u = 0."""
    c = float(uniform(generator, 3, 6))
    link = replace(activations.tanh, name="c tanh", value=lambda s: c * torch.tanh(s),
                   derivative=lambda s: c * (1 - torch.tanh(s).square()), inverse=None)  # fmt: skip
    return _placed(generator, link, uniform(generator, 0.5, 0.9, 24),
                   uniform(generator, -0.2, 0.2, 24))  # fmt: skip


def _cube(generator: Generator) -> Instance:
    """φ = s³, whose slopes no β bounds, said to be at most 1: three equilibria inside its fold."""
    link = Link("cube", lambda s: s**3, lambda s: 3 * s.square(), None, 0.0, 1.0)
    a = uniform(generator, 0.1, 0.9, 24)
    return _placed(generator, link, a, uniform(generator, 0.3, 0.5, 24) / a.sqrt())


def _falling_unsaid(generator: Generator) -> Instance:
    """GELU said never to fall, with a far below the 1/α that is not said."""
    link = replace(activations.gelu, name="GELU, said monotone", alpha=0.0)
    a = uniform(generator, 1.5, 3, 24) / activations.gelu.alpha
    return _placed(generator, link, a, -(2**0.5) + uniform(generator, -0.2, 0.2, 24))


def _folded_tanh(generator: Generator) -> Instance:
    """a in [1.2, 3] and s inside the fold of tanh: three equilibria."""
    a = uniform(generator, 1.2, 3, 24)
    fold = torch.atanh((1 - 1 / a).sqrt())
    return _placed(generator, activations.tanh, a, uniform(generator, -0.8, 0.8, 24) * fold)


def _relu_runs_off(generator: Generator) -> Instance:
    """a > 1 and s > 0 for a link that is ReLU but for a rounded corner: no equilibrium."""
    one = _relu_twice(generator)
    s = uniform(generator, 0.1, 2, 24)
    return replace(one, s=s, t=s - 1)


def _relu_twice(generator: Generator) -> Instance:
    """The same with s < 0: an equilibrium near u = s, where φ is 0, and one near s/(1 − a)."""
    c = 50.0
    corner = replace(
        activations.softplus, name="sharp softplus", inverse=None,
        value=lambda s: activations.softplus(c * s) / c,
        derivative=lambda s: torch.sigmoid(c * s),
    )  # fmt: skip
    return _placed(
        generator, corner, uniform(generator, 1.2, 3, 24), uniform(generator, -2, -0.3, 24)
    )


def _folded_gelu(generator: Generator) -> Instance:
    """a below 1/α for GELU, with an equilibrium where it falls most: three of them."""
    a = uniform(generator, 1.5, 3, 24) / activations.gelu.alpha
    u = -(2**0.5) + uniform(generator, -0.2, 0.2, 24)
    return _placed(generator, activations.gelu, a, u)


def _overdamped(generator: Generator) -> Instance:
    """τ in [1.1, 2] times 2/M where tanh is steepest, a < 0: layers leave the equilibrium."""
    a = -uniform(generator, 0.5, 20, 24)
    one = _placed(generator, activations.tanh, a, uniform(generator, -0.02, 0.02, 24))
    tau = uniform(generator, 1.1, 2, 24) * 2 / slopes(one.link, a)[1]
    return replace(one, z0=one.z0 - 0.9, tau=tau)
