"""Theorem `picard-rate`: a contraction has one equilibrium, and Picard's iteration walks to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.linalg import matrix_norm, vector_norm

from deqlib.activations import Link, identity, relu, tanh
from deqlib.fixed_point import Picard, solve
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
REDUCTION = 1e-7
"""`solve` is asked for a residual this much smaller than the first one."""


@dataclass(frozen=True)
class Box:
    """D = {z : low ≤ z ≤ high}, with z < high and z > low where it is open. Entries may be ±∞."""

    low: Tensor
    high: Tensor
    open: bool = False

    def holds(self, z: Tensor) -> Tensor:
        """(*batch) bool, for z (*batch, n)."""
        inside = (z > self.low) & (z < self.high) if self.open else (
            (z >= self.low) & (z <= self.high)
        )  # fmt: skip
        return inside.all(dim=-1)


@dataclass(frozen=True)
class Instance:
    """f(z) = φ(W z + b) on the box D, its equilibrium by construction, and what is claimed of it.

    W (n, n), b (n,), starts (m, n). `pre` is the pre-activation W z* + b of the equilibrium
    z* = φ(pre): b was chosen to fit, so no solver was needed to know z*.
    """

    link: Link
    W: Tensor
    b: Tensor
    pre: Tensor
    box: Box
    starts: Tensor
    L: float
    """The contraction factor that the conclusions are computed with."""
    damping: float
    scale: Tensor
    """(n,) The norm ‖z‖_s = ‖s ⊙ z‖₂ in which f contracts; all ones for the Euclidean one."""

    def f(self, z: Tensor) -> Tensor:
        """φ(W z + b) inside the box, and NaN outside, where f is not defined. z (*batch, n)."""
        fz = self.link(z @ self.W.mT + self.b)
        return torch.where(self.box.holds(z)[..., None], fz, torch.nan)


class PicardRate(Theorem[Instance]):
    label = "picard-rate"
    title = "Picard's iteration on a contraction"
    kind = "bound"
    chapter = "02_solving"
    statement = (
        r"Let $f:D\to D$, $D\subset\mathbb R^n$ closed, with "
        r"$\|f(z)-f(z')\|\le L\,\|z-z'\|$ and $L<1$. Then $f$ has exactly one equilibrium $z^*$; "
        r"every $z\in D$ satisfies $\|z-z^*\|\le\|f(z)-z\|/(1-L)$; and the iterates "
        r"$z_{k+1}=(1-\tau)z_k+\tau f(z_k)$, as long as they stay in $D$, satisfy "
        r"$\|z_k-z^*\|\le q^k\|z_0-z^*\|$ and $\|f(z_k)-z_k\|\le q^k\|f(z_0)-z_0\|$ with "
        r"$q=|1-\tau|+\tau L$, which is $L$ for Picard's $\tau=1$."
    )
    hypotheses = {
        "contraction": Hypothesis(
            r"There are a norm and an $L<1$ with $\|f(z)-f(z')\|\le L\,\|z-z'\|$ for all "
            r"$z,z'\in D$."
        ),
        "same-norm": Hypothesis(
            r"That norm is the one in which errors and residuals are measured, the Euclidean one."
        ),
        "self-map": Hypothesis(r"$f$ maps $D$ into itself."),
        "closed": Hypothesis(r"$D$ is closed."),
        "smooth": Hypothesis(
            r"$f$ is continuously differentiable, so that $L$ can be read off its Jacobian.",
            necessary=False,
        ),
    }
    open_questions = (
        "Anderson's method and the safeguarded Newton method are used without a global "
        "statement: on nonlinear layers none is proved here ({doc}`/notebooks/02_solving`).",
    )
    least_activity = 1e-3

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        families = (_linear, _symmetric, _tanh, _tanh_on_cube, _half_space)
        return [families[index % len(families)](generator) for index in range(n)]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def repeat(*families: Callable[[Generator], Instance]) -> Callable[..., list[Instance]]:
            return lambda generator, n: [
                families[index % len(families)](generator) for index in range(n)
            ]

        return {
            "contraction": repeat(_expanding_linear, _expanding_tanh),
            "same-norm": repeat(_contracting_elsewhere),
            "self-map": repeat(_cut_off),
            "closed": repeat(_open_half_space),
            "smooth": repeat(_relu_at_its_kink),
        }

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        s, box = instance.scale, instance.box
        factor = float(matrix_norm(s[:, None] * instance.W / s, 2))  # slopes of φ are at most 1
        # φ grows, so the range of each coordinate of f over a box is known exactly.
        up, down = instance.W.clamp(min=0), instance.W.clamp(max=0)
        top = instance.link(_times(up, box.high) + _times(down, box.low) + instance.b)
        bottom = instance.link(_times(up, box.low) + _times(down, box.high) + instance.b)
        room = torch.cat([box.high - top, bottom - box.low]).nan_to_num(nan=1.0)  # ∞ − ∞
        return {
            "contraction": min(instance.L * (1 + 1e-12) - factor, 1 - instance.L),
            "same-norm": 1.0 if bool((s == 1).all()) else -1.0,
            "self-map": min(float(room.min()) + 1e-12, 1.0),
            "closed": -1.0 if box.open else 1.0,
            "smooth": -1.0 if instance.link is relu else 1.0,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        """The iterates are those of `fixed_point.solve`: every point at which it evaluates f."""
        L, tau, starts = instance.L, instance.damping, instance.starts
        q = abs(1 - tau) + tau * L
        z_star = instance.link(instance.pre)
        e0 = vector_norm(starts - z_star, dim=1)
        r0 = vector_norm(instance.f(starts) - starts, dim=1)
        # One evaluation of f errs by about n·eps times the size of what is added up. The same
        # bounds ‖f(z*) − z*‖ for the z* that b was fitted to, and puts it within unit/(1−L).
        size = 1 + float(z_star.norm() + instance.b.norm() + e0.max())
        unit = 4 * (starts.shape[1] + 2) * EPS * size

        target = REDUCTION * float(r0.max())
        most = 1 + math.log((target - 2 * unit) / float(r0.max())) / math.log(q)
        points: list[Tensor] = []

        def f(z: Tensor) -> Tensor:
            points.append(z)
            return instance.f(z)

        found = solve(
            f, starts, method=Picard(damping=tau), tol=EPS, atol=target,
            max_iter=math.ceil(most) + 50, throw=False,
        )  # fmt: skip
        z = torch.stack(points)  # (K, m, n)
        k = torch.arange(len(points), dtype=torch.float64)[:, None]
        live = k < found.iterations  # a sample that has stopped waits for the others
        error = vector_norm(z - z_star, dim=2)
        residual = vector_norm(instance.f(z) - z, dim=2)
        activity = float((e0 / (1 + z_star.norm())).min())

        def at_most_one(ratio: Tensor) -> Measurement:
            worst = float(ratio[live.expand_as(ratio) & (k >= 1)].max()) if len(k) > 1 else 1.0
            return Measurement(worst, 1.0, activity)

        rounding = 2 * unit / (1 - q)
        end_error = vector_norm(found.z - z_star, dim=1)
        end_residual = vector_norm(instance.f(found.z) - found.z, dim=1)
        apart = torch.cdist(found.z[None], found.z[None])[0]
        reach = found.residual[:, None] + found.residual + 2 * unit
        mismatch = float((found.residual - end_residual).abs().max()) + abs(
            int(found.iterations.max()) - len(points)
        )
        # The bounds hold for many a faster iteration too: this says that it is the one stated.
        steps_off = z[1:] - ((1 - tau) * z[:-1] + tau * instance.f(z[:-1]))
        off = float(vector_norm(steps_off, dim=2)[live[1:]].max()) if len(z) > 1 else 0.0
        # r_k ≤ q^k r_0, so evaluation k + 1 is the last one when q^k r_0 ≤ target.
        steps = ((math.log(target - 2 * unit) - r0.log()) / math.log(q)).clamp(min=0).ceil()
        return {
            "z* is an equilibrium in D": Measurement(
                float((instance.f(z_star) - z_star).norm()), unit, activity
            ),
            "‖z_k − z*‖ ≤ q^k ‖z_0 − z*‖": at_most_one(error / (q**k * e0 + rounding)),
            "‖f(z_k) − z_k‖ ≤ q^k ‖f(z_0) − z_0‖": at_most_one(residual / (q**k * r0 + rounding)),
            "‖z_k − z*‖ ≤ ‖f(z_k) − z_k‖/(1 − L)": at_most_one(
                error * (1 - L) / (residual + 2 * unit)
            ),
            "every start converges": Measurement(
                float((~found.converged).sum()), 1 - EPS, activity
            ),
            "z_(k+1) = (1 − τ) z_k + τ f(z_k)": Measurement(off, unit, activity),
            "solve reports what it did": Measurement(mismatch, unit, activity),
            "what solve certifies is true": Measurement(
                float((end_error * (1 - L) / (found.residual + 2 * unit)).max()), 1.0, activity
            ),
            "all starts end at one point": Measurement(
                float((apart * (1 - L) / reach).max()), 1.0, activity
            ),
            "evaluations ≤ 1 + ⌈log(ε/r_0)/log q⌉": Measurement(
                float((found.iterations / (1 + steps)).max()), 1.0, activity
            ),
        }


# ------------------------------------------------------------------- instances inside the theorem


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _times(W: Tensor, v: Tensor) -> Tensor:
    """W v where v may be infinite: 0 · ∞ is 0, the edge of a box that does not matter."""
    return (W * v).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf).sum(dim=1)


def _build(
    generator: Generator, link: Link, W: Tensor, pre: Tensor, L: float, damping: float = 1.0
) -> Instance:
    """The layer on ℝⁿ whose equilibrium is φ(pre), with three starts at distances 1, 2 and 3."""
    n = W.shape[0]
    z_star = link(pre)
    directions = _normal(generator, 3, n)
    directions /= vector_norm(directions, dim=1, keepdim=True)
    everywhere = torch.full((n,), math.inf, dtype=torch.float64)
    return Instance(
        link=link, W=W, b=pre - W @ z_star, pre=pre, box=Box(-everywhere, everywhere),
        starts=z_star + torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64) * directions,
        L=L, damping=damping, scale=torch.ones(n, dtype=torch.float64),
    )  # fmt: skip


def _size(generator: Generator) -> int:
    return int(torch.randint(2, 9, (), generator=generator))


def _with_norm(W: Tensor, L: float) -> Tensor:
    return W * (L / matrix_norm(W, 2))


def _damping(generator: Generator, L: float) -> float:
    """1 half of the time, else between 0.6 and what |1 − τ| + τL < 1 allows with some room."""
    if _uniform(generator, 0, 1) < 0.5:
        return 1.0
    return _uniform(generator, 0.6, 0.5 + 1 / (1 + L))


def _linear(generator: Generator, link: Link = identity) -> Instance:
    """‖W‖₂ = L with entries of no special structure, on all of ℝⁿ."""
    n, L = _size(generator), _uniform(generator, 0.1, 0.99)
    W = _with_norm(_normal(generator, n, n), L)
    return _build(generator, link, W, _normal(generator, n), L, _damping(generator, L))


def _tanh(generator: Generator) -> Instance:
    return _linear(generator, tanh)


def _symmetric(generator: Generator) -> Instance:
    """W symmetric, starts on the eigenvector of ±L: here every bound is attained."""
    n, L = _size(generator), _uniform(generator, 0.1, 0.99)
    A = _normal(generator, n, n)
    values, Q = torch.linalg.eigh(A + A.mT)
    top = int(values.abs().argmax())
    W = (Q * (L * values / values[top].abs())) @ Q.mT
    W = (W + W.mT) / 2
    one = _build(generator, identity, W, _normal(generator, n), L, _damping(generator, L))
    lengths = torch.tensor([[1.0], [-2.0], [3.0]], dtype=torch.float64)
    return replace(one, starts=one.pre + lengths * Q[:, top])


def _tanh_on_cube(generator: Generator) -> Instance:
    """A tanh layer on D = [−1, 1]ⁿ, which every tanh layer maps into itself."""
    one = _tanh(generator)
    ones = torch.ones_like(one.b)
    starts = 2 * torch.rand(3, len(ones), generator=generator, dtype=torch.float64) - 1
    return replace(one, box=Box(-ones, ones), starts=starts, damping=min(one.damping, 1.0))


def _half_space(generator: Generator) -> Instance:
    """D = {z : z₀ ≥ 0} with the equilibrium on its wall: f₀ = φ(λ z₀), the rest a layer."""
    n, L = _size(generator), _uniform(generator, 0.1, 0.99)
    W = torch.zeros(n, n, dtype=torch.float64)
    W[1:, 1:] = _with_norm(_normal(generator, n - 1, n - 1), L)
    W[0, 0] = _uniform(generator, 0.5, 1) * L
    pre = _normal(generator, n)
    pre[0] = 0
    one = _build(generator, tanh, W, pre, L, min(_damping(generator, L), 1.0))
    low = torch.full((n,), -math.inf, dtype=torch.float64)
    low[0] = 0
    starts = one.starts.clone()
    starts[:, 0] = starts[:, 0].abs()
    return replace(one, box=replace(one.box, low=low), starts=starts)


# ------------------------------------------------------------ instances with one hypothesis less


def _expanding_linear(generator: Generator) -> Instance:
    """‖W‖₂ between 1.2 and 3 where L is claimed to be below 1; starts along its worst direction."""
    one = _linear(generator)
    W = one.W * (_uniform(generator, 1.2, 3) / one.L)
    built = _build(generator, identity, W, one.pre, one.L)
    lengths = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    return replace(built, starts=one.pre + lengths * torch.linalg.svd(W).Vh[0])


def _expanding_tanh(generator: Generator) -> Instance:
    """z = tanh(W z) with a symmetric W of norm 1.5 to 3: other equilibria branch off from 0."""
    n = _size(generator)
    A = _normal(generator, n, n)
    W = _with_norm(A @ A.mT, _uniform(generator, 1.5, 3))
    pre = torch.zeros(n, dtype=torch.float64)
    return _build(generator, tanh, W, pre, _uniform(generator, 0.1, 0.99))


def _contracting_elsewhere(generator: Generator) -> Instance:
    """W = S⁻¹ V S with ‖V‖₂ = L and S = diag(1, …, 100): a contraction in ‖S z‖, not in ‖z‖."""
    one = _linear(generator)
    scale = torch.logspace(0, 2, len(one.b), dtype=torch.float64)
    W = one.W / scale[:, None] * scale
    built = _build(generator, identity, W, one.pre, one.L)
    return replace(built, scale=scale)


def _cut_off(generator: Generator) -> Instance:
    """D ends between the starts and the equilibrium: D = {z : z₀ ≤ c} with c < z*₀."""
    one = _linear(generator)
    high = one.box.high.clone()
    high[0] = one.pre[0] - 0.01
    starts = one.starts.clone()
    starts[:, 0] = high[0] - (starts[:, 0] - one.pre[0]).abs()
    return replace(one, box=replace(one.box, high=high), starts=starts)


def _open_half_space(generator: Generator) -> Instance:
    """D = {z : z₀ > 0}: f maps D into itself, and the only candidate lies on the missing wall."""
    one = _half_space(generator)
    return replace(one, box=replace(one.box, open=True))


def _relu_at_its_kink(generator: Generator) -> Instance:
    """A ReLU layer one of whose units has pre-activation 0 at the equilibrium."""
    n, L = _size(generator), _uniform(generator, 0.1, 0.99)
    pre = _normal(generator, n)
    pre[0] = 0
    W = _with_norm(_normal(generator, n, n), L)
    return _build(generator, relu, W, pre, L, _damping(generator, L))
