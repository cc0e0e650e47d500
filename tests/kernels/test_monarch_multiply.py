"""The ways to multiply by a Monarch matrix agree, whatever the shape, rank, dtype and layout."""

from itertools import product

import pytest
import torch
from laws import assert_same, relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import monarch_dense, monarch_multiply

# (J, S, K, I, T): square, rectangular blocks, prime sizes, one block, more outputs than inputs and fewer,
# slices of full rank, of some, and of more than they can have
BLOCKS = [
    (4, 4, 4, 4, 1),
    (3, 4, 4, 3, 1),
    (2, 5, 3, 7, 1),
    (1, 6, 1, 5, 1),
    (7, 1, 5, 1, 1),
    (1, 13, 13, 1, 1),
    (4, 2, 3, 11, 1),
    (4, 4, 4, 4, 4),
    (2, 5, 3, 7, 3),
    (3, 2, 5, 4, 2),
    (1, 6, 1, 5, 2),
    (2, 1, 3, 1, 5),
]
BATCHES = [(), (1,), (5,), (2, 3), (2, 1, 4)]
REAL, COMPLEX = torch.float64, torch.complex128


def operands(blocks, batch=(), dtypes=(REAL, REAL, REAL)):
    J, S, K, I, T = blocks
    shapes = (*batch, K * I), (J, S, K * T), (K, J * T, I)
    return [torch.randn(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]


def fast(x, L, R, blocks=False):
    return monarch_multiply(x, L, R, blocks=blocks, backend="gemm")


def plain(x, L, R, blocks=False):
    return monarch_multiply(x, L, R, blocks=blocks, backend="reference")


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_the_dense_matrix_follows_the_definition(blocks):
    J, S, K, I, T = blocks
    _, L, R = operands(blocks)
    M = monarch_dense(L, R)
    assert M.shape == (S * J, K * I)
    for ell, j, k, i in product(range(S), range(J), range(K), range(I)):
        entry = sum(L[j, ell, k * T + t] * R[k, j * T + t, i] for t in range(T))
        assert abs(M[ell * J + j, k * I + i] - entry) < 1e-13


@pytest.mark.parametrize("backend", ["auto", "gemm", "reference"])
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_every_path_multiplies_by_the_dense_matrix(blocks, backend):
    x, L, R = operands(blocks, (6,), (COMPLEX, COMPLEX, COMPLEX))
    y = monarch_multiply(x, L, R, backend=backend)
    assert relative_error(y, x @ monarch_dense(L, R).mT) < 1e-14


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_gemm_equals_reference(blocks, batch):
    assert_same(fast, plain, *operands(blocks, batch), tol=1e-13)


@pytest.mark.parametrize("multiply", [fast, plain])
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_block_order_is_the_last_permutation_left_out(blocks, multiply):
    J, S, *_ = blocks
    tensors = operands(blocks, (2, 3), (COMPLEX,) * 3)

    def permuted(*tensors):
        return plain(*tensors).unflatten(-1, (S, J)).mT.flatten(-2)

    assert_same(lambda *t: multiply(*t, blocks=True), permuted, *tensors, tol=1e-13)


@pytest.mark.parametrize("x", [REAL, COMPLEX])
@pytest.mark.parametrize("L", [REAL, COMPLEX])
@pytest.mark.parametrize("R", [REAL, COMPLEX])
def test_mixed_dtypes_promote(x, L, R):
    tensors = operands((3, 4, 2, 5, 2), (4,), (x, L, R))
    assert_same(fast, plain, *tensors, tol=1e-13)
    assert fast(*tensors).dtype == (COMPLEX if COMPLEX in (x, L, R) else REAL)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("T", [1, 2])
def test_first_and_second_derivatives(T, dtype):
    tensors = [t.requires_grad_() for t in operands((2, 3, 3, 2, T), (2,), (dtype,) * 3)]
    assert torch.autograd.gradcheck(fast, tensors)
    assert torch.autograd.gradgradcheck(fast, tensors)


def test_each_operand_may_be_the_only_one_with_a_gradient():
    for wanted in range(3):
        tensors = operands((2, 3, 3, 2, 2), (4,))
        tensors[wanted].requires_grad_()
        (found,) = torch.autograd.grad(fast(*tensors).square().sum(), tensors[wanted])
        (expected,) = torch.autograd.grad(plain(*tensors).square().sum(), tensors[wanted])
        assert relative_error(found, expected) < 1e-13


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)], ids=str)
def test_an_empty_batch_stays_empty(batch):
    x, L, R = (t.requires_grad_() for t in operands((2, 3, 3, 2, 2), batch))
    y = monarch_multiply(x, L, R)
    assert y.shape == (*batch, 6)
    y.sum().backward()
    assert x.grad is not None
    assert L.grad is not None
    assert L.grad.count_nonzero() == 0


