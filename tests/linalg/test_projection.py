"""The analytic projection is idempotent, has the error theory gives, and no search finds a closer one."""

import numpy as np
import pytest
import torch
from laws import assert_adjoint, assert_linear, relative_error
from torch._subclasses.fake_tensor import FakeTensorMode

from monarch_sciml import InputError, MonarchMatrix, dft, project
from monarch_sciml.kernels import monarch_dense
from monarch_sciml.linalg import StridePermutation, balanced_factors
from monarch_sciml.linalg.projection import (
    BlockChoice,
    Cropped,
    choose_blocks,
    compare_blocks,
    project_padded,
)

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_single(dtype):
    A = torch.randn(12, 10).to(dtype)
    M, single = project(A, (4, 5)), project(A.float(), (4, 5))
    assert (M.L.dtype, M.R.dtype) == (dtype, dtype)
    assert torch.equal(M.L, single.L.to(dtype))
    assert torch.equal(M.R, single.R.to(dtype))
    assert project_padded(A, (5, 3)).full.L.dtype == dtype
    # rounding to this dtype hides no structure, and is not taken for one
    exact = random_monarch((), (36, 36), (6, 6), torch.float32).to_dense().to(dtype)
    for budget in (0.34, 0.5, 0.9):
        assert choose_blocks(exact, budget)[:3] == ((6, 6), 1, 432)
    found, expected = (compare_blocks(B, 0.6) for B in (A, A.float()))
    assert {row.nblocks for row in found} == {row.nblocks for row in expected}
    assert found[0].error == pytest.approx(expected[0].error, abs=torch.finfo(dtype).eps)


def test_numbers_that_are_not_finite_are_refused():
    for value in (torch.nan, torch.inf, complex(0, torch.inf)):
        A = torch.randn(12, 10, dtype=torch.complex64 if isinstance(value, complex) else torch.float32)
        A[3, 4] = value
        for call in (project, lambda A: project_padded(A, (5, 3)), lambda A: choose_blocks(A, 0.5)):
            with pytest.raises(
                InputError, match=r"finite numbers; found NaN or infinity; A.isfinite\(\) shows"
            ):
                call(A)
    assert project(torch.empty(12, 10, device="meta")).shape == (12, 10)  # which holds no numbers


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_hundred_random_matrices(dtype):
    generator = np.random.default_rng(0)
    for _ in range(200):
        J, K, S, I = generator.integers(1, 6, 4).tolist()
        rank = int(generator.integers(1, min(S, I) + 1))
        A = torch.randn(S * J, K * I, dtype=dtype)
        M = project(A, (J, K), rank=rank)
        blocks = A.numpy().reshape(S, J, K, I).transpose(1, 2, 0, 3)
        tail = (np.linalg.svd(blocks, compute_uv=False)[..., rank:] ** 2).sum()
        assert squared_error(A, M) == pytest.approx(tail, rel=1e-11, abs=1e-24)
        # the error stands at a right angle to what is kept, as in every projection
        assert abs(((A - M.to_dense()).conj() * M.to_dense()).sum()) < 1e-12 * A.norm() ** 2


