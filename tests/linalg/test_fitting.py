"""Least squares over Monarch matrices: exact where samples suffice, never rising, optimal in each factor."""

from itertools import pairwise

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError, MonarchMatrix, project
from monarch_sciml.kernels import monarch_dense
from monarch_sciml.linalg.fitting import fit

DTYPES = [torch.float64, torch.complex128]
# (J, S, K, I, T)
BLOCKS = [(4, 4, 4, 4, 1), (3, 5, 2, 7, 1), (2, 5, 3, 7, 2), (1, 4, 1, 6, 2), (5, 3, 4, 2, 1)]


def monarch(J, S, K, I, T, dtype):
    return MonarchMatrix(torch.randn(J, S, K * T, dtype=dtype), torch.randn(K, J * T, I, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_enough_samples_recover_the_matrix(blocks, dtype):
    M = monarch(*blocks, dtype)
    n = M.shape[1]
    for c in (n, n + 1, 3 * n):
        X = torch.randn(n, c, dtype=dtype)
        found, residuals = fit(X, M @ X, M.nblocks, rank=M.rank)
        assert relative_error(found.to_dense(), M.to_dense()) < 1e-9
        assert residuals[-1] < 1e-12
        assert (found.nblocks, found.rank) == (M.nblocks, M.rank)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fewer_samples_than_inputs_can_do(dtype):
    M = monarch(6, 6, 6, 6, 1, dtype)  # 11 samples hold as many equations as it has degrees of freedom
    X = torch.randn(36, 27, dtype=dtype)
    found, residuals = fit(X, M @ X, (6, 6))
    assert residuals[0] > 0.1
    assert residuals[-1] < 1e-13
    assert relative_error(found.to_dense(), M.to_dense()) < 1e-12
    # what 27 samples leave open a dense matrix gets wrong
    assert relative_error((M @ X) @ torch.linalg.pinv(X), M.to_dense()) > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [9, 20, 60])
@pytest.mark.parametrize("blocks", BLOCKS[:3], ids=str)
def test_the_residual_never_rises(blocks, c, dtype):
    J, S, K, I, T = blocks
    X, Y = torch.randn(K * I, c, dtype=dtype), torch.randn(J * S, c, dtype=dtype)
    found, residuals = fit(X, Y, (J, K), rank=T, sweeps=30)
    assert residuals == sorted(residuals, reverse=True)
    assert len(residuals) > 2
    assert residuals[-1] == pytest.approx(relative_error(found @ X, Y), rel=1e-10, abs=1e-14)
    if c >= K * I:
        start = project(Y @ torch.linalg.pinv(X), (J, K), rank=T)
        assert residuals[0] == pytest.approx(relative_error(start @ X, Y), rel=1e-10, abs=1e-14)


def test_rounding_ends_the_search():
    X, Y = torch.randn(6, 40, dtype=torch.float64), torch.randn(4, 40, dtype=torch.float64)
    for seed in range(5):
        torch.manual_seed(seed)
        residuals = fit(X, Y + torch.randn_like(Y), (2, 3), tol=0.0, sweeps=2000).residuals
        assert len(residuals) < 2000
        assert all(later < earlier for earlier, later in pairwise(residuals))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS[:3], ids=str)
def test_no_step_nearby_is_better(blocks, dtype):
    J, S, K, I, T = blocks
    X = torch.randn(K * I, 3 * K * I, dtype=dtype)
    Y = torch.randn(J * S, 3 * K * I, dtype=dtype)
    M, _ = fit(X, Y, (J, K), rank=T, tol=1e-13, sweeps=2000)
    L, R = M.L.requires_grad_(), M.R.requires_grad_()
    loss = (monarch_dense(L, R) @ X - Y).abs().square().sum()
    for gradient, factor in zip(torch.autograd.grad(loss, (L, R)), (L, R), strict=True):
        assert gradient.norm() * factor.norm() < 1e-5 * loss
    best = loss.item()
    for step in (1e-1, 1e-3):
        nearby = [F.detach() + step * torch.randn(200, *F.shape, dtype=dtype) for F in (L, R)]
        assert (monarch_dense(*nearby) @ X - Y).abs().square().sum((-2, -1)).min() >= best


