"""deqlib.fixed_point: every method reaches what it promises, and says so when it does not."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.linalg import matrix_norm, vector_norm

from deqlib.fixed_point import (
    Anderson,
    Newton,
    NotConvergedError,
    Picard,
    Status,
    default_tol,
    jacobian,
    solve,
)

f64 = torch.float64
METHODS = ["picard", "anderson", "newton"]
ANY_METHOD = [*METHODS, Picard(every=3)]
modest = settings(deadline=None, derandomize=True, max_examples=25)


def affine(seed, rho, batch=(3,), n=4, dtype=f64):
    """f(z) = W z + b with ‖W‖₂ = ρ in every sample, and its fixed point (I − W)⁻¹ b."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(*batch, n, n, generator=draw, dtype=f64)
    W = rho * W / matrix_norm(W, 2)[..., None, None]
    b = torch.randn(*batch, n, generator=draw, dtype=f64)
    exact = torch.linalg.solve(torch.eye(n, dtype=f64) - W, b)
    W, b = W.to(dtype), b.to(dtype)
    return (lambda z: torch.einsum("...ij,...j->...i", W, z) + b), torch.zeros_like(b), exact


# ------------------------------------------------------------------------------------ the promise


@modest
@given(
    seed=st.integers(0, 10**6),
    rho=st.floats(0.0, 0.95),
    method=st.sampled_from(ANY_METHOD),
    dtype=st.sampled_from([torch.float32, f64]),
    power=st.floats(0.2, 0.65),
)
def test_residual_meets_the_tolerance_and_bounds_the_error(seed, rho, method, dtype, power):
    f, z0, exact = affine(seed, rho, dtype=dtype)
    eps = torch.finfo(dtype).eps
    tol = eps**power
    s = solve(f, z0, method=method, tol=tol, atol=0.0, max_iter=5000)
    assert s.converged.all()
    assert torch.equal(s.residual, vector_norm(f(s.z) - s.z, dim=-1))  # of exactly this z
    assert (s.residual <= tol * vector_norm(s.z, dim=-1)).all()
    error = vector_norm(s.z.to(f64) - exact, dim=-1)
    rounding = 50 * eps * vector_norm(exact, dim=-1) / (1 - rho)
    assert (error <= s.residual.to(f64) / (1 - rho) + rounding).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_tighter_tolerance_is_obeyed(method):
    f, z0, exact = affine(0, 0.8)
    loose = solve(f, z0, method=method, tol=1e-2, atol=0.0)
    tight = solve(f, z0, method=method, tol=1e-12, atol=0.0)
    assert (tight.iterations >= loose.iterations).all()
    assert vector_norm(tight.z - exact, dim=-1).max() < 1e-10
    if method == "picard":  # the others are exact in a few steps here
        assert vector_norm(loose.z - exact, dim=-1).min() > 1e-8


def test_default_tolerance_follows_the_dtype():
    assert default_tol(f64) == pytest.approx(3.667e-11, rel=1e-3)
    assert default_tol(torch.float32) == pytest.approx(2.422e-5, rel=1e-3)


def test_atol_decides_at_an_equilibrium_of_zero():
    half, one = (lambda z: z / 2), torch.ones(1, dtype=f64)
    s = solve(half, one, method="picard", atol=1e-6)
    assert s.residual <= 1e-6
    assert s.iterations == 20
    assert solve(half, one, method="picard", atol=0.0, throw=False).z != 0


# ------------------------------------------------------------------------------------ the methods


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9, -0.9])
def test_picard_takes_exactly_the_steps_its_rate_says(rho):
    # z ← ρ z + 1 from 0: residual |ρ|^k at z = (1 − ρ^k)/(1 − ρ).
    tol = 1e-8
    k = next(k for k in range(1000) if abs(rho) ** k <= tol * (1 - rho**k) / (1 - rho))
    s = solve(lambda z: rho * z + 1, torch.zeros(1, dtype=f64), method="picard", tol=tol, atol=0.0)
    assert s.iterations == k + 1  # k steps, and the evaluation at 0
    assert s.residual.item() == pytest.approx(abs(rho) ** k, rel=1e-6)