def test_strided_operands():
    x = torch.randn(6, 10, 2, dtype=REAL)[..., 0].T  # (10, 6), neither stride is one
    L, R = torch.randn(4, 3, 5, dtype=REAL)[::2].mT, torch.randn(2, 3, 2, dtype=REAL).transpose(0, 1)
    assert_same(fast, plain, x, L, R, tol=1e-13)
    assert relative_error(fast(x, L, R), fast(x.contiguous(), L.contiguous(), R.contiguous())) < 1e-14


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("backend", ["gemm", "reference"])
def test_lower_precision_keeps_its_dtype(dtype, tol, backend):
    exact = operands((8, 8, 8, 8, 2), (16,))
    y = monarch_multiply(*(t.to(dtype) for t in exact), backend=backend)
    assert y.dtype == dtype
    assert relative_error(y.double(), plain(*exact)) < tol


def test_autocast_sets_the_dtype_of_both_passes():
    tensors = [t.float().requires_grad_() for t in operands((4, 4, 4, 4, 2), (8,))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = monarch_multiply(*tensors)
    assert y.dtype == torch.bfloat16
    upstream = torch.randn(y.shape)
    found = torch.autograd.grad(y, tensors, upstream.bfloat16())
    expected = torch.autograd.grad(plain(*tensors), tensors, upstream)
    for g, e in zip(found, expected, strict=True):
        assert g.dtype == torch.float32
        assert relative_error(g, e) < 2e-2


def test_a_batch_of_matrices_broadcasts():
    for T in (1, 3):
        L, R = torch.randn(5, 1, 2, 3, 4 * T, dtype=REAL), torch.randn(5, 1, 4, 2 * T, 3, dtype=REAL)
        x = torch.randn(5, 7, 12, dtype=REAL)
        y = monarch_multiply(x, L, R)
        for b in range(5):
            assert relative_error(y[b], x[b] @ monarch_dense(L[b, 0], R[b, 0]).mT) < 1e-14


def test_errors_name_the_remedy():
    x, L, R = operands((2, 3, 4, 5, 1), (3,))
    with pytest.raises(InputError, match=r"last dimension of 20; found x \(3, 19\); move that axis"):
        monarch_multiply(x[:, :-1], L, R)
    with pytest.raises(InputError, match=r"last dimension of 20; found x \(\)"):
        monarch_multiply(x[0, 0], L, R)
    with pytest.raises(InputError, match=r"factors L .* and R .*; found L \(2, 3, 4\)"):
        monarch_multiply(x, L, R[:3])
    with pytest.raises(InputError, match=r"found L \(2, 3, 8\) and R \(4, 2, 5\); give L's blocks T columns"):
        monarch_multiply(x, L.repeat(1, 1, 2), R)
    with pytest.raises(InputError, match=r"found L \(2, 3, 4\) and R \(4, 4, 5\)"):
        monarch_multiply(x, L, R.repeat(1, 2, 1))
    with pytest.raises(InputError, match=r"found L \(2, 3, 0\) and R \(4, 0, 5\)"):
        monarch_multiply(x, L[..., :0], R[:, :0])
    with pytest.raises(InputError, match=r"found L \(0, 3, 4\)"):
        monarch_multiply(x, L[:0], R[:, :0])
    with pytest.raises(InputError, match="factors L"):
        monarch_multiply(x, L[0], R)
    with pytest.raises(InputError, match="'triton', 'gemm', 'reference'; found 'cuda'"):
        monarch_multiply(x, L, R, backend="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="one matrix for backend 'gemm'; found batched factors"):
        monarch_multiply(x, L[None], R[None], backend="gemm")
