"""A learned transform starts as the DFT on every grid, and stays one operator when it is trained."""

import math

import numpy as np
import pytest
import torch
from laws import relative_error
from torch import fft, nn

from monarch_sciml import InputError, LearnedTransform, MonarchSpectralConv
from monarch_sciml.linalg import interpolation

pytestmark = pytest.mark.usefixtures("double")


def matrix(planes):
    return torch.complex(planes[0], planes[1])


def dft_rows(n, first, n_modes, norm="ortho"):
    k = torch.arange(first, first + n_modes)
    return fft.fft(torch.eye(n), norm=norm)[k % n]


@pytest.mark.parametrize(
    ("n", "n_modes", "first"),
    [
        (64, 24, None),
        (64, 13, 0),
        (63, 24, None),
        (61, 61, None),
        (12, 7, 0),
        (10, 10, None),
        (17, 5, 3),
        (1, 1, 0),
    ],
)
def test_it_starts_as_rows_of_the_dft(n, n_modes, first):
    transform = LearnedTransform(n, n_modes, first)
    assert transform.first == (-(n_modes // 2) if first is None else first)
    W = matrix(transform())
    assert relative_error(W, dft_rows(n, transform.first, n_modes)) < 1e-14
    assert relative_error(matrix(transform.adjoint()), W.mH) < 1e-14
    assert relative_error(matrix(LearnedTransform(n, n_modes, first, scale=3.0)()), 3 * W) < 1e-14


@pytest.mark.parametrize("size", [8, 9, 12, 15, 16, 40])
def test_on_another_grid_it_is_the_dft_of_that_grid(size):
    n, n_modes = 12, 8
    # norm="forward": the scale of the transform does not depend on the grid
    W = matrix(LearnedTransform(n, n_modes, scale=n**-0.5)(size))
    assert relative_error(W, dft_rows(size, -4, n_modes, "forward")) < 1e-14
    half = matrix(LearnedTransform(n, n_modes // 2 + 1, 0, scale=n**-0.5)(size))
    assert relative_error(half, dft_rows(size, 0, 5, "forward")) < 1e-14


@pytest.mark.parametrize("n", [6, 7, 12])
@pytest.mark.parametrize("size", [6, 7, 8, 12, 13])
def test_the_hermitian_adjoint_is_irfft_on_every_grid(n, size):
    modes = min(n, size) // 2 + 1
    transform = LearnedTransform(n, n // 2 + 1, 0, scale=n**0.5, hermitian=True)
    z = torch.zeros(size // 2 + 1, dtype=torch.complex128)
    z[:modes] = torch.randn(modes, dtype=torch.complex128)
    found = (matrix(transform.adjoint(size))[:, :modes] @ z[:modes]).real
    assert relative_error(found, fft.irfft(z, n=size, norm="forward")) < 1e-14


@pytest.mark.parametrize("size", [9, 15, 21, 24])
def test_a_trained_one_acts_on_the_resampled_signal(size):
    transform = LearnedTransform(15, 6)
    with torch.no_grad():
        for factor in transform.parameters():
            factor.add_(0.1 * torch.randn_like(factor))
    W = matrix(transform())
    T = interpolation(size, 15)
    assert relative_error(matrix(transform(size)), W @ T) < 1e-14
    assert relative_error(matrix(transform.adjoint(size)), interpolation(15, size) @ W.mH) < 1e-14


def test_parameters_are_real_few_and_of_size_one():
    transform = LearnedTransform(64, 24, scale=1e-3)
    shapes = {name: tuple(p.shape) for name, p in transform.named_parameters()}
    assert shapes == {"L": (8, 3, 8, 2), "R": (8, 8, 8, 2)}
    assert all(p.dtype == torch.float64 for p in transform.parameters())
    assert all(0.1 < p.abs().max() < 1 for p in transform.parameters())
    assert isinstance(transform.L, nn.Parameter)


def test_a_fixed_one_has_no_parameters_and_the_same_matrix():
    fixed, learned = LearnedTransform(20, 7, learned=False), LearnedTransform(20, 7)
    assert not list(fixed.parameters())
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    assert fixed().equal(learned())
    assert "fixed" in repr(fixed)
    assert repr(learned) == "LearnedTransform(n=20, modes -3…3, learned, factors (4, 2, 5, 2) (5, 4, 4, 2))"


def test_the_number_of_modes_is_checked():
    with pytest.raises(InputError, match="between 1 and 8 modes on a grid of 8 points; found 9"):
        LearnedTransform(8, 9)


def test_data_in_the_place_of_a_size():
    """A call gives the matrix; the message tells how to apply it."""
    transform, x = LearnedTransform(64, n_modes=16), torch.randn(3, 64)
    with pytest.raises(InputError, match=r"a number of grid points.*found data of shape \(3, 64\); apply"):
        transform(x)
    W = matrix(transform())
    assert relative_error(x.to(W.dtype) @ W.mT, fft.fft(x, norm="ortho")[:, torch.arange(-8, 8)]) < 1e-13


@pytest.mark.parametrize(
    ("n", "n_modes", "first"), [(12, 7, 0), (12, 4, 0), (12, 5, 2), (12, 4, 1), (13, 7, 0)]
)
def test_half_a_spectrum_counts_each_pair_twice(n, n_modes, first):
    transform = LearnedTransform(n, n_modes, first, scale=0.3, hermitian=True)
    k = torch.arange(first, first + n_modes)
    twice = 1 + ((k != 0) & (2 * k != n))
    for _ in ("float64", "float32"):  # by definition, and in C++
        expected = (matrix(transform()) * twice[:, None]).mH
        torch.testing.assert_close(matrix(transform.adjoint()), expected)
        transform.float()


# ------------------------------------------------------------------------------------ starting somewhere else


def waves(x, first, n_modes):
    """exp(2πi k x), (points, n_modes)."""
    k = first + torch.arange(n_modes)
    return torch.exp(2j * math.pi * x[:, None] * k)


@pytest.mark.parametrize("sizes", [((16, 13), (6, 9)), ((12,), (8,))], ids=str)
def test_layers_can_start_from_series_on_unequal_points(sizes, double):
    """Fourier series at points that are not equidistant: a convolution there, and gradients that learn."""
    grid, modes = sizes
    layer = MonarchSpectralConv(1, 1, modes, grid=grid, bias=False)
    points = [(torch.arange(n) + 0.3 * torch.rand(n)) / n for n in grid]
    fields = []
    for x, analysis, synthesis in zip(points, layer.analysis, layer.synthesis, strict=True):
        m = max(-analysis.first, analysis.first + analysis.n_modes - 1)
        every = torch.linalg.pinv(waves(x, -m, 2 * m + 1))
        rows = slice(analysis.first + m, analysis.first + m + analysis.n_modes)
        assert analysis.start_from_(every[rows]) is analysis
        synthesis.start_from_(waves(x, analysis.first, analysis.n_modes).mH)
        fields.append((2 * math.pi * 2 * x).cos())
    field = fields[0] if len(grid) == 1 else fields[0][:, None] * fields[1]
    with torch.no_grad():  # every mode times 3, and nothing else
        layer.weight.copy_(torch.tensor([3.0, 0.0]).expand_as(layer.weight))
    x = field[None, None].requires_grad_()
    torch.testing.assert_close(layer(x), 3 * x)
    layer(x).square().sum().backward()
    assert all(t.L.grad.abs().sum() > 0 for t in (*layer.analysis, *layer.synthesis))
    again = MonarchSpectralConv(1, 1, modes, grid=grid, bias=False)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def test_what_a_transform_cannot_start_from():
    transform = LearnedTransform(8, 5)
    with pytest.raises(InputError, match=r"matrix \(5, 8\); found \(8, 5\); pass a tensor, a row for each"):
        transform.start_from_(torch.ones(8, 5))
    with pytest.raises(InputError, match=r"finite matrix \(5, 8\); found ndarray"):
        transform.start_from_(np.ones((5, 8)))
    with pytest.raises(InputError, match=r"finite matrix .*; found NaN or infinity"):
        transform.start_from_(torch.full((5, 8), torch.nan))
    with pytest.raises(InputError, match=r"a transform that learns; found a fixed one"):
        LearnedTransform(8, 5, learned=False).start_from_(torch.ones(5, 8))
    assert transform.L.shape != (1, 5, 8, 2)  # nothing has changed
