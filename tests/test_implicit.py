"""deqlib.implicit: the gradient is right, in everything f uses, and says so when it cannot be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.linalg import matrix_norm, vector_norm

from deqlib.fixed_point import NotConvergedError, Picard, Status
from deqlib.implicit import Equilibrium, equilibrium

f64 = torch.float64
KRYLOV, DIRECT = 0, 64  # values of direct_below
both = pytest.mark.parametrize("direct_below", [KRYLOV, DIRECT])


def draw(seed, *shapes):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=f64).requires_grad_() for shape in shapes]


def contraction(seed, n=3, d=2, batch=4, rho=0.6):
    W, U, x = draw(seed, (n, n), (n, d), (batch, d))
    W = (rho * W / matrix_norm(W, 2)).detach().requires_grad_()
    return W, U, x, torch.zeros(batch, n, dtype=f64)


# --------------------------------------------------------- the gradient against finite differences


def linear(W, U, x, z0, **options):
    return equilibrium(lambda z: z @ W.T + x @ U.T, z0, **options).z


def tanh(W, U, x, z0, **options):
    return equilibrium(lambda z: torch.tanh(z @ W.T + x @ U.T), z0, **options).z


def intermediate(W, U, x, z0, **options):
    A, Ux = torch.sin(W), x @ U.T  # made outside f: captured tensors that are no leaves
    return equilibrium(
        lambda z: torch.tanh(torch.cat([z, z], 1) @ torch.cat([A, A]) / 2 + Ux), z0, **options
    ).z


@both
@pytest.mark.parametrize("layer", [linear, tanh, intermediate])
def test_first_and_second_derivatives_agree_with_finite_differences(layer, direct_below):
    W, U, x, z0 = contraction(0, batch=2, n=2)
    function = lambda W, U, x: layer(W, U, x, z0, direct_below=direct_below)  # noqa: E731
    assert gradcheck(function, (W, U, x))
    assert gradgradcheck(function, (W, U, x))


@both
def test_an_equilibrium_inside_an_equilibrium(direct_below):
    # z = y c with y = tanh(y Wᵀ + z/4 + x Uᵀ) is one equilibrium y = tanh(y Wᵀ + y c/4 + x Uᵀ).
    W, U, x, z0 = contraction(0, batch=2)
    c = lambda: torch.cos(W[0])  # noqa: E731
    solve_for = lambda f: equilibrium(f, z0, direct_below=direct_below).z  # noqa: E731
    inner = lambda z: solve_for(lambda y: torch.tanh(y @ W.T + z / 4 + x @ U.T))  # noqa: E731
    values = []
    for z in (
        solve_for(lambda z: inner(z) * c()),
        solve_for(lambda y: torch.tanh(y @ W.T + y * c() / 4 + x @ U.T)) * c(),
    ):
        first = grad((z**2).sum(), (W, U, x), create_graph=True)
        second = grad(sum((t**2).sum() for t in first), (W, U, x))
        values.append((z, *first, *second))
    torch.testing.assert_close(*values, rtol=1e-7, atol=1e-9)


@both
def test_a_module_receives_the_gradient_of_its_parameters(direct_below):
    layer = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, z0 = torch.linspace(-1, 1, 6, dtype=f64).reshape(2, 3), torch.zeros(2, 3, dtype=f64)

    def run(*parameters):
        names = [name for name, _ in layer.named_parameters()]
        values = dict(zip(names, parameters, strict=True))
        return equilibrium(
            lambda z: 0.4 * functional_call(layer, values, z) + x, z0, direct_below=direct_below
        ).z

    parameters = tuple(layer.parameters())
    assert gradcheck(run, parameters)
    # And the module itself, with nothing listed.
    z = equilibrium(lambda z: 0.4 * layer(z) + x, z0, direct_below=direct_below).z
    for a, b in zip(
        grad(z.sum(), parameters), grad(run(*parameters).sum(), parameters), strict=True
    ):
        torch.testing.assert_close(a, b)
        assert (a != 0).any()


@both
@pytest.mark.parametrize("a", [0.5, -2.0])
def test_every_order_of_derivative_of_a_scalar_state(a, direct_below):
    # z = a z + 1: z = 1/(1 − a), k-th derivative k!/(1 − a)^(k+1). Newton does not mind a = −2.
    a = torch.tensor(a, dtype=f64, requires_grad=True)
    z0 = torch.tensor(0.0, dtype=f64)
    value = equilibrium(
        lambda z: a * z + 1, z0, method="newton", state_ndim=0, direct_below=direct_below
    ).z
    for k in range(6):
        exact = math.factorial(k) / (1 - a.item()) ** (k + 1)
        assert value.shape == ()
        assert value.item() == pytest.approx(exact, rel=1e-9)
        (value,) = grad(value, a, create_graph=True)


# --------------------------------------------------------------------------------------- four ways


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    rho=st.floats(0.0, 0.9),
    n=st.integers(1, 6),
    direct_below=st.sampled_from([KRYLOV, DIRECT]),
)
def test_closed_form_implicit_unrolled_and_differences_agree(seed, rho, n, direct_below):
    W, U, x, z0 = contraction(seed, n=n, rho=rho)
    (G,) = draw(seed + 1, (4, n))
    G = G.detach()
    f = lambda z: z @ W.T + x @ U.T  # noqa: E731
    z = equilibrium(f, z0, direct_below=direct_below).z
    implicit = grad((G * z).sum(), (W, U, x))

    E = torch.linalg.inv(torch.eye(n, dtype=f64) - W.detach())
    u, F = G @ E, E @ U.detach()  # rows u_i = (I − Wᵀ)⁻¹ g_i and z_i = F x_i
    closed = (u.T @ (x @ F.T), u.T @ x, u @ U)

    y = z0
    for _ in range(400):
        y = f(y)
    unrolled = grad((G * y).sum(), (W, U, x))

    def value(h):  # along W + h D: one direction of the differences
        P = W.detach() + h * D
        return (G * torch.linalg.solve(torch.eye(n, dtype=f64) - P, U @ x.T).T).sum().item()

    D = torch.ones_like(W)
    h = 1e-5 * (1 - rho)
    difference = (value(h) - value(-h)) / (2 * h)
    for a, b, c in zip(implicit, closed, unrolled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-8)
    assert implicit[0].sum().item() == pytest.approx(difference, rel=1e-5, abs=1e-5)


@both
def test_third_derivatives_agree_with_the_unrolled_iteration(direct_below):
    W, U, x, z0 = contraction(15, n=2, rho=0.5)
    f = lambda z: torch.tanh(z @ W.T + x @ U.T)  # noqa: E731
    y = z0
    for _ in range(50):
        y = f(y)
    thirds = []
    for z in (equilibrium(f, z0, direct_below=direct_below).z, y):
        value = z[:, 0].sum()
        for _ in range(3):
            derivatives = grad(value, (W, U), create_graph=True)
            value = sum((t * torch.arange(4.0).reshape(t.shape)).sum() for t in derivatives)
        thirds.append(derivatives)
    torch.testing.assert_close(*thirds, rtol=1e-7, atol=1e-8)


def test_float32_as_float64():
    W, U, x, z0 = contraction(3)
    exact = grad(tanh(W, U, x, z0).sum(), (W, U, x))
    W, U, x = (t.detach().float().requires_grad_() for t in (W, U, x))
    for direct_below in (KRYLOV, DIRECT):
        single = grad(tanh(W, U, x, z0.float(), direct_below=direct_below).sum(), (W, U, x))
        for a, b in zip(single, exact, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------- what f may close over

W0, V0 = draw(7, (4, 4), (4,))
W0, V0 = (0.15 * t.detach() for t in (W0, V0))
W0.requires_grad_()
V0.requires_grad_()
X0 = torch.linspace(-1, 1, 8, dtype=f64).reshape(2, 4)


def energy(z):
    """A gradient inside f: z ↦ ∇ Σ log cosh(z Wᵀ + x)."""
    with torch.enable_grad():
        y = z if z.requires_grad else z.detach().requires_grad_()
        return grad(torch.log(torch.cosh(y @ W0.T + X0)).sum(), y, create_graph=True)[0]


ROADS = {
    "operator": lambda z: torch.tanh(z @ W0.T + V0),
    "operator from the left": lambda z: torch.tanh((W0 @ z.mT).mT + V0),
    "keyword": lambda z: torch.tanh(nn.functional.linear(input=z, weight=W0, bias=V0)),
    "list": lambda z: torch.tanh(
        z @ torch.stack([V0, W0[1], W0[2], V0]).T + torch.cat([V0[:2]] * 2)
    ),
    "index": lambda z: torch.tanh(z @ W0[[1, 0, 3, 2]] + W0[0, 1] + V0[None, [0, 0, 1, 1]]),
    "iteration": lambda z: torch.tanh(torch.stack([(z * row).sum(1) for row in W0], 1) + V0),
    "einsum": lambda z: torch.tanh(torch.einsum("bi,ji->bj", z, W0) + V0.view(1, -1)),
    "in place": lambda z: (z @ W0.T).add_(V0).add_(X0).tanh_(),
    "gradient": lambda z: energy(z) + V0,
    "constant": lambda z: W0.sum() * V0.expand_as(z),
    "vmap": lambda z: torch.vmap(lambda y: torch.tanh(W0 @ y + V0))(z),
}


@both
@pytest.mark.parametrize("road", ROADS)
def test_every_road_from_a_tensor_to_f_is_seen(road, direct_below):
    f = ROADS[road]
    weight = torch.linspace(1, 2, 8, dtype=f64).reshape(2, 4)
    z = equilibrium(f, torch.zeros(2, 4, dtype=f64), direct_below=direct_below).z
    y = torch.zeros(2, 4, dtype=f64)
    for _ in range(100):
        y = f(y)
    torch.testing.assert_close(z, y)
    ours, unrolled = (grad((weight * t).sum(), (W0, V0)) for t in (z, y))
    torch.testing.assert_close(ours, unrolled, rtol=1e-8, atol=1e-9)
    assert all((t != 0).any() for t in ours)


def test_a_tensor_that_f_uses_at_the_equilibrium_only_is_seen():
    # At the start z0 = 0 this f is a constant.
    w = torch.tensor(0.5, dtype=f64, requires_grad=True)
    f = lambda z: w * z + 1 if (z > 0).all() else torch.ones_like(z)  # noqa: E731
    z = equilibrium(f, torch.zeros(2, 3, dtype=f64)).z
    (g,) = grad(z.sum(), w)
    assert g.item() == pytest.approx(6 / (1 - 0.5) ** 2)


def test_a_compiled_f_has_the_gradient_of_the_f_that_was_compiled():
    f = torch.compile(lambda z: torch.tanh(z @ W0.T + V0), backend="eager")
    gradients = []
    for way in (f, lambda z: torch.tanh(z @ W0.T + V0)):
        z = equilibrium(way, torch.zeros(2, 4, dtype=f64)).z
        first = grad((z**2).sum(), (W0, V0), create_graph=True)
        gradients.append((z, *first, *grad(first[0].sum(), (W0, V0))))
    torch.testing.assert_close(*gradients)


def test_f_is_evaluated_once_more_than_the_solve_and_once_in_a_backward_pass():
    W, U, x, z0 = contraction(5)
    calls = []
    f = lambda z: (calls.append(1), torch.tanh(z @ W.T + x @ U.T))[1]  # noqa: E731
    e = equilibrium(f, z0, direct_below=KRYLOV)
    assert len(calls) == int(e.forward.iterations.max()) + 1
    e.z.sum().backward()
    assert len(calls) == int(e.forward.iterations.max()) + 2


def test_f_may_return_a_tensor_it_closes_over():
    w = torch.ones(2, 3, dtype=f64, requires_grad=True)
    z = equilibrium(lambda z: w, torch.zeros(2, 3, dtype=f64)).z
    (g,) = grad((z**2).sum(), w)
    assert (g == 2).all()


class Hidden(torch.autograd.Function):
    """z Wᵀ, by a road that torch does not show."""

    @staticmethod
    def forward(ctx, z, W):
        ctx.save_for_backward(z, W)
        return z @ W.T

    @staticmethod
    def backward(ctx, g):
        z, W = ctx.saved_tensors
        return g @ W, g.T @ z


def test_a_hidden_road_is_refused_and_the_remedy_works():
    z0 = torch.zeros(2, 4, dtype=f64)
    with pytest.raises(RuntimeError, match=r"f uses a tensor of shape \(4, 4\).*w.view_as\(w\)"):
        equilibrium(lambda z: torch.tanh(Hidden.apply(z, W0) + X0), z0)
    z = equilibrium(lambda z: torch.tanh(Hidden.apply(z, W0.view_as(W0)) + X0), z0).z
    exact = equilibrium(lambda z: torch.tanh(z @ W0.T + X0), z0).z
    torch.testing.assert_close(grad(z.sum(), W0), grad(exact.sum(), W0))


def test_one_module_used_twice_before_one_backward_pass():
    layer = nn.Linear(3, 3).double()
    with torch.no_grad():
        layer.weight.mul_(0.4)
    x = torch.linspace(-1, 1, 12, dtype=f64).reshape(2, 2, 3)
    layer_of = lambda x: equilibrium(lambda z: torch.tanh(layer(z) + x), torch.zeros_like(x)).z  # noqa: E731
    separate = [grad(layer_of(xi).pow(2).sum(), layer.weight)[0] for xi in x]
    sum(layer_of(xi).pow(2).sum() for xi in x).backward()
    torch.testing.assert_close(layer.weight.grad, separate[0] + separate[1])


def test_one_equilibrium_feeds_another():
    W, U, x, z0 = contraction(14, batch=1, n=2, d=1)

    def stacked(W, U, x):
        first = tanh(W, U, x, z0)
        return equilibrium(lambda z: torch.tanh(z @ W.T + first), z0).z

    assert gradcheck(stacked, (W, U, x))


def test_the_start_receives_no_gradient_and_without_gradients_nothing_is_kept():
    W, U, x, z0 = contraction(5)
    z0.requires_grad_()
    z = tanh(W, U, x, z0)
    (g,) = grad(z.sum(), z0, allow_unused=True)
    assert g is None
    with torch.no_grad():
        assert not tanh(W, U, x, z0).requires_grad
    constant = equilibrium(torch.cos, torch.zeros(2, 3, dtype=f64))
    assert not constant.z.requires_grad
    assert constant.adjoint == []


def test_a_tensor_changed_between_forward_and_backward_is_noticed():
    W, U, x, z0 = contraction(5)
    z = tanh(W, U, x, z0)
    with torch.no_grad():
        W.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_memory_does_not_grow_with_the_iterations():
    def kept(iterations):
        W = (0.9999 * torch.eye(40, dtype=f64)).requires_grad_()
        (x,) = draw(6, (8, 40))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel() * t.element_size()), t)[1], lambda t: t
        ):
            e = equilibrium(
                lambda z: torch.relu(z @ W.T + x),
                torch.zeros(8, 40, dtype=f64),
                method="picard",
                max_iter=iterations,
                throw=False,
            )
        assert (e.forward.iterations == iterations).all()
        assert e.z.requires_grad
        return sum(sizes)

    assert kept(20) == kept(2000) > 0


# ---------------------------------------------------------------------------- the adjoint's report


@both
def test_the_adjoint_reports_its_true_residual(direct_below):
    # f(z) = W z + x, so ∇_x is u itself.
    W, _, _, z0 = contraction(8, n=20, batch=5, rho=0.9)
    x, g = draw(9, (5, 20), (5, 20))
    e = equilibrium(lambda z: z @ W.T + x, z0, direct_below=direct_below, tol=1e-6)
    assert isinstance(e, Equilibrium)
    assert e.adjoint == []
    (u,) = grad(e.z, x, g.detach(), retain_graph=True)
    (report,) = e.adjoint
    true = vector_norm(g - (u - u @ W), dim=1)
    torch.testing.assert_close(report.residual, true, rtol=1e-4, atol=1e-13)
    assert (report.residual <= 1e-6 * vector_norm(u, dim=1)).all()
    assert report.converged.all()
    assert report.transposed
    assert (report.iterations > 0).all()
    grad(e.z, x, g.detach())
    assert len(e.adjoint) == 2  # every backward pass adds its own


def test_the_adjoint_is_as_exact_as_the_forward_tolerance_asks():
    W, _, _, z0 = contraction(8, n=30, batch=5, rho=0.95)
    (x,) = draw(9, (5, 30))
    exact = torch.linalg.solve(torch.eye(30, dtype=f64) - W.T, torch.ones(30, dtype=f64))
    error, products = [], []
    for tol in (1e-3, 1e-6, 1e-9, 1e-12):
        e = equilibrium(lambda z: z @ W.T + x, z0, tol=tol, direct_below=KRYLOV)
        (u,) = grad(e.z.sum(), x)
        error.append((vector_norm(u - exact, dim=1).max() / vector_norm(exact)).item())
        products.append(int(e.adjoint[0].iterations.max()))
        assert error[-1] <= tol / (1 - 0.95)
    assert error == sorted(error, reverse=True)
    assert products == sorted(products)
    assert error[0] > 1e-8  # a loose tolerance is not solved exactly in secret


def test_the_krylov_recursion_is_not_believed():
    # Here its residual meets the tolerance where the true one is ten times too large.
    W, x, _, z0 = contraction(0, n=20, d=20, batch=20)
    W = (3 * W / torch.linalg.eigvals(W).abs().max()).detach().requires_grad_()
    x = x.detach().requires_grad_()
    e = equilibrium(lambda z: z @ W.T + x, z0, method="newton", tol=1e-14, direct_below=KRYLOV)
    (g,) = draw(1, (20, 20))
    (u,) = grad(e.z, x, g.detach())
    assert e.adjoint[0].converged.all()
    assert (vector_norm(g - (u - u @ W), dim=1) <= 2e-14 * vector_norm(u, dim=1)).all()


def test_an_unfinished_adjoint_is_never_worse_than_none():
    # Where BiCGStab's residual is above the start's when the cap comes, the start u = 0 is kept.
    W, x, _, z0 = contraction(0, n=20, d=20, batch=20)
    W = (3 * W / torch.linalg.eigvals(W).abs().max()).detach().requires_grad_()
    x = x.detach().requires_grad_()
    options = {"method": "newton", "direct_below": KRYLOV, "adjoint_max_iter": 9, "throw": False}
    e = equilibrium(lambda z: z @ W.T + x, z0, **options)
    (u,) = grad(e.z.sum(), x)
    assert (e.adjoint[0].residual <= math.sqrt(20)).all()
    torch.testing.assert_close(e.adjoint[0].residual, vector_norm(1 - (u - u @ W), dim=1))


@both
def test_a_huge_solution_of_a_nearly_singular_system_is_not_accepted(direct_below):
    # Rounding makes this singular matrix invertible: u is then 1e16 and its relative residual tiny.
    A = torch.arange(1.0, 10.0, dtype=f64).reshape(3, 3) / 8
    W = (torch.eye(3, dtype=f64) - A).requires_grad_()
    start = torch.tensor([[1.0, -2.0, 1.0]], dtype=f64)  # A start = 0
    e = equilibrium(lambda z: z @ W.T, start, direct_below=direct_below, throw=False)
    grad(e.z[0, 0], W)
    assert not e.adjoint[0].converged


@both
def test_a_singular_adjoint_raises_or_is_reported(direct_below):
    W = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=f64)).requires_grad_()
    start = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=f64)  # equilibria of z ↦ W z
    run = lambda **o: equilibrium(lambda z: z @ W.T, start, direct_below=direct_below, **o)  # noqa: E731
    with pytest.raises(
        NotConvergedError, match=r"adjoint of an equilibrium.*2 of 2 samples"
    ) as caught:
        run().z.sum().backward()
    assert (caught.value.result.status == Status.STALLED).all()
    e = run(throw=False)
    (g,) = grad(e.z[:, 1:].sum() + e.z[1, 0], W)  # sample 0 does not ask about the singular entry
    assert e.adjoint[0].status[1] == Status.STALLED
    if direct_below == KRYLOV:  # never meets it; a factorisation does
        assert e.adjoint[0].status[0] == Status.CONVERGED
    assert e.adjoint[0].residual[1] > 0.1
    assert g.isfinite().all()


def test_the_cap_of_the_adjoint_is_obeyed_and_reported():
    W, _, _, z0 = contraction(8, n=40, batch=3, rho=0.99)
    (x,) = draw(9, (3, 40))
    options = {"direct_below": KRYLOV, "adjoint_max_iter": 9}
    with pytest.raises(NotConvergedError, match="reached max_iter"):
        equilibrium(lambda z: z @ W.T + x, z0, **options).z.sum().backward()
    e = equilibrium(lambda z: z @ W.T + x, z0, throw=False, **options)
    (u,) = grad(e.z.sum(), x)
    assert (e.adjoint[0].status == Status.MAX_ITER).all()
    assert (e.adjoint[0].iterations <= 9).all()
    true = vector_norm(1 - (u - u @ W), dim=1)
    torch.testing.assert_close(e.adjoint[0].residual, true)
    assert (true < math.sqrt(40)).all()  # what was found is used: it is better than u = 0


def test_a_breakdown_of_the_krylov_method_is_reported():
    # I − J skew: BiCGStab's second inner product ⟨A s, s⟩ is 0 from the start.
    S = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=f64)
    x = torch.tensor([[1.0, 2.0]], dtype=f64, requires_grad=True)
    f = lambda z: z - z @ S.T + x  # noqa: E731
    z0 = torch.zeros(1, 2, dtype=f64)
    krylov = equilibrium(f, z0, method="newton", direct_below=KRYLOV)
    with pytest.raises(NotConvergedError, match="stalled"):
        krylov.z.sum().backward()
    direct = equilibrium(f, z0, method="newton")
    (u,) = grad(direct.z.sum(), x)
    torch.testing.assert_close(u @ S, torch.ones(1, 2, dtype=f64))


@both
def test_a_zero_cotangent_costs_nothing_and_a_bad_one_is_named(direct_below):
    W, U, x, z0 = contraction(8)
    e = equilibrium(
        lambda z: torch.tanh(z @ W.T + x @ U.T), z0, direct_below=direct_below, throw=False
    )
    weight = torch.tensor([0.0, 1.0, 1e-200, math.nan], dtype=f64)
    (g,) = grad(e.z.sum(1), x, weight, retain_graph=True)
    assert e.adjoint[0].status.tolist() == [0, 0, 0, Status.NOT_FINITE]
    assert (g[0] == 0).all()
    assert (g[3] == 0).all()
    (one,) = grad(e.z[2].sum(), x)
    torch.testing.assert_close(g[2] * 1e200, one[2])


@pytest.mark.parametrize("adjoint", ["picard", Picard(every=4), "anderson", "newton"])
def test_an_iterated_adjoint_agrees_with_the_krylov_one(adjoint):
    W, U, x, z0 = contraction(16, n=6, batch=5, rho=0.8)
    gradients = []
    for options in ({"adjoint": adjoint}, {"direct_below": KRYLOV}):
        e = equilibrium(lambda z: torch.tanh(z @ W.T + x @ U.T), z0, tol=1e-12, **options)
        first = grad((e.z**2).sum(), (W, U, x), create_graph=True)
        second = grad(sum((t**2).sum() for t in first), (W, U, x))
        assert all(report.converged.all() for report in e.adjoint)
        assert {report.transposed for report in e.adjoint} == {True, False}
        gradients.append((*first, *second))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_an_iterated_adjoint_reports_its_residual_and_its_divergence():
    # f(z) = W z + x with ρ(Wᵀ) = 0.9 in one entry and 1.5 in the other.
    W = torch.diag(torch.tensor([0.9, 1.5], dtype=f64))
    x = torch.ones(2, 2, dtype=f64, requires_grad=True)
    e = equilibrium(
        lambda z: z @ W.T + x, torch.zeros(2, 2, dtype=f64), method="newton", adjoint="picard",
        throw=False, tol=1e-6,
    )  # fmt: skip
    g = torch.eye(2, dtype=f64)
    (u,) = grad(e.z, x, g)
    (report,) = e.adjoint
    assert report.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    torch.testing.assert_close(report.residual, vector_norm(g - (u - u @ W), dim=1))
    assert u[0, 0].item() == pytest.approx(10, rel=1e-4)
    with pytest.raises(NotConvergedError, match=r"adjoint of an equilibrium.*1 diverged"):
        grad(
            equilibrium(
                lambda z: z @ W.T + x, torch.zeros(2, 2, dtype=f64), method="newton",
                adjoint="picard",
            ).z, x, g,
        )  # fmt: skip


# ------------------------------------------------------------------------- samples that went wrong


@both
@pytest.mark.parametrize("trouble", ["nan", "inf", "divergence"])
def test_a_failed_sample_contributes_nothing_and_spoils_nothing(trouble, direct_below):
    W, U, x, _ = contraction(10, batch=5)
    gain = torch.ones(5, 1, dtype=f64)
    x = x.detach().clone()
    if trouble == "divergence":
        gain[2] = 50.0
    else:
        x[2, 0] = float(trouble)
    good = [0, 1, 3, 4]

    def gradients(x, gain):
        z0 = torch.zeros(len(x), 3, dtype=f64)
        e = equilibrium(
            lambda z: gain * (torch.relu(z) @ W.T + x @ U.T),
            z0,
            method="picard",
            throw=False,
            direct_below=direct_below,
        )
        first = grad((e.z**2).sum(), (W, U), create_graph=True)
        return e, first + grad(sum((t**2).sum() for t in first), (W, U))

    e, all_of_them = gradients(x, gain)
    assert e.forward.converged.tolist() == [True, True, False, True, True]
    assert e.z.isfinite().all()
    status = Status.DIVERGED if trouble == "divergence" else Status.NOT_FINITE
    assert len(e.adjoint) > 1
    for report in e.adjoint:
        assert report.status.tolist() == [0, 0, status, 0, 0]
    _, good_ones = gradients(x[good], gain[good])
    torch.testing.assert_close(all_of_them, good_ones, rtol=1e-8, atol=1e-10)


def test_a_nan_that_cannot_be_set_aside_is_not_passed_on():
    # The samples are columns here: f hides which number belongs to whom.
    W, U, x, z0 = contraction(11, batch=2, d=5)
    xT = x.detach().T.clone()
    xT[0, 1] = math.nan
    e = equilibrium(lambda z: (W @ z.mT + U @ xT).mT, z0, throw=False)
    assert e.forward.converged.tolist() == [True, False]
    with pytest.raises(FloatingPointError, match="remove them from the batch"):
        grad(e.z.sum(), (W, U))


def test_an_infinity_that_good_samples_need_is_not_hidden_in_silence():
    # The mask's shape looks like two samples, the second of which has failed.
    W, _, _, z0 = contraction(11, n=2, batch=2)
    mask = torch.tensor([[0.0, 0.0], [0.0, -math.inf]], dtype=f64)
    x = torch.tensor([[1.0], [math.nan]], dtype=f64)
    with pytest.raises(RuntimeError, match="remove the bad samples first"):
        equilibrium(lambda z: z @ W.T + torch.softmax(mask, 1)[1] + x, z0, throw=False)


@both
def test_a_sample_at_the_cap_has_the_gradient_at_its_point(direct_below):
    W, U, x, z0 = contraction(12, rho=0.9)
    f = lambda z: torch.tanh(z @ W.T + x @ U.T)  # noqa: E731
    e = equilibrium(f, z0, method="picard", max_iter=3, throw=False, direct_below=direct_below)
    assert (e.forward.status == Status.MAX_ITER).all()
    ours = grad(e.z.sum(), x)[0]
    slope = (1 - f(e.z.detach()) ** 2).detach()  # J = diag(slope) W and ∂_x f = diag(slope) U at z
    for i in range(4):
        A = torch.eye(3, dtype=f64) - slope[i][:, None] * W
        u = torch.linalg.solve(A.T, torch.ones(3, dtype=f64))
        torch.testing.assert_close(ours[i], (u * slope[i]) @ U)


@both
def test_the_gradient_of_a_sample_is_its_own(direct_below):
    W, U, x, z0 = contraction(13, batch=5, rho=0.9)
    together = grad(tanh(W, U, x, z0, direct_below=direct_below).sum(), x)[0]
    for i in range(5):
        alone = tanh(W, U, x[i : i + 1], z0[i : i + 1], direct_below=direct_below)
        torch.testing.assert_close(grad(alone.sum(), x)[0][i], together[i], rtol=1e-9, atol=1e-11)


# ----------------------------------------------------------------------------- shapes and refusals


@both
@pytest.mark.parametrize(
    ("shape", "state_ndim"),
    [((), 0), ((4,), 0), ((3,), 1), ((2, 2, 3), 1), ((2, 2, 3), 2), ((0, 3), 1)],
)
def test_any_batch_and_any_state(shape, state_ndim, direct_below):
    w = torch.tensor(0.7, dtype=f64, requires_grad=True)
    e = equilibrium(
        lambda z: torch.cos(w * z),
        torch.zeros(shape, dtype=f64),
        state_ndim=state_ndim,
        direct_below=direct_below,
    )
    (g,) = grad(e.z.sum(), w)
    z = e.z.detach()
    slope = -torch.sin(w * z)  # dz/dw = slope z / (1 − slope w)
    torch.testing.assert_close(g, (slope * z / (1 - slope * w)).sum())
    assert e.adjoint[0].residual.shape == shape[: len(shape) - state_ndim]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"adjoint_max_iter": 2}, ValueError, "adjoint_max_iter is 2; it must be an integer >= 3"),
        ({"direct_below": -1}, ValueError, "direct_below is -1; it must be an integer >= 0"),
        ({"direct_below": 1.5}, ValueError, "direct_below is 1.5"),
        ({"method": "broyden"}, ValueError, "method is 'broyden'"),
        ({"adjoint": "gmres"}, ValueError, "adjoint is 'gmres'; it must be one of"),
        ({"adjoint": 3}, TypeError, "adjoint is 3; it must be a name or a Picard"),
        ({"tol": 0.0}, ValueError, "tol is 0.0"),
        ({"max_iter": 2}, NotConvergedError, "reached max_iter"),
    ],
)
def test_wrong_input_is_refused_in_words(options, error, sentence):
    with pytest.raises(error, match=sentence):
        equilibrium(torch.cos, torch.zeros(2, 3, dtype=f64), **options)
