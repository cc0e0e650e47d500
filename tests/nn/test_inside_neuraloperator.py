"""The layer as ``conv_module`` of neuraloperator's FNO."""

import io
import math

import pytest
import torch
from fft_twin import FFTConv
from laws import relative_error
from neuralop.models import FNO, TFNO
from torch import nn

from monarch_sciml import InputError, MonarchSpectralConv


def fno(grid=(32, 32), n_modes=(12, 12), conv_module=None, **options):
    options = {"in_channels": 2, "out_channels": 1, "hidden_channels": 8, "n_layers": 3} | options
    return FNO(n_modes, conv_module=conv_module or MonarchSpectralConv.on_grid(grid), **options)


def linear_fno(grid, n_modes, **options):
    """No activation and no coordinates: band-limited functions stay band-limited through all layers."""
    options |= {"non_linearity": nn.Identity(), "positional_embedding": None, "use_channel_mlp": False}
    return fno(grid, n_modes, **options)


def fields(grid):
    """Two smooth functions, frequencies up to 3, on any grid (1, 2, *grid)."""
    x, y = torch.meshgrid(*(2 * math.pi * torch.arange(n) / n for n in grid), indexing="ij")
    return torch.stack((torch.sin(2 * x + y) + 0.5, torch.cos(x - 3 * y) * torch.ones_like(x)))[None]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("n_modes", [(12, 12), (11, 13)], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80), (20, 20), (17, 33), (12, 12)], ids=str)
def test_at_the_start_it_is_a_true_fno_on_every_grid(size, n_modes):
    ours, true = fno(n_modes=n_modes), fno(n_modes=n_modes, conv_module=FFTConv)
    state = ours.state_dict()
    true.load_state_dict({name: state[name] for name in true.state_dict()})
    x = torch.randn(2, 2, *size)
    assert relative_error(ours(x), true(x)) < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("grid", [(16, 16), (17, 17), (33, 17), (17, 32)], ids=str)
@pytest.mark.parametrize("output", [(32, 32), (33, 33), (16, 48), (15, 34)], ids=str)
def test_output_shape_gives_the_same_function_on_another_grid(grid, output):
    model = linear_fno(grid=(16, 16), n_modes=(8, 8))
    assert relative_error(model(fields(grid), output_shape=output), model(fields(output))) < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("grid", [(16, 16), (17, 20)], ids=str)
def test_resolution_scaling_gives_the_same_function_on_a_finer_grid(grid):
    plain = linear_fno((16, 16), (8, 8), n_layers=2)
    scaled = linear_fno((16, 16), (8, 8), n_layers=2, resolution_scaling_factor=2)
    scaled.load_state_dict(plain.state_dict())
    fine = tuple(4 * n for n in grid)
    assert relative_error(scaled(fields(grid)), plain(fields(fine))) < 1e-12


def test_a_nonlinear_fno_trains_on_every_grid():
    for grid, n_modes in (((421,), (16,)), ((17, 33), (8, 8)), ((8, 10, 9), (4, 4, 4))):
        model = fno(grid, n_modes)
        model(torch.randn(2, 2, *grid)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_double_converts_the_whole_model():
    model = fno().double()
    y = model(torch.randn(1, 2, 32, 32, dtype=torch.float64))
    assert y.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_training_under_autocast():
    model = fno((16, 16), (8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(2, 2, 16, 16)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_model_sets_n_modes():
    model = fno(max_n_modes=(16, 16))
    x = torch.randn(1, 2, 32, 32)
    before = model(x)
    model.n_modes = (16, 16)
    assert model.fno_blocks.convs[0].n_modes == (16, 16)
    assert not model(x).allclose(before)
    model.n_modes = (12, 12)
    assert model(x).equal(before)


@pytest.mark.parametrize(
    ("option", "value", "neutral"),
    [
        ("factorization", "tucker", None),
        ("complex_data", True, False),
        ("separable", True, False),
        ("fno_block_precision", "half", "full"),
        ("fno_block_precision", "mixed", "full"),
    ],
)
def test_options_without_meaning_here_are_refused(option, value, neutral):
    with pytest.raises(InputError, match=f"{option}={value!r}, .*; pass {option}={neutral!r}, or build"):
        fno(**{option: value})


def test_a_tensorised_operator_is_told_what_its_default_is():
    layer = MonarchSpectralConv.on_grid((16, 16))
    with pytest.raises(InputError, match="factorization='Tucker', which may be a default of the model"):
        TFNO(n_modes=(8, 8), in_channels=1, out_channels=1, hidden_channels=4, conv_module=layer)
    TFNO(
        n_modes=(8, 8),
        in_channels=1,
        out_channels=1,
        hidden_channels=4,
        conv_module=layer,
        factorization=None,
    )


def test_the_layer_itself_is_no_module_for_it():
    """neuraloperator builds it without the grid, and with options that it does not know."""
    with pytest.raises(InputError, match=r"in neuraloperator's FNO use conv_module=Mon\w+.on_grid"):
        fno(conv_module=MonarchSpectralConv)


def test_a_padded_domain_wants_the_padded_grid():
    """Padded on both ends of each axis; as the guide says."""
    seen = []
    model = fno((48, 48), domain_padding=0.25)
    model.fno_blocks.convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    assert model(torch.randn(1, 2, 32, 32)).shape == (1, 1, 32, 32)
    assert seen == [model.fno_blocks.convs[0].grid]


def test_options_that_name_the_default_are_accepted():
    fno(factorization="dense", rank=0.5, implementation="reconstructed", fno_block_precision="full")


def test_fixed_transforms():
    model = fno(conv_module=MonarchSpectralConv.on_grid((32, 32), learned=False))
    assert not [name for name, _ in model.named_parameters() if "analysis" in name or "synthesis" in name]


def test_its_state_can_be_saved_and_loaded():
    model, file = fno(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = fno()
    other.load_state_dict(torch.load(file, weights_only=False))
    x = torch.randn(1, 2, 32, 32)
    assert torch.equal(other(x), model(x))
