"""Members of MM* come apart into two Monarch matrices; what is no member is refused with the reason."""

import numpy as np
import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError, MonarchMatrix
from monarch_sciml.linalg.factorization import factorize

DTYPES = [torch.float64, torch.complex128]


def conditioned(*shape, dtype, spread=2.0):
    """Random matrices with singular values between 1/spread and spread."""
    U, _, Vh = torch.linalg.svd(torch.randn(shape, dtype=dtype))
    exponents = 2 * torch.rand(shape[:-1], dtype=torch.float64) - 1
    return U @ torch.diag_embed((spread**exponents).to(dtype)) @ Vh


def member(J, S, dtype):
    """M₁ M₂ᴴ for random, well-conditioned Monarch matrices: D_ij between 1/2 and 2 in size."""
    left, right = (conditioned(J, S, S, dtype=dtype) for _ in range(2))
    phases = torch.randn(S, J, J, dtype=dtype)
    D = phases / phases.abs() * 2.0 ** (2 * torch.rand(S, J, J, dtype=torch.float64) - 1)
    eye = torch.eye(J, dtype=dtype).expand(S, J, J)
    return MonarchMatrix(left, D).to_dense() @ MonarchMatrix(right, eye).to_dense().mH


def product(factors):
    first, second = factors
    return first.to_dense() @ second.to_dense().mH


def circulant(c):
    i = torch.arange(len(c))
    return c[(i[:, None] - i) % len(c)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("J", "S"), [(4, 4), (2, 8), (8, 2), (1, 5), (5, 1), (3, 5), (8, 8), (4, 16), (9, 16), (16, 9), (12, 12)]
)
def test_members_come_apart(J, S, dtype):
    A = member(J, S, dtype)
    first, second = factorize(A, J)
    assert relative_error(product((first, second)), A) < 1e-12
    for M in (first, second):
        assert M.nblocks == (J, S)
        assert M.shape == A.shape
        assert M.rank == 1
    # as operators too
    x = torch.randn(J * S, dtype=torch.complex128)
    assert relative_error((first @ second.H) @ x, A.to(x.dtype) @ x) < 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_hundred_random_members(dtype):
    generator = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        J, S = generator.integers(2, 6, 2).tolist()
        A = member(J, S, dtype)
        worst = max(worst, relative_error(product(factorize(A, J)), A))
    assert worst < 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_any_two_monarch_matrices_are_members(dtype):
    for J, S in ((4, 4), (3, 6), (6, 3)):
        M1, M2 = (
            MonarchMatrix(conditioned(J, S, S, dtype=dtype), conditioned(S, J, J, dtype=dtype))
            for _ in range(2)
        )
        A = M1.to_dense() @ M2.to_dense().mH
        assert relative_error(product(factorize(A, J)), A) < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("J", "S"), [(2, 8), (4, 4), (6, 6), (12, 12)])
def test_noise_on_the_entries_stays_small(J, S, dtype):
    A = member(J, S, dtype)
    noise = 1e-8 * A.abs().square().mean().sqrt() * torch.randn_like(A)
    found = product(factorize(A + noise, J))
    assert relative_error(found, A) < 2e-8
    # and a fit with fewer numbers than entries averages some of it away
    assert relative_error(found, A + noise) < relative_error(A + noise, A)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "J"), [(12, 3), (12, 4), (16, None), (30, 5), (36, 6), (60, 10), (144, 12)])
