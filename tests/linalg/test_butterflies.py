"""Butterfly products against their definition, Kronecker and Hadamard against numpy and scipy."""

import pytest
import scipy.linalg
import torch
from laws import assert_adjoint, assert_unitary, relative_error

from monarch_sciml import InputError
from monarch_sciml.linalg import MonarchMatrix
from monarch_sciml.linalg.butterflies import butterfly, fastfood, hadamard, hd3, kronecker
from monarch_sciml.linalg.composition import monarch_factors


def butterfly_factor(blocks, s):
    """Factor s as a matrix, entry by entry."""
    n = 2 * len(blocks)
    B = torch.zeros(n, n, dtype=blocks.dtype)
    for a in range(n):
        high, bit, low = a >> (s + 1), (a >> s) & 1, a % 2**s
        for other in (0, 1):
            B[a, high * 2 ** (s + 1) + other * 2**s + low] = blocks[high * 2**s + low, bit, other]
    return B


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("m", range(1, 7))
def test_butterfly(m, dtype):
    factors = torch.randn(m, 2 ** (m - 1), 2, 2, dtype=dtype)
    increasing = decreasing = torch.eye(2**m, dtype=dtype)
    for s, blocks in enumerate(factors):
        B = butterfly_factor(blocks, s)
        increasing, decreasing = B @ increasing, decreasing @ B
    assert relative_error(butterfly(factors).to_dense(dtype), increasing) < 1e-14
    A = butterfly(factors, strides="decreasing")
    assert relative_error(A.to_dense(dtype), decreasing) < 1e-14
    assert_adjoint(A)
    (M,) = monarch_factors(butterfly(factors))
    assert M.rank == 1
    assert M.L.numel() + M.R.numel() == 2**m * (2 ** (m // 2) + 2 ** (m - m // 2))


def test_the_fft_is_a_butterfly_after_bit_reversal():
    m, n = 5, 32
    stages = torch.zeros(m, n // 2, 2, 2, dtype=torch.complex128)
    for s in range(m):
        angle = torch.pi * torch.arange(2**s, dtype=torch.float64) / 2**s
        twiddle = torch.exp(-1j * angle).repeat(n // 2 ** (s + 1))
        stages[s, :, :, 0] = 1
        stages[s, :, 0, 1], stages[s, :, 1, 1] = twiddle, -twiddle
    reversal = torch.arange(n).reshape((2,) * m).permute(*range(m - 1, -1, -1)).flatten()
    x = torch.randn(3, n, dtype=torch.complex128)
    assert relative_error(butterfly(stages)(x[:, reversal]), torch.fft.fft(x)) < 1e-14


def test_gradients_reach_the_butterflies():
    factors = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: butterfly(f)(x), factors)


@pytest.mark.parametrize("shapes", [((3, 5), (2, 7)), ((1, 4), (4, 1)), ((6, 6), (6, 6)), ((1, 1), (5, 3))])
def test_kronecker(shapes):
    A, B = (torch.randn(shape, dtype=torch.complex128) for shape in shapes)
    M = kronecker(A, B)
    assert relative_error(M.to_dense(), torch.kron(A, B)) < 1e-15
    assert_adjoint(M)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 128])
def test_hadamard_is_that_of_scipy(n):
    expected = torch.from_numpy(scipy.linalg.hadamard(n)).double()
    assert torch.equal(hadamard(n).to_dense(), expected)
    assert relative_error(hadamard(n, norm="forward").to_dense() @ expected, torch.eye(n).double()) < 1e-15
    assert_unitary(hadamard(n, norm="ortho"))
    assert isinstance(hadamard(n), MonarchMatrix)


@pytest.mark.parametrize("n", [1, 2, 32])
def test_hd3(n):
    signs = torch.randn(3, n, dtype=torch.float64).sign()
    A = hd3(*signs)
    H = torch.from_numpy(scipy.linalg.hadamard(n)).double() / n**0.5
    assert relative_error(A.to_dense(), H * signs[0] @ (H * signs[1]) @ (H * signs[2])) < 1e-14
    assert_unitary(A)
    assert_adjoint(A)


@pytest.mark.parametrize("n", [1, 2, 32])
def test_fastfood(n):
    S, G, B = torch.randn(3, n, dtype=torch.float64)
    order, x = torch.randperm(n), torch.randn(4, n, dtype=torch.float64)
    H = torch.from_numpy(scipy.linalg.hadamard(n)).double()
    A = fastfood(S, G, order, B)
    assert relative_error(A(x), S * (G * ((B * x) @ H)[:, order] @ H)) < 1e-14
    assert_adjoint(A)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: butterfly(torch.ones(3, 8, 2, 2)), r"factors \(log₂ n, n/2, 2, 2\); found"),
        (lambda: butterfly(torch.ones(0, 1, 2, 2)), r"factors \(log₂ n, n/2, 2, 2\); found"),
        (lambda: butterfly(torch.ones(1, 1, 2, 2), strides="up"), "found 'up'"),
        (lambda: kronecker(torch.ones(3), torch.ones(3, 3)), "two matrices; found"),
        (lambda: hadamard(12), "a power of two; found 12"),
        (lambda: hd3(torch.ones(4), torch.ones(4), torch.ones(2)), "vectors of equal length"),
        (lambda: hd3(*torch.ones(3, 4, dtype=torch.int64)), "floating-point or complex vectors"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message):
        call()
