"""Relative L2 against its formula; the energy spectrum against single modes and the velocity itself."""

import math

import pytest
import torch
from laws import relative_error

from monarch_sciml.errors import InputError
from monarch_sciml.pde.metrics import energy_spectrum, relative_l2


def test_relative_l2_is_the_formula(double):
    p, y = torch.randn(2, 3, 4, 2, 5, 6)
    per_sample = [(a - b).norm() / b.norm() for a, b in zip(p, y, strict=True)]
    torch.testing.assert_close(relative_l2(p, y), torch.stack(per_sample))
    per_frame = [[(a[t] - b[t]).norm() / b[t].norm() for t in range(4)] for a, b in zip(p, y, strict=True)]
    torch.testing.assert_close(relative_l2(p, y, first_dim=2), torch.tensor(per_frame))


def test_relative_l2_of_known_errors():
    y = torch.randn(3, 7)
    assert relative_l2(y, y).tolist() == [0, 0, 0]
    torch.testing.assert_close(relative_l2(torch.zeros_like(y), y), torch.ones(3))
    torch.testing.assert_close(relative_l2(-2 * y, y), torch.full((3,), 3.0))
    torch.testing.assert_close(relative_l2(1e3 * (y + 0.1 * y), 1e3 * y), torch.full((3,), 0.1))
    for nothing in (torch.ones(1, 7), torch.zeros(1, 7)):
        assert not relative_l2(nothing, torch.zeros(1, 7)).isfinite().any()


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**-73, 2.0**60, 2.0**100])
def test_relative_l2_has_no_units(unit):
    """The same error and slope to the last digit where squares leave float32."""
    p, y = torch.randn(2, 3, 4, 5, 6)

    def error_and_slope(unit: float) -> tuple[torch.Tensor, torch.Tensor]:
        prediction = (p * unit).requires_grad_()
        error = relative_l2(prediction, y * unit, first_dim=2)
        return error, torch.autograd.grad(error.sum(), prediction)[0] * unit

    for found, expected in zip(error_and_slope(unit), error_and_slope(1.0), strict=True):
        assert torch.equal(found, expected)


def test_relative_l2_is_differentiable(double):
    p, y = torch.randn(2, 3, 4, 5)
    for scale in (1e-3, 1.0, 1e3):
        inputs = (scale * p).requires_grad_(), (scale * y).requires_grad_()
        torch.autograd.gradcheck(lambda x, y: relative_l2(x, y, first_dim=2), inputs, eps=1e-6 * scale)


def test_relative_l2_of_other_shapes():
    with pytest.raises(
        InputError, match=r"target's shape \(2, 5\); found \(2, 1\); compare on the same grid"
    ):
        relative_l2(torch.ones(2, 1), torch.ones(2, 5))


def grid(n_x: int, n_y: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n_x)[:, None] / n_x, torch.arange(n_y)[None, :] / n_y


@pytest.mark.parametrize("size", [(16, 16), (17, 17), (15, 24), (32, 9)])
@pytest.mark.parametrize("k", [(1, 0), (0, 3), (2, -1), (-3, 2)])
def test_single_mode(double, size, k):
    """w = cos(2πk·x) has ŵ = ½ at ±k, hence the energy ½ · 2 · ¼ / |2πk|² in one shell."""
    x, y = grid(*size)
    k2 = k[0] ** 2 + k[1] ** 2
    spectrum = energy_spectrum(3 * torch.cos(2 * math.pi * (k[0] * x + k[1] * y) + 0.4))
    expected = torch.zeros(min(size) // 2 + 1)
    expected[round(math.sqrt(k2))] = 9 / (16 * math.pi**2 * k2)
    torch.testing.assert_close(spectrum, expected, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("size", [(24, 24), (21, 26)])
def test_energies_add_up_to_that_of_the_velocity(double, size):
    """u = ψ_y, v = −ψ_x, −Δψ = w, differentiated analytically, for |k| within every shell that is kept."""
    x, y = grid(*size)
    w, u, v = torch.zeros(3, *size)
    for kx in range(-6, 7):
        for ky in range(-6, 7):
            if 0 < kx**2 + ky**2 < 49:
                a, phase = torch.randn(()), 2 * math.pi * (kx * x + ky * y + torch.rand(()))
                w = w + a * torch.cos(phase)
                slope = a * torch.sin(phase) / (2 * math.pi * (kx**2 + ky**2))
                u, v = u - ky * slope, v + kx * slope
    energy = 0.5 * (u**2 + v**2).mean()
    torch.testing.assert_close(energy_spectrum(w).sum(), energy)


def test_spectrum_has_the_precision_of_the_vorticity():
    """w = cos 2π(x + 2y) has the energy 1 / 4 · 1 / (4π² · 5), whatever torch's default precision is."""
    x, y = grid(16, 16)
    spectrum = energy_spectrum(torch.cos(2 * math.pi * (x.double() + 2 * y.double())))
    expected = torch.tensor(1 / (80 * math.pi**2), dtype=torch.float64)
    torch.testing.assert_close(spectrum[2], expected, rtol=1e-14, atol=0)


def test_mean_vorticity_carries_no_energy_and_batches_are_independent():
    w = torch.randn(2, 3, 12, 14)
    spectrum = energy_spectrum(w)
    assert spectrum.shape == (2, 3, 7)
    torch.testing.assert_close(spectrum[1, 2], energy_spectrum(w[1, 2]))
    assert relative_error(energy_spectrum(w + 5), spectrum) < 1e-4
    assert (spectrum[..., 0] == 0).all()
    assert spectrum.dtype == torch.float32
