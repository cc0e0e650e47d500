"""Monarch matrices and the operator algebra around them."""

from itertools import product

import pytest
import torch
from laws import assert_adjoint, assert_linear, assert_unitary, relative_error

from monarch_sciml import InputError, LinearOperator, MonarchMatrix
from monarch_sciml.linalg import StridePermutation, dft

# (J, S, K, I), and the rank of slices where it is not one
BLOCKS = [
    (3, 3, 3, 3),
    (3, 4, 4, 3),
    (2, 5, 3, 7),
    (1, 6, 1, 5),
    (5, 1, 7, 1),
    (3, 4, 4, 3, 3),
    (2, 5, 3, 7, 2),
]
DTYPES = [torch.float64, torch.complex128]


def monarch(blocks, dtype=torch.complex128, batch=()):
    J, S, K, I, T = (*blocks, 1)[:5]
    L, R = torch.randn(*batch, J, S, K * T, dtype=dtype), torch.randn(*batch, K, J * T, I, dtype=dtype)
    return MonarchMatrix(L, R)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_entries_follow_the_definition(blocks, dtype):
    J, S, K, I, T = (*blocks, 1)[:5]
    M = monarch(blocks, dtype)
    dense = M.to_dense()
    assert M.shape == dense.shape == (S * J, K * I)
    assert (M.nblocks, M.rank) == ((J, K), T)
    for ell, j, k, i in product(range(S), range(J), range(K), range(I)):
        entry = M.L[j, ell, k * T : k * T + T] @ M.R[k, j * T : j * T + T, i]
        assert abs(entry - dense[ell * J + j, k * I + i]) < 1e-14
    slices = dense.view(S, J, K, I).permute(1, 2, 0, 3)
    assert (torch.linalg.matrix_rank(slices) == min(S, T, I)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_products_with_tensors_follow_matmul(blocks, dtype):
    M = monarch(blocks, dtype)
    dense, n = M.to_dense(), M.shape[1]
    for shape in ((n,), (n, 4), (2, n, 4), (2, 3, n, 1)):
        x = torch.randn(shape, dtype=dtype)
        assert relative_error(M @ x, dense @ x) < 1e-14
    x = torch.randn(2, 3, n, dtype=dtype)
    assert relative_error(M(x), x @ dense.mT) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_adjoint_is_the_conjugate_transpose(blocks, dtype):
    M = monarch(blocks, dtype)
    assert_adjoint(M, dtype=dtype)
    assert_linear(M, dtype=dtype)
    assert relative_error(M.H.to_dense(dtype), M.to_dense().mH) < 1e-14


def test_single_precision():
    M = monarch((5, 7, 6, 9, 2), torch.float32)  # the path compiled for CPUs, where there is one
    x, y = torch.randn(54), torch.randn(35)
    assert relative_error(M @ x, M.to_dense() @ x) < 1e-6
    assert relative_error(M.H @ y, M.to_dense().mT @ y) < 1e-6


@pytest.mark.parametrize("batch", [(2,), (12,), (2, 3)], ids=str)
def test_a_batch_of_matrices_broadcasts_like_matmul(batch):
    M = monarch((3, 2, 4, 3, 2), batch=batch)  # 6 × 12; with 12 matrices a mix-up of axes would go unnoticed
    dense = M.to_dense()
    assert dense.shape == (*batch, 6, 12)
    for shape in ((12,), (12, 5), (12, 12), (*batch, 12, 5), (4, *[1] * len(batch), 12, 5)):
        x = torch.randn(shape, dtype=torch.complex128)
        assert relative_error(M @ x, dense @ x) < 1e-14
    assert relative_error(M.H.to_dense(torch.complex128), dense.mH) < 1e-14
    assert relative_error((M @ M.H).to_dense(torch.complex128), dense @ dense.mH) < 1e-13


def test_products_sums_and_multiples_compose():
    A, B = monarch((3, 3, 3, 3)), monarch((3, 3, 3, 3))
    C = monarch((2, 2, 3, 3))
    a, b, c = A.to_dense(), B.to_dense(), C.to_dense()
    cases: list[tuple[LinearOperator, torch.Tensor]] = [
        (C @ A, c @ a),
        (A + B, a + b),
        (3 * A, 3 * a),
        (A * 0.5, 0.5 * a),
        ((1 - 2j) * A, (1 - 2j) * a),
        (C @ (2j * A + B.H) @ B, c @ (2j * a + b.mH) @ b),
        (StridePermutation(3, 3) @ A, a.reshape(3, 3, 9).transpose(0, 1).reshape(9, 9)),
    ]
    for operator, dense in cases:
        assert operator.shape == dense.shape
        assert relative_error(operator.to_dense(torch.complex128), dense) < 1e-14
        assert relative_error(operator.H.to_dense(torch.complex128), dense.mH) < 1e-14
        assert_adjoint(operator)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 5), (3, 4), (4, 3), (7, 2)])
def test_the_stride_permutation_reads_with_stride_q(p, q):
    Pi = StridePermutation(p, q)
    x = torch.arange(p * q)
    assert Pi(x).tolist() == [a * q + b for b in range(q) for a in range(p)]
    assert Pi.H(Pi(x)).equal(x)
    assert_adjoint(Pi)
    assert_unitary(Pi)


def test_gradients_reach_the_factors():
    L, R = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (L, R, x)]
    assert torch.autograd.gradcheck(lambda L, R, x: MonarchMatrix(L, R).H @ (MonarchMatrix(L, R) @ x), inputs)


def test_operators_print_their_shape():
    M = monarch((3, 4, 4, 3), torch.float64)
    assert repr(M) == "MonarchMatrix(12, 12) with (3, 4) blocks of rank 1, torch.float64"
    assert repr(StridePermutation(3, 4) @ M) == f"StridePermutation(12, 12) @ {M!r}"
    assert "(12, 12)" in repr(M + M)


def test_errors_name_the_remedy():
    L, R = torch.randn(3, 4, 2), torch.randn(2, 3, 5)
    with pytest.raises(InputError, match=r"factors L .*; found L \(3, 4, 2\) and R \(3, 2, 5\)"):
        MonarchMatrix(L, R.transpose(0, 1))
    with pytest.raises(InputError, match=r"equal batch dimensions.*expand the smaller factor"):
        MonarchMatrix(L.expand(2, 3, 4, 2), R)
    M = MonarchMatrix(L, R)
    with pytest.raises(InputError, match=r"10 rows on the right .*\(12, 10\); found shape \(3, 9\)"):
        M @ torch.randn(3, 9)
    with pytest.raises(InputError, match="check the order of the product"):
        M @ dft(12)
    with pytest.raises(InputError, match="last dimension of 10"):
        M(torch.randn(9))
    with pytest.raises(InputError, match=r"equal shape \(12,\) × \(10,\); found \(10,\) × \(12,\)"):
        M + M.H
