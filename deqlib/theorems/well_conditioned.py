"""Theorem `well-conditioned`: the conserved matrix keeps I − W away from the singular matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import StepState, gradient_descent, gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.sphere_limit import random_moment, sizes

RTOL, ATOL = 1e-10, 1e-13
TOLERANCE = 1e-6
"""What the integrator's tolerance of 1e-10 a step may leave of an equality after all its steps."""
END = 8.0
"""Length of a run, in units of 1/ω: the fastest rate at the start is 1, see `draw`."""
SIZES = ((1, 1), (1, 3), (2, 2), (3, 2), (4, 3))
STEPS = 80
TRIES = 20
"""How often a run that moves nowhere is drawn again, before it is left to be called vacuous."""


def floor(theta: LinearDEQ, F: Tensor) -> Tensor:
    """λ_min(C)/(1 + ‖F‖²): σ_min(I − W)² is at least that wherever C is this one."""
    norm = torch.linalg.matrix_norm(F, 2)
    return rates.extremes(linear.invariant(theta))[0] / (1 + norm.square())


def guaranteed_floor(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """λ_min(C₀)/(1 + Φ²): what the start promises for σ_min(I − W)², for ever."""
    phi = rates.map_bound(theta, S, A)
    return rates.extremes(linear.invariant(theta))[0] / (1 + phi.square())


def ceiling(theta: LinearDEQ) -> Tensor:
    """λ_max(C): σ_max(I − W)² is at most that."""
    return rates.extremes(linear.invariant(theta))[1]


@dataclass(frozen=True)
class Instance:
    """One problem with the record of its training by flow and by descent.

    flow, descent : parameters (T, p, ·) along each run, the start first.
    longest       : the largest step that descent took.
    stopped       : when the integrator gave up; `END` where it did not.
    follows       : what the run follows: "gradient", "two rates" or "ascent".
    """

    S: Tensor
    A: Tensor
    flow: LinearDEQ
    descent: LinearDEQ
    longest: float
    stopped: float
    follows: str = "gradient"

    @property
    def start(self) -> LinearDEQ:
        return LinearDEQ(self.flow.W[0], self.flow.U[0])


def least_norm_map(theta: LinearDEQ) -> Tensor:
    """F = P⁺U: the equilibrium map, and its least-norm extension where P is singular."""
    return torch.linalg.pinv(linear.resolvent_inverse(theta), rtol=1e-12) @ theta.U


class WellConditioned(Theorem[Instance]):
    label = "well-conditioned"
    title = "Gradient flow stays well-conditioned"
    kind = "bound"
    chapter = "07_well_conditioned"
    statement = (
        r"Let $\Phi=\|A\|_2+\sqrt{2L_0/\lambda_{\min}(S)}$. Gradient flow from an invertible "
        r"$I-W_0$ exists for all times, and $\|F\|_2\le\Phi$, "
        r"$\lambda_{\min}(C)/(1+\|F\|_2^2)\le\sigma_{\min}(I-W)^2$, "
        r"$\sigma_{\max}(I-W)^2\le\lambda_{\max}(C)$, and $\det(I-W)$ keeps its sign. "
        r"Gradient descent with steps $\eta_k\le1/(2\omega_k+4\gamma_k)$ inherits the bounds, "
        r"with $\lambda_{\max}(C_0)+2\eta_{\max}L_0$ as the ceiling."
    )
    hypotheses = {
        "invertible": Hypothesis(r"$I-W_0$ is invertible."),
        "plain-flow": Hypothesis(r"$W$ and $U$ move along $-\nabla L$, with one rate for both."),
        "loss-falls": Hypothesis(r"The loss never exceeds $L_0$."),
        "full-rank": Hypothesis(
            r"$S=\mathbb E[xx^\top]$ is invertible (without: $\lambda_{\min}(S)$ is the smallest "
            r"positive eigenvalue)."
        ),
    }
    least_activity = 1e-3
    times = torch.cat([torch.zeros(1), torch.logspace(-5, 0, 40)]).double() * END

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        """A third each: ordinary starts, nearly singular ones, and ones with ρ(W) > 1.

        A run that moves nowhere, since its start happens to lie next to a minimiser, is drawn
        again: what it conserves is no evidence.
        """
        instances = self._train(generator, n, self._starts)
        for index, one in enumerate(instances):
            for _ in range(TRIES):
                if _moved(one) >= self.least_activity:
                    break
                one = _run(*self._starts(generator, 1, *one.A.shape), self.times, "gradient")[0]
            instances[index] = one
        return instances

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def driven(follows: str, starts: Callable[..., Problem]) -> Callable[..., list[Instance]]:
            return lambda generator, n: self._train(generator, n, starts, follows)

        return {
            "invertible": self._singular_start,
            "plain-flow": driven("two rates", _growing),
            "loss-falls": driven("ascent", self._starts),
            "full-rank": driven("gradient", _blind),
        }

    @staticmethod
    def _starts(generator: Generator, n: int, p: int, d: int) -> Problem:
        theta = linear.random_start(generator, p, d, batch=(n,))
        P = linear.resolvent_inverse(theta)
        kind = (torch.arange(n) % 3)[:, None, None]
        # Nearly singular: the smallest singular value is brought down to 10⁻² to 10⁻⁰·⁵.
        left, sigma, right = torch.linalg.svd(P)
        sigma = sigma.clone()
        sigma[:, -1] = sizes(generator, n, 1e-2, 0.3)
        nearly = (left * sigma[:, None, :]) @ right
        # Picard diverges: an eigenvalue of W beyond 1 in modulus, det P of either sign.
        normal = torch.randn(n, p, p, generator=generator, dtype=torch.float64)
        W = normal / torch.linalg.eigvals(normal).abs().amax(-1)[:, None, None]
        W = W * sizes(generator, n, 1.2, 3.0)[:, None, None]
        eye = torch.eye(p, dtype=torch.float64)
        P = torch.where(kind == 0, P, torch.where(kind == 1, nearly, eye - W))
        A = torch.randn(n, p, d, generator=generator, dtype=torch.float64)
        A = A * sizes(generator, n, 0.2, 1.5)[:, None, None]
        S = random_moment(generator, n, d, 30.0)
        return LinearDEQ(eye - P, theta.U), S, A

    def _train(
        self,
        generator: Generator,
        n: int,
        starts: Callable[[Generator, int, int, int], Problem],
        follows: str = "gradient",
    ) -> list[Instance]:
        """Problems of all `SIZES`, as even as n allows; each size is one batched run."""
        instances: list[Instance] = []
        for index, (p, d) in enumerate(SIZES):
            count = n // len(SIZES) + (index < n % len(SIZES))
            if count:
                d = max(d, 2) if starts is _blind else d
                instances += _run(*starts(generator, count, p, d), self.times, follows)
        return instances

    def _singular_start(self, generator: Generator, n: int) -> list[Instance]:
        """P₀ with its smallest singular value set to 0: the record is this one instant."""
        instances = []
        for index in range(n):
            theta, S, A = self._starts(generator, 1, *SIZES[index % len(SIZES)])
            left, sigma, right = torch.linalg.svd(linear.resolvent_inverse(theta))
            sigma[:, -1] = 0
            P = (left * sigma[:, None, :]) @ right
            W = torch.eye(P.shape[-1], dtype=P.dtype) - P
            still = LinearDEQ(W.expand(2, -1, -1), theta.U.expand(2, -1, -1))
            instances.append(Instance(S[0], A[0], still, still, longest=0.0, stopped=END))
        return instances

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        low, high = rates.extremes(instance.S)
        R = least_norm_map(instance.flow) - instance.A
        losses = 0.5 * ((R @ instance.S) * R).sum((-2, -1))
        sigma = torch.linalg.svdvals(linear.resolvent_inverse(instance.start))
        return {
            "invertible": float(sigma[-1] / sigma[0].clamp_min(1e-300)) - 1e-10,
            "plain-flow": -1.0 if instance.follows == "two rates" else 1.0,
            "loss-falls": 1e-9 - float(losses.max() / losses[0] - 1),
            "full-rank": float(low / high) - 1e-10,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        S, A, start = instance.S, instance.A, instance.start
        values = torch.linalg.eigvalsh(S)
        F0 = least_norm_map(start)
        R = F0 - A
        loss = 0.5 * ((R @ S) * R).sum()
        if bool((values > 1e-10 * values[-1]).all()) and bool(F0.isfinite().all()):
            phi = float(torch.linalg.matrix_norm(A, 2) + (2 * loss / values[0]).sqrt())
        else:
            least = values[values > 1e-10 * values[-1]][0]
            phi = float(torch.linalg.matrix_norm(A, 2) + (2 * loss / least).sqrt())
        low, high = (float(x) for x in rates.extremes(linear.invariant(start)))

        def along(path: LinearDEQ) -> tuple[Tensor, Tensor, Tensor]:
            sigma = torch.linalg.svdvals(linear.resolvent_inverse(path)).square()
            return sigma[:, -1], sigma[:, 0], torch.linalg.matrix_norm(least_norm_map(path), 2)

        small, large, norm = along(instance.flow)
        moved = _moved(instance)
        P, F = linear.resolvent_inverse(instance.flow), least_norm_map(instance.flow)
        sign = torch.linalg.det(P[0]).sign()
        volume = torch.linalg.det(linear.invariant(start)) / torch.linalg.det(rates.gram(F.mT))
        gap = float((sign * torch.linalg.det(P) / volume.sqrt() - 1).abs().max())
        looser = 1 - TOLERANCE * high / low  # C drifts by a part of its largest entries

        at = int((small / floor(start, F)).argmin())
        d_small, d_large, d_norm = along(instance.descent)
        d_sign = torch.linalg.det(linear.resolvent_inverse(instance.descent)).sign()
        d_floor = floor(start, least_norm_map(instance.descent))
        d_at = int((d_small / d_floor).argmin())
        steps = instance.longest
        return {
            "λ_min(C)/(1 + ‖F‖²) ≤ σ_min(I − W)²": Measurement(
                float(small[at]), float(floor(start, F)[at]) * looser, moved, lower=True
            ),
            "σ_max(I − W)² ≤ λ_max(C)": Measurement(
                float(large.max()), high * (1 + TOLERANCE), moved
            ),
            "‖F‖ ≤ Φ": Measurement(float(norm.max()), phi * (1 + TOLERANCE), moved),
            "λ_min(C)/(1 + Φ²) ≤ σ_min(I − W)²": Measurement(
                float(small.min()), low / (1 + phi**2) * looser, moved, lower=True
            ),
            "κ(I − W)² ≤ κ(C)(1 + Φ²)": Measurement(
                float((large / small).max()), high / low * (1 + phi**2) / looser, moved
            ),
            "|det(I − W)| = √(det C/det(I + FFᵀ)), sign kept": Measurement(
                gap, TOLERANCE * high / low, moved
            ),
            "the flow exists until the end": Measurement(
                instance.stopped, 0.999 * END, moved, lower=True
            ),
            "descent: λ_min(C₀)/(1 + ‖F‖²) ≤ σ_min²": Measurement(
                float(d_small[d_at]), float(d_floor[d_at]) * (1 - 1e-9 * high / low), moved,
                lower=True,
            ),
            "descent: σ_max² ≤ λ_max(C₀) + 2ηL₀": Measurement(
                float(d_large.max()), (high + 2 * steps * float(loss)) * (1 + 1e-9), moved
            ),
            "descent: ‖F‖ ≤ Φ": Measurement(float(d_norm.max()), phi * (1 + 1e-9), moved),
            "descent: det(I − W) keeps its sign": Measurement(
                float((d_sign * d_sign[0]).min()), 0.5, moved, lower=True
            ),
        }  # fmt: skip


def _moved(one: Instance) -> float:
    """How far the flow gets from its start, relative to the length of [I − W, U] there."""
    N = linear.rows(one.flow)
    return float((N - N[0]).flatten(1).norm(dim=1).max() / N[0].norm())


Problem = tuple[LinearDEQ, Tensor, Tensor]
"""A batch of starts θ, moments S and targets A."""


def _run(theta: LinearDEQ, S: Tensor, A: Tensor, times: Tensor, follows: str) -> list[Instance]:
    """Flow and descent of one batch; time is scaled so that ω = 1 at every start."""
    S = S / rates.local_smoothness(theta, S, A)[0][:, None, None]

    def loss(at: LinearDEQ) -> Tensor:
        return linear.loss(at, S, A)

    def field(at: LinearDEQ) -> LinearDEQ:
        g = linear.gradient(at, S, A)
        if follows == "two rates":
            return LinearDEQ(30 * g.W, g.U)
        if follows == "ascent":
            # Up the gradient at a speed that doubles the loss in a time of 2.
            squared = g.W.square().sum((-2, -1)) + g.U.square().sum((-2, -1))
            speed = (loss(at) / (2 * squared))[:, None, None]
            return LinearDEQ(-speed * g.W, -speed * g.U)
        return g

    longest = torch.zeros(len(A), dtype=A.dtype)
    rule = rates.adaptive_step(S, A)

    def watched(state: StepState[LinearDEQ], /) -> Tensor:
        step = rule(state)
        torch.maximum(longest, step, out=longest)
        return step

    flow = gradient_flow(
        loss, theta, END, grad=field, times=times, rtol=RTOL, atol=ATOL, batch_ndim=1, throw=False
    )
    descent = gradient_descent(
        loss, theta, watched, STEPS, grad=field, record_every=4, batch_ndim=1, throw=False
    )
    return [
        Instance(
            S=S[i],
            A=A[i],
            flow=LinearDEQ(flow.theta.W[:, i], flow.theta.U[:, i]),
            descent=LinearDEQ(descent.theta.W[:, i], descent.theta.U[:, i]),
            longest=float(longest[i]),
            stopped=float(flow.stopped[i]),
            follows=follows,
        )
        for i in range(len(A))
    ]


def _growing(generator: Generator, n: int, p: int, d: int) -> Problem:
    """A small P₀, a large U₀ and a target near 0: with two rates P outgrows λ_max(C₀)."""
    theta, S, A = WellConditioned._starts(generator, n, p, d)
    P = 0.2 * torch.linalg.qr(linear.resolvent_inverse(theta)).Q
    U = theta.U / torch.linalg.matrix_norm(theta.U, 2)[:, None, None]
    return LinearDEQ(torch.eye(p, dtype=P.dtype) - P, U), S, 0.01 * A


def _blind(generator: Generator, n: int, p: int, d: int) -> Problem:
    """Inputs that miss one direction, and a U₀ that is large there, where nothing changes it."""
    theta, S, A = WellConditioned._starts(generator, n, p, d)
    values, vectors = torch.linalg.eigh(S)
    missed = vectors[:, :, :1]
    values[:, 0] = 0
    # The target is 0 where it cannot be seen, so that A is the one of least norm.
    A = A - A @ missed @ missed.mT
    U = theta.U + 100 * torch.linalg.matrix_norm(A, 2)[:, None, None] * missed.mT
    return LinearDEQ(theta.W, U), (vectors * values[:, None, :]) @ vectors.mT, A
