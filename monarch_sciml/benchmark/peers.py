"""What ours is measured against, with the weights of ours: neuraloperator's convolution, and the quickest FFT
convolution and block multiplication in plain torch that we know how to write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monarch_sciml.kernels.fourier import analyse, partners, synthesise
from monarch_sciml.nn import MonarchSpectralConv

__all__ = ["PrunedFFTConv", "copied_multiply", "from_neuralop", "neuralop_conv", "to_neuralop"]


def to_neuralop(weight: Tensor) -> Tensor:
    """Real mode weights (m_1, m_2, C_in, C_out, 2) as neuraloperator's complex (C_in, C_out, m_1, m_2)."""
    return torch.view_as_complex(weight.contiguous()).permute(2, 3, 0, 1)


def from_neuralop(weight: Tensor) -> Tensor:
    """The inverse of ``to_neuralop``, for weights and for their gradients."""
    return torch.view_as_real(weight.permute(2, 3, 0, 1).contiguous())


def neuralop_conv(conv: MonarchSpectralConv) -> nn.Module:
    """neuraloperator's ``SpectralConv`` with the weights and the bias of a two-dimensional layer of ours."""
    from neuralop.layers.spectral_convolution import SpectralConv  # takes seconds to import

    peer: Any = SpectralConv(conv.in_channels, conv.out_channels, conv.n_modes).to(conv.weight.device)
    with torch.no_grad():
        peer.weight.tensor.copy_(to_neuralop(conv.weight))
        peer.bias.copy_(conv.bias)
    return peer


class PrunedFFTConv(nn.Module):
    """The convolution of a two-dimensional FNO by FFTs of only what is kept, with the weights of ours.

    ``kernels.fourier`` with gradients: no shift, no full spectrum, one batched product for the channels. The
    backward passes are the same pruned transforms, where autograd would run full complex ones on zeros.

    ``weight`` complex (modes, columns, C_in, C_out), frequencies in the order of ours.
    """

    def __init__(self, conv: MonarchSpectralConv):
        super().__init__()
        with torch.no_grad():
            self.weight = nn.Parameter(torch.view_as_complex(conv.weight.detach().contiguous()).clone())
            self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, n_1, n_2) → (B, C_out, n_1, n_2)."""
        modes, columns, C_in, C_out = self.weight.shape
        X = _apply(_Analysis, x, modes, columns)  # (B, C_in, columns, modes)
        rows = X.permute(3, 2, 0, 1).reshape(modes * columns, len(x), C_in)
        Y = torch.bmm(rows, self.weight.view(modes * columns, C_in, C_out))
        Y = Y.view(modes, columns, len(x), C_out).permute(2, 3, 1, 0)
        y = _apply(_Synthesis, Y, *x.shape[-2:])
        return y if self.bias is None else y + self.bias


def _apply(function: Any, *arguments: Any) -> Tensor:
    return function.apply(*arguments)


class _Analysis(torch.autograd.Function):
    """Its adjoint is the synthesis, up to d and the norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, modes: int, columns: int) -> Tensor:
        ctx.grid = x.shape[-2:]
        return analyse(x, modes, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, width = ctx.grid
        g = grads[0] / (rows * width * partners(grads[0], width))
        return synthesise(g, rows, width), None, None


class _Synthesis(torch.autograd.Function):
    """Its adjoint is the analysis, up to d and the norm."""

    @staticmethod
    def forward(ctx: Any, Y: Tensor, rows: int, width: int) -> Tensor:
        ctx.kept = Y.shape[-1], Y.shape[-2]
        return synthesise(Y, rows, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, width = grads[0].shape[-2:]
        X = analyse(grads[0], *ctx.kept)
        return X * (rows * width * partners(X, width)), None, None


def copied_multiply(x: Tensor, L: Tensor, R: Tensor) -> Tensor:
    """A Monarch product in the usual layout: batched product, transposing copy, and both again.

    x (B, K·I), L (J, S, K), R (K, J, I) → (B, S·J), as ``kernels.monarch_multiply``.
    """
    (J, S, K), I = L.shape, R.shape[-1]
    z = torch.bmm(x.view(-1, K, I).transpose(0, 1).contiguous(), R.mT)  # (K, B, J)
    y = torch.bmm(z.permute(2, 1, 0).contiguous(), L.mT)  # (J, B, S)
    return y.permute(1, 2, 0).reshape(len(x), S * J)