@pytest.mark.parametrize(
    ("damping", "status"),
    [
        (1.0, Status.DIVERGED),  # factor −3
        (0.6, Status.DIVERGED),  # factor −1.4
        (0.5, Status.MAX_ITER),  # factor −1
        (0.3, Status.CONVERGED),  # factor −0.2
        (0.1, Status.CONVERGED),  # factor 0.6
    ],
)
def test_damping_tames_a_steep_slope(damping, status):
    s = solve(lambda z: -3 * z + 1, torch.zeros(1, dtype=f64), method=Picard(damping), throw=False)
    assert s.status == status
    if status == Status.CONVERGED:
        assert s.z.item() == pytest.approx(0.25, rel=1e-9)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_picard_judged_every_few_evaluations_ends_at_a_point_of_the_same_orbit(every):
    f, z0, _ = affine(5, 0.8, batch=(20,))
    calls = []
    spy = lambda z: (calls.append(1), f(z))[1]  # noqa: E731
    s = solve(spy, z0, method=Picard(every=every), tol=1e-8)
    one = solve(f, z0, method="picard", tol=1e-8)
    assert s.converged.all()
    assert ((s.iterations - 1) % every == 0).all()
    assert (s.iterations >= one.iterations).all()
    assert (s.iterations < one.iterations + every).all()
    assert len(calls) == s.iterations.max()  # what is reported is what was spent
    assert torch.equal(s.residual, vector_norm(f(s.z) - s.z, dim=-1))
    z = z0
    for k in range(int(s.iterations.max())):
        ends = s.iterations == k + 1
        torch.testing.assert_close(s.z[ends], z[ends], rtol=1e-12, atol=1e-12)
        z = f(z)


def test_picard_judged_every_few_evaluations_stays_below_the_cap():
    calls = []
    spy = lambda z: (calls.append(1), 0.999 * z + 1)[1]  # noqa: E731
    s = solve(spy, torch.zeros(1, dtype=f64), method=Picard(every=4), max_iter=10, throw=False)
    assert s.status == Status.MAX_ITER
    assert s.iterations == len(calls) == 9


def test_an_overflow_between_two_judgements_is_a_divergence():
    # z ← z² overflows from 1e3 within ten evaluations, long before the first judgement is due.
    z0 = torch.tensor([[0.5], [1e3], [0.1]], dtype=f64)
    s = solve(lambda z: z**2, z0, method=Picard(every=20), throw=False)
    assert s.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert s.z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_anderson_needs_far_fewer_evaluations_than_picard(dtype):
    f, z0, _ = affine(1, 0.95, batch=(20,), n=30, dtype=dtype)
    symmetric = jacobian(f, z0)
    W = (symmetric + symmetric.mT) / 2
    W = 0.95 * W / matrix_norm(W, 2)[:, None, None]
    b = f(z0)
    g = lambda z: (W @ z[..., None])[..., 0] + b  # noqa: E731
    picard, anderson = (solve(g, z0, method=m).iterations.sum() for m in ("picard", "anderson"))
    assert 3 * anderson < picard


def test_anderson_with_enough_memory_ends_like_gmres():
    f, z0, _ = affine(2, 0.95, batch=(10,), n=4)
    s = solve(f, z0, method=Anderson(memory=4))
    assert (s.iterations <= 4 + 3).all()
    assert solve(f, z0, method="picard").iterations.max() > 100


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("ridge", [None, 0.0, 1e-10])
def test_anderson_survives_a_singular_gram_matrix(dtype, ridge):
    method = Anderson(memory=5, ridge=ridge)
    constant = solve(
        lambda z: torch.full_like(z, 2.0), torch.zeros(2, 3, dtype=dtype), method=method
    )
    assert (constant.z == 2).all()
    assert (constant.iterations == 2).all()
    # One dimension, memory five: every column is a multiple of the first.
    line = solve(lambda z: torch.cos(z), torch.zeros(2, 1, dtype=dtype), method=method)
    torch.testing.assert_close(line.z, torch.full_like(line.z, 0.7390851332), rtol=1e-4, atol=0)
    # All differences of the residual are 0, and there is nothing to find.
    shift = solve(
        lambda z: z + 1, torch.zeros(1, dtype=dtype), method=method, throw=False, max_iter=9
    )
    assert shift.status == Status.MAX_ITER
    assert shift.z.isfinite().all()


