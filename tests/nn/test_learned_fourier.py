import pytest
import torch
from laws import assert_adjoint, assert_unitary, relative_error
from torch import nn

from monarch_sciml import InputError, LearnedFourier
from monarch_sciml.linalg import FourierTransform, centered_dft

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


def of_kspace(transform, size):
    """G = W Fᴴ along the first axis, what training made of k-space."""
    W, F = transform.matrix("y", size).detach(), centered_dft(size)
    return F @ W if transform.inverse else W @ F.conj()


def acting_on_kspace(G, inverse):
    """A transform of len(G) points with the given G; one dense block holds any matrix."""
    n = len(G)
    transform = exact((n, 2), inverse)
    F = centered_dft(n)
    with torch.no_grad():
        transform.L_y.copy_(torch.view_as_real((F.conj() @ G if inverse else G @ F)[None]))
        transform.R_y.copy_(torch.view_as_real(torch.ones(n, 1, 1, dtype=torch.complex128)))
    return transform


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("n", "size"), [(13, 26), (13, 20), (17, 11), (7, 7)])
def test_weights_of_frequencies_are_stretched_to_another_grid(n, size, inverse):
    """A weight that is linear in k / n stays so: the same at the same fraction of the highest frequency."""
    k, wide = (torch.arange(m, dtype=torch.float64) - m // 2 for m in (n, size))
    transform = acting_on_kspace(torch.diag(1 + 0.5j + k / n).to(torch.complex128), inverse)
    found = of_kspace(transform, size)
    assert relative_error(found - torch.diag(found.diag()), torch.zeros_like(found)) < 1e-12
    # beyond the outermost frequency of the smaller grid there is nothing to interpolate to
    inner = (wide * n / size >= k[0]) & (wide * n / size <= k[-1])
    assert relative_error(found.diag()[inner], (1 + 0.5j + wide / size)[inner].to(found)) < 1e-12


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("lag", [1, -3])
def test_a_weight_of_places_keeps_its_place(lag, inverse):
    """k − k′ = lag alone is the multiplication by a wave over the field of view; it is the same wave."""
    n, size = 13, 22
    G = torch.eye(n, dtype=torch.complex128) + 0.5j * torch.diag(torch.ones(n - abs(lag)), -lag)
    found = of_kspace(acting_on_kspace(G, inverse), size)
    expected = torch.eye(size, dtype=torch.complex128)
    expected = expected + 0.5j * torch.diag(torch.ones(size - abs(lag)), -lag)
    middle = slice(4, -4)  # where the diagonal has neighbours on both sides
    assert relative_error(found[middle, middle], expected[middle, middle]) < 1e-12


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


@pytest.mark.parametrize("inverse", [False, True])
def test_departure_has_a_finite_gradient_where_it_is_exactly_zero(inverse):
    """So that it may be a penalty from the first step on."""
    transform = LearnedFourier((2, 2), inverse=inverse)
    transform.departure().square().backward()
    assert all(p.grad.isfinite().all() for p in transform.parameters())
    for axis in "yx":  # W = F exactly
        F = centered_dft(2).to(torch.complex64)
        with torch.no_grad():
            getattr(transform, f"L_{axis}").copy_(
                torch.view_as_real((F.conj() if inverse else F).resolve_conj())[None]
            )
            getattr(transform, f"R_{axis}").copy_(torch.tensor([1.0, 0.0]))
    transform.zero_grad()
    departure = transform.departure()
    assert departure == 0
    departure.square().backward()
    assert all(p.grad.isfinite().all() for p in transform.parameters())


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


def test_a_call_names_the_operator():
    transform, x = LearnedFourier((12, 10)), torch.randn(2, 12, 10, dtype=torch.complex64)
    with pytest.raises(InputError, match=r"; write transform.operator\(x.shape\)\(x\), and .*\.H\(X\)"):
        transform(x)
    assert transform.operator(x.shape)(x).shape == x.shape
