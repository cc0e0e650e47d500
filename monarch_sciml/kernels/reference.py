"""The definitions: each operation once, as an einsum that reads like its formula."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "monarch_dense",
    "monarch_multiply",
    "pointwise_layer",
    "sense_normal",
    "spectral_convolution",
    "transform_planes",
]


def monarch_dense(L: Tensor, R: Tensor) -> Tensor:
    """Entries of a Monarch matrix, ``M[(ℓ,j),(k,i)] = Σ_t L[j,ℓ,(k,t)] · R[k,(j,t),i]``.

    ``L`` (..., J, S, K·T) and ``R`` (..., K, J·T, I) give (..., S·J, K·I). Costs T multiply-adds per entry.
    """
    (J, S, _), (K, _, I) = L.shape[-3:], R.shape[-3:]
    M = torch.einsum("...jlkt,...kjti->...ljki", L.unflatten(-1, (K, -1)), R.unflatten(-2, (J, -1)))
    return M.reshape(*M.shape[:-4], S * J, K * I)


def monarch_multiply(x: Tensor, L: Tensor, R: Tensor, *, blocks: bool = False) -> Tensor:
    """``y = M x`` along the last dimension: ``y[(ℓ,j)] = Σ_kt L[j,ℓ,(k,t)] Σ_i R[k,(j,t),i] x[(k,i)]``.

    ``x`` (..., K·I), ``L`` (..., J, S, K·T), ``R`` (..., K, J·T, I); leading dimensions broadcast. Returns
    (..., S·J), ordered (j,ℓ) instead with ``blocks``.
    """
    J, (K, _, I) = L.shape[-3], R.shape[-3:]
    z = torch.einsum("...kri,...ki->...kr", R, x.reshape(*x.shape[:-1], K, I)).unflatten(-1, (J, -1))
    order = "jl" if blocks else "lj"
    return torch.einsum(f"...jlkt,...kjt->...{order}", L.unflatten(-1, (K, -1)), z).flatten(-2)


def spectral_convolution(
    x: Tensor, analysis: Sequence[Tensor], weight: Tensor, synthesis: Sequence[Tensor]
) -> Tensor:
    """``y = Re(V (w · (W x)))`` with one matrix per axis, a mixing of channels per mode.

    ``x`` real (B, C_in, n_1 … n_d); ``analysis[a]`` is W_a as planes (2, m_a, n_a) of real and imaginary
    parts; ``weight`` (m_1 … m_d, C_in, C_out, 2); ``synthesis[a]`` is V_a as planes (2, n′_a, m_a). Returns
    real (B, C_out, n′_1 … n′_d).
    """
    exact = torch.promote_types(x.dtype, torch.float32)  # of 16 bits torch has no complex numbers

    def apply(W: Tensor, z: Tensor, axis: int) -> Tensor:
        W = W.to(exact)
        return (z.movedim(axis, -1) @ torch.complex(W[0], W[1]).mT).movedim(-1, axis)

    z = torch.complex(x.to(exact), torch.zeros_like(x, dtype=exact))
    for axis, W in enumerate(analysis, start=2):
        z = apply(W, z, axis)
    w = torch.view_as_complex(weight.to(exact).contiguous())
    z = torch.einsum("bi...,...io->bo...", z, w)
    for axis, V in enumerate(synthesis, start=2):
        z = apply(V, z, axis)
    return z.real.to(x.dtype)


def transform_planes(L: Tensor, R: Tensor, modes: int, scale: float, twice: int, adjoint: bool) -> Tensor:
    """``W[ℓ·p + c, j₁·q + j₂] = s L[c, ℓ, j₂] R[j₂, c, j₁]``, real and imaginary planes of W or of Wᴴ.

    ``L`` (p, S, q, 2), ``R`` (q, p, p, 2); (2, modes, p·q), or (2, p·q, modes) if ``adjoint``. s is
    ``scale``, and twice that in the rows 1 … ``twice`` − 1.
    """
    # (ℓ, c, 1, j2) and (c, j1, j2): rows (ℓ, c), columns (j1, j2)
    Lr, Li = L.permute(3, 1, 0, 2).unsqueeze(3)
    Rr, Ri = R.permute(3, 1, 2, 0)
    W = torch.stack((Lr * Rr - Li * Ri, Lr * Ri + Li * Rr)) * scale
    W = W.reshape(2, -1, L.shape[0] * R.shape[0])[:, :modes]
    if twice:
        row = torch.arange(modes, device=W.device)
        W = W * (1 + ((row > 0) & (row < twice)))[:, None]
    return torch.stack((W[0].mT, -W[1].mT)) if adjoint else W


def pointwise_layer(
    x: Tensor,
    s: Tensor | None,
    W: Tensor | None,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    g: Tensor | None,
    *,
    activated: bool,
) -> Tensor:
    """``h = σ(s + W x)``, ``y = σ(W2 gelu(W1 h + b1) + b2 + g ⊙ x)``, at every point of a grid.

    σ is GELU if ``activated``, else the identity. Without ``s`` and ``W`` h is x; without ``g`` that term is
    left out. ``x`` (B, C_in, …), ``s`` (B, C, …), ``W`` (C, C_in), ``W1`` (H, C), ``W2`` (C_out, H), ``g``
    (C_in,); returns (B, C_out, …).
    """
    points = (1,) * (x.ndim - 2)

    def along(channels: Tensor) -> Tensor:
        return channels.view(-1, *points)

    def gelu(a: Tensor) -> Tensor:
        return torch.nn.functional.gelu(a) if activated else a

    h = x if s is None else gelu(s + torch.einsum("oi,bi...->bo...", W, x))
    a = torch.nn.functional.gelu(torch.einsum("oi,bi...->bo...", W1, h) + along(b1))
    y = torch.einsum("oi,bi...->bo...", W2, a) + along(b2)
    return gelu(y if g is None else y + along(g) * x)


def sense_normal(x: Tensor, maps: Tensor, L: Tensor, R: Tensor) -> Tensor:
    """``y = Σ_c S̄_c Wᴴ W (S_c x)`` along the rows of images, W = L P R: AᴴA of parallel imaging.

    ``x`` (B, H, p·q), ``maps`` (B or 1, C, H, p·q), ``L`` (B or 1, p, r, q), ``R`` (q, p, p), R[j₂, c, j₁]
    and L[c, ·, j₂] as in ``transform_planes``, complex, of L the sampled rows; returns (B, H, p·q).
    """
    (q, p), B = R.shape[:2], len(x)
    L = L.expand(B, -1, -1, -1)
    u = (maps * x[:, None]).unflatten(-1, (p, q))
    z = torch.einsum("bclj,jck,bnhkj->bnhcl", L, R, u)
    v = torch.einsum("bclj,jck,bnhcl->bnhkj", L.conj(), R.conj(), z).flatten(-2)
    return (maps.conj() * v).sum(1)