def test_anderson_does_not_depend_on_the_units():
    f, z0, _ = affine(3, 0.9, n=8)
    s = solve(f, z0, atol=0.0)
    for unit in (2.0**-30, 2.0**20):
        scaled = solve(lambda z, unit=unit: unit * f(z / unit), z0, atol=0.0)
        assert torch.equal(scaled.z, unit * s.z)
        assert torch.equal(scaled.iterations, s.iterations)


def test_anderson_takes_the_picard_step_where_the_extrapolation_is_wild():
    points = []

    def nearly_a_shift(z):  # g differs by 1e-9 a step: the secant would jump by 1e9
        points.append(z.item())
        return z + 1 + 1e-9 * z

    solve(nearly_a_shift, torch.zeros(1, dtype=f64), throw=False, max_iter=5)
    assert points == pytest.approx([0, 1, 2, 3, 4], abs=1e-6)


def test_anderson_forgets_a_history_that_misled_it():
    # The slope seen at 0 and 1 sends it to −100, where the residual is 2500 and not 0.
    points = []

    def f(z):
        points.append(z.item())
        return z + 1 + 0.01 * z + (-50 - z).clamp(min=0) ** 2

    solve(f, torch.zeros(1, dtype=f64), throw=False, max_iter=4)
    assert points == pytest.approx([0, 1, -100, -100 + 2500], rel=1e-6)


def test_newton_is_quadratic():
    f, z0 = torch.cos, torch.zeros(1, dtype=f64)
    residual = [
        solve(f, z0, method="newton", max_iter=k, tol=1e-15, throw=False).residual.item()
        for k in range(1, 7)
    ]
    for before, after in pairwise(residual):
        assert after <= before**2 + 1e-15  # f'' / 2 (1 − f')² < 1 here
    assert residual[-1] < 1e-14


def test_newton_solves_an_affine_map_in_one_step():
    f, z0, exact = affine(4, 3.0)  # not a contraction: nothing that Newton minds
    s = solve(f, z0, method="newton")
    assert (s.iterations == 2).all()
    torch.testing.assert_close(s.z, exact)


def test_newton_halves_a_step_that_leaves_the_domain():
    f = lambda z: z - torch.log(z)  # noqa: E731  the full step from 3 goes to 3 − 3 log 3 < 0
    s = solve(f, torch.tensor([3.0], dtype=f64), method="newton")
    assert s.z.item() == pytest.approx(1.0)


def test_newton_reports_a_singular_jacobian_and_a_missing_root():
    x = torch.tensor([[0.0], [1.0]], dtype=f64)
    s = solve(lambda z: z + x, x + 1, method="newton", throw=False)  # I − J = 0
    assert s.status.tolist() == [Status.CONVERGED, Status.STALLED]
    s = solve(lambda z: z + z**2 + 1, torch.ones(1, dtype=f64), method="newton", throw=False)
    assert s.status == Status.STALLED
    assert s.residual >= 1


# --------------------------------------------------------------- how it ends, sample by sample


def zoo(z, a, b):
    """a tanh(z) + b, coupled within the sample; a = 40 with the identity mixed in diverges."""
    wide = a.abs() > 10
    return torch.where(wide, a * z, a * torch.tanh(z.roll(1, -1))) + b


def test_every_status_in_one_batch():
    a = torch.tensor([0.5, 40.0, 0.5, 0.999], dtype=f64)[:, None]
    b = torch.tensor([1.0, 1.0, math.nan, 1e-3], dtype=f64)[:, None]
    s = solve(
        lambda z: zoo(z, a, b),
        torch.zeros(4, 2, dtype=f64),
        method="picard",
        throw=False,
        max_iter=30,
    )
    assert s.status.tolist() == [
        Status.CONVERGED,
        Status.DIVERGED,
        Status.NOT_FINITE,
        Status.MAX_ITER,
    ]
    assert s.converged.tolist() == [True, False, False, False]
    assert s.z.isfinite().all()
    assert s.residual[2] == math.inf
    assert s.iterations[2] == 1
    assert (s.z[2] == 0).all()
    assert s.iterations[3] == 30


