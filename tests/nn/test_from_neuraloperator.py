"""A trained FNO becomes an FNO-Monarch that predicts the same."""

import contextlib
import copy
import io
import math

import pytest
import torch
from laws import relative_error
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO, UNO
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


# in use, stored by neuraloperator (half modes along the last axis), kept on a grid of 16 × 16
SPARE = [
    ((6, 6), (12, 12), (12, 16)),
    ((6, 6), (40, 40), (16, 16)),
    ((5, 6), (12, 4), (11, 6)),
    ((16, 16), (20, 9), (16, 16)),
    ((1, 1), (2, 1), (1, 1)),
]


@pytest.mark.parametrize(("used", "stored", "kept"), SPARE, ids=str)
def test_spare_modes_are_kept_as_far_as_the_grid_holds_them(used, stored, kept):
    theirs = SpectralConv(2, 3, used, max_n_modes=stored)
    ours = MonarchSpectralConv.from_spectral_conv(theirs, (16, 16))
    x = torch.randn(2, 2, 16, 16)
    assert ours.max_n_modes == kept
    assert relative_error(ours(x), theirs(x)) < 2e-6
    if kept[0] % 2 == stored[0] % 2:  # neuraloperator moves weights to other frequencies between odd and even
        ours.n_modes = theirs.n_modes = kept
        assert relative_error(ours(x), theirs(x)) < 2e-6


def test_a_whole_fno_with_spare_modes_predicts_the_same():
    sizes = {"n_modes": (6, 6), "max_n_modes": (12, 12), "in_channels": 1, "out_channels": 1}
    model, x = FNO(hidden_channels=4, n_layers=2, **sizes), torch.randn(1, 1, 16, 16)
    expected = model(x)
    assert relative_error(use_learned_transforms(model, (16, 16))(x), expected) < 5e-6


def uno(scalings):
    sizes = {"in_channels": 1, "out_channels": 1, "hidden_channels": 6, "n_layers": 4}
    per_layer = {"uno_out_channels": [6] * 4, "uno_n_modes": [[6, 6]] * 4, "uno_scalings": scalings}
    with contextlib.redirect_stdout(io.StringIO()):  # neuraloperator prints its options
        return UNO(**sizes, **per_layer, channel_mlp_skip="linear")


class Resampled(SpectralConv):
    """neuraloperator's layer on the grid of its input, then exact interpolation, also of what skips it."""

    def forward(self, x, output_shape=None):
        return self.transform(super().forward(x, output_shape=x.shape[2:]), output_shape)

    def transform(self, x, output_shape=None):
        return self.exact.transform(x, output_shape)


def waves():
    x, y = torch.meshgrid(*(2 * math.pi * torch.arange(32) / 32,) * 2, indexing="ij")
    return (torch.sin(2 * x + y) + torch.cos(x - 2 * y))[None, None]


@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "white noise"])
def test_a_whole_uno_differs_by_nothing_but_its_resampling(smooth):
    x = waves() if smooth else torch.randn(1, 1, 32, 32)
    flat = uno([[1, 1]] * 4)
    expected = flat(x)
    assert relative_error(use_learned_transforms(flat, (32, 32))(x), expected) < 5e-6
    theirs = uno([[1, 1], [0.5, 0.5], [1, 1], [2, 2]])
    ours = use_learned_transforms(copy.deepcopy(theirs), (32, 32))
    assert relative_error(ours(x), theirs(x)) > 1e-4
    for old, new in zip(theirs.fno_blocks, ours.fno_blocks, strict=True):
        old.convs[0].__class__ = Resampled
        object.__setattr__(old.convs[0], "exact", new.convs[0])
    assert relative_error(ours(x), theirs(x)) < 5e-6


@pytest.mark.parametrize("scale", [0.5, 2])
def test_neuraloperator_loses_negative_frequencies_where_it_resamples(scale):
    """Why a UNO changes: when this fails they have mended it, and the guide wants an edit."""
    theirs = SpectralConv(1, 1, (6, 6), resolution_scaling_factor=scale, bias=False)
    ours = MonarchSpectralConv.from_spectral_conv(theirs, (32, 32))
    x, y = torch.meshgrid(*(2 * math.pi * torch.arange(32) / 32,) * 2, indexing="ij")
    positive, negative = torch.cos(2 * x + y)[None, None], torch.cos(2 * x - y)[None, None]
    assert relative_error(theirs(positive), ours(positive)) < 2e-6
    assert relative_error(theirs(negative), ours(negative)) > 0.9
    # ours is on either grid the same function
    same = ours(negative, output_shape=(32, 32))
    assert relative_error(ours(negative), ours.transform(same)) < 2e-6


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


@pytest.mark.parametrize("options", [{}, {"factorization": "tucker", "rank": 0.5}])
def test_frozen_weights_stay_frozen_and_transforms_learn(options):
    theirs = SpectralConv(4, 4, (4, 4), **options)
    theirs.weight.requires_grad_(False)
    with torch.no_grad():
        half, whole = (
            MonarchSpectralConv.from_spectral_conv(conv, (8, 8))
            for conv in (theirs, SpectralConv(4, 4, (4, 4), **options))
        )
    assert {name for name, p in half.named_parameters() if not p.requires_grad} == {"weight"}
    assert all(p.requires_grad for p in whole.parameters())
    theirs.bias.requires_grad_(False)
    assert not MonarchSpectralConv.from_spectral_conv(theirs, (8, 8)).bias.requires_grad


def test_a_layer_used_twice_is_exchanged_in_both_places():
    """Weights shared between the layers of a network, as in a recurrent FNO."""
    shared = SpectralConv(2, 2, (4, 4))
    model, x = nn.Sequential(shared, nn.GELU(), shared), torch.randn(1, 2, 8, 8)
    expected = model(x)
    use_learned_transforms(model, (8, 8))
    assert isinstance(model[2], MonarchSpectralConv)
    assert model[0] is model[2]
    assert relative_error(model(x), expected) < 5e-6


def test_what_can_not_be_kept_is_refused():
    with pytest.raises(InputError, match="mixes the channels"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (4, 4), separable=True), (8, 8))
    with pytest.raises(InputError, match=r"8 modes on a grid of \(8, 8\); found n_modes=\(12, 12\)"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (12, 12), max_n_modes=(20, 20)), (8, 8))
    with pytest.raises(InputError, match=r"found n_modes=\(6, 12\)"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (6, 12), max_n_modes=(6, 20)), (8, 8))
    with pytest.raises(InputError, match="even sizes"):
        MonarchSpectralConv.from_spectral_conv(SpectralConv(2, 2, (4, 4)), (9, 8))
    with pytest.raises(InputError, match="pass an FNO"):
        use_learned_transforms(nn.Linear(2, 2), (8, 8))
    model = nn.ModuleList([SpectralConv(2, 2, (4, 4)), SpectralConv(2, 2, (12, 12))])
    with pytest.raises(InputError, match="modes on a grid"):
        use_learned_transforms(model, (8, 8))
    assert isinstance(model[0], SpectralConv), "nothing is exchanged when something is refused"
