"""Theorem `any-step`: no step size makes descent on a linear DEQ of one output diverge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import gradient_descent
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
STEPS = 1000
MODES = ("plain", "momentum", "frozen")
"""How W and U move: by the gradient, by heavy ball (0.9), or U alone with W fixed."""


@dataclass(frozen=True)
class Instance:
    """One run of descent: the problem, the step, and every iterate (leading dimension: steps).

    far : a model of one output with a map longer than `map_threshold`, for the lemma; or None.
    """

    S: Tensor
    A: Tensor
    eta: float
    theta: LinearDEQ
    loss: Tensor
    mode: str
    far: LinearDEQ | None


def loss_or_nan(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """`linear.loss`, and NaN (instead of an exception for the batch) where I − W is singular."""
    singular = torch.linalg.det(linear.resolvent_inverse(theta)) == 0
    W = torch.where(singular[..., None, None], torch.zeros_like(theta.W), theta.W)
    return torch.where(singular, torch.nan, linear.loss(LinearDEQ(W, theta.U), S, A))


def map_threshold(S: Tensor, A: Tensor) -> Tensor:
    """F̄ = max(2κ|A|, √(3κ)), κ = λ_max(S)/λ_min(S): a longer map F shrinks in every step."""
    low, high = rates.extremes(S)
    kappa = high / low
    return torch.maximum(2 * kappa * A.square().sum((-2, -1)).sqrt(), (3 * kappa).sqrt())


def loss_sum_bound(first: Tensor, last: Tensor, eta: Tensor | float, S: Tensor) -> Tensor:
    """(ρ_K² − ρ₀²)/(4 η² λ_min(S)), ρ = tr C = |I − W|² + |U|²: bounds L₀ + … + L_{K−1}."""
    return (last.square() - first.square()) / (4 * eta**2 * rates.extremes(S)[0])


def radius_bound(
    start: LinearDEQ, worst: Tensor, eta: Tensor | float, S: Tensor, A: Tensor
) -> Tensor:
    """(17/16) max(r₀², 4ηΛ* + 2η²Λ*L*/r₀²): for one output, above r_k² while no loss exceeds L*.

    Λ* = λ_max(S)(1 + Φ*²)², Φ* = |A| + √(2L*/λ_min(S)); ``worst`` is L*, the largest loss so far.
    """
    low, high = rates.extremes(S)
    first = size(start)
    phi = A.square().sum((-2, -1)).sqrt() + (2 * worst / low).sqrt()
    steep = high * (1 + phi.square()).square()
    far = 4 * eta * steep + 2 * eta**2 * steep * worst / first
    return 17 / 16 * torch.maximum(first, far)


def size(theta: LinearDEQ) -> Tensor:
    """ρ = tr C = |I − W|² + |U|², for one output the squared radius r²."""
    return linear.rows(theta).square().sum((-2, -1))


class AnyStep(Theorem[Instance]):
    label = "any-step"
    title = "Every step size"
    kind = "bound"
    chapter = "09_every_step"
    statement = (
        r"With one output and any step $\eta>0$, $r_k\uparrow r_\infty<\infty$, "
        r"$\sum_kL_k\le(r_\infty^4-r_0^4)/(4\eta^2\lambda_{\min}(S))$, and descent converges to "
        r"a global minimiser. With $L_*=\sup_kL_k$, $\Phi_*=|A|+\sqrt{2L_*/\lambda_{\min}(S)}$ and "
        r"$\Lambda_*=\lambda_{\max}(S)(1+\Phi_*^2)^2$, "
        r"$r_\infty^2\le\frac{17}{16}\max(r_0^2,4\eta\Lambda_*+2\eta^2\Lambda_*L_*/r_0^2)$."
    )
    hypotheses = {
        "one-output": Hypothesis(
            "The model has one output, $p=1$. (For more, unbounded losses are not excluded.)",
            necessary=False,
        ),
        "trained-self-weight": Hypothesis("$W$ is trained together with $U$."),
        "plain-descent": Hypothesis(r"Each step is $\theta\leftarrow\theta-\eta\nabla L$."),
        "defined": Hypothesis("No iterate has a singular $I-W$."),
    }
    open_questions = (
        r"With $p\ge2$, can the loss be unbounded along a run with a large step? No such run "
        "was found ({doc}`/notebooks/09_every_step`).",
        "Does almost no start converge to a minimiser inside the edge ({prf:ref}`edge-remark`)?",
        "How far does a long step overshoot? The bound speaks after the run; one that is "
        "known before it is missing ({doc}`/notebooks/09_every_step`).",
    )
    least_activity = 1e-6

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return self._runs(generator, n, outputs=(1,))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "one-output": lambda g, n: self._runs(g, n, outputs=(2, 3)),
            "trained-self-weight": lambda g, n: self._runs(g, n, mode="frozen"),
            "plain-descent": lambda g, n: self._runs(g, n, mode="momentum"),
            "defined": self._onto_the_singular_line,
        }

    def _runs(
        self, generator: Generator, n: int, *, outputs: tuple[int, ...] = (1,), mode: str = "plain"
    ) -> list[Instance]:
        """Instances of mixed sizes: all of one size run in one batch."""
        sizes = [(p, d) for d in (1, 2, 3, 5) for p in outputs]
        found: list[Instance] = []
        for index, (p, d) in enumerate(sizes):
            count = len(range(index, n, len(sizes)))
            if count:
                found += self._batch(generator, count, p, d, mode)
        return found

    @staticmethod
    def _batch(generator: Generator, n: int, p: int, d: int, mode: str) -> list[Instance]:
        normal = torch.randn(n, p + 2 + d, d, generator=generator, dtype=torch.float64)
        uniform = torch.rand(n, 5, generator=generator, dtype=torch.float64)
        # Inputs with condition numbers up to 10², targets of length up to 4.
        basis = torch.linalg.qr(normal[:, :d]).Q
        spectrum = 10 ** (-2 * uniform[:, :1] * torch.linspace(0, 1, d, dtype=torch.float64))
        S = (basis * spectrum[:, None, :]) @ basis.mT
        A = normal[:, d : d + p]
        A = A / torch.linalg.matrix_norm(A)[:, None, None] * 4 * uniform[:, 1, None, None]
        start = linear.random_start(generator, p, d, batch=(n,))
        # Every fourth: S = I, a target and a start near 0. With short steps the sum is attained.
        gentle = torch.arange(n) % 4 == 3
        S = torch.where(gentle[:, None, None], torch.eye(d, dtype=S.dtype), S)
        A = torch.where(gentle[:, None, None], 1e-3 * A, A)
        near = 0.1 * start.U / torch.linalg.matrix_norm(start.U)[:, None, None]
        U = torch.where(gentle[:, None, None], near, start.U)
        start = LinearDEQ(start.W, U)
        # A step from a tenth to thirty times what the minimiser of the flow would bear; with W
        # fixed, from 1.1 to 30 times the limit of the explicit model.
        P = linear.resolvent_inverse(start)
        if mode == "frozen":
            bearable = 2 * torch.linalg.svdvals(P)[:, -1].square() / rates.extremes(S)[1]
            eta = bearable * 1.1 * 30 ** uniform[:, 2]
        else:
            bearable = 2 / rates.hessian_spectrum(start, S, A)[1]
            eta = bearable * 10 ** (2.5 * uniform[:, 2] - 1)
            eta = torch.where(gentle, 0.02 * bearable, eta)
        far = None
        if p == 1:
            F = normal[:, -1:]
            length = map_threshold(S, A) * (1 + 10 ** (4 * uniform[:, 3] - 3))
            F = F / F.norm(dim=-1, keepdim=True) * length[:, None, None]
            P_far = 10 ** (4 * uniform[:, 4] - 2.5)[:, None, None]
            far = LinearDEQ(1 - P_far, P_far * F)
        return descend(start, S, A, eta, mode, far)

    @staticmethod
    def _onto_the_singular_line(generator: Generator, n: int) -> list[Instance]:
        """Starts with P² + η(F − A)SFᵀ = 0, in powers of two so that the first step gives P = 0."""
        power = torch.randint(-2, 3, (n, 4), generator=generator).double()
        P, F, s, eta = (2**power).unbind(1)
        sign = 2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1
        F = F * sign
        A = F + P.square() / (eta * s * F)
        start = LinearDEQ((1 - P)[:, None, None], (P * F)[:, None, None])
        return descend(start, s[:, None, None], A[:, None, None], eta, "plain", None)

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        theta = instance.theta
        smallest = torch.linalg.svdvals(linear.resolvent_inverse(theta))[..., -1].min()
        ended = LinearDEQ(theta.W[-1], theta.U[-1])
        g = direction(ended, instance)
        onward = LinearDEQ(ended.W - instance.eta * g.W, ended.U - instance.eta * g.U)
        last = torch.linalg.svdvals(linear.resolvent_inverse(onward))[-1]
        # Where descent runs away the map overflows, which is not what this hypothesis is about.
        defined = 1.0 if not bool(last.isfinite()) else float(torch.minimum(smallest, last))
        return {
            "one-output": 0.5 - (theta.U.shape[-2] - 1),
            "trained-self-weight": -1.0 if instance.mode == "frozen" else 1.0,
            "plain-descent": -1.0 if instance.mode == "momentum" else 1.0,
            "defined": defined,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        S, A, eta = instance.S, instance.A, instance.eta
        rho = size(instance.theta)
        finished = len(instance.loss) == STEPS + 1 and bool(instance.loss.isfinite().all())
        grown = float(rho[-1] / rho[0] - 1)
        bound = float(loss_sum_bound(rho[0], rho[-1], eta, S))
        found = {
            "C₊ = C + η² g gᵀ": self._identity(instance, grown),
            "Σ L ≤ (ρ_K² − ρ₀²)/(4η²λ)": Measurement(
                float(instance.loss[:STEPS].sum()) if finished else math.inf, bound, grown
            ),
            # Convergence, as far as K steps can show it.
            "min L ≤ (ρ_K² − ρ₀²)/(4η²λK)": Measurement(
                float(instance.loss[:STEPS].min()) if finished else math.inf, bound / STEPS, grown
            ),
        }
        if instance.theta.U.shape[-2] == 1:
            start = LinearDEQ(instance.theta.W[0], instance.theta.U[0])
            # The losses before the last iterate are those that the bound speaks of.
            reach = float(radius_bound(start, instance.loss[:STEPS].max(), eta, S, A))
            found["r_K² ≤ (17/16) max(r₀², 4ηΛ* + 2η²Λ*L*/r₀²)"] = Measurement(
                float(rho[-1]) if finished else math.inf, reach, grown
            )
        if instance.far is not None:
            before = linear.equilibrium_map(instance.far)
            g = linear.gradient(instance.far, S, A)
            after = linear.equilibrium_map(
                LinearDEQ(instance.far.W - eta * g.W, instance.far.U - eta * g.U)
            )
            ratio = float(after.norm() / before.norm())
            found["|F| > F̄ shrinks"] = Measurement(ratio, 1 - EPS, abs(1 - ratio))
        return found

    @staticmethod
    def _identity(instance: Instance, grown: float) -> Measurement:
        """The largest error of one step's identity, relative to C₊; it is exact but for rounding.

        PF = U holds to p·eps·|P||F|, and W = I − P is stored to eps·|W|: both errors enter C₊
        once, against |C₊| ≥ |P|².
        """
        theta = instance.theta
        now = LinearDEQ(theta.W[:-1], theta.U[:-1])
        C = linear.invariant(theta)
        if len(C) < 2:
            return Measurement(math.nan, 0.0, grown)
        g = linear.gradient(now, instance.S, instance.A)
        N = torch.cat([-g.W, g.U], dim=-1)
        excess = C[1:] - C[:-1] - instance.eta**2 * N @ N.mT
        error = (excess.norm(dim=(-2, -1)) / C[1:].norm(dim=(-2, -1))).max()
        p = theta.U.shape[-2]
        return Measurement(
            float(error), 100 * p * EPS * float(1 + 1 / size(theta)[0].sqrt()), grown
        )


def direction(theta: LinearDEQ, instance: Instance) -> LinearDEQ:
    """What the last iterate would move against: the gradient, for U alone where W is fixed."""
    g = linear.gradient(theta, instance.S, instance.A)
    return LinearDEQ(torch.zeros_like(g.W), g.U) if instance.mode == "frozen" else g


def descend(
    start: LinearDEQ, S: Tensor, A: Tensor, eta: Tensor, mode: str, far: LinearDEQ | None
) -> list[Instance]:
    """Run a batch of problems of one size and hand each its record, up to where it stopped."""
    velocity: list[LinearDEQ] = []

    def move(theta: LinearDEQ) -> LinearDEQ:
        g = linear.gradient(theta, S, A)
        if mode == "frozen":
            return LinearDEQ(torch.zeros_like(g.W), g.U)
        if mode == "momentum":
            if velocity:
                old = velocity.pop()
                g = LinearDEQ(g.W + 0.9 * old.W, g.U + 0.9 * old.U)
            velocity.append(g)
        return g

    run = gradient_descent(
        lambda theta: loss_or_nan(theta, S, A),
        start, eta, STEPS, grad=move, batch_ndim=1, throw=False, progress=False,
    )  # fmt: skip
    last = torch.minimum(run.stopped, torch.tensor(float(STEPS))).long() + 1
    return [
        Instance(
            S[i], A[i], float(eta[i]),
            LinearDEQ(run.theta.W[: last[i], i], run.theta.U[: last[i], i]),
            run.loss[: last[i], i], mode,
            None if far is None else LinearDEQ(far.W[i], far.U[i]),
        )
        for i in range(len(eta))
    ]  # fmt: skip
