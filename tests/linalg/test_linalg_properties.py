"""Laws of Monarch matrices over drawn shapes, ranks and numbers; the draws are the same in every run."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_adjoint, assert_linear, relative_error

from monarch_sciml import MonarchMatrix, project
from monarch_sciml.kernels import monarch_dense
from monarch_sciml.linalg.factorization import factorize
from monarch_sciml.linalg.layouts import from_block_layout, to_block_layout
from monarch_sciml.linalg.projection import project_padded

laws = settings(derandomize=True, max_examples=60, deadline=None, database=None)
sizes = st.integers(1, 5)
dtypes = st.sampled_from([torch.float64, torch.complex128])
seeds = st.integers(0, 2**31)


@st.composite
def matrices(draw):
    """Any Monarch matrix: sizes of blocks from 1 to 5, ranks from 1 to 3."""
    J, S, K, I, T, dtype = *(draw(sizes) for _ in range(4)), draw(st.integers(1, 3)), draw(dtypes)
    torch.manual_seed(draw(seeds))
    return MonarchMatrix(torch.randn(J, S, K * T, dtype=dtype), torch.randn(K, J * T, I, dtype=dtype))


def blocks(count, size, dtype):
    """Random square blocks, none of them near a singular one."""
    Q = torch.linalg.qr(torch.randn(count, size, size, dtype=dtype)).Q
    return Q @ torch.diag_embed(0.5 + torch.rand(count, size, dtype=torch.float64)).to(dtype)


@st.composite
def pairs(draw):
    """Two invertible Monarch matrices of equal shape, with square blocks."""
    J, K, T, dtype = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(dtypes)
    torch.manual_seed(draw(seeds))
    counts = [(J, K), (K, J)] if draw(st.booleans()) else [(J, K), (J, K)]
    return [MonarchMatrix(blocks(j, k * T, dtype), blocks(k, j * T, dtype)) for j, k in counts]


@laws
@given(matrices())
def test_the_adjoint_and_linearity(M):
    assert_adjoint(M, dtype=M.L.dtype)
    assert_linear(M, dtype=M.L.dtype)


@laws
@given(matrices())
def test_subtracting_is_adding_the_opposite(M):
    two, x = 2 * M, torch.randn(M.shape[1], dtype=M.L.dtype)
    assert torch.equal((-M) @ x, -(M @ x))
    assert torch.equal((two - M) @ x, two @ x - M @ x)
    assert not ((M - M).H @ (M @ x)).any()
    assert_adjoint(two - M, dtype=M.L.dtype)


@laws
@given(pairs())
def test_solving_undoes_applying(pair):
    M, N = pair
    x = torch.randn(M.shape[1], 3, dtype=M.L.dtype)
    assert relative_error(M.solve(M @ x), x) < 1e-12
    assert relative_error(M @ M.solve(x), x) < 1e-12
    assert relative_error(M.inverse() @ (M @ x), x) < 1e-12
    assert relative_error((M @ N).to_dense(x.dtype) @ N.solve(M.solve(x)), x) < 1e-12


@laws
@given(pairs())
def test_determinants_multiply(pair):
    M, N = pair
    product = M.to_dense() @ N.to_dense()
    assert (M.det() * N.det() - torch.linalg.det(product)).abs() <= 1e-10 * torch.linalg.det(product).abs()
    (a, u), (b, v), (c, w) = M.slogdet(), N.slogdet(), torch.linalg.slogdet(product)
    assert (a * b - c).abs() < 1e-10
    assert (u + v - w).abs() < 1e-10
    assert (M.trace() - M.to_dense().trace()).abs() < 1e-12 * M.shape[0]


@st.composite
def dense(draw):
    """A matrix, block counts that divide it and a rank that it allows."""
    J, S, K, I, dtype = *(draw(sizes) for _ in range(4)), draw(dtypes)
    torch.manual_seed(draw(seeds))
    return torch.randn(S * J, K * I, dtype=dtype), (J, K), draw(st.integers(1, min(S, I)))


@laws
@given(dense())
def test_the_projection_is_idempotent_and_optimal(drawn):
    A, nblocks, rank = drawn
    M = project(A, nblocks, rank=rank)
    again = project(M.to_dense(), nblocks, rank=rank)
    assert relative_error(again.to_dense(), M.to_dense()) < 1e-13
    assert M.to_dense().norm() <= A.norm() * (1 + 1e-14)
    best = (A - M.to_dense()).abs().square().sum()
    for step in (1.0, 1e-2, 1e-4):
        nearby = [F + step * torch.randn(50, *F.shape, dtype=F.dtype) for F in (M.L, M.R)]
        errors = (A - monarch_dense(*nearby)).abs().square().sum((-2, -1))
        assert errors.min() >= best - 1e-12 * A.norm() ** 2


@laws
@given(dense(), st.integers(1, 3), st.integers(1, 3))
def test_counts_that_do_not_divide_give_a_projection_too(drawn, rows, columns):
    A, nblocks, rank = drawn
    m, n = max(A.shape[0] - rows, nblocks[0]), max(A.shape[1] - columns, nblocks[1])
    full = min(-(-m // nblocks[0]), -(-n // nblocks[1]))
    P = project_padded(A[:m, :n], nblocks, rank=min(rank, full))
    assert P.to_dense().shape == (m, n)
    again = project_padded(P.to_dense(), nblocks, rank=min(rank, full))
    assert relative_error(again.to_dense(), P.to_dense()) < 1e-13
    assert P.to_dense().norm() <= A[:m, :n].norm() * (1 + 1e-14)
    best = (A[:m, :n] - P.to_dense()).abs().square().sum()
    for step in (1.0, 1e-2):
        nearby = [F + step * torch.randn(50, *F.shape, dtype=F.dtype) for F in (P.full.L, P.full.R)]
        errors = (A[:m, :n] - monarch_dense(*nearby)[:, :m, :n]).abs().square().sum((-2, -1))
        assert errors.min() >= best - 1e-12 * A.norm() ** 2


@laws
@given(matrices())
def test_the_block_layout_goes_there_and_back(M):
    w1, w2 = to_block_layout(M)
    found = from_block_layout(w1, w2)
    assert torch.equal(found.L, M.L)
    assert torch.equal(found.R, M.R)
    assert (w1.numel(), w2.numel()) == (M.R.numel(), M.L.numel())


@settings(laws, max_examples=30)
@given(pairs().filter(lambda pair: pair[0].rank == 1 and pair[0].nblocks == pair[1].nblocks))
def test_products_with_an_adjoint_come_apart(pair):
    M, N = pair
    A = M.to_dense() @ N.to_dense().mH
    first, second = factorize(A, M.nblocks[0])
    found = first.to_dense() @ second.to_dense().mH
    assert relative_error(found, A.to(found.dtype)) < 1e-12
