"""Theorem `readout`: a read-out brings a second law, and a gap between the two gives a rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from deqlib import readout
from deqlib.dynamics import gradient_flow
from deqlib.rates import extremes, gram
from deqlib.readout import ReadoutDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

RTOL, ATOL = 1e-9, 1e-12
POINTS = 17
"""How many points of each path are measured."""
FALL = 100.0
"""By which factor the loss must have fallen for "L → 0" to count as seen."""
STIFFNESS = 25.0
"""No run lasts longer than this many of its fastest time scales: the integrator is explicit."""
SYMMETRIC_TIME = 20.0
"""How long a symmetric start is watched: rounding, which grows, is not yet visible then."""


@dataclass(frozen=True)
class Training:
    """Rates of U and V relative to that of W, and weight decay, as the hypothesis is dropped."""

    input_rate: float = 1.0
    readout_rate: float = 1.0
    decay: float = 0.0


PLAIN = Training()
OTHERS = (Training(readout_rate=0.5), Training(input_rate=2.0), Training(decay=0.05))


@dataclass(frozen=True)
class Instance:
    """A problem and the recorded path of its training."""

    S: Tensor
    A: Tensor
    t: Tensor
    theta: ReadoutDEQ
    """(POINTS, …)."""
    steps: int
    unknowns: int
    """How many unknowns the integrator carried beside these."""
    training: Training


class Readout(Theorem[Instance]):
    label = "readout"
    title = "Linear DEQs with a read-out"
    kind = "rate"
    chapter = "10_geometry_and_readout"
    statement = (
        r"Let $I-W_0$ be invertible, $F=V(I-W)^{-1}U$ of shape $m\times d$, and let $(W,U,V)$ "
        r"follow the gradient flow of $L=\frac12\mathrm{tr}((F-A)S(F-A)^\top)$, $S\succ0$. Then "
        r"$C=PP^\top+UU^\top$ and $D=P^\top P+V^\top V$ are constant, and $\sigma_{\min}(I-W)$ "
        r"stays above a positive constant. If $m=p$ and $\lambda_{\min}(D)>\lambda_{\max}(C)$, "
        r"then $\|\nabla L\|^2\ge2\mu L$ and $L(t)\le e^{-2\mu t}L_0$ with "
        r"$\mu=\lambda_{\min}(S)\big(\lambda_{\min}(D)/\lambda_{\max}(C)-1\big)$."
    )
    hypotheses = {
        "gradient-flow": Hypothesis(
            r"$\dot\theta=-\nabla L(\theta)$ for $\theta=(W,U,V)$: all three are trained, at one "
            r"rate, by the exact gradient, in continuous time."
        ),
        "square": Hypothesis(r"$m=p$: as many outputs as states."),
        "gap": Hypothesis(r"$\lambda_{\min}(D)>\lambda_{\max}(C)$."),
    }
    open_questions = (
        "Is there a rate without the gap, and what holds for read-outs narrower than the "
        "target's rank ({doc}`/notebooks/10_geometry_and_readout`)?",
        "What do noise and finite steps do near the saddle "
        "({doc}`/notebooks/10_geometry_and_readout`)?",
    )
    least_activity = 3e-3

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return _groups(generator, n, partial(_gapped, attained=True), (PLAIN,))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "gradient-flow": lambda g, n: _groups(g, n, _gapped, OTHERS),
            "square": lambda g, n: _groups(g, n, _tall, (PLAIN,)),
            "gap": lambda g, n: _groups(g, n, _symmetric, (PLAIN,)),
        }

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        C, D = readout.invariants(ReadoutDEQ(*(x[0] for x in instance.theta)))
        m, p = instance.theta.V.shape[-2:]
        return {
            "gradient-flow": 1.0 if instance.training == PLAIN else -1.0,
            "square": 1.0 if m == p else -1.0,
            # Below rounding the gap is closed.
            "gap": float(extremes(D)[0] / extremes(C)[1]) - 1 - 1e-9,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        S, A, theta = instance.S, instance.A, instance.theta
        start = ReadoutDEQ(*(x[0] for x in theta))
        end = ReadoutDEQ(*(x[-1] for x in theta))
        L = readout.loss(theta, S, A)
        mu = readout.pl_constant(start, S)
        P = readout.resolvent_inverse(theta)
        length = sum(float(x.square().sum()) for x in (P[0], start.U, start.V)) ** 0.5
        moved = sum(float((a - b).square().sum()) for a, b in zip(start, end, strict=True)) ** 0.5
        activity = moved / length
        drift = self._drift_allowed(instance, length)

        found = {}
        pairs = zip("CD", readout.invariants(start), readout.invariants(theta), strict=True)
        for name, before, after in pairs:
            change = (after - before).norm(dim=(-2, -1)).max() / before.norm()
            found[f"{name} is constant"] = Measurement(float(change), drift, activity)

        sigma = torch.linalg.svdvals(P)[..., -1].min()
        found["σ_min(I−W) stays above its bound"] = Measurement(
            float(sigma), float(readout.resolvent_bound(start, S, A)), activity, lower=True
        )

        g = readout.gradient(theta, S, A)
        squared = sum(x.square().sum((-2, -1)) for x in g)
        # Where the loss is at the integrator's own level the ratio says nothing.
        seen = L / L[0] > 1e-12
        ratio = (squared / (2 * L))[seen].min()
        if mu > 0:
            # Attained where U passes zero with one state: rounding then decides.
            allowed = float(mu) * (1 - 1e-9)
            found["|∇L|² ≥ 2μL"] = Measurement(float(ratio), allowed, activity, lower=True)
            # Of the points after the start, the one nearest to its bound. The integration errs a
            # little, relative to the loss.
            bound = torch.exp(-2 * mu * instance.t) * L[0] * (1 + 1e-6)
            k = 1 + int((L / bound)[1:].argmax())
            sharp = None
            if float(L[-1]) < 1e-3 * float(L[0]):
                sharp = float(L[0] * torch.exp(-2 * readout.sharp_rate(end, S) * instance.t[k]))
            found["L(t) ≤ exp(−2μt) L₀"] = Measurement(
                float(L[k]), float(bound[k]), activity, sharp
            )
        else:
            # Without a gap there is no rate to compare with; that L falls at all is what is left.
            found["L → 0"] = Measurement(float(L[-1] / L[0]), 1 / FALL, activity)
        return found

    @staticmethod
    def _drift_allowed(instance: Instance, length: float) -> float:
        """Relative drift of C or D that the integrator's tolerance allows, as in chapter 6.

        A local error e of a step changes a law by at most 2|N||e|; the integrator keeps the root
        mean square of e/(rtol|θ| + atol) below one over all unknowns of the batch.
        """
        p = instance.S.new_tensor(float(instance.theta.W.shape[-1]))
        local = instance.unknowns**0.5 * (RTOL * (length + float(p.sqrt())) + ATOL)
        C, D = readout.invariants(ReadoutDEQ(*(x[0] for x in instance.theta)))
        return instance.steps * 2 * length * local / float(torch.minimum(C.norm(), D.norm()))


Maker = Callable[[Generator, int, int], "tuple[ReadoutDEQ, Tensor, Tensor, Tensor]"]
"""(generator, n, index of the group) ↦ n starts, S, A and how long each is trained."""


def _groups(
    generator: Generator, n: int, make: Maker, trainings: Sequence[Training]
) -> list[Instance]:
    """Eight groups of problems, each of one size, as one batch a group."""
    groups = min(n, 8)
    instances: list[Instance] = []
    for k in range(groups):
        size = n // groups + (k < n % groups)
        instances += _run(*make(generator, size, k), trainings[k % len(trainings)])
    return instances


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _rotation(generator: Generator, n: int, p: int) -> Tensor:
    return torch.linalg.qr(_normal(generator, n, p, p)).Q


def _moment(generator: Generator, n: int, d: int) -> Tensor:
    """S with λ_max(S) = 1 and κ(S) up to 30."""
    eigenvalues = 30 ** -(_uniform(generator, n, 1) * torch.linspace(0, 1, d, dtype=torch.float64))
    Q = _rotation(generator, n, d)
    return (Q * eigenvalues[:, None, :]) @ Q.mT


def _times(theta: ReadoutDEQ, S: Tensor) -> Tensor:
    """Until the bound has fallen by `FALL`, or until `STIFFNESS` is reached."""
    Y, Z = readout.factors(theta)
    fastest = extremes(S)[1] * extremes(gram(Y.mT))[1] * extremes(gram(Z))[1]
    return torch.minimum(math.log(FALL) / (2 * readout.pl_constant(theta, S)), STIFFNESS / fastest)


def _gapped(
    generator: Generator,
    n: int,
    k: int,
    *,
    outputs: int = 0,
    inputs: int = 0,
    least: float = 0.1,
    attained: bool = False,
) -> tuple[ReadoutDEQ, Tensor, Tensor, Tensor]:
    """p = 1 … 4 states, m = p + outputs, a gap λ_min(D)/λ_max(C) − 1 between 0.1 and 3.

    P has σ_min down to `least` and either sign of det P; V makes D what it is to be. With
    ``attained`` every third starts where ‖∇L‖² = 2μL.
    """
    p = 1 + k % 4
    d = p + inputs if inputs else int(torch.randint(1, 5, (), generator=generator))
    sigma = least + (1.5 - least) * _uniform(generator, n, p)
    P = (_rotation(generator, n, p) * sigma[:, None, :]) @ _rotation(generator, n, p)
    U = _normal(generator, n, p, d)
    U = U * ((0.7 + _uniform(generator, n, 1, 1)) * p**0.5 / U.norm(dim=(-2, -1), keepdim=True))
    sharp = ((torch.arange(n) + k) % 3 == 2)[:, None, None] & attained
    P = torch.where(sharp, sigma[:, :1, None].clamp_min(0.6) * _rotation(generator, n, p), P)
    U = torch.where(sharp, 0.0, U)
    gap = 0.1 * 30 ** _uniform(generator, n, 1)
    top = extremes(P @ P.mT + U @ U.mT)[1][:, None]
    Q = _rotation(generator, n, p)
    # D has the smallest eigenvalue (1 + gap) λ_max(C), and others up to twice as large.
    eigenvalues = top * (1 + gap) * (1 + _uniform(generator, n, p))
    eigenvalues[:, :1] = top * (1 + gap)
    values, vectors = torch.linalg.eigh((Q * eigenvalues[:, None, :]) @ Q.mT - P.mT @ P)
    root = (vectors * values.sqrt()[:, None, :]) @ vectors.mT
    V = torch.linalg.qr(_normal(generator, n, p + outputs, p)).Q @ root
    theta = ReadoutDEQ(torch.eye(p, dtype=P.dtype) - P, U, V)
    S, A = _moment(generator, n, d), _normal(generator, n, p + outputs, d)
    if attained:
        A = torch.where(sharp, _slowest_target(theta, S), A)
    return theta, S, A, _times(theta, S)


def _slowest_target(theta: ReadoutDEQ, S: Tensor) -> Tensor:
    """The A of norm 2 for which, from U = 0 and P a multiple of a rotation, ‖∇L‖² = 2μL.

    The one that the weakest direction of the inputs asks of the outputs that Y = VP⁻¹ moves least.
    """
    Y, _ = readout.factors(theta)
    return 2 * torch.linalg.svd(Y).U[..., -1:] @ torch.linalg.eigh(S).eigenvectors[..., :1].mT


def _tall(generator: Generator, n: int, k: int) -> tuple[ReadoutDEQ, Tensor, Tensor, Tensor]:
    """The gap is open, but there are two more outputs than states, and two more inputs.

    The target differs from F₀ mostly by a map that neither Y nor Z sees, so that the gradient is
    small though the loss is not.
    """
    theta, S, _, _ = _gapped(generator, n, k, outputs=2, inputs=2, least=0.6)
    Y, Z = readout.factors(theta)
    unseen = torch.linalg.svd(Y).U[..., -1:] @ torch.linalg.svd(Z).Vh[..., -1:, :]
    away = torch.linalg.solve(S, unseen, left=False)
    F = readout.response(theta)
    A = F + 3 * away / away.norm(dim=(-2, -1), keepdim=True) + 0.2 * _normal(generator, *F.shape)
    return theta, S, A, _times(theta, S)


def _symmetric(generator: Generator, n: int, k: int) -> tuple[ReadoutDEQ, Tensor, Tensor, Tensor]:
    """Starts with UᵀO₁ = −O₂V and P between them symmetric: the saddle attracts them.

    In suitable orthonormal coordinates of states, inputs and outputs everything is diagonal, with
    U = −V and A = diag(positive): each F_ii = −u²/P tends to 0, and A_ii is never reached.
    """
    p = 1 + k % 4

    def diagonal(low: float, high: float) -> Tensor:
        return torch.diag_embed(low + (high - low) * _uniform(generator, n, p))

    P, U, A = diagonal(0.7, 1.4), diagonal(0.3, 1.0), diagonal(0.8, 1.2)
    left, right, out, into = (_rotation(generator, n, p) for _ in range(4))
    theta = ReadoutDEQ(
        torch.eye(p, dtype=P.dtype) - left @ P @ right, left @ U @ into, -(out @ U @ right)
    )
    S = torch.eye(p, dtype=P.dtype).expand(n, p, p)
    times = torch.full((n,), SYMMETRIC_TIME, dtype=P.dtype)
    return theta, S, out @ A @ into, times


def _run(
    theta: ReadoutDEQ, S: Tensor, A: Tensor, times: Tensor, training: Training
) -> Iterator[Instance]:
    """Train n problems at once, each in the clock in which its time is one."""
    clock = times[:, None, None]

    def update(theta: ReadoutDEQ) -> ReadoutDEQ:
        g = readout.gradient(theta, S, A)
        plus = training.decay / clock
        return ReadoutDEQ(
            W=clock * (g.W + plus * theta.W),
            U=clock * training.input_rate * (g.U + plus * theta.U),
            V=clock * training.readout_rate * (g.V + plus * theta.V),
        )

    run = gradient_flow(
        lambda theta: readout.loss(theta, S, A),
        theta,
        1.0,
        grad=update,
        times=torch.linspace(0, 1, POINTS, dtype=torch.float64) ** 2,
        rtol=RTOL,
        atol=ATOL,
        max_steps=5000,
        batch_ndim=1,
        dense=False,
        progress=False,
    )
    unknowns = sum(x.numel() for x in theta)
    for i in range(len(S)):
        yield Instance(
            S=S[i],
            A=A[i],
            t=run.t * times[i],
            theta=ReadoutDEQ(*(x[:, i] for x in run.theta)),
            steps=run.steps,
            unknowns=unknowns,
            training=training,
        )
