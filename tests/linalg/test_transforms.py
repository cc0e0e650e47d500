"""Exact transforms against torch.fft, and trigonometric interpolation against analytic functions."""

import math

import pytest
import torch
from laws import assert_adjoint, assert_unitary, relative_error
from torch import fft
from torch._subclasses.fake_tensor import FakeTensorMode

from monarch_sciml import InputError, dft, truncated_dft
from monarch_sciml.linalg import (
    FactoredTransform,
    FourierTransform,
    balanced_factors,
    circulant,
    dct,
    fourier_factors,
    interpolation,
)

SIZES = [*range(1, 129), 360, 372, 640, 1000]
COMPLEX = torch.complex128


def random(n, batch=3):
    return torch.randn(batch, n, dtype=COMPLEX)


@pytest.mark.parametrize("n", SIZES)
def test_dft_equals_fft(n):
    x = random(n)
    for norm in ("backward", "ortho", "forward"):
        assert relative_error(dft(n, norm=norm)(x), fft.fft(x, norm=norm)) < 1e-14
        assert relative_error(dft(n, norm=norm, inverse=True)(x), fft.ifft(x, norm=norm)) < 1e-14


@pytest.mark.parametrize("n", SIZES)
def test_centered_dft_puts_both_origins_in_the_middle(n):
    x = random(n)
    for inverse, transform in ((False, fft.fft), (True, fft.ifft)):
        expected = fft.fftshift(transform(fft.ifftshift(x, -1), norm="ortho"), -1)
        assert relative_error(dft(n, inverse=inverse, centered=True)(x), expected) < 1e-14


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("n", [1, 2, 12, 13, 36, 97, 360, 372])
def test_the_orthonormal_dft_is_unitary(n, centered):
    F = dft(n, centered=centered)
    assert_unitary(F)
    assert_adjoint(F)
    assert (
        relative_error(F.H.to_dense(COMPLEX), dft(n, inverse=True, centered=centered).to_dense(COMPLEX))
        < 1e-14
    )


@pytest.mark.parametrize(("dtype", "tol"), [(torch.complex64, 5e-7), (torch.complex128, 1e-14)])
def test_the_dtype_of_the_factors(dtype, tol):
    x = random(640).to(dtype)
    y = dft(640, dtype=dtype)(x)
    assert y.dtype == dtype
    assert relative_error(y, fft.fft(x, norm="ortho")) < tol


