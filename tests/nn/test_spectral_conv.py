"""The layer starts as the FFT convolution, on every grid, and is one well-behaved module afterwards."""

import copy
import math
import pickle

import pytest
import torch
from fft_twin import fft_convolution
from laws import assert_same, relative_error
from torch.func import functional_call

from monarch_sciml import InputError, MonarchSpectralConv
from monarch_sciml.linalg import interpolation
from monarch_sciml.nn import spectral

# grid and modes: composite, odd, prime, rectangular; even and odd mode counts up to the full spectrum
LAYERS = [
    ((421,), (32,)), ((421,), (421,)), ((64,), (64,)),
    ((64, 64), (24, 24)), ((64, 64), (64, 64)), ((63, 65), (24, 25)), ((63, 65), (63, 65)),
    ((17, 33), (9, 12)), ((17, 33), (17, 33)), ((128, 96), (24, 32)),
    ((61, 61), (20, 21)), ((61, 61), (61, 61)), ((16, 20, 10), (8, 7, 5)), ((16, 20, 10), (16, 20, 10)),
]  # fmt: skip
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 2e-6)]


def layer(grid, n_modes, channels=(3, 4), dtype=torch.float64, **options):
    torch.set_default_dtype(dtype)
    try:
        return MonarchSpectralConv(*channels, n_modes, grid=grid, **options)
    finally:
        torch.set_default_dtype(torch.float32)


def perturb(conv, size=0.1):
    """What training does to a layer, for all a test can know: every parameter moves."""
    with torch.no_grad():
        for p in conv.parameters():
            p.add_(size * torch.randn_like(p))
    return conv


def trigonometric(grid, channels=1):
    """A real function with frequencies up to 3, sampled on any grid (1, channels, *grid)."""
    mesh = torch.meshgrid(*(2 * math.pi * torch.arange(n).double() / n for n in grid), indexing="ij")
    values = [
        0.3
        + sum(torch.sin((c + 1) * t + a) for a, t in enumerate(mesh))
        + torch.cos(3 * mesh[0] - 2 * mesh[-1])
        for c in range(channels)
    ]
    return torch.stack(values)[None]


def all_ones(conv):
    """Weights of the identity on the kept modes."""
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 0.0]).expand_as(conv.weight))
        conv.bias.zero_()
    return conv


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize(("grid", "n_modes"), LAYERS, ids=str)
def test_it_starts_as_the_fft_convolution(grid, n_modes, dtype, tol):
    conv = layer(grid, n_modes, dtype=dtype)

    def monarch(x, weight, bias):
        return functional_call(conv, {"weight": weight, "bias": bias}, x)

    def twin(x, weight, bias):
        return fft_convolution(x, weight, n_modes) + bias

    assert_same(monarch, twin, torch.randn(2, 3, *grid, dtype=dtype), conv.weight, conv.bias, tol=tol)


@pytest.mark.parametrize("size", [(16, 16), (24, 18), (8, 8), (9, 7), (6, 5), (33, 40), (12, 12)], ids=str)
@pytest.mark.parametrize("n_modes", [(8, 8), (7, 9), (12, 12)], ids=str)
def test_and_is_it_on_every_other_grid(n_modes, size):
    # arbitrary input, not band-limited; grids that hold fewer frequencies than the layer; every Nyquist mode
    conv, x = layer((12, 12), n_modes), torch.randn(2, 3, *size, dtype=torch.float64)
    assert relative_error(conv(x), fft_convolution(x, conv.weight, n_modes) + conv.bias) < 1e-12
    for output in ((16, 16), (13, 10), (8, 9)):
        expected = fft_convolution(x, conv.weight, n_modes, output) + conv.bias
        assert relative_error(conv(x, output), expected) < 1e-12


def test_n_modes_and_weights_mean_what_they_mean_in_neuraloperator():
    from neuralop.layers.spectral_convolution import SpectralConv

    peer = SpectralConv(3, 4, (12, 10))
    conv = MonarchSpectralConv(3, 4, (12, 10), grid=(32, 24))
    assert conv.weight.shape == (12, 6, 3, 4, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.view_as_real(peer.weight.tensor).permute(2, 3, 0, 1, 4))
        conv.bias.copy_(peer.bias)
    x = torch.randn(2, 3, 32, 24)
    assert relative_error(conv(x), peer(x)) < 2e-6


