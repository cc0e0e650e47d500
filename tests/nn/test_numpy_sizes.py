"""Sizes that are integers of NumPy, in every layer: as others, also to ``torch.compile``; arrays are data."""

import numpy as np
import pytest
import torch
from torch import nn

from monarch_sciml import InputError
from monarch_sciml.nn import (
    LearnedFourier,
    LearnedTransform,
    MonarchConv,
    MonarchLinear,
    MonarchPointwise,
    MonarchSpectralConv,
    PointwiseConv,
)

SPECTRAL = {
    "one number": (6, 16),
    "tuples": ((6, 5), (16, 12)),
    "one for both": (6, (16, 12)),
}


def numpy(sizes):
    return tuple(map(np.int64, sizes)) if isinstance(sizes, tuple) else np.int64(sizes)


@pytest.mark.parametrize("convert", [numpy, np.array], ids=["integers", "arrays"])
@pytest.mark.parametrize("case", [name for name in SPECTRAL if name != "one number"])
def test_modes_and_grid_of_a_spectral_convolution(case, convert):
    modes, grid = SPECTRAL[case]
    layer = MonarchSpectralConv(
        np.int64(2),
        np.int64(3),
        convert(modes) if isinstance(modes, tuple) else numpy(modes),
        grid=convert(grid),
    )
    expected = MonarchSpectralConv(2, 3, modes, grid=grid)
    assert repr(layer) == repr(expected)
    expected.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, *grid)
    assert torch.equal(layer(x), expected(x))
    finer = torch.Size((20, 14))
    assert torch.equal(layer(x, output_shape=np.array(finer)), expected(x, output_shape=finer))


def test_a_grid_of_one_axis_and_fewer_modes():
    layer = MonarchSpectralConv(2, 2, np.int64(6), grid=np.int64(16), max_n_modes=np.int64(8))
    assert (layer.grid, layer.n_modes, layer.max_n_modes) == ((16,), (6,), (8,))
    layer.n_modes = np.int64(4)
    assert layer.n_modes == (4,)
    assert layer(torch.randn(1, 2, 16)).shape == (1, 2, 16)


class Images(LearnedFourier):
    """As a module that can be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The transform of x (..., H, W)."""
        return self.operator(x.shape)(x)


class Matrix(LearnedTransform):
    """Without an argument that is not a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The real part of the transform, and back."""
        return x @ super().forward()[0].mT @ self.adjoint()[0].mT


i = np.int64
LAYERS = {
    "linear": (lambda: MonarchLinear(i(7), i(9), i(2)), torch.randn(3, 7)),
    "conv": (lambda: MonarchConv(nn.Conv2d(i(4), i(4), 3), i(2)), torch.randn(1, 4, 6, 6)),
    "transform": (lambda: Matrix(i(16), i(5), i(0), hermitian=True), torch.randn(2, 16)),
    "spectral": (lambda: MonarchSpectralConv(2, 2, i(6), grid=(i(9), i(8))), torch.randn(1, 2, 9, 8)),
    "images": (lambda: Images((i(6), i(8))), torch.randn(6, 8, dtype=torch.complex64)),
    "images of another size": (lambda: Images((6, 8)), torch.randn(7, 9, dtype=torch.complex64)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_without_graph_breaks(name):
    make, x = LAYERS[name]
    layer = make()
    found = torch.compile(layer, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MonarchLinear(8.0, 8),
        lambda: MonarchConv(nn.Conv1d(4, 4, 3), 2.0),
        lambda: LearnedTransform(16.0, 4),
        lambda: LearnedFourier((8, 8.0)),
        lambda: MonarchSpectralConv(2, 2, 6.0, grid=16),
        lambda: MonarchSpectralConv(2, 2, 6, grid=16.0),
        lambda: MonarchSpectralConv(2, 2, 6, grid=(16, 16.0)),
    ],
)
def test_fractions_are_no_sizes(make):
    with pytest.raises(InputError, match=r"whole numbers for .*; found .*\.0.*; convert them with int"):
        make()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (MonarchLinear(8, 8), (2, 8)),
        (MonarchConv(nn.Conv2d(4, 4, 3)), (1, 4, 8, 8)),
        (PointwiseConv(nn.Conv2d(4, 4, 1)), (1, 4, 8, 8)),
        (MonarchPointwise(MonarchLinear(4, 4, 2), 2), (1, 4, 8, 8)),
        (MonarchSpectralConv(4, 4, 4, grid=(8, 8)), (1, 4, 8, 8)),
        (Images((8, 8)), (8, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_are_tensors(layer, shape):
    with pytest.raises(InputError, match=r"a tensor; found ndarray; convert it with torch.as_tensor"):
        layer(np.zeros(shape, np.float32))


def test_a_learned_transform_is_not_called_with_an_array():
    with pytest.raises(InputError, match=r"a number of grid points.*found data of shape \(16,\); apply it"):
        LearnedTransform(16, 5)(np.zeros(16))
