"""Fused layers of an FNO: neuraloperator's numbers, names and files, wherever they can not be fused too."""

import copy
import pickle

import pytest
import torch
from laws import relative_error
from neuralop.models import FNO
from torch import nn
from torch.nn.utils import prune

from monarch_sciml.kernels import native
from monarch_sciml.nn import fused as module
from monarch_sciml.nn import monarchize, use_pointwise_products
from monarch_sciml.nn.fused import FusedBlocks, FusedMLP, use_fused_layers
from monarch_sciml.pde.models import fno_monarch

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler with OpenMP")
GRID = (13, 10)


def body(**settings):
    torch.manual_seed(0)
    return FNO(**{"n_modes": (6, 6), "in_channels": 2, "out_channels": 3, "hidden_channels": 8, **settings})


@pytest.fixture
def passes(monkeypatch):
    """How often the fused pass ran."""
    calls = []
    known = module.pointwise_layer
    monkeypatch.setattr(
        module, "pointwise_layer", lambda *args, **more: calls.append(1) or known(*args, **more)
    )
    return calls


def gradients(model, x):
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@needs_compiler
@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_fused_fno_is_the_fno_in_value_and_gradient(products, layers, passes):
    plain = body(n_layers=layers)
    fused = use_fused_layers(copy.deepcopy(plain))
    if products:
        use_pointwise_products(fused)
    x = torch.randn(2, 2, *GRID, requires_grad=True)
    found, expected = gradients(fused, x), gradients(plain, x)
    assert len(passes) == layers + 2  # lifting and projection too
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-6
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in plain.named_parameters()]
    plain.load_state_dict(fused.state_dict())


@needs_compiler
def test_fno_monarch_is_fused_copied_and_pickled(passes):
    model = fno_monarch((6, 6), 8, GRID, in_channels=1, out_channels=1)
    assert sum(isinstance(m, FusedBlocks) for m in model.modules()) == 1
    x = torch.randn(1, 1, *GRID)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        passes.clear()
        assert torch.equal(other(x), model(x))
        assert len(passes) == 2 * (4 + 2)


DIFFERENT = {
    "norm": {"norm": "instance_norm"},
    "no perceptron": {"use_channel_mlp": False},
    "preactivation": {"preactivation": True},
    "activation": {"non_linearity": nn.functional.relu},
    "stabiliser": {"stabilizer": "tanh"},
    "skip": {"fno_skip": "identity"},
    "gate": {"channel_mlp_skip": "linear"},
    "resolution": {"resolution_scaling_factor": 2},
}


@needs_compiler
@pytest.mark.parametrize("name", DIFFERENT)
def test_other_layers_stay_what_they_are(name, passes):
    plain = body(n_layers=2, **DIFFERENT[name])
    fused = use_fused_layers(copy.deepcopy(plain))
    x = torch.randn(2, 2, 12, 10)
    assert relative_error(fused(x), plain(x)) < 2e-6
    assert len(passes) <= 4  # perceptrons alone


@needs_compiler
def test_what_is_not_float32_on_the_grid_of_the_input_is_not_fused(passes):
    model = use_fused_layers(fno_monarch((6, 6), 8, GRID, in_channels=2, out_channels=1))
    twin = copy.deepcopy(model).double()
    assert twin(torch.randn(1, 2, *GRID).double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(1, 2, *GRID))
    assert not passes
    assert model(torch.randn(1, 2, *GRID), output_shape=(20, 16)).shape == (1, 1, 20, 16)
    # lifting, three layers, the perceptron of the one that changes the grid, projection
    assert len(passes) == 6


@needs_compiler
def test_wide_layers_are_products(passes):
    plain = body(hidden_channels=144, n_layers=1)
    x = torch.randn(1, 2, *GRID)
    assert relative_error(use_fused_layers(copy.deepcopy(plain))(x), plain(x)) < 2e-6
    assert not passes


@needs_compiler
def test_products_of_other_kinds_are_not_fused(passes):
    model = fno_monarch((6, 6), 8, GRID, in_channels=1, out_channels=1)
    monarchize(model, 2, include=("*mlp*", "*lifting*", "*projection*"))
    model(torch.randn(1, 1, *GRID))
    assert not passes


class Doubling(nn.Conv1d):
    """A product that does more."""

    def forward(self, x):
        """Twice the product."""
        return 2 * super().forward(x)


@needs_compiler
def test_products_that_do_more_are_not_fused(passes):
    model = body(n_layers=2)
    for mlp in (model.projection, *model.fno_blocks.channel_mlp):
        first = mlp.fcs[0]
        mlp.fcs[0] = Doubling(first.in_channels, first.out_channels, 1)
    x = torch.randn(2, 2, *GRID)
    assert relative_error(use_fused_layers(copy.deepcopy(model))(x), model(x)) < 2e-6
    assert len(passes) == 1  # the lifting


PARTS = {
    "skip": lambda blocks: blocks.fno_skips[0].conv,
    "outer skip": lambda blocks: blocks.fno_skips[0],
    "gate": lambda blocks: blocks.channel_mlp_skips[0],
    "perceptron": lambda blocks: blocks.channel_mlp[0],
    "its first product": lambda blocks: blocks.channel_mlp[0].fcs[0],
}


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
@pytest.mark.parametrize("part", PARTS)
def test_hooks_on_the_parts_of_a_layer_run(part, kind):
    model = fno_monarch((6, 6), 8, GRID, in_channels=1, out_channels=1)
    calls = []
    getattr(PARTS[part](model.fno_blocks), f"register_{kind}")(lambda *_: calls.append(1))
    model(torch.randn(1, 1, *GRID)).sum().backward()
    assert calls


@pytest.mark.parametrize("part", ["skip", "its first product"])
def test_pruned_parts_of_a_layer_train(part):
    """Pruning computes the weight in a hook, from the parameter that is trained and the mask."""
    model = fno_monarch((6, 6), 8, GRID, in_channels=1, out_channels=1)
    pruned = prune.l1_unstructured(PARTS[part](model.fno_blocks), "weight", 0.5)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(1, 1, *GRID)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        losses.append((model(x) - x).square().mean())
        losses[-1].backward()
        optimiser.step()
    assert losses[2] < losses[1] < losses[0]
    assert torch.equal(pruned.weight == 0, pruned.weight_mask == 0)


def test_without_a_compiler_nothing_is_fused(monkeypatch, passes):
    model = fno_monarch((6, 6), 8, GRID, in_channels=1, out_channels=1)
    x = torch.randn(1, 1, *GRID)
    expected = model(x)
    passes.clear()
    monkeypatch.setattr(module, "has_fast_pointwise_layer", lambda x, width: False)
    assert relative_error(model(x), expected) < 2e-6
    assert not passes


def test_the_projection_names_wrong_channels_as_before():
    mlp = use_fused_layers(body()).projection
    assert isinstance(mlp, FusedMLP)
    with pytest.raises(RuntimeError, match="channels"):
        mlp(torch.randn(1, 5, *GRID))


def test_the_projection_takes_an_input_without_a_batch_axis():
    mlp = body().projection
    x = torch.randn(8, 8)  # as many points as channels
    fused = use_fused_layers(use_pointwise_products(copy.deepcopy(mlp)))
    assert isinstance(fused, FusedMLP)
    assert relative_error(fused(x), mlp(x)) < 2e-6
