"""MonarchConv is a convolution with a Monarch weight: map, start, projection, gradients."""

import pytest
import torch
from laws import relative_error
from torch import nn

from monarch_sciml import InputError
from monarch_sciml.nn import MonarchConv

CONVS = [
    (nn.Conv2d(8, 12, 3, padding=1), 4),
    (nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False), 3),
    (nn.Conv2d(4, 8, (1, 5), padding="same", dilation=2), 2),
    (nn.Conv1d(6, 9, 4, padding=2), 3),
    (nn.Conv3d(4, 4, 2), 2),
    (nn.Conv2d(8, 4, 1), 4),
    (nn.Conv2d(3, 5, 3), 1),
]
IDS = [f"{type(c).__name__}-{c.in_channels}-{c.out_channels}-{c.kernel_size}-{n}" for c, n in CONVS]


def image(conv: nn.Module) -> torch.Tensor:
    return torch.randn(2, conv.in_channels, *(7, 6, 5)[: len(conv.kernel_size)])


@pytest.mark.parametrize(("conv", "nblocks"), CONVS, ids=IDS)
def test_it_is_the_dense_convolution_of_the_same_map(conv, nblocks, double):
    layer = MonarchConv(conv.double(), nblocks)
    dense, x = layer.to_conv(), image(conv)
    assert type(dense) is type(conv)
    assert dense.weight.shape == conv.weight.shape
    assert relative_error(layer(x), dense(x)) < 1e-14
    assert layer(x).shape == conv(x).shape


@pytest.mark.parametrize(("conv", "nblocks"), CONVS, ids=IDS)
def test_projection_recovers_a_monarch_weight_and_takes_the_bias(conv, nblocks, double):
    layer = MonarchConv(conv.double(), nblocks)
    found, x = MonarchConv.from_conv(layer.to_conv(), nblocks), image(conv)
    assert relative_error(found(x), layer(x)) < 1e-13


def test_no_layer_nearby_is_closer_to_the_dense_one(double):
    conv = CONVS[0][0].double()
    layer = MonarchConv.from_conv(conv, 4)
    assert torch.equal(layer.bias, conv.bias)

    def distance():
        return (layer.dense_weight() - conv.weight).square().sum()

    best = distance()
    for gradient in torch.autograd.grad(best, [layer.L, layer.R]):
        assert gradient.abs().max() < 1e-12
    for _ in range(100):
        saved = {name: p.clone() for name, p in layer.named_parameters()}
        with torch.no_grad():
            layer.L += 0.01 * torch.randn_like(layer.L)
            layer.R += 0.01 * torch.randn_like(layer.R)
        assert distance() > best
        layer.load_state_dict(saved)


def test_one_block_loses_nothing(double):
    conv = nn.Conv2d(3, 5, 3)
    x = torch.randn(2, 3, 6, 6)
    assert relative_error(MonarchConv.from_conv(conv, 1)(x), conv(x)) < 1e-13


def test_gradients(double):
    layer = MonarchConv(nn.Conv2d(4, 4, 3, padding=1), 2)
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *(p for _, p in layer.named_parameters())))


def test_outputs_start_with_the_variance_of_a_dense_convolution():
    conv = nn.Conv2d(32, 64, 3)
    weights = torch.stack([MonarchConv(conv, 4).dense_weight() for _ in range(30)])
    third = 1 / (3 * 32 * 9)
    assert weights.var().item() == pytest.approx(third, rel=0.05)
    biases = torch.stack([MonarchConv(conv, 4).bias for _ in range(30)])
    assert biases.abs().max().item() <= conv.bias.abs().max().item() * 1.2
    assert biases.var().item() == pytest.approx(third, rel=0.2)


def test_a_quarter_of_the_parameters_and_a_little():
    layer = MonarchConv(nn.Conv2d(64, 64, 3, bias=False), 4)
    assert sum(p.numel() for p in layer.parameters()) == 64 * 64 * 9 // 4 + 64 * 64 // 4


def test_what_it_does_not_do_is_said():
    with pytest.raises(InputError, match="divides 6 and 8 channels"):
        MonarchConv(nn.Conv2d(6, 8, 3), 4)
    with pytest.raises(InputError, match="groups=2"):
        MonarchConv(nn.Conv2d(4, 4, 3, groups=2), 2)
    with pytest.raises(InputError, match="circular"):
        MonarchConv(nn.Conv2d(4, 4, 3, padding_mode="circular"), 2)
