"""On a linear problem Anderson with full memory is GMRES (Walker and Ni 2011), with any ridge."""

from __future__ import annotations

import pytest
import torch

from deqlib.fixed_point import Anderson, solve


def gmres_residuals(A: torch.Tensor, b: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """b − A z_k for k = 1, …: z_k minimises the residual over the Krylov space of dimension k."""
    Q, found = (b / b.norm())[:, None], []
    for _ in range(steps):
        AQ = A @ Q
        found.append(b - AQ @ torch.linalg.lstsq(AQ, b[:, None]).solution[:, 0])
        v = AQ[:, -1]
        for _ in range(2):  # Gram–Schmidt, twice for good measure
            v = v - Q @ (Q.mT @ v)
        Q = torch.cat([Q, (v / v.norm())[:, None]], dim=1)
    return found


@pytest.mark.parametrize("ridge", [0.0, None])
def test_residuals_are_those_of_gmres(ridge):
    generator = torch.Generator().manual_seed(1)
    n = 12
    W = torch.randn(n, n, generator=generator, dtype=torch.float64)
    W *= 0.9 / torch.linalg.matrix_norm(W, 2)
    b = torch.randn(n, generator=generator, dtype=torch.float64)
    points = []

    def f(z):
        points.append(z[0])
        return z @ W.mT + b

    solve(f, torch.zeros(1, n, dtype=torch.float64), method=Anderson(memory=n, ridge=ridge))
    for k, r in enumerate(gmres_residuals(torch.eye(n, dtype=torch.float64) - W, b, 8), start=1):
        z = points[k + 1]  # z_{k+1} = f(GMRES's z_k), so g_{k+1} = W r_k
        torch.testing.assert_close(W @ z + b - z, W @ r, rtol=0, atol=1e-8 * float(b.norm()))