@pytest.mark.parametrize("output", [(16, 16), (32, 32), (17, 33), (33, 17), (8, 40)], ids=str)
@pytest.mark.parametrize("grid", [(16, 16), (17, 17), (17, 33), (33, 16)], ids=str)
def test_unit_weights_resample_band_limited_functions_exactly(grid, output):
    conv = all_ones(layer((16, 16), (8, 8), (1, 1)))
    x, expected = trigonometric(grid), trigonometric(output)
    assert relative_error(conv(x, output_shape=output), expected) < 1e-13
    assert relative_error(conv.transform(x, output_shape=output), expected) < 1e-13
    assert relative_error(conv.float()(x.float(), output_shape=output), expected.float()) < 1e-6


@pytest.mark.parametrize(
    ("factor", "grid", "output"), [(2, (16, 17), (32, 34)), ([0.5, 3], (32, 9), (16, 27))]
)
def test_resolution_scaling(factor, grid, output):
    conv = all_ones(layer((16, 16), (8, 8), (1, 1), resolution_scaling_factor=factor))
    for resample in (conv, conv.transform):
        assert relative_error(resample(trigonometric(grid)), trigonometric(output)) < 1e-13
        assert relative_error(resample(trigonometric(grid), (20, 21)), trigonometric((20, 21))) < 1e-13


@pytest.mark.parametrize("grid", [(16, 16), (17, 33), (31,), (8, 10, 11)], ids=str)
def test_weights_ik_differentiate(grid):
    conv = all_ones(layer(grid, tuple(8 for _ in grid), (1, 1)))
    k = torch.arange(5).double()
    with torch.no_grad():
        conv.weight.copy_(torch.stack((torch.zeros(5), k), dim=-1)[:, None, None].expand_as(conv.weight))
    mesh = torch.meshgrid(*(2 * math.pi * torch.arange(n).double() / n for n in grid), indexing="ij")
    phase = 3 * mesh[-1] + (2 * mesh[0] if len(grid) > 1 else 0)
    assert relative_error(conv(torch.sin(phase)[None, None]), 3 * torch.cos(phase)[None, None]) < 1e-12


@pytest.mark.parametrize("size", [(15, 21), (24, 32), (13, 17), (40, 19)], ids=str)
def test_a_trained_layer_resamples_to_its_grid_and_back(size):
    grid = (15, 21)
    conv = perturb(layer(grid, (8, 8), (2, 3)))
    x = trigonometric(size, channels=2)

    def resample(x, sizes):
        for axis, n in enumerate(sizes, start=2):
            x = torch.einsum("mn,...n->...m", interpolation(x.shape[axis], n).real, x.movedim(axis, -1))
            x = x.movedim(-1, axis)
        return x

    assert relative_error(conv(x), resample(conv(resample(x, grid)), size)) < 1e-12


def test_a_trained_layer_on_a_finer_grid_passes_through_its_own_values():
    conv = perturb(layer((16, 12), (16, 12), (2, 3)))
    coarse, fine = trigonometric((16, 12), channels=2), trigonometric((32, 36), channels=2)
    assert relative_error(conv(fine, (16, 12)), conv(coarse)) < 1e-12
    conv = perturb(layer((16, 12), (8, 8), (2, 3)))
    assert relative_error(conv(fine)[..., ::2, ::3], conv(coarse)) < 1e-12


