"""Two-dimensional transforms by Monarch factors, plane by plane in torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["separable_multiply"]


def separable_multiply(
    x: Tensor, factors: tuple[Tensor, ...], adjoint: bool = False, maps: Tensor | None = None
) -> Tensor:
    """``X = W_y x W_xᵀ``; see ``dispatch.separable_multiply``. What is in flight stays in the cache."""
    Ly, Ry, Lx, Rx = factors
    apply = _apply_adjoint if adjoint else _apply

    def plane(x: Tensor) -> Tensor:
        # the second axis is brought to the front: products then run along contiguous rows
        return apply(Lx, Rx, apply(Ly, Ry, x).mT.contiguous()).mT

    planes = [plane(one) for one in x.reshape(-1, *x.shape[-2:])]
    X = torch.stack(planes).view(x.shape) if planes else x  # of none there is no stack
    return X if maps is None else (maps.conj() * X).sum(-3)


def _apply(L: Tensor, R: Tensor, x: Tensor) -> Tensor:
    """W x for x (n, m): index j₁·q + j₂ → R → (j₂, c) → L → ℓ·p + c."""
    p, q, _ = L.shape
    z = R @ x.view(p, q, -1).transpose(0, 1)
    return (L @ z.transpose(0, 1)).transpose(0, 1).reshape(x.shape)


def _apply_adjoint(L: Tensor, R: Tensor, y: Tensor) -> Tensor:
    """Wᴴ y for y (n, m)."""
    p, q, _ = L.shape
    z = L.mH @ y.view(q, p, -1).transpose(0, 1)
    return (R.mH @ z.transpose(0, 1)).transpose(0, 1).reshape(y.shape)
