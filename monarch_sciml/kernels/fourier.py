"""The spectral convolution of two axes by FFTs of only what is kept, for transforms that stay the DFT."""

from __future__ import annotations

import torch
from torch import Tensor, fft

__all__ = ["analyse", "fourier_convolution", "partners", "synthesise"]

CACHED = 2**19  # points in flight on a CPU


@torch.no_grad()
def fourier_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rfftn → keep → mix the channels of each mode → irfftn, norm="forward", on the grid of ``x``.

    ``x`` real (B, C_in, n_1, n_2); ``weight`` (m_1, m_2, C_in, C_out, 2) for the frequencies −(m_1 // 2) …
    (m_1 − 1) // 2 of the first axis and 0 … m_2 − 1 of the second; ``bias`` (C_out,). Not differentiable.
    """
    modes, columns, C_in, C_out, _ = weight.shape
    X = analyse(x, modes, columns)
    rows = X.permute(3, 2, 0, 1).reshape(modes * columns, len(x), C_in)
    Y = torch.bmm(rows, torch.view_as_complex(weight.contiguous()).view(modes * columns, C_in, C_out))
    y = synthesise(Y.view(modes, columns, len(x), C_out).permute(2, 3, 1, 0), *x.shape[-2:])
    return y if bias is None else y + bias[:, None, None]


def _pieces(planes: Tensor, points: int) -> tuple[Tensor, ...]:
    """Planes in groups of as many points as stay in a cache: three times as quick on large grids."""
    if not len(planes):  # some FFTs refuse to be called for nothing
        return ()
    return planes.split(max(CACHED // points, 1) if planes.device.type == "cpu" else len(planes))


def analyse(x: Tensor, modes: int, columns: int) -> Tensor:
    """``X[l, k] = 1/(n_1 n_2) Σ_ab x[a, b] e^(−2πi(k·a/n_1 + l·b/n_2))``: (…, n_1, n_2) → (…, l, k).

    Real FFT along the last axis, the columns kept are laid out as rows, complex FFT of those, modes kept.
    """
    *planes, rows, width = x.shape
    negative = modes // 2
    out = torch.empty(*planes, columns, modes, dtype=x.dtype.to_complex(), device=x.device)
    targets = _pieces(out.flatten(0, -3), rows * width)
    for piece, target in zip(_pieces(x.flatten(0, -3), rows * width), targets, strict=True):
        X = fft.rfft(piece, norm="forward")[..., :columns].mT.contiguous()
        X = fft.fft(X, norm="forward")
        target[..., :negative] = X[..., rows - negative :]
        target[..., negative:] = X[..., : modes - negative]
    return out


def synthesise(Y: Tensor, rows: int, width: int) -> Tensor:
    """``Re Σ_kl d_l Y[l, k] e^(2πi(…))`` on (rows, width), d_l = 1 for l = 0 and l = width / 2, else 2."""
    *planes, columns, modes = Y.shape
    negative = modes // 2
    out = torch.empty(*planes, rows, width, dtype=Y.dtype.to_real(), device=Y.device)
    targets = _pieces(out.flatten(0, -3), rows * width)
    for piece, target in zip(_pieces(Y.flatten(0, -3), rows * width), targets, strict=True):
        Z = piece.new_zeros(len(piece), columns, rows)
        Z[..., rows - negative :] = piece[..., :negative]
        Z[..., : modes - negative] = piece[..., negative:]
        target.copy_(fft.irfft(fft.ifft(Z, norm="forward").mT, n=width, norm="forward"))
    return out


def partners(Y: Tensor, width: int) -> Tensor:
    """d_l as a column: how many frequencies of the full spectrum a column stands for."""
    column = torch.arange(Y.shape[-2], device=Y.device)
    return (1 + ((column > 0) & (2 * column != width)).to(Y.real.dtype))[:, None]