@pytest.mark.parametrize("size", [(5, 6), (7, 4)], ids=str)
def test_derivatives_of_every_parameter(size):
    conv = layer((5, 6), (3, 4), (1, 2))
    names, values = zip(*conv.named_parameters(), strict=True)
    assert len(names) == 10  # weight, bias, and two factors per axis and direction
    x = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return functional_call(conv, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize("maximum", [(12, 12), (11, 9)], ids=str)
def test_n_modes_shrinks_and_grows(maximum):
    conv = layer((16, 16), (4, 4), max_n_modes=maximum)
    full, x = conv.weight, torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert full.shape[:2] == (maximum[0], maximum[1] // 2 + 1)
    for modes in ((4, 4), (7, 6), maximum, (3, 9), (1, 1)):
        conv.n_modes = modes
        assert conv.n_modes == modes
        start = maximum[0] // 2 - modes[0] // 2
        used = full[start : start + modes[0], : modes[1] // 2 + 1]
        assert relative_error(conv(x), fft_convolution(x, used, modes) + conv.bias) < 1e-12
    conv.n_modes = 5
    assert conv.n_modes == (5, 5)
    with pytest.raises(InputError, match=r"n_modes between 1 and .*construct the layer with max_n_modes"):
        conv.n_modes = (maximum[0] + 1, 4)
    with pytest.raises(InputError, match=r"found \(0, 4\)"):
        conv.n_modes = (0, 4)
    assert conv.n_modes == (5, 5)


def test_fixed_transforms_have_no_parameters_and_the_same_output():
    learned, fixed = layer((16, 12), (8, 8)), layer((16, 12), (8, 8), learned=False)
    assert [name for name, _ in fixed.named_parameters()] == ["weight", "bias"]
    fixed.load_state_dict(learned.state_dict())
    x = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    for size in (12, 6):
        assert relative_error(fixed(x[..., :size]), learned(x[..., :size])) < 1e-14


@pytest.mark.parametrize("grid", [(64, 60), (63, 65)])
def test_the_dft_with_many_modes_is_done_by_ffts_and_nothing_else_is(grid, monkeypatch):
    calls = []
    known = spectral.fourier_convolution
    monkeypatch.setattr(spectral, "fourier_convolution", lambda *args: calls.append(1) or known(*args))
    x = torch.randn(2, 3, *grid)
    with torch.no_grad():
        layer(grid, grid, dtype=torch.float32)(x)  # learned, even if nothing was learned yet
    assert not calls
    for modes in (grid, (grid[0] - 7, grid[1] - 4)):
        conv = layer(grid, modes, dtype=torch.float32, learned=False)
        expected = conv(x)  # with gradients
        assert not calls
        with torch.no_grad():
            assert relative_error(conv(x), expected) < 1e-6
            assert calls.pop()
            # a smaller grid, few modes, a transform that has learned and is fixed now: by products
            conv(x[..., :50])
            conv.n_modes = 16
            conv(x)
            conv.n_modes = modes
            conv.synthesis[0].L[0, 0, 0] += 1e-3
            conv(x)
        assert not calls


@pytest.mark.parametrize("grid", [(8, 12), (7, 9), (1, 6), (5, 1)])
def test_fourier_convolution_is_the_convolution(grid):
    for modes in (grid, tuple(max(1, n // 2) for n in grid)):
        conv = layer(grid, modes)
        x = torch.randn(2, 3, *grid, dtype=torch.float64)
        found = spectral.fourier_convolution(x, conv.weight, conv.bias.flatten())
        assert relative_error(found, conv(x)) < 1e-12


def test_every_parameter_is_real_and_receives_a_gradient():
    conv = layer((16, 12), (8, 8))
    conv(torch.randn(2, 3, 16, 12, dtype=torch.float64)).square().sum().backward()
    for name, p in conv.named_parameters():
        assert p.dtype == torch.float64, name
        assert p.grad is not None, name
        assert p.grad.norm() > 0, name


def test_weights_are_distributed_as_in_neuraloperator():
    conv = MonarchSpectralConv(6, 10, (40, 40), grid=(64, 64))
    variance = 2 / (6 + 10)
    for part in conv.weight.detach().unbind(-1):
        assert part.mean().abs() < 0.01
        assert part.var() == pytest.approx(variance / 2, rel=0.03)
    bias = MonarchSpectralConv(1, 4000, 1, grid=1).bias
    assert bias is not None
    assert bias.detach().var() == pytest.approx(2 / 4001, rel=0.1)
    assert MonarchSpectralConv(2, 2, 4, grid=8, bias=False).bias is None


def test_copies_pickles_and_state_dicts_compute_the_same():
    conv = perturb(layer((16, 12), (8, 8), max_n_modes=(10, 10)))
    x = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    fresh = layer((16, 12), (8, 8), max_n_modes=(10, 10))
    assert not fresh(x).allclose(conv(x))
    fresh.load_state_dict(conv.state_dict())
    for twin in (fresh, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert twin(x).equal(conv(x))
        assert twin.n_modes == (8, 8)
    assert repr(conv).startswith("MonarchSpectralConv(\n  3 → 4, n_modes=(8, 8), grid=(16, 12)")


def test_precision_follows_the_module():
    conv = MonarchSpectralConv(3, 4, (8, 8), grid=(16, 12))
    x = torch.randn(2, 3, 20, 12)
    expected = copy.deepcopy(conv).double()(x.double())
    assert expected.dtype == torch.float64
    assert conv(x).dtype == torch.float32
    assert relative_error(conv(x).double(), expected) < 1e-6
    low = copy.deepcopy(conv).to(torch.bfloat16)(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert relative_error(low.double(), expected) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_input_of_another_precision_is_refused(dtype):
    conv = MonarchSpectralConv(3, 4, (8, 8), grid=(16, 12))
    x = torch.randn(2, 3, 16, 12)
    with pytest.raises(
        InputError, match=r"in float32, the dtype of the weights; found \w+; .*x.to\(torch.flo"
    ):
        conv(x.to(dtype))
    converted = conv.to(dtype)(x.to(dtype))
    assert converted.dtype == dtype
    assert converted.isfinite().all()


@pytest.mark.parametrize("size", [(16, 12), (20, 24)], ids=str)
def test_training_under_autocast(size):
    conv = MonarchSpectralConv(3, 4, (8, 8), grid=(16, 12))
    x, upstream = torch.randn(2, 3, *size), torch.randn(2, 4, *size)
    expected = torch.autograd.grad((conv(x) * upstream).sum(), list(conv.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (conv(x) * upstream).sum()
    found = torch.autograd.grad(loss, list(conv.parameters()))
    for g, e in zip(found, expected, strict=True):
        assert g.dtype == torch.float32
        assert relative_error(g, e) < 3e-2


def test_an_empty_batch_stays_empty():
    assert layer((8, 8), (4, 4))(torch.zeros(0, 3, 12, 8, dtype=torch.float64)).shape == (0, 4, 12, 8)
    by_ffts = layer((64, 60), (64, 60), dtype=torch.float32, learned=False)
    with torch.no_grad():
        assert by_ffts(torch.zeros(0, 3, 64, 60)).shape == (0, 4, 64, 60)


def test_errors_name_the_remedy():
    with pytest.raises(InputError, match=r"between 1 and 8 modes on a grid of \(16, 8\); found .*finer grid"):
        MonarchSpectralConv(3, 4, (12, 12), grid=(16, 8))
    with pytest.raises(
        InputError, match=r"grid=, the points per axis .*; found none; .*on_grid\(\(64, 64\)\)"
    ):
        MonarchSpectralConv(3, 4, (4, 4))  # type: ignore[call-arg]
    with pytest.raises(InputError, match="one per axis, for n_modes"):
        MonarchSpectralConv(3, 4, (4, 4, 4), grid=(16, 8))
    with pytest.raises(InputError, match="one per axis, for resolution_scaling_factor"):
        MonarchSpectralConv(3, 4, 4, grid=(16, 8), resolution_scaling_factor=[2.0])
    conv = MonarchSpectralConv(3, 4, 4, grid=(16, 8))
    with pytest.raises(
        InputError, match=r"real input with 3 channels; found .*\(2, 5, 16, 8\); channels are"
    ):
        conv(torch.randn(2, 5, 16, 8))
    with pytest.raises(InputError, match=r"real input with 3 channels; found torch.complex64"):
        conv(torch.randn(2, 3, 16, 8, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"\(batch, channels, n_1, n_2\); found shape \(3, 16, 8\)"):
        conv(torch.randn(3, 16, 8))
    with pytest.raises(InputError, match="one per axis, for output_shape"):
        conv(torch.randn(2, 3, 16, 8), output_shape=(16,))
