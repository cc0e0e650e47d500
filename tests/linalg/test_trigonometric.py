"""Cosine and sine transforms against scipy.fft, and ACDC against its formula."""

from itertools import product

import numpy as np
import pytest
import scipy.fft
import torch
from laws import assert_adjoint, assert_linear, assert_unitary, relative_error

from monarch_sciml import InputError
from monarch_sciml.linalg.composition import monarch_factors
from monarch_sciml.linalg.trigonometric import acdc, dct, dst

SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 27, 36, 45, 61, 64, 97, 100, 225, 360]
FUNCTIONS = {"dct": (dct, scipy.fft.dct, scipy.fft.idct), "dst": (dst, scipy.fft.dst, scipy.fft.idst)}


# a DCT-I of one point does not exist: that it is refused is tested below
CASES = [case for case in product(FUNCTIONS, [1, 2, 3, 4], SIZES) if case != ("dct", 1, 1)]


@pytest.mark.parametrize(("name", "type", "n"), CASES)
def test_equals_scipy_in_every_norm_and_direction(name, type, n):
    ours, forward, backward = FUNCTIONS[name]
    x = torch.randn(2, 3, n, dtype=torch.float64)
    for norm in (None, "backward", "ortho", "forward"):
        for inverse, reference in ((False, forward), (True, backward)):
            A = ours(n, type, norm=norm, inverse=inverse)
            assert relative_error(A(x), torch.from_numpy(reference(x.numpy(), type, norm=norm))) < 1e-14


@pytest.mark.parametrize("n", [3, 16, 45, 61])
@pytest.mark.parametrize("type", [1, 2, 3, 4])
@pytest.mark.parametrize("transform", [dct, dst])
def test_adjoint_and_orthogonality(transform, type, n):
    assert_adjoint(transform(n, type))
    A = transform(n, type, norm="ortho")
    assert_adjoint(A)
    assert_linear(A)
    assert_unitary(A)
    assert relative_error(A.H.to_dense(), transform(n, type, norm="ortho", inverse=True).to_dense()) < 1e-13


@pytest.mark.parametrize("transform", [dct, dst])
@pytest.mark.parametrize("type", [2, 3, 4])
def test_one_factor_of_rank_two_as_large_as_that_of_the_dft(transform, type):
    (M,) = monarch_factors(transform(256, type))
    assert M.rank == 2
    assert M.L.dtype == torch.float64
    assert M.L.numel() + M.R.numel() == 4 * 256 * 16


@pytest.mark.parametrize("n", [7, 60, 61, 225, 359, 360])
@pytest.mark.parametrize("type", [1, 2, 3, 4])
@pytest.mark.parametrize("transform", [dct, dst])
def test_never_larger_than_one_dense_block(transform, type, n):
    (M,) = monarch_factors(transform(n, type))
    assert M.L.numel() + M.R.numel() <= n * n + n


def test_the_dtype_of_the_factors():
    x = torch.randn(5, 64)
    y = dct(64, dtype=torch.float32)(x)
    assert y.dtype == torch.float32
    assert relative_error(y.double(), torch.from_numpy(scipy.fft.dct(x.double().numpy()))) < 5e-7


@pytest.mark.parametrize("n", [1, 2, 9, 61, 64])
def test_acdc(n):
    a, d = torch.randn(2, n, dtype=torch.float64)
    C = torch.from_numpy(scipy.fft.dct(np.eye(n), norm="ortho", axis=0))
    A = acdc(a, d)
    assert relative_error(A.to_dense(), a.diag() @ C @ d.diag() @ C.T) < 1e-14
    assert_adjoint(A)
    assert len(monarch_factors(A)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dct(1, 1), "size of at least 2; found 1"),
        (lambda: dst(0), "size of at least 1; found 0"),
        (lambda: dct(8, 5), "type 1, 2, 3 or 4; found 5"),
        (lambda: dct(8, norm="unit"), "found 'unit'"),
        (lambda: dct(8, dtype=torch.int64), "a floating-point or complex dtype; found torch.int64"),
        (lambda: acdc(torch.ones(3), torch.ones(4)), "two real vectors of equal length"),
        (lambda: acdc(torch.ones(3) * 1j, torch.ones(3)), "two real vectors of equal length"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message):
        call()
