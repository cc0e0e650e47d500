"""1 × 1 convolutions as products: the same numbers, the same state, only where they are 1 × 1."""

import copy

import pytest
import torch
from laws import assert_same, relative_error
from torch import nn

from monarch_sciml import InputError
from monarch_sciml.nn import PointwiseConv, use_pointwise_products
from monarch_sciml.pde.models import fno

CASES = [(nn.Conv1d, (7,)), (nn.Conv2d, (5, 4)), (nn.Conv3d, (3, 1, 2))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_it_is_the_convolution(kind, grid, bias):
    conv = kind(3, 5, 1, bias=bias).double()
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    ours = PointwiseConv(conv)
    names = [name for name, _ in conv.named_parameters()]

    def call(module):
        def run(x, *values):
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

        return run

    assert_same(call(ours), call(conv), x, *conv.parameters(), tol=1e-14)


@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_an_input_without_a_batch_axis_is_one(kind, grid):
    conv = kind(3, 5, 1).double()
    x = torch.randn(3, 3, *grid[1:], dtype=torch.float64)  # as many points as channels
    assert relative_error(PointwiseConv(conv)(x), conv(x)) < 1e-14


def test_first_and_second_derivatives():
    ours = PointwiseConv(nn.Conv1d(2, 3, 1).double())
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(ours, (x,))


def test_wrong_inputs_are_named():
    ours = PointwiseConv(nn.Conv2d(3, 5, 1))
    for shape in ((2, 4, 4, 3), (4, 3)):
        with pytest.raises(InputError, match=r"\(batch, 3, …\) of 3 channels; found shape .*; channels are"):
            ours(torch.randn(shape))
    with pytest.raises(InputError, match=r"in float32, the dtype of the weights; found float64"):
        ours(torch.randn(2, 3, 4, 4).double())


def test_autocast():
    ours = PointwiseConv(nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    assert relative_error(y.float(), ours(x)) < 2e-2


def test_only_what_is_pointwise_is_exchanged_and_the_state_stays():
    kept = [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.ConvTranspose2d(4, 4, 1),
    ]
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(*kept))
    before = copy.deepcopy(model)
    x = torch.randn(2, 4, 6, 6)
    assert use_pointwise_products(model) is model
    assert isinstance(model[0], PointwiseConv)
    assert [type(m) for m in model[1]] == [type(m) for m in kept]
    assert model.state_dict().keys() == before.state_dict().keys()
    assert relative_error(model(x), before(x)) < 1e-6
    model.load_state_dict(before.state_dict())


class Doubling(nn.Conv1d):
    """A convolution that does more."""

    def forward(self, x):
        """Twice the convolution."""
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    conv = nn.Conv1d(4, 4, 1)
    conv.register_forward_hook(lambda module, inputs, output: 3 * output)
    return conv


MORE = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 1)),
    "hook": hooked,
    "forward": lambda: Doubling(4, 4, 1),
    "lazy": lambda: nn.LazyConv1d(4, 1),
}


@pytest.mark.parametrize("name", MORE)
def test_what_does_more_than_a_convolution_stays(name):
    model = nn.Sequential(MORE[name]())
    before = copy.deepcopy(model)
    use_pointwise_products(model)
    assert model.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(2, 4, 5)
    if name != "lazy":
        assert torch.equal(model(x), before(x))
    assert model(x).shape == (2, 4, 5)


def test_inside_neuraloperator():
    model = fno((6, 6), 4, in_channels=1, out_channels=2, layers=2)
    x = torch.randn(2, 1, 9, 8)
    expected = model(x)
    found = use_pointwise_products(model)(x)
    assert relative_error(found, expected) < 1e-5
    assert not any(type(m) is nn.Conv1d for m in model.modules())