def test_the_error_says_how_many_why_and_how_bad():
    a = torch.tensor([0.5, 40.0, 0.5], dtype=f64)[:, None]
    b = torch.tensor([1.0, 1.0, math.nan], dtype=f64)[:, None]
    with pytest.raises(
        NotConvergedError, match=r"2 of 3 samples .*1 diverged, 1 met NaN or infinity.*residual inf"
    ) as caught:
        solve(lambda z: zoo(z, a, b), torch.zeros(3, 2, dtype=f64), method="picard")
    assert caught.value.result.converged.tolist() == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_divergence_is_caught_before_overflow(dtype):
    s = solve(lambda z: 3 * z + 1, torch.zeros(2, 5, dtype=dtype), method="picard", throw=False)
    assert (s.status == Status.DIVERGED).all()
    assert (s.iterations < 25).all()


def test_an_overflow_of_the_norm_alone_is_no_convergence():
    s = solve(lambda z: 1e160 * torch.cos(z), torch.zeros(1, 2, dtype=f64), throw=False)
    assert s.status == Status.DIVERGED  # f(z) is finite, the sum of its squares is not


@pytest.mark.parametrize("method", [Picard(), Picard(0.5), Anderson()])
def test_a_failed_sample_returns_the_best_point_it_tried(method):
    f = lambda z: torch.cos(3 * z) + 0.5 * z.roll(1, -1)  # noqa: E731
    z0 = torch.tensor([[0.3, 2.0], [1.0, -1.0]], dtype=f64)
    tried = []

    def spy(z):
        tried.append(vector_norm(f(z) - z, dim=-1))
        return f(z)

    s = solve(spy, z0, method=method, max_iter=5, throw=False)
    assert torch.equal(s.residual, torch.stack(tried).min(0).values)
    assert torch.equal(s.residual, vector_norm(f(s.z) - s.z, dim=-1))


@modest
@given(
    a=st.lists(st.sampled_from([-0.9, 0.2, 0.7, 0.99, 40.0]), min_size=2, max_size=6),
    poison=st.lists(st.sampled_from([0.0, 0.3, math.nan, math.inf, 1e200]), min_size=6, max_size=6),
    method=st.sampled_from(ANY_METHOD),
)
def test_a_sample_does_not_notice_its_companions(a, poison, method):
    a = torch.tensor(a, dtype=f64)[:, None]
    b = torch.tensor(poison[: len(a)], dtype=f64)[:, None] + torch.tensor(
        [0.1, 0.0, -0.4], dtype=f64
    )
    options = {"method": method, "throw": False, "max_iter": 60}
    z0 = torch.zeros(len(a), 3, dtype=f64)
    together = solve(lambda z: zoo(z, a, b), z0, **options)
    for i in range(len(a)):
        one = slice(i, i + 1)
        alone = solve(lambda z, one=one: zoo(z, a[one], b[one]), z0[one], **options)
        assert torch.equal(alone.status, together.status[one])
        assert torch.equal(alone.iterations, together.iterations[one])
        torch.testing.assert_close(alone.z, together.z[one], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone.residual, together.residual[one], rtol=1e-6, atol=1e-11)


def test_a_finished_sample_is_frozen():
    rate = torch.tensor([[0.1], [0.9]], dtype=f64)
    points = []

    def f(z):
        points.append(z.clone())
        return rate * z + 1

    s = solve(f, torch.zeros(2, 1, dtype=f64), method="picard")
    k = int(s.iterations[0])
    assert k < s.iterations[1] == len(points)
    assert all(torch.equal(z[0], s.z[0]) for z in points[k - 1 :])


# --------------------------------------------------------------------------- shapes and refusals


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize(
    ("shape", "state_ndim"),
    [
        ((), 0),
        ((4,), 0),
        ((3,), 1),
        ((2, 4, 3), 1),
        ((2, 3), 2),
        ((5, 2, 3), 2),
        ((0, 3), 1),
        ((2, 0), 0),
    ],
)
def test_any_batch_and_any_state(method, dtype, shape, state_ndim):
    z0 = torch.zeros(shape, dtype=dtype)
    s = solve(lambda z: torch.cos(z), z0, method=method, state_ndim=state_ndim)
    batch = shape[: len(shape) - state_ndim]
    assert s.z.shape == shape
    assert s.z.dtype == dtype
    assert s.residual.shape == s.iterations.shape == s.status.shape == s.converged.shape == batch
    assert s.iterations.dtype == s.status.dtype == torch.int64
    torch.testing.assert_close(s.z, torch.full_like(s.z, 0.7390851332), rtol=1e-4, atol=0)


