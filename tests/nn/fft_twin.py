"""The spectral convolution of a Fourier neural operator by torch.fft, indexed by frequency."""

from typing import Any

import torch
from torch import Tensor, fft, nn

__all__ = ["FFTConv", "fft_convolution"]


def fft_convolution(x: Tensor, weight: Tensor, n_modes: tuple[int, ...], sizes=None) -> Tensor:
    """rfftn → keep n_modes frequencies → multiply → irfftn, with norm="forward".

    ``weight`` (m_1 … m_d, C_in, C_out, 2) holds frequencies −(m//2) … (m−1)//2 on the leading axes and
    0 … m//2 on the last; frequencies that one of the two grids does not hold are dropped.
    """
    d = len(n_modes)
    grid, axes = x.shape[2:], tuple(range(-d, 0))
    sizes = tuple(grid if sizes is None else sizes)
    X, w = fft.rfftn(x, dim=axes, norm="forward"), torch.view_as_complex(weight)
    kept = []
    for a, m in enumerate(n_modes):
        shared = min(grid[a], sizes[a])
        if a < d - 1:
            k, lowest = torch.arange(-(m // 2), (m + 1) // 2), -(m // 2)
            k = k[(k >= -(shared // 2)) & (k <= (shared - 1) // 2)]
        else:
            k, lowest = torch.arange(m // 2 + 1), 0
            k = k[k <= shared // 2]
        X = X.index_select(2 + a, k % grid[a])
        w = w.index_select(a, k - lowest)
        kept.append(k)
    Y = torch.einsum("bi...,...io->bo...", X, w)
    for a, k in enumerate(kept):
        length = sizes[a] if a < d - 1 else sizes[a] // 2 + 1
        shape = (*Y.shape[: 2 + a], length, *Y.shape[3 + a :])
        Y = Y.new_zeros(shape).index_copy(2 + a, k % sizes[a], Y)
    return fft.irfftn(Y, s=sizes, dim=axes, norm="forward")


class FFTConv(nn.Module):
    """``fft_convolution`` as ``conv_module`` of neuralop's FNO, with weight and bias of the Monarch layer."""

    def __init__(self, in_channels: int, out_channels: int, n_modes, **options: Any):
        super().__init__()
        self.n_modes = tuple(n_modes)
        stored = (*self.n_modes[:-1], self.n_modes[-1] // 2 + 1)
        self.weight = nn.Parameter(torch.zeros(*stored, in_channels, out_channels, 2))
        self.bias = nn.Parameter(torch.zeros(out_channels, *[1] * len(stored)))

    def forward(self, x: Tensor, output_shape=None) -> Tensor:
        """The convolution, on the grid of x unless told otherwise."""
        return fft_convolution(x, self.weight, self.n_modes, output_shape) + self.bias

    def transform(self, x: Tensor, output_shape=None) -> Tensor:
        """The skip connection's resampling: none, since the twin is used on one grid at a time."""
        assert output_shape is None
        return x