def test_circulant_matrices_are_members(n, J, dtype, noise):
    A = circulant(torch.randn(n, dtype=dtype))
    found = product(factorize(A + noise * torch.randn_like(A), J))
    assert relative_error(found.to(torch.complex128), A.to(torch.complex128)) < max(1e-12, 5 * noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eigenvalues_that_repeat(dtype):
    J, S = 4, 6
    X, Y = conditioned(S, S, dtype=dtype), conditioned(J, J, dtype=dtype)
    for noise in (0.0, 1e-8):  # all F(i, j) are multiples of the identity
        A = torch.kron(X, Y)
        found = product(factorize(A + noise * torch.randn_like(A), J))
        assert relative_error(found, A.to(found.dtype)) < max(1e-12, 5 * noise)
    # every other eigenvalue is shared: half the basis is free
    left, right = (conditioned(J, S, S, dtype=dtype) for _ in range(2))
    D = torch.randn(J, J, S, dtype=dtype)
    D[..., ::2] = D[..., :1]
    A = ((left[:, None] * D[..., None, :]) @ right).permute(2, 0, 3, 1).reshape(J * S, J * S)
    found = product(factorize(A, J))
    assert relative_error(found, A.to(found.dtype)) < 1e-9


def test_eigenvectors_that_rounding_makes_parallel():
    J, S = 3, 6
    A = torch.kron(torch.eye(S, dtype=torch.float64), conditioned(J, J, dtype=torch.float64))
    # a Jordan block in place of one multiple of the identity: its eigenvectors all but coincide
    shift = torch.diag(torch.ones(S - 1, dtype=torch.float64), 1)
    A[1::J, 2::J] += 1e-9 * shift
    found = product(factorize(A, J))
    assert relative_error(found, A.to(found.dtype)) < 1e-8


def test_real_members_may_need_complex_factors():
    A = member(4, 4, torch.float64)
    assert factorize(A, 4)[0].L.dtype == torch.float64
    A = circulant(torch.randn(16, dtype=torch.float64))
    first, second = factorize(A, 4)
    assert first.L.dtype == second.R.dtype == torch.complex128
    assert product((first, second)).imag.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision(dtype):
    A = member(4, 6, torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    first, second = factorize(A, 4)
    assert {t.dtype for M in (first, second) for t in (M.L, M.R)} == {dtype}
    assert relative_error(product((first, second)), A) < 1e-6


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 0.0), (torch.float64, 1e-5)])
@pytest.mark.parametrize("S", [5, 8])
def test_nearly_singular_blocks_do_not_hide_a_member(S, dtype, noise):
    """Condition numbers of blocks reach 1e7 here, and rounding or noise is magnified by them at first."""
    J, n = 3, 3 * S
    for seed in range(12):
        torch.manual_seed(seed)
        shapes = 2 * ((J, S, S), (S, J, J))
        L1, R1, L2, R2 = (torch.randn(shape).double() for shape in shapes)
        A = MonarchMatrix(L1, R1).to_dense() @ MonarchMatrix(L2, R2).to_dense().mH
        A = (A + noise * A.norm() / n * torch.randn(n, n, dtype=torch.float64)).to(dtype)
        found = product(factorize(A, J, tol=max(1e-6, 100 * noise)))
        assert relative_error(found, A.to(found.dtype)) < max(2e-7, noise)


def test_units_change_nothing():
    A = member(3, 4, torch.float64)
    for scale in (1e-300, 1e-150, 1e150, 1e300):
        assert relative_error(product(factorize(scale * A, 3)) / scale, A) < 1e-12


def test_complex_factors_of_half_precision():
    A = circulant(torch.randn(9)).half()  # torch computes little with complex numbers of half precision
    first, second = factorize(A, 3, tol=1e-3)
    assert first.L.dtype == second.R.dtype == torch.complex64
    assert relative_error(product((first, second)), A.to(torch.complex64)) < 1e-3


def test_two_blocks_hold_almost_every_matrix():
    A = torch.randn(12, 12, dtype=torch.complex128)  # a single F(i, j) is not the identity
    assert relative_error(product(factorize(A, 2)), A) < 1e-10


def test_zeros_elsewhere_do_no_harm():
    """Only one row and one column of blocks must be invertible, and any will do."""
    J, S = 4, 5
    left, right = (conditioned(J, S, S, dtype=torch.float64) for _ in range(2))
    D = 1 + torch.rand(J, J, S, dtype=torch.float64)
    D[0, 0], D[1, 3, 2] = 0, 0
    A = ((left[:, None] * D[..., None, :]) @ right).permute(2, 0, 3, 1).reshape(J * S, J * S)
    assert relative_error(product(factorize(A, J)), A) < 1e-9


def test_the_violated_assumption_is_named():
    with pytest.raises(
        InputError, match=r"share their eigenvectors; found a relative residual of .*project\(A\)"
    ):
        factorize(torch.randn(16, 16), 4)
    A = member(4, 4, torch.float64)
    with pytest.raises(InputError, match=r"MM\* with 8 blocks"):
        factorize(A, 8)
    with pytest.raises(InputError, match="share their eigenvectors"):
        factorize(A + 1e-4 * torch.randn_like(A), 4)
    assert factorize(A + 1e-4 * torch.randn_like(A), 4, tol=1e-3)
    B = A.clone()
    B[1::4] = 0
    with pytest.raises(
        InputError, match=r"every block row; found only singular ones in block row 1: A_i is singular"
    ):
        factorize(B, 4)
    B = A.clone()
    B[:, 6] = B[:, 2]  # both in block column 2
    with pytest.raises(
        InputError, match=r"only singular ones in block column 2: C_j is singular or its D_ij"
    ):
        factorize(B, 4)
    with pytest.raises(
        InputError, match=r"D_ij without zeros in .*row; found a singular block in each, first block \(0, 1\)"
    ):
        factorize(torch.eye(16), 4)
    with pytest.raises(InputError, match=r"a number of blocks that divides 16; found 5; choose a divisor"):
        factorize(A, 5)
    with pytest.raises(InputError, match=r"a square matrix \(n, n\).*found torch.float64 of shape \(16, 8\)"):
        factorize(A[:, :8])
    with pytest.raises(InputError, match="finite entries; found NaN or infinity"):
        factorize(torch.full((16, 16), torch.nan))
