"""The analytic projection is idempotent, has the error theory gives, and no search finds a closer one."""

import numpy as np
import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError, MonarchMatrix, dft, project
from monarch_sciml.kernels import monarch_dense
from monarch_sciml.linalg import StridePermutation, balanced_factors

# batch, (m, n), (J, K), rank
CASES = [
    ((), (9, 9), None, 1),
    ((), (12, 12), (3, 4), 1),
    ((), (10, 21), (2, 3), 1),
    ((), (7, 5), (1, 1), 1),
    ((), (7, 5), (7, 5), 1),
    ((3,), (12, 8), (4, 2), 1),
    ((2, 2), (6, 6), None, 1),
    ((), (10, 21), (2, 3), 3),
    ((), (7, 5), (1, 1), 4),
    ((3,), (12, 8), (4, 2), 2),
]
DTYPES = [torch.float64, torch.complex128]


def random_monarch(batch, shape, nblocks, dtype, rank=1):
    m, n = shape
    J, K = nblocks or (balanced_factors(m)[0], balanced_factors(n)[1])
    L = torch.randn(*batch, J, m // J, K * rank, dtype=dtype)
    return MonarchMatrix(L, torch.randn(*batch, K, J * rank, n // K, dtype=dtype))


def squared_error(A, M):
    return (A - M.to_dense()).abs().square().sum().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_monarch_matrix_is_recovered(case, dtype):
    batch, shape, nblocks, rank = case
    M = random_monarch(batch, shape, nblocks, dtype, rank)
    found = project(M.to_dense(), nblocks, rank=rank)
    assert found.L.dtype == dtype
    assert (found.L.shape, found.R.shape) == (M.L.shape, M.R.shape)
    assert relative_error(found.to_dense(), M.to_dense()) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_projecting_twice_changes_nothing(case, dtype):
    batch, shape, nblocks, rank = case
    once = project(torch.randn(*batch, *shape, dtype=dtype), nblocks, rank=rank)
    twice = project(once.to_dense(), nblocks, rank=rank)
    assert relative_error(twice.to_dense(), once.to_dense()) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_squared_error_is_the_tail_of_the_slice_spectra(case, dtype):
    batch, (m, n), nblocks, rank = case
    A = torch.randn(*batch, m, n, dtype=dtype)
    M = project(A, nblocks, rank=rank)
    J, K = M.nblocks
    tail = 0.0
    for matrix in A.reshape(-1, m, n).numpy():
        for j in range(J):
            for k in range(K):
                block = matrix[j::J, k * (n // K) : (k + 1) * (n // K)]
                tail += np.sum(np.linalg.svd(block, compute_uv=False)[rank:] ** 2)
    assert squared_error(A, M) == pytest.approx(tail, rel=1e-12, abs=1e-24)
    assert M.rank == rank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "nblocks", "rank"), [((9, 9), (3, 3), 1), ((10, 12), (5, 3), 1), ((12, 9), (3, 3), 2)]
)
def test_random_candidates_are_never_closer(shape, nblocks, rank, dtype):
    A = torch.randn(shape, dtype=dtype)
    best = squared_error(A, project(A, nblocks, rank=rank))
    candidates = random_monarch((1000,), shape, nblocks, dtype, rank).to_dense()
    # each at its best multiple, the projection of A on its line
    inner = (candidates.conj() * A).sum((-2, -1)).abs().square()
    errors = A.abs().square().sum() - inner / candidates.abs().square().sum((-2, -1))
    assert errors.min() > best
    # nor are small steps away from the optimum
    M = project(A, nblocks, rank=rank)
    for step in (1e-1, 1e-3, 1e-5):
        L, R = (F + step * torch.randn(1000, *F.shape, dtype=dtype) for F in (M.L, M.R))
        assert (A - monarch_dense(L, R)).abs().square().sum((-2, -1)).min() >= best


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "nblocks"), [((9, 9), (3, 3)), ((8, 15), (2, 5))])
def test_gradient_descent_from_twenty_starts_ends_no_closer(shape, nblocks, dtype):
    A = torch.randn(shape, dtype=dtype)
    best = squared_error(A, project(A, nblocks))
    start = random_monarch((20,), shape, nblocks, dtype)
    factors = [start.L.requires_grad_(), start.R.requires_grad_()]
    optimizer = torch.optim.LBFGS(factors, max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def errors():
        return (A - monarch_dense(*factors)).abs().square().sum((-2, -1))

    def closure():
        optimizer.zero_grad()
        loss = errors().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = errors().detach()
    assert reached.min() > best * (1 - 1e-10)
    assert reached.min() < best * (1 + 1e-4), "the search must come near the optimum to mean something"


@pytest.mark.parametrize("n", [4, 12, 30, 64, 100])
def test_the_dft_is_monarch_after_a_stride_permutation(n):
    p, q = balanced_factors(n)
    A = (dft(n) @ StridePermutation(p, q).H).to_dense(torch.complex128)
    M = project(A)
    assert relative_error(M.to_dense(), A) < 1e-13
    assert relative_error((M @ StridePermutation(p, q)).to_dense(torch.complex128), dft(n).to_dense()) < 1e-13


def test_the_plain_dft_is_not_monarch():
    F = dft(12).to_dense()
    assert relative_error(project(F).to_dense(), F) > 0.1


def test_singular_values_are_shared_and_zero_is_harmless():
    M = project(torch.randn(9, 9, dtype=torch.float64))
    norms = M.L.norm(dim=1), M.R.norm(dim=2).mT  # of columns of L and rows of R, both (J, K)
    assert relative_error(*norms) < 1e-14
    assert project(torch.zeros(6, 6)).to_dense().count_nonzero() == 0


def test_lower_precision_keeps_its_dtype():
    A = random_monarch((), (12, 12), None, torch.complex64).to_dense()
    M = project(A)
    assert M.L.dtype == torch.complex64
    assert relative_error(M.to_dense(), A) < 1e-6


def test_errors_name_the_remedy():
    with pytest.raises(InputError, match=r"J dividing 12 and K dividing 10; found \(5, 5\); choose divisors"):
        project(torch.randn(12, 10), (5, 5))
    with pytest.raises(InputError, match=r"a rank from 1 to 3; found 4; choose fewer blocks or a lower rank"):
        project(torch.randn(12, 10), (4, 2), rank=4)
    with pytest.raises(InputError, match=r"found \(0, 5\)"):
        project(torch.randn(12, 10), (0, 5))
    with pytest.raises(InputError, match=r"found torch.int64 of shape \(4, 4\); convert it"):
        project(torch.ones(4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"found torch.float32 of shape \(4,\)"):
        project(torch.randn(4))
