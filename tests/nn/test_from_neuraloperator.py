"""A trained FNO becomes an FNO-Monarch that predicts the same."""

import pytest
import torch
from laws import relative_error
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO
from torch import nn

from monarch_sciml import InputError, MonarchSpectralConv
from monarch_sciml.nn import use_learned_transforms

# n_modes, grid; neuraloperator computes in float32 only
SIZES = [((6, 8), (16, 18)), ((5, 7), (16, 21)), ((8,), (20,)), ((4, 6, 4), (8, 12, 10)), ((1, 1), (6, 6))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("modes", "grid"), SIZES, ids=str)
def test_a_layer_keeps_its_map(modes, grid, bias):
    theirs = SpectralConv(2, 3, modes, bias=bias)
    ours = MonarchSpectralConv.from_spectral_conv(theirs, grid)
    x = torch.randn(2, 2, *grid)
    assert relative_error(ours(x), theirs(x)) < 2e-6
    assert relative_error(ours(x[:1]), theirs(x[:1])) < 2e-6


@pytest.mark.parametrize("options", [{"factorization": "tucker", "rank": 0.5}, {"max_n_modes": (8, 10)}])
def test_factorised_weights_are_multiplied_out_and_spare_modes_kept(options):
    theirs = SpectralConv(4, 4, (6, 8), **options)
    if "max_n_modes" in options:
        theirs = SpectralConv(4, 4, (8, 10))
        theirs.n_modes = (6, 8)
    ours = MonarchSpectralConv.from_spectral_conv(theirs, (16, 16))
    x = torch.randn(1, 4, 16, 16)
    assert relative_error(ours(x), theirs(x)) < 2e-6


def test_a_whole_fno_predicts_the_same_and_learns_its_transforms():
    model = FNO((8, 8), in_channels=1, out_channels=2, hidden_channels=6, n_layers=2)
    x = torch.randn(2, 1, 16, 16)
    expected = model(x)
    assert use_learned_transforms(model, (16, 16)) is model
    found = model(x)
    assert relative_error(found, expected) < 5e-6
    found.square().mean().backward()
    convs = [m for m in model.modules() if isinstance(m, MonarchSpectralConv)]
    assert len(convs) == 2
    for conv in convs:
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in conv.parameters())


def test_what_can_not_be_kept_is_refused():
    with pytest.raises(InputError, match="mixes the channels"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (4, 4), separable=True), (8, 8))
    with pytest.raises(InputError, match="modes on a grid"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (12, 12)), (8, 8))
    with pytest.raises(InputError, match="even sizes"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (4, 4)), (9, 8))
    with pytest.raises(InputError, match="pass an FNO"):
        use_learned_transforms(nn.Linear(2, 2), (8, 8))
    model = nn.ModuleList([SpectralConv(2, 2, (4, 4)), SpectralConv(2, 2, (12, 12))])
    with pytest.raises(InputError, match="modes on a grid"):
        use_learned_transforms(model, (8, 8))
    assert isinstance(model[0], SpectralConv), "nothing is exchanged when something is refused"