# modes that p = balanced_factors(n)[0] divides and does not, primes, everything, one
@pytest.mark.parametrize(
    ("n", "n_modes", "first"),
    [
        (64, 24, None), (64, 13, 0), (12, 5, None), (12, 12, None), (30, 7, -3), (30, 8, 11), (17, 6, None),
        (61, 31, 0), (421, 20, None), (100, 1, 0), (1, 1, None), (36, 10, -40),
    ],
)  # fmt: skip
def test_truncated_dft_is_rows_of_the_dft(n, n_modes, first):
    p, _ = balanced_factors(n)
    for norm in ("backward", "ortho", "forward"):
        W = truncated_dft(n, n_modes, first, norm=norm)
        assert W.shape == (math.ceil(n_modes / p) * p, n)
        start = -(n_modes // 2) if first is None else first
        x = random(n)
        expected = fft.fft(x, norm=norm)[:, torch.arange(start, start + n_modes) % n]
        assert relative_error(W(x)[:, :n_modes], expected) < 1e-14
    assert_adjoint(truncated_dft(n, n_modes, first))


def wave(n, modes, coefficients):
    """A trigonometric polynomial on n points; the same function whatever n."""
    x = torch.arange(n, dtype=torch.float64) / n
    return sum(c * torch.exp(2j * math.pi * k * x) for k, c in zip(modes, coefficients, strict=True))


@pytest.mark.parametrize("n_to", [8, 9, 16, 17, 40])
@pytest.mark.parametrize("n_from", [8, 9, 16, 21])
def test_interpolation_is_exact_for_band_limited_input(n_from, n_to):
    top = (min(n_from, n_to) - 1) // 2
    modes = range(-top, top + 1)
    coefficients = torch.randn(len(modes), dtype=COMPLEX)
    T = interpolation(n_from, n_to)
    assert T.shape == (n_to, n_from)
    assert relative_error(T @ wave(n_from, modes, coefficients), wave(n_to, modes, coefficients)) < 1e-13
    # its real part serves real functions
    real = coefficients + coefficients.flip(0).conj()
    found = T.real @ wave(n_from, modes, real).real
    assert relative_error(found, wave(n_to, modes, real).real) < 1e-13


@pytest.mark.parametrize(("coarse", "fine"), [(8, 8), (8, 16), (8, 13), (9, 12), (7, 11)])
def test_interpolation_passes_through_the_samples_and_truncates_on_the_way_down(coarse, fine):
    up, down = interpolation(coarse, fine), interpolation(fine, coarse)
    identity = torch.eye(coarse, dtype=COMPLEX)
    assert relative_error(down @ up, identity) < 1e-14
    assert relative_error(up.mH * (coarse / fine), down) < 1e-14
    if fine % coarse == 0:
        assert relative_error(up[:: fine // coarse], identity) < 1e-14
        assert relative_error(up.real[:: fine // coarse], identity.real) < 1e-14
    beyond = wave(fine, [coarse // 2 + 1], [1.0])
    if coarse // 2 + 1 < fine / 2:
        assert (down @ beyond).norm() < 1e-13


@pytest.mark.parametrize(
    ("context", "fine"),  # sizes that nobody else asks for: matrices are kept
    [(torch.inference_mode, 1009), (lambda: torch.device("meta"), 1013), (FakeTensorMode, 1019)],
    ids=["inference", "meta", "fake"],
)
def test_interpolation_first_used_elsewhere_still_trains(context, fine):
    with context():
        interpolation(6, fine)
    x = torch.randn(6, dtype=COMPLEX, requires_grad=True)
    (interpolation(6, fine) @ x).abs().sum().backward()
    assert interpolation(6, fine) is interpolation(6, fine)


def test_what_a_function_transform_makes_is_not_kept():
    x = torch.randn(5, dtype=COMPLEX)
    torch.func.functionalize(lambda x: interpolation(5, 1021) @ x)(x)
    assert interpolation(5, 1021).data_ptr() != 0


@pytest.mark.parametrize(
    ("n", "factors"),
    [(1, (1, 1)), (12, (3, 4)), (36, (6, 6)), (97, (1, 97)), (372, (12, 31)), (640, (20, 32))],
)
def test_balanced_factors(n, factors):
    assert balanced_factors(n) == factors


def test_errors_name_the_remedy():
    with pytest.raises(
        InputError, match="between 1 and 8 modes on a grid of 8 points; found 9; lower n_modes"
    ):
        truncated_dft(8, 9)
    with pytest.raises(InputError, match="found 0"):
        truncated_dft(8, 0)
    with pytest.raises(InputError, match=r"a complex dtype; found torch.float32; the factors of this"):
        dft(8, dtype=torch.float32)
    with pytest.raises(InputError, match=r"a complex dtype; found torch.float64"):
        truncated_dft(8, 3, dtype=torch.float64)
    for sizes in ((0, 4), (4, 0)):
        with pytest.raises(InputError, match="grids of at least one point; found"):
            interpolation(*sizes)
    with pytest.raises(InputError, match="size of at least 1; found 0"):
        dft(0)
    with pytest.raises(InputError, match="norm 'backward', 'ortho' or 'forward'; found 'unitary'"):
        dft(8, norm="unitary")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "A",
    [
        dft(12),
        dct(10),
        circulant(torch.arange(7.0)),
        2 * dft(6) + dft(6).H,
        torch.tensor(2.0) * dft(3),
        FactoredTransform(fourier_factors(6, 6, 0), fourier_factors(4, 4, 0)),
    ],
    ids=lambda A: type(A).__name__,
)
def test_an_operator_moves_with_all_it_holds(A):
    moved = A.to("meta")
    assert (A.device, moved.device) == (torch.device("cpu"), torch.device("meta"))
    assert moved.to_dense(torch.complex128).is_meta
    assert moved(torch.empty(2, *A.domain, dtype=torch.complex128, device="meta")).is_meta
    assert torch.equal(A.to("cpu").to_dense(torch.complex128), A.to_dense(torch.complex128))
    assert FourierTransform((4,)).device is None