def test_nothing_is_recorded_and_the_start_is_untouched():
    z0 = torch.zeros(2, 3, dtype=f64, requires_grad=True)
    w = torch.tensor(0.5, dtype=f64, requires_grad=True)
    for method in METHODS:
        s = solve(lambda z: torch.cos(w * z), z0, method=method)
        assert not s.z.requires_grad
        assert not s.residual.requires_grad
    assert (z0 == 0).all()
    assert z0.grad is None
    assert w.grad is None


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"z0": torch.zeros(3, dtype=torch.int64)}, TypeError, "z0 has dtype torch.int64"),
        (
            {"z0": torch.zeros(3, dtype=torch.complex128)},
            TypeError,
            "z0 has dtype torch.complex128",
        ),
        ({"z0": [0.0]}, TypeError, "z0 is a list; it must be a tensor"),
        ({"z0": torch.tensor([math.nan])}, ValueError, "z0 holds NaN or infinity"),
        ({"tol": 1e-17}, ValueError, "tol is 1e-17; it must be below 1 and at least 2.22e-16"),
        ({"tol": math.nan}, ValueError, "tol is nan"),
        ({"tol": 2.0}, ValueError, "tol is 2.0; it must be below 1"),
        ({"z0": torch.zeros(3), "tol": 1e-9}, ValueError, "at least 1.19e-07"),
        ({"atol": -1.0}, ValueError, "atol is -1.0; it must be a finite number >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter is 0; it must be an integer >= 1"),
        ({"max_iter": 3.0}, ValueError, "max_iter is 3.0"),
        ({"max_iter": True}, ValueError, "max_iter is True"),
        ({"state_ndim": 2}, ValueError, "state_ndim is 2; it must be an integer from 0 to 1"),
        ({"state_ndim": -1}, ValueError, "state_ndim is -1"),
        ({"method": "broyden"}, ValueError, r"method is 'broyden'; it must be one of \['anderson'"),
        ({"method": 3}, TypeError, "method is 3; it must be a name or a Picard"),
        (
            {"f": lambda z: z[:2]},
            ValueError,
            r"f\(z\) has shape \(2,\); it must be that of z0, \(3,\)",
        ),
        ({"f": lambda z: z.float()}, TypeError, r"f\(z\) has dtype torch.float32"),
        ({"f": lambda z: z.to("meta")}, TypeError, r"f\(z\) has device meta"),
        ({"f": lambda z: (z, z)}, TypeError, "f returned a tuple; it must return a tensor"),
    ],
)
def test_wrong_input_is_refused_in_words(options, error, sentence):
    options = {"f": torch.cos, "z0": torch.zeros(3, dtype=f64), **options}
    with pytest.raises(error, match=sentence):
        solve(options.pop("f"), options.pop("z0"), **options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Picard(damping=0.0), "damping is 0.0; it must be a finite number > 0"),
        (lambda: Anderson(damping=math.inf), "damping is inf"),
        (lambda: Anderson(memory=0), "memory is 0; it must be an integer >= 1"),
        (lambda: Anderson(ridge=-1.0), "ridge is -1.0"),
        (lambda: Anderson(ridge=math.nan), "ridge is nan"),
    ],
)
def test_a_method_refuses_wrong_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# ----------------------------------------------------------------------------------- the Jacobian


def test_jacobian_of_every_sample():
    z = torch.linspace(-1, 1, 12, dtype=f64).reshape(2, 2, 3)
    W = torch.arange(9.0, dtype=f64).reshape(3, 3)
    expected = (1 - torch.tanh(z @ W.T) ** 2)[..., None] * W
    torch.testing.assert_close(jacobian(lambda z: torch.tanh(z @ W.T), z), expected)
    J = jacobian(lambda z: z.mT.reshape(z.shape), z, state_ndim=2)  # a permutation of 6 entries
    assert J.shape == (2, 6, 6)
    torch.testing.assert_close((J @ z.reshape(2, 6, 1))[..., 0], z.mT.reshape(2, 6))
    assert (jacobian(torch.ones_like, z) == 0).all()
    torch.testing.assert_close(jacobian(torch.sin, z, state_ndim=0)[..., 0, 0], torch.cos(z))


def test_newton_methods_are_values():
    assert Newton() == Newton()
    assert Anderson(memory=3) != Anderson()
    assert hash(Picard(0.5)) == hash(Picard(0.5))
