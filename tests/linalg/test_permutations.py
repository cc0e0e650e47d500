"""Permutations as one or two Monarch matrices, selections, and what operators are made of."""

import pytest
import torch
from laws import assert_adjoint, assert_linear, relative_error

from monarch_sciml import InputError
from monarch_sciml.linalg import StridePermutation, dft
from monarch_sciml.linalg.composition import Selection, absorb, crop, monarch_factors
from monarch_sciml.linalg.permutations import block_diagonal, identity, permutation
from monarch_sciml.linalg.projection import project


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 12, 13, 16, 36, 61, 64, 90, 225, 360])
def test_random_permutations(n, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    P, x = permutation(order), torch.randn(2, 3, n, dtype=torch.float64)
    assert torch.equal(P(x), x[..., order])
    assert torch.equal(P.H(P(x)), x)
    assert_adjoint(P)
    factors = monarch_factors(P)
    assert len(factors) <= 2
    assert all(M.rank == 1 for M in factors)


@pytest.mark.parametrize("order", [torch.arange(36), torch.arange(35, -1, -1), torch.arange(36).roll(7)])
def test_one_factor_where_one_is_enough(order):
    (M,) = monarch_factors(permutation(order))
    assert M.L.numel() + M.R.numel() <= 4 * 36 * 6
    # the criterion is that of the nearest Monarch matrix: with the same blocks it is at distance zero
    A = torch.eye(36, dtype=torch.float64)[order]
    assert relative_error(project(A, M.nblocks).to_dense(), A) < 1e-14


def test_two_factors_only_where_one_would_not_do():
    order = StridePermutation(8, 8)(torch.arange(64))
    assert len(monarch_factors(permutation(order))) == 2
    A = torch.eye(64, dtype=torch.float64)[order]
    assert relative_error(project(A, (8, 8)).to_dense(), A) > 0.9


@pytest.mark.parametrize(("p", "q"), [(1, 5), (3, 5), (4, 6), (8, 4), (10, 10)])
def test_stride_permutations(p, q):
    x = torch.randn(3, p * q, dtype=torch.float64)
    P = permutation(StridePermutation(p, q)(torch.arange(p * q)))
    assert torch.equal(P(x), StridePermutation(p, q)(x))


@pytest.mark.parametrize("n", [1, 7, 12, 36])
def test_identity(n):
    assert torch.equal(identity(n).to_dense(), torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 5), (5, 3, 2), (4, 1, 1)])
def test_block_diagonal(shape):
    blocks = torch.randn(shape, dtype=torch.complex128)
    assert relative_error(block_diagonal(blocks).to_dense(), torch.block_diag(*blocks)) < 1e-15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_any_integers_say_an_order(dtype):
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(permutation(order.to(dtype)).to_dense(), permutation(order).to_dense())


def test_selection_takes_drops_and_pads():
    S, x = Selection(torch.tensor([3, -1, 0]), 4), torch.randn(2, 4, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(S(x), torch.stack((x[:, 3], zero, x[:, 0]), 1))
    assert_adjoint(S)
    assert_linear(S)


def test_crop_and_absorb():
    F = dft(12)
    A = crop(F, 5, 7)
    assert relative_error(A.to_dense(torch.complex128), F.to_dense(torch.complex128)[:5, :7]) < 1e-15
    assert crop(F, 12, 12) is F
    (M,) = monarch_factors(F)
    rows, columns = torch.randn(2, 12, dtype=torch.complex128)
    expected = rows.diag() @ M.to_dense() @ columns.diag()
    assert relative_error(absorb(M, rows=rows, columns=columns).to_dense(), expected) < 1e-14


def test_factors_are_found_in_order_through_products_sums_and_multiples():
    (A,), (B,) = monarch_factors(dft(12)), monarch_factors(dft(15))
    assert monarch_factors(StridePermutation(3, 4)) == []
    found = monarch_factors(2 * (crop(A, 10, 10) @ crop(B, 10, 10)) + crop(B, 10, 10))
    assert len(found) == 3
    assert all(M is expected for M, expected in zip(found, (A, B, B), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permutation(torch.tensor([0, 2])), "a permutation of 0 … n − 1"),
        (lambda: permutation(torch.tensor([0, 0])), "a permutation of 0 … n − 1"),
        (lambda: permutation(torch.tensor([], dtype=torch.int64)), "a permutation of 0 … n − 1"),
        (lambda: permutation(torch.eye(2)), "a permutation of 0 … n − 1"),
        (lambda: permutation(torch.arange(4.0)), "a permutation of 0 … n − 1; found torch.float32"),
        (lambda: block_diagonal(torch.eye(2)), r"blocks of equal shape \(K, J, I\)"),
        (lambda: Selection(torch.tensor([4]), 4), "integers from −1 to 3"),
        (lambda: Selection(torch.tensor([1, 1]), 4), "every entry of x at most once"),
        (lambda: Selection(torch.tensor([1]), 4)(torch.ones(3)), "a last dimension of 4"),
        (lambda: identity(0), "a size of at least 1"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message):
        call()
