"""The peers compute what ours does, gradients included: otherwise their times mean nothing."""

import pytest
import torch
from laws import assert_same, relative_error
from torch.func import functional_call

from monarch_sciml import MonarchSpectralConv
from monarch_sciml.benchmark import peers
from monarch_sciml.kernels import fourier, reference

# grid and modes: rectangular, odd, prime; few modes and all of them, the Nyquist column included
LAYERS = [
    ((16, 16), (8, 8)), ((16, 12), (6, 10)), ((12, 18), (12, 18)), ((13, 17), (6, 4)), ((13, 17), (13, 17)),
    ((9, 8), (5, 8)), ((7, 10), (1, 1)), ((4, 4), (3, 2)),
]  # fmt: skip


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("cached", [2**19, 300, 1], ids="pieces of {}".format)
@pytest.mark.parametrize(("grid", "n_modes"), LAYERS, ids=str)
def test_the_pruned_fft_is_the_convolution(monkeypatch, grid, n_modes, cached):
    monkeypatch.setattr(fourier, "CACHED", cached)
    conv = MonarchSpectralConv(3, 4, n_modes, grid=grid)
    pruned = peers.PrunedFFTConv(conv)

    def fast(x, weight, bias):
        own = torch.view_as_complex(weight.contiguous())
        return functional_call(pruned, {"weight": own, "bias": bias}, x)

    def plain(x, weight, bias):
        return functional_call(conv, {"weight": weight, "bias": bias}, x)

    assert conv.bias is not None
    x = torch.randn(5, 3, *grid)
    assert relative_error(pruned(x), conv(x)) < 1e-13
    assert_same(fast, plain, x, conv.weight, conv.bias, tol=1e-12)


@pytest.mark.usefixtures("double")
def test_gradients_of_the_pruned_fft_by_differences():
    for grid, modes in (((6, 4), (4, 4)), ((5, 7), (3, 4))):
        pruned = peers.PrunedFFTConv(MonarchSpectralConv(2, 1, modes, grid=grid))
        assert torch.autograd.gradcheck(pruned, torch.randn(1, 2, *grid, requires_grad=True))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_come_back_in_our_order(bias):
    conv = MonarchSpectralConv(3, 4, (7, 6), grid=(12, 12), bias=bias)
    pruned = peers.PrunedFFTConv(conv)
    assert torch.view_as_real(pruned.weight).equal(conv.weight)
    assert (pruned.bias is not None) == bias
    assert peers.from_neuralop(peers.to_neuralop(conv.weight)).equal(conv.weight)


def test_neuraloperator_gets_our_weights():
    conv = MonarchSpectralConv(3, 4, (12, 10), grid=(32, 24))
    x = torch.randn(2, 3, 32, 24)
    assert relative_error(peers.neuralop_conv(conv)(x), conv(x)) < 1e-6


@pytest.mark.parametrize("blocks", [(4, 4, 4, 4), (3, 5, 2, 7), (1, 6, 1, 5), (7, 1, 5, 1)], ids=str)
def test_the_copying_product_is_the_product(blocks):
    J, S, K, I = blocks
    shapes = (6, K * I), (J, S, K), (K, J, I)
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    assert_same(peers.copied_multiply, reference.monarch_multiply, *tensors, tol=1e-13)