def test_white_inputs_make_it_the_projection():
    A = torch.randn(10, 12, dtype=torch.float64)
    X = torch.linalg.qr(torch.randn(20, 12, dtype=torch.float64)).Q.mT
    found, residuals = fit(X, A @ X, (5, 3))
    assert relative_error(found.to_dense(), project(A, (5, 3)).to_dense()) < 1e-6
    assert residuals[-1] == pytest.approx(relative_error(project(A, (5, 3)).to_dense(), A), rel=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_averaged_better_than_by_a_dense_matrix(dtype):
    M = monarch(6, 6, 6, 6, 1, dtype)
    X = torch.randn(36, 144, dtype=dtype)
    Y = M @ X
    Y = Y + 0.01 * Y.abs().square().mean().sqrt() * torch.randn_like(Y)
    found, residuals = fit(X, Y, (6, 6))
    error, dense = (relative_error(A, M.to_dense()) for A in (found.to_dense(), Y @ torch.linalg.pinv(X)))
    assert error < 0.6 * dense < 0.01
    assert 0.008 < residuals[-1] < 0.0101


def test_inputs_that_depend_on_each_other():
    M = monarch(4, 4, 4, 4, 1, torch.float64)
    X = torch.randn(16, 5, dtype=torch.float64) @ torch.randn(5, 40, dtype=torch.float64)
    found, residuals = fit(X, M @ X, (4, 4))
    assert residuals[-1] < 0.02
    assert found.to_dense().isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64])
@pytest.mark.parametrize("c", [10, 40])
def test_units_change_nothing(c, dtype):
    """The squares of these numbers are zero or infinite in their own precision."""
    X, Y = torch.randn(16, c, dtype=dtype), torch.randn(12, c, dtype=dtype)
    expected = fit(X, Y, (4, 4), tol=1e-3)
    small = 1e-25 if dtype != torch.float64 else 1e-200
    for x, y in ((1.0, small), (small, small), (1 / small, 1.0), (1.0, 1 / small), (1 / small, 1 / small)):
        M, residuals = fit(x * X, y * Y, (4, 4), tol=1e-3)
        assert residuals == pytest.approx(expected.residuals, rel=1e-4)
        assert relative_error((M @ (x * X)) / y, expected.matrix @ X) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_single(dtype):
    X, Y = torch.randn(6, 8).to(dtype), torch.randn(4, 8).to(dtype)
    M, residuals = fit(X, Y, (2, 3))
    single = fit(X.float(), Y.float(), (2, 3))
    assert residuals == single.residuals
    assert torch.equal(M.L, single.matrix.L.to(dtype))
    assert torch.equal(M.R, single.matrix.R.to(dtype))


def test_mixed_and_zero_data():
    X, Y = torch.randn(6, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.complex128)
    assert fit(X, Y, (2, 3)).matrix.L.dtype == torch.complex128
    M, residuals = fit(X, torch.zeros(4, 8, dtype=torch.float64), (2, 3))
    assert M.to_dense().count_nonzero() == 0
    assert residuals == [0.0]
    assert fit(X.float(), torch.randn(4, 8), (2, 3)).matrix.R.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [9, 32])
@pytest.mark.parametrize("equal", [2, 4])
def test_blocks_of_equal_inputs_share_what_one_cannot_explain(equal, samples, dtype):
    for seed in range(3):
        torch.manual_seed(seed)
        M = monarch(4, 4, 4, 4, 1, dtype)
        X = torch.randn(4, 4, samples, dtype=dtype)
        X[:equal] = X[:1].clone()
        X = X.flatten(0, 1)
        residuals = fit(X, M @ X, (4, 4)).residuals
        assert residuals[-1] < (1e-12 if samples == 32 or equal == 4 else 0.1)
        assert all(later < earlier for earlier, later in pairwise(residuals))


def test_fewer_samples_than_the_rank():
    X, Y = torch.randn(12, 1, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    M, residuals = fit(X, Y, (3, 3), rank=2)
    assert (M.rank, M.nblocks) == (2, (3, 3))
    assert residuals[-1] < 1e-12


def test_errors_name_the_remedy():
    with pytest.raises(
        InputError, match=r"X \(n, c\) and Y \(m, c\); found X \(6, 8\) and Y \(4, 7\); transpose"
    ):
        fit(torch.randn(6, 8), torch.randn(4, 7), (2, 3))
    with pytest.raises(InputError, match="finite samples; found NaN or infinity; leave those columns out"):
        fit(torch.randn(6, 8), torch.full((4, 8), torch.nan), (2, 3))
    with pytest.raises(InputError, match=r"floating-point or complex samples; found torch.int64; convert"):
        fit(torch.ones(6, 8, dtype=torch.int64), torch.ones(4, 8, dtype=torch.int64), (2, 3))
    with pytest.raises(InputError, match="samples as columns"):
        fit(torch.randn(6, 0), torch.randn(4, 0), (2, 3))
    with pytest.raises(InputError, match=r"J dividing 4 and K dividing 6; found \(3, 3\)"):
        fit(torch.randn(6, 8), torch.randn(4, 8), (3, 3))
    with pytest.raises(InputError, match="a rank from 1 to 2; found 3"):
        fit(torch.randn(6, 8), torch.randn(4, 8), (2, 3), rank=3)
