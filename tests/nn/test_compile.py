"""What torch can do with the layers: compile without graph breaks, export, train in bfloat16."""

import io
import math

import pytest
import torch
from laws import relative_error

from monarch_sciml.nn import MonarchSpectralConv, PointwiseConv
from monarch_sciml.pde.models import fno_monarch


def gradients(module, x, seed):
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], seed)]


@pytest.mark.parametrize("learned", [True, False])
def test_the_layer_compiles_without_graph_breaks(learned):
    conv = MonarchSpectralConv(3, 4, (6, 5), grid=(12, 9), learned=learned)
    x, seed = torch.randn(2, 3, 12, 9, requires_grad=True), torch.randn(2, 4, 12, 9)
    expected = gradients(conv, x, seed)
    found = gradients(torch.compile(conv, fullgraph=True, backend="aot_eager"), x, seed)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-6


def model():
    torch.manual_seed(0)
    return fno_monarch((6, 6), 8, (16, 16), in_channels=1, out_channels=1, layers=2)


def test_the_operator_compiles_without_graph_breaks():
    operator, x = model(), torch.randn(2, 1, 16, 16)
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), operator(x)) < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trained_operator_is_exported():
    operator, x = train(model(), torch.float32)[0].eval(), torch.randn(2, 1, 16, 16)
    file = io.BytesIO()
    # any number of samples, though not any grid: the matrices belong to one
    exported = torch.export.export(operator, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 1, 16, 16)
        assert relative_error(loaded(x), operator(x)) < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_product_is_exported_for_any_number_of_samples(bias):
    layer, x = PointwiseConv(torch.nn.Conv2d(3, 4, 1, bias=bias)), torch.randn(2, 3, 4, 5)
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(5, 3, 4, 5)
    assert relative_error(exported(x), layer(x)) < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("learned", [True, False])
def test_a_layer_is_exported_on_other_grids_and_with_many_modes(learned):
    conv, x = MonarchSpectralConv(2, 2, (60, 50), grid=(64, 50), learned=learned), torch.randn(2, 2, 64, 50)
    with torch.no_grad():
        expected = conv(x)
        for found in (
            torch.export.export(conv, (x,)).module(),
            torch.compile(conv, fullgraph=True, backend="eager"),
        ):
            assert relative_error(found(x), expected) < 1e-5
    finer = torch.randn(2, 2, 71, 73)
    exported = torch.export.export(conv, (finer,)).module()
    y = conv(finer)  # nothing that the export made stays behind
    assert type(y) is torch.Tensor
    assert relative_error(exported(finer), y) < 1e-5


def train(operator, dtype):
    """A few steps towards a shifted and smoothed field; returns the loss of the last ten."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(operator.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        phase = 2 * math.pi * torch.rand(8, 1, 1, 1, generator=generator)
        s = 2 * math.pi * torch.arange(16) / 16
        x = torch.sin(s + phase) * torch.cos(s[:, None] - phase)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = (operator(x) - 0.5 * x.roll(2, -1)).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return operator, sum(losses[-10:]) / 10, losses[0]


def test_bfloat16_trains_as_float32_does():
    _, exact, first = train(model(), torch.float32)
    _, rounded, _ = train(model(), torch.bfloat16)
    assert exact < first / 20
    assert abs(rounded / exact - 1) < 0.1