# batch, (m, n), (J, K), rank: primes, one side that divides, more blocks than half the size
PADDED = [
    ((), (13, 17), (3, 4), 1),
    ((), (12, 11), (3, 4), 1),
    ((), (7, 12), (4, 3), 2),
    ((2,), (10, 7), (4, 5), 1),
    ((), (5, 5), (4, 3), 1),
    ((), (12, 12), (3, 4), 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PADDED, ids=str)
def test_blocks_that_do_not_divide(case, dtype):
    batch, (m, n), (J, K), rank = case
    A = torch.randn(*batch, m, n, dtype=dtype)
    P = project_padded(A, (J, K), rank=rank)
    dense = P.to_dense()
    assert P.shape == (m, n)
    assert dense.shape == A.shape
    # the squared error is the tail of the spectra of the slices as they are, unpadded
    I = -(-n // K)
    tail = 0.0
    for matrix in A.reshape(-1, m, n).numpy():
        for j in range(J):
            for k in range(K):
                block = matrix[j::J, k * I : (k + 1) * I]
                tail += np.sum(np.linalg.svd(block, compute_uv=False)[rank:] ** 2) if block.size else 0
    assert squared_error(A, P) == pytest.approx(tail, rel=1e-12, abs=1e-24)
    # projecting again changes nothing, and a matrix of the class is recovered
    assert relative_error(project_padded(dense, (J, K), rank=rank).to_dense(), dense) < 1e-14
    # it acts as that matrix
    x, y = torch.randn(n, 3, dtype=dtype), torch.randn(m, 3, dtype=dtype)
    assert relative_error(P @ x, dense @ x) < 1e-14
    assert relative_error(P.H @ y, dense.mH @ y) < 1e-14
    assert P.H.shape == (n, m)
    if not batch:
        assert_adjoint(P, dtype=dtype)
        assert_linear(P, dtype=dtype)
    # the padding of the factors is empty
    full = P.full.to_dense()
    assert full[..., m:, :].abs().sum() + full[..., n:].abs().sum() < 1e-12


def test_padding_agrees_with_projection_where_blocks_divide():
    A = torch.randn(12, 10, dtype=torch.float64)
    assert torch.equal(project_padded(A, (4, 5)).to_dense(), project(A, (4, 5)).to_dense())


def test_no_crop_nearby_is_closer():
    A = torch.randn(11, 13, dtype=torch.float64)
    P = project_padded(A, (3, 4))
    best = squared_error(A, P)
    for step in (1e-1, 1e-3, 1e-5):
        L, R = (F + step * torch.randn(500, *F.shape, dtype=F.dtype) for F in (P.full.L, P.full.R))
        crops = Cropped(MonarchMatrix(L, R), (11, 13)).to_dense()
        assert (A - crops).square().sum((-2, -1)).min() >= best


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_pass_through_the_projection(dtype):
    A = torch.randn(6, 8, dtype=dtype, requires_grad=True)
    for nblocks, rank in (((2, 4), 1), ((2, 2), 2)):
        assert torch.autograd.gradcheck(lambda A, n=nblocks, r=rank: project(A, n, rank=r).to_dense(), A)


def test_gradients_pass_through_a_crop():
    M = random_monarch((), (6, 4), (2, 2), torch.float64)
    inputs = [t.requires_grad_() for t in (M.L, M.R, torch.randn(3, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda L, R, x: Cropped(MonarchMatrix(L, R), (5, 3)) @ x, inputs)


# every pair of divisors and rank, as the definition says: ((J, K), T) → (parameters, error)
def exhaustive(A, budget):
    m, n = A.shape
    found = {}
    for J in range(1, m + 1):
        for K in range(1, n + 1):
            if m % J or n % K:
                continue
            for rank in range(1, min(m // J, n // K) + 1):
                parameters = rank * J * K * (m // J + n // K)
                if parameters <= budget * m * n:
                    error = relative_error(project(A, (J, K), rank=rank).to_dense(), A)
                    found[(J, K), rank] = parameters, error
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "budget"), [((12, 12), 0.5), ((8, 18), 0.6), ((6, 7), 0.9)])
def test_no_choice_within_the_budget_is_closer(shape, budget, dtype):
    A = torch.randn(shape, dtype=dtype)
    choice, every = choose_blocks(A, budget), exhaustive(A, budget)
    assert every[choice.nblocks, choice.rank] == (choice.parameters, pytest.approx(choice.error, abs=1e-13))
    assert choice.error == pytest.approx(min(error for _, error in every.values()), abs=1e-13)
    table = compare_blocks(A, budget)
    assert table[0] == choice
    assert {row.nblocks for row in table} == {nblocks for nblocks, _ in every}
    for row in table:  # of one pair of block counts the best rank
        best = min(error for (nblocks, _), (_, error) in every.items() if nblocks == row.nblocks)
        assert row.error == pytest.approx(best, abs=1e-13)
    M = project(A, choice.nblocks, rank=choice.rank)
    assert choice.parameters == M.L.numel() + M.R.numel() <= budget * A.numel()


def test_the_choice_finds_the_structure_of_a_matrix():
    F = (dft(36) @ StridePermutation(6, 6).H).to_dense(torch.complex128)
    for budget in (0.34, 0.5, 0.9):  # exact, and nothing is spent beyond 2·n·√n
        nblocks, rank, parameters, error = choose_blocks(F, budget)
        assert (nblocks, rank, parameters) == ((6, 6), 1, 432)
        assert error < 1e-14
    # a matrix of low rank is one block
    U, V = torch.randn(36, 3, dtype=torch.float64), torch.randn(3, 36, dtype=torch.float64)
    assert choose_blocks(U @ V, 0.6)[:3] == ((1, 1), 3, 216)
    # as is one whose spectrum decays, like many weights after training
    U, V = (torch.linalg.qr(torch.randn(36, 36, dtype=torch.float64)).Q for _ in range(2))
    decaying = U @ torch.diag(torch.arange(1.0, 37, dtype=torch.float64) ** -1) @ V
    assert choose_blocks(decaying, 0.5).nblocks == (1, 1)
    # noise has no structure to find: at twice 2·n·√n numbers no choice of blocks is much better than another
    noise = [row.error for row in compare_blocks(torch.randn(36, 36), 0.5) if row.parameters > 0.4 * 36**2]
    assert max(noise) < 1.25 * min(noise)
    assert min(noise) > 0.5


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_the_choice_does_not_depend_on_the_unit(scale):
    A = torch.randn(8, 12, dtype=torch.float64)
    for found, expected in zip(compare_blocks(scale * A, 0.7), compare_blocks(A, 0.7), strict=True):
        assert found[:3] == expected[:3]
        assert found.error == pytest.approx(expected.error, abs=1e-13)


def test_a_batch_is_measured_together():
    A = torch.randn(3, 8, 12, dtype=torch.float64)
    for row in compare_blocks(A, 0.7):
        M = project(A, row.nblocks, rank=row.rank)
        assert row.error == pytest.approx(relative_error(M.to_dense(), A), abs=1e-13)
    assert choose_blocks(torch.zeros(4, 6), 0.5) == BlockChoice((1, 1), 1, 10, 0.0)


def test_errors_of_padding_and_choice():
    A = torch.randn(12, 10)
    with pytest.raises(InputError, match=r"up to \(12, 10\); found \(13, 2\); choose fewer blocks"):
        project_padded(A, (13, 2))
    with pytest.raises(InputError, match=r"a rank from 1 to 2; found 3"):
        project_padded(A, (5, 5), rank=3)
    with pytest.raises(InputError, match=r"a shape within \(12, 10\); found \(12, 11\)"):
        Cropped(project(A), (12, 11))
    with pytest.raises(InputError, match=r"a last dimension of 10; found x \(3, 11\)"):
        project_padded(A, (5, 4))(torch.randn(3, 11))
    for budget in (0.1, -1.0, float("nan"), float("inf")):
        with pytest.raises(
            InputError, match=r"a budget of at least 0.183; found .*; it is a share of 12·10 num"
        ):
            choose_blocks(A, budget)
    with pytest.raises(InputError, match=r"floating-point or complex"):
        choose_blocks(torch.ones(4, 4, dtype=torch.int64), 0.5)


def test_projection_is_a_function_for_whoever_traces_it():
    """NaN is looked for in numbers alone."""
    A = torch.randn(3, 8, 8)
    expected = torch.stack([project(a).to_dense() for a in A])
    torch.testing.assert_close(torch.func.vmap(lambda a: project(a).to_dense())(A), expected)
    compiled = torch.compile(lambda a: project(a, (2, 2)).to_dense(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(A[0]), project(A[0], (2, 2)).to_dense())
    with FakeTensorMode():
        assert project(torch.randn(16, 16)).shape == (16, 16)
