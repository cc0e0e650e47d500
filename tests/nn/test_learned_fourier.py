import pytest
import torch
from laws import assert_adjoint, assert_unitary, relative_error
from torch import nn

from monarch_sciml import LearnedFourier
from monarch_sciml.linalg import FourierTransform

GRIDS = [(640, 368), (640, 372), (320, 320), (230, 180), (256, 340), (31, 37)]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_starts_as_the_centred_orthonormal_transform(grid, inverse):
    x = torch.randn(2, *grid, dtype=torch.complex64)
    fft = FourierTransform(x.shape, inverse=inverse)
    with torch.no_grad():
        learned = LearnedFourier(grid, inverse=inverse).operator(x.shape)
        assert relative_error(learned(x), fft(x)) < 1e-6
        assert relative_error(learned.H(x), fft.H(x)) < 1e-6


def exact(grid, inverse=False):
    """In double precision from the start: the factors, not only their type."""
    torch.set_default_dtype(torch.float64)
    try:
        return LearnedFourier(grid, inverse=inverse)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("canonical", [(16, 12), (9, 15), (7, 8)])
@pytest.mark.parametrize("size", [(16, 12), (11, 13), (8, 7), (40, 31)])
def test_any_size_is_exact_at_initialisation(canonical, size, inverse):
    A = exact(canonical, inverse).operator(size)
    assert A.domain == A.codomain == size
    x = torch.randn(size, dtype=torch.complex128)
    assert relative_error(A(x), FourierTransform(size, inverse=inverse)(x)) < 1e-12
    assert_unitary(A)


def perturbed(grid, inverse=False, size=0.3):
    transform = exact(grid, inverse)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter += size * torch.randn_like(parameter)
    return transform


@pytest.mark.parametrize("size", [(12, 10), (17, 19), (8, 9)])
def test_trained_transforms_have_exact_adjoints(size):
    transform = perturbed((12, 10))
    assert_adjoint(transform.operator((3, *size)))
    assert_adjoint(transform.float().operator((3, *size)), dtype=torch.complex64, tol=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("n", "size"), [(8, 13), (9, 12), (8, 11)])
def test_what_was_learned_acts_on_the_frequencies_both_grids_hold(n, size, inverse):
    """On a finer grid, an image of the trained frequencies sees the trained transform and nothing else."""
    transform = perturbed((n, n), inverse)
    fine, coarse = transform.operator((size, size)), transform.operator((n, n))
    low = slice(size // 2 - n // 2, size // 2 - n // 2 + n)
    k = torch.zeros(size, size, dtype=torch.complex128)
    k[low, low] = torch.randn(n, n, dtype=torch.complex128)
    F, Fs = FourierTransform((n, n)), FourierTransform((size, size))
    if inverse:
        found, expected = Fs(fine(k))[low, low], F(coarse(k[low, low]))
        rest = Fs(fine(k))
    else:
        found, expected = fine(Fs.H(k))[low, low], coarse(F.H(k[low, low]))
        rest = fine(Fs.H(k))
    assert relative_error(found, expected) < 1e-12
    rest = rest.clone()
    rest[low, low] = 0
    assert rest.norm() < 1e-12
    # and frequencies that it was never trained on pass as in the Fourier transform
    k = torch.zeros(size, size, dtype=torch.complex128)
    k[0, 0] = 1
    assert relative_error(fine(k) if inverse else fine(Fs.H(k)), Fs.H(k) if inverse else k) < 1e-12


def test_departure_and_nonunitarity():
    transform = exact((12, 10))
    assert transform.departure() < 1e-12
    assert transform.nonunitarity() < 1e-12
    with torch.no_grad():
        transform.L_y *= 2
        transform.L_x *= 2
    # W = 2F: departure ‖F‖/‖F‖, nonunitarity ‖3 I‖/√n
    assert abs(transform.departure().item() - 1) < 1e-12
    assert abs(transform.nonunitarity().item() - 3) < 1e-12


def test_gradients():
    transform = exact((6, 4))
    x = torch.randn(2, 6, 4, dtype=torch.complex128)

    def apply(*parameters):
        for name, parameter in zip(("L_y", "R_y", "L_x", "R_x"), parameters, strict=True):
            setattr(transform, name, parameter)
        out = transform.operator(x.shape)(x)
        resized = transform.operator((7, 9)).to_dense(torch.complex128)
        return out, resized, transform.departure()

    parameters = [p.detach().clone().requires_grad_() for p in transform.parameters()]
    with torch.no_grad():
        parameters[0] += 0.1
    for name in ("L_y", "R_y", "L_x", "R_x"):
        delattr(transform, name)
    assert torch.autograd.gradcheck(apply, parameters, fast_mode=True)


def test_parameters_are_real_and_few_and_may_be_frozen():
    transform = LearnedFourier((128, 128))
    assert all(isinstance(p, nn.Parameter) and not p.is_complex() for p in transform.parameters())
    # 128 = 8 · 16: two axes of L (8, 16, 16) and R (16, 8, 8), complex
    assert sum(p.numel() for p in transform.parameters()) == 2 * 2 * (8 * 16 * 16 + 16 * 8 * 8)
    assert not list(LearnedFourier((128, 128), learned=False).parameters())
