"""Circulant, Toeplitz, Hankel, convolution, AFDF and Bluestein's DFT against scipy, numpy and torch.fft."""

import numpy as np
import pytest
import scipy.linalg
import torch
from laws import assert_adjoint, assert_linear, assert_unitary, relative_error

from monarch_sciml import InputError
from monarch_sciml.linalg.composition import monarch_factors
from monarch_sciml.linalg.convolutions import afdf, chirp_dft, circulant, convolution, hankel, toeplitz

COMPLEX = torch.complex128
SIZES = [1, 2, 3, 5, 12, 15, 61, 64, 101, 225, 360]


def close(A, dense, tol=1e-13):
    return relative_error(A.to_dense(COMPLEX), torch.as_tensor(dense).to(COMPLEX)) < tol


@pytest.mark.parametrize("dtype", [torch.float64, COMPLEX])
@pytest.mark.parametrize("n", SIZES)
def test_circulant(n, dtype):
    c = torch.randn(n, dtype=dtype)
    C = circulant(c)
    assert close(C, scipy.linalg.circulant(c.numpy()))
    assert_adjoint(C)
    assert len(monarch_factors(C)) == 2


@pytest.mark.parametrize("dtype", [torch.float64, COMPLEX])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (12, 12), (13, 13), (31, 20), (20, 31), (61, 100)])
def test_toeplitz_and_hankel(shape, dtype):
    c, r = (torch.randn(n, dtype=dtype) for n in shape)
    for ours, reference in ((toeplitz, scipy.linalg.toeplitz), (hankel, scipy.linalg.hankel)):
        A = ours(c, r)
        assert A.shape == shape
        assert close(A, reference(c.numpy(), r.numpy()))
        assert close(ours(c), reference(c.numpy()))
        assert_adjoint(A)
        assert_linear(A)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 9), (3, 16), (4, 16), (5, 61), (16, 16), (9, 4), (8, 3)])
def test_convolution_equals_numpy(k, n, mode):
    kernel, x = torch.randn(k, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    A = convolution(kernel, n, mode=mode)
    expected = torch.from_numpy(np.convolve(kernel.numpy(), x.numpy(), mode))
    y = A(x.expand(2, 3, n))
    assert relative_error(y.real, expected.expand(2, 3, -1)) < 1e-13
    assert relative_error(y.imag, torch.zeros_like(y.imag)) < 1e-12
    assert_adjoint(A)


@pytest.mark.parametrize("n", SIZES)
def test_afdf(n):
    a, d = torch.randn(2, n, dtype=COMPLEX)
    A, x = afdf(a, d), torch.randn(4, n, dtype=COMPLEX)
    assert relative_error(A(x), a * torch.fft.fft(d * torch.fft.ifft(x))) < 1e-13
    assert_adjoint(A)


@pytest.mark.parametrize("n", [1, 2, 3, 12, 61, 101, 421])
def test_bluestein(n):
    F, x = chirp_dft(n), torch.randn(4, n, dtype=COMPLEX)
    assert relative_error(F(x), torch.fft.fft(x, norm="ortho")) < 1e-13
    assert_adjoint(F)
    assert_unitary(F)


def numbers(A):
    return sum(M.L.numel() + M.R.numel() for M in monarch_factors(A))


def test_sizes():
    assert numbers(circulant(torch.ones(1024))) == 4 * 1024 * 32
    assert numbers(toeplitz(torch.ones(1024))) <= 8 * 1024 * 32
    assert numbers(circulant(torch.ones(1021))) <= 8 * 1024 * 32  # prime: embedded
    assert numbers(chirp_dft(1021)) <= 8 * 1024 * 32
    # what is cropped is not computed: a wide matrix of few rows costs far less than the square one
    assert numbers(toeplitz(torch.ones(16), torch.ones(1024))) < 0.6 * numbers(toeplitz(torch.ones(1024)))


def test_the_dtype_of_the_factors():
    c, x = torch.randn(64), torch.randn(3, 64)
    y = circulant(c, dtype=torch.complex64)(x)
    assert y.dtype == torch.complex64
    assert relative_error(y, torch.fft.ifft(torch.fft.fft(c) * torch.fft.fft(x))) < 1e-6


def test_gradients_reach_the_data():
    c = torch.randn(6, dtype=COMPLEX, requires_grad=True)
    x = torch.randn(2, 6, dtype=COMPLEX)
    assert torch.autograd.gradcheck(lambda c: circulant(c)(x), c)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: circulant(torch.ones(2, 2)), "vector of at least one entry; found shape"),
        (lambda: toeplitz(torch.ones(3), torch.ones(0)), "vector of at least one entry"),
        (lambda: convolution(torch.ones(3), 0), "size of at least 1; found 0"),
        (lambda: convolution(torch.ones(3), 5, mode="wrap"), "found 'wrap'"),
        (lambda: afdf(torch.ones(3), torch.ones(4)), "equal length; found 3 and 4"),
        (lambda: chirp_dft(0), "size of at least 1"),
        (lambda: circulant(torch.ones(3), dtype=torch.float64), "a complex dtype; found torch.float64"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message):
        call()
