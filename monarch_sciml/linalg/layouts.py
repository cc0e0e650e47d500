"""To and from the block layout in which public checkpoints store Monarch layers."""

from __future__ import annotations

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.monarch import MonarchMatrix

__all__ = ["from_block_layout", "linear_factors", "to_block_layout"]


def from_block_layout(w1: Tensor, w2: Tensor) -> MonarchMatrix:
    """The MonarchMatrix of two block-diagonal factors ``w1`` (k, q, p) and ``w2`` (l, s, r), k·q = l·r.

    That layout (Dao et al., ICML 2022, arXiv 2204.00595, and its public code and checkpoints) multiplies a
    vector of k·p numbers with the k blocks of w1, reads the k·q results with stride l, so that block b of w2
    takes those at b, b + l, b + 2l …, and writes the output in the order (s, l): that of this package.

    Result a of block κ stands at κ·q + a. When l divides q it reaches block a mod l for every κ, so all
    slices have the same rank T = q/l, and with a = t·l + j the factors are

        L = w2,  L[j, ℓ, (κ,t)] = w2[j, ℓ, κT + t],    R[κ, (j,t), i] = w1[κ, t·l + j, i].

    Otherwise slices have ranks ⌊q/l⌋ and ⌈q/l⌉ side by side, which equal blocks cannot hold: ``InputError``.
    Leading dimensions make a batch. R is a view of w1 where strides allow, L is w2 itself.
    """
    check_tensors(w1, w2)
    fits = w1.ndim >= 3 and w2.ndim >= 3 and w1.shape[-3] * w1.shape[-2] == w2.shape[-3] * w2.shape[-1]
    if not fits or 0 in w1.shape[-3:] + w2.shape[-3:]:
        raise InputError(
            "factors w1 (k, q, p) and w2 (l, s, r) with k·q = l·r",
            f"w1 {tuple(w1.shape)} and w2 {tuple(w2.shape)}",
            "check the order of the two",
        )
    q, l = w1.shape[-2], w2.shape[-3]
    if q % l:
        raise InputError(
            f"blocks of w1 whose number of rows is a multiple of the {l} blocks of w2",
            f"{q} rows",
            "slices of unequal rank are no MonarchMatrix; project the dense matrix instead",
        )
    return MonarchMatrix(w2, w1.unflatten(-2, (q // l, l)).transpose(-3, -2).flatten(-3, -2))


def to_block_layout(M: MonarchMatrix) -> tuple[Tensor, Tensor]:
    """The factors ``w1`` (K, T·J, I) and ``w2`` (J, S, K·T) of ``from_block_layout``; every M has them."""
    return M.R.unflatten(-2, (M.nblocks[0], M.rank)).transpose(-3, -2).flatten(-3, -2), M.L


def linear_factors(w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L and R for ``nn.MonarchLinear`` from a layer in the block layout, and the order of its outputs.

    Such a layer has n blocks in either factor (n = 4 in the transformers of the paper): its checkpoint holds
    ``blkdiag1`` = w1 (n, q, ⌈in/n⌉), ``blkdiag2`` = w2 (n, ⌈out/n⌉, q) and a ``bias`` (out,), q the smaller
    of the two sizes; n must divide q. ``MonarchLinear`` writes its outputs block by block: output o of the
    checkpoint is output ``order[o]`` here. With out′ = n·⌈out/n⌉ outputs, of which those beyond out, if any,
    go unread:

    >>> layer = MonarchLinear(in_features, w2.shape[0] * w2.shape[1], nblocks=w1.shape[0])
    >>> L, R, order = linear_factors(w1, w2)
    >>> with torch.no_grad():
    ...     layer.L.copy_(L), layer.R.copy_(R)
    ...     layer.bias.zero_()[order[:out_features]] = bias
    >>> y = layer(x)[..., order[:out_features]]  # or permute the columns of the layer that follows

    Returns L (n, ⌈out/n⌉, q), R (n, q, ⌈in/n⌉) and ``order`` (out′,), int64. Raises ``InputError`` as
    ``from_block_layout`` does, and for unequal numbers of blocks.
    """
    if w1.shape[0] != w2.shape[0]:
        raise InputError(
            "as many blocks in w1 as in w2", f"{w1.shape[0]} and {w2.shape[0]}", "use from_block_layout"
        )
    M = from_block_layout(w1, w2)
    n, S = w2.shape[:2]
    return M.L, M.R, torch.arange(n * S, device=w2.device).view(n, S).mT.flatten()
