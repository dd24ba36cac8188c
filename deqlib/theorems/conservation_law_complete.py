"""Theorem `conservation-law-complete`: what all losses conserve is C, and nothing else.

A loss ℓ(F) moves N = [P, U] along its gradient, the field X = [−q Fᵀ, q] with q = P⁻ᵀ ∂ℓ/∂F.
Going to and fro along two fields moves N along their bracket [X, Y] = DY·X − DX·Y. The fields and
brackets of all losses together span what training can reach; the rest is conserved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.rates import gram
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps

Fields = Callable[[Tensor], Tensor]
"""N (p, p + d) ↦ m vector fields at N, of shape (m, p, p + d)."""


def from_rows(N: Tensor) -> LinearDEQ:
    """(W, U) from N = [I − W, U]."""
    p = N.shape[-2]
    return LinearDEQ(torch.eye(p, dtype=N.dtype, device=N.device) - N[..., :p], N[..., p:])


def gradient_fields(slopes: Tensor, N: Tensor) -> Tensor:
    """The gradients [−q Fᵀ, q] of the losses ⟨B, F⟩, one for each B in ``slopes`` (m, p, d)."""
    theta = from_rows(N)
    gradients = [linear.gradient_from(theta, B) for B in slopes]
    return torch.stack([torch.cat([-g.W, g.U], dim=-1) for g in gradients])


def jacobian_free_fields(slopes: Tensor, N: Tensor) -> Tensor:
    """The same with the adjoint left out, q = B."""
    F = linear.equilibrium_map(from_rows(N))
    return torch.cat([-slopes @ F.mT, slopes], dim=-1)


def decayed_fields(slopes: Tensor, N: Tensor) -> Tensor:
    """The gradients of ⟨B, F⟩ + ½(‖W‖² + ‖U‖²): the losses see more than F."""
    W, U = from_rows(N)
    return gradient_fields(slopes, N) + torch.cat([-W, U], dim=-1)


def brackets(X: Fields, Y: Fields, N: Tensor) -> Tensor:
    """[X_i, Y_j] = DY_j·X_i − DX_i·Y_j for all i and j, of shape (m_X, m_Y, p, p + d)."""
    # Reverse mode: torch's forward mode, nested, differentiates linalg.solve wrongly (2.13 does).
    DX, DY = torch.func.jacrev(X)(N), torch.func.jacrev(Y)(N)
    return torch.einsum("jabcd,icd->ijab", DY, X(N)) - torch.einsum("iabcd,jcd->ijab", DX, Y(N))


def generated(X: Fields, depth: int) -> Fields:
    """X and its brackets [X_i, [X_j, …]] nested up to ``depth`` times; they span the algebra."""

    def more(sofar: Fields, N: Tensor) -> Tensor:
        return torch.cat([sofar(N), brackets(X, sofar, N).flatten(0, 1)])

    fields = X
    for _ in range(depth):
        fields = partial(more, fields)
    return fields


def span_dimension(vectors: Tensor) -> int:
    """Dimension of the span of m vectors (m, …): singular values above 1e-9 of the largest."""
    flat = vectors.flatten(1)
    lengths = flat.norm(dim=1)
    # Brackets that vanish but for rounding must stay below the threshold.
    unit = flat / lengths.clamp_min(1e-4 * float(lengths.max()))[:, None]
    sigma = torch.linalg.svdvals(unit)
    return int((sigma > 1e-9 * sigma[0]).sum())


def unit_slopes(p: int, d: int) -> Tensor:
    """The pd losses F ↦ F_ij, as slopes B: the gradients of all other losses are mixtures."""
    return torch.eye(p * d, dtype=torch.float64).reshape(p * d, p, d)


@dataclass(frozen=True)
class Instance:
    """A point N, the slopes of some linear losses, and the fields that training makes of them."""

    N: Tensor
    slopes: Tensor
    fields: Callable[[Tensor, Tensor], Tensor]
    depth: int


class ConservationLawComplete(Theorem[Instance]):
    label = "conservation-law-complete"
    title = "The conservation law is complete"
    kind = "identity"
    chapter = "07_well_conditioned"
    statement = (
        r"Where $I-W$ is invertible, the gradients of all losses $\ell(F)$ and their Lie brackets "
        r"span a space of dimension $pd+p(p-1)/2$, the tangent space of $\{NN^\top=C\}$. "
        r"Hence a $C^2$ function of $(W,U)$ that is conserved by gradient flow for every loss is "
        r"a function of $C$ and of the sign of $\det(I-W)$."
    )
    hypotheses = {
        "every-loss": Hypothesis(r"The losses are all smooth functions $\ell$ of $F$."),
        "map-only": Hypothesis(r"A loss sees the parameters through $F$ only: no weight decay."),
        "exact-adjoint": Hypothesis(
            r"The fields are the true gradients, $q=P^{-\top}\partial\ell/\partial F$.",
            necessary=False,
        ),
    }
    least_activity = 1e-3

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return [self._one(generator) for _ in range(n)]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def each(change: Callable[[Instance], Instance]) -> Callable[..., list[Instance]]:
            return lambda generator, n: [change(one) for one in self.draw(generator, n)]

        return {
            "every-loss": self._fewer,
            "map-only": each(lambda one: replace(one, fields=decayed_fields)),
            "exact-adjoint": each(lambda one: replace(one, fields=jacobian_free_fields)),
        }

    def _one(self, generator: Generator, least_p: int = 1, least_d: int = 1) -> Instance:
        p = int(torch.randint(least_p, 5, (), generator=generator))
        d = int(torch.randint(least_d, 4, (), generator=generator))
        theta = linear.random_start(generator, p, d)
        return Instance(linear.rows(theta), unit_slopes(p, d), gradient_fields, 1)

    def _fewer(self, generator: Generator, n: int) -> list[Instance]:
        """Losses that see one input direction of several, one output of several, or one loss."""
        instances = []
        for index in range(n):
            one = self._one(generator, 2, 2)
            p, d = one.N.shape[0], one.N.shape[1] - one.N.shape[0]
            slopes = one.slopes.reshape(p, d, p, d)
            fewer = (slopes[:, 0], slopes[0], slopes[0, :1])[index % 3]
            instances.append(replace(one, slopes=fewer, depth=2))
        return instances

    def slack(self, instance: Instance) -> dict[str, float]:
        p, width = instance.N.shape
        missing = p * (width - p) - span_dimension(instance.slopes)
        return {
            "every-loss": 0.5 - missing,
            "map-only": -1.0 if instance.fields is decayed_fields else 1.0,
            "exact-adjoint": -1.0 if instance.fields is jacobian_free_fields else 1.0,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        N = instance.N
        p, d = N.shape[0], N.shape[1] - N.shape[0]
        expected = p * d + p * (p - 1) // 2
        fields = partial(instance.fields, instance.slopes)
        reached = generated(fields, instance.depth)(N)
        rank = span_dimension(reached)
        activity = float(reached.flatten(1).norm(dim=1).max() / N.norm())

        # dC = X Nᵀ + N Xᵀ, relative to the longest field: brackets come out of cancellations.
        change = reached @ N.mT
        change = change + change.mT
        kept = float(change.flatten(1).norm(dim=1).max() / (N.norm() * activity * N.norm()))

        X = fields(N)
        q, K = X[..., p:], gram(linear.equilibrium_map(from_rows(N)))
        turning = q[:, None] @ K @ q.mT
        turning = turning - turning.mT
        vertical = brackets(fields, fields, N) @ N.mT
        size = float(X.flatten(1).norm(dim=1).max())
        # A bracket is a difference of derivatives of size |DX||X|, with |DX| ~ |X|/σ_min(P).
        kappa = float(torch.linalg.cond(N[:, :p]))
        rounding = 1e3 * EPS * kappa**2
        gap = float((vertical - turning).abs().max()) / (size**2 * float(K.norm()))
        return {
            "dim span ≥ pd + p(p−1)/2": Measurement(rank, expected, activity, lower=True),
            "dim span ≤ pd + p(p−1)/2": Measurement(rank, expected, activity),
            "fields and brackets keep C": Measurement(kept, rounding, activity),
            "[X, Y] Nᵀ = q K q′ᵀ − q′ K qᵀ": Measurement(gap, rounding, activity),
        }
