"""The SENSE normal operator for column masks, with coil images that never reach memory.

Where the readout transform is unitary and the mask constant along it, AᴴA x = Σ_c S̄_c · (S_c · x) Gᵀ with
G = F_Ωᴴ F_Ω, one small matrix for all rows. A program makes a tile of the result: for every coil it weights
rows of x, multiplies them by columns of Gᵀ, weights the product and adds it up.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels.triton import launch
from monarch_sciml.kernels.triton.launch import MANY, Precision, cover, dot, jit, planes, power

__all__ = ["sense_normal"]


def tiles(B: int, H: int, W: int) -> dict[str, int]:
    """Tiles: BH × BN results, BK columns of x at a time.

    These were the largest tiles seen to keep four float32 sums in registers when compiled for sm_90. They are
    halved both ways where there would be fewer than two for each of 132 multiprocessors.
    """
    if B * cover(H, 32) * cover(W, 64) < MANY:
        return {"BH": 16, "BN": power(W, 16, 32), "BK": power(W, 16, 32), "num_warps": 4}
    return {"BH": 32, "BN": 64, "BK": 16, "num_warps": 8}


@jit
def _normal(
    x, maps, gram, y, x_b, x_h, x_w, s_b, s_c, s_h, s_w, g_row, g_col,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CONJ: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[h,n] = Σ_c S̄_c[h,n] Σ_k S_c[h,k] x[h,k] G[n,k]; real and imaginary parts alternate in memory."""
    program, tiles_h, tiles_n = tl.program_id(0), (H + BH - 1) // BH, (W + BN - 1) // BN
    n = program % tiles_n * BN + tl.arange(0, BN)
    h = (program // tiles_n % tiles_h * BH + tl.arange(0, BH))[:, None]
    b = (program // (tiles_n * tiles_h)).to(tl.int64)
    x += b * x_b
    maps += b * s_b
    in_y = (h < H) & (n < W)[None, :]
    yr, yi = tl.full((BH, BN), 0.0, tl.float32), tl.full((BH, BN), 0.0, tl.float32)
    for c in range(0, C):
        vr, vi = tl.full((BH, BN), 0.0, tl.float32), tl.full((BH, BN), 0.0, tl.float32)
        for k0 in range(0, W, BK):
            k = k0 + tl.arange(0, BK)
            inside = (h < H) & (k < W)[None, :]
            xr, xi = planes(x, h * x_h + k[None, :] * x_w, 1, inside, False)
            sr, si = planes(maps + c * s_c, h * s_h + k[None, :] * s_w, 1, inside, False)
            ur, ui = sr * xr - si * xi, sr * xi + si * xr
            inside = (k < W)[:, None] & (n < W)[None, :]
            gr, gi = planes(gram, k[:, None] * g_col + n[None, :] * g_row, 1, inside, CONJ)
            vr = dot(-ui, gi, dot(ur, gr, vr, PRECISION), PRECISION)
            vi = dot(ur, gi, dot(ui, gr, vi, PRECISION), PRECISION)
        sr, si = planes(maps + c * s_c, h * s_h + n[None, :] * s_w, 1, in_y, False)
        yr += sr * vr + si * vi
        yi += sr * vi - si * vr
    at = ((b * H + h) * W + n[None, :]) * 2
    tl.store(y + at, yr, in_y)
    tl.store(y + at + 1, yi, in_y)


@torch.library.custom_op("monarch_sciml::sense_normal", mutates_args=())
def _apply(x: Tensor, maps: Tensor, gram: Tensor, conj: bool, precision: str) -> Tensor:
    """x (B, H, W, 2), maps (B, C, H, W, 2), gram (W, W, 2), conjugated if asked → y (B, H, W, 2)."""
    B, C, H, W, _ = maps.shape
    x, maps, gram = _pairs(x), _pairs(maps), _pairs(gram)
    y = launch.empty(x, B, H, W, 2)
    t = tiles(B, H, W)
    launch.run(
        _normal, B * cover(H, t["BH"]) * cover(W, t["BN"]), x, maps, gram, y,
        *x.stride()[:-1], *maps.stride()[:-1], *gram.stride()[:-1],
        C=C, H=H, W=W, CONJ=conj, PRECISION=precision, **t,
    )  # fmt: skip
    return y


def _pairs(t: Tensor) -> Tensor:
    """The tensor with the imaginary part right behind the real one, as complex numbers lie."""
    return t if t.stride(-1) == 1 else t.contiguous()


@_apply.register_fake
def _(x: Tensor, maps: Tensor, gram: Tensor, conj: bool, precision: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, maps, gram, *ctx.how = inputs
    ctx.save_for_backward(x, maps, gram)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    conj, precision = ctx.how
    need_x, need_maps, need_gram = ctx.needs_input_grad[:3]
    grad_x = grad_maps = grad_gram = None
    if need_x:
        _, maps, gram = ctx.saved_tensors
        grad_x = _apply(grad, maps, gram.transpose(0, 1), not conj, precision)
    if need_maps or need_gram:
        x, S, G = (torch.view_as_complex(t.contiguous()) for t in ctx.saved_tensors)
        g = torch.view_as_complex(grad.contiguous())[:, None]
        G, x = G.conj() if conj else G, x[:, None]
        u, Sg = S * x, S * g
        if need_maps:
            grad_maps = torch.view_as_real(
                (g.conj() * (u @ G.mT) + (Sg @ G.conj()) * x.conj()).resolve_conj()
            )
        if need_gram:
            grad_gram = torch.einsum("bchn,bchk->nk", Sg, u.conj())
            grad_gram = torch.view_as_real((grad_gram.conj() if conj else grad_gram).resolve_conj())
    return grad_x, grad_maps, grad_gram, None, None


_apply.register_autograd(_backward, setup_context=_context)


def sense_normal(x: Tensor, maps: Tensor, gram: Tensor, *, precision: Precision = "ieee") -> Tensor:
    """``y = Σ_c conj(S_c) · ((S_c · x) Gᵀ)``: AᴴA of parallel MRI for a mask of columns.

    ``x`` (B, H, W), ``maps`` S (B, C, H, W) and ``gram`` G (W, W), Hermitian, all complex64; returns
    complex64 (B, H, W). Costs 8·B·C·H·W² real operations; reads the maps from memory once (from cache once
    more for each 32 or 64 columns) and writes nothing but y. The gradient of x is the same kernel with Gᴴ;
    those of maps and gram are plain torch and store C coil images. Raises ``InputError`` when the operands do
    not fit.
    """
    if x.ndim != 3 or maps.ndim != 4 or maps[:, 0].shape != x.shape or gram.shape != x.shape[-1:] * 2:
        raise InputError(
            "x (B, H, W), maps (B, C, H, W), gram (W, W)",
            f"x {tuple(x.shape)}, maps {tuple(maps.shape)}, gram {tuple(gram.shape)}",
            "fold every slice into B and give each its own maps",
        )
    dtypes = {x.dtype, maps.dtype, gram.dtype}
    if dtypes != {torch.complex64}:
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError("complex64 operands", found, "convert them, or use backend 'gemm'")
    x, maps, gram = (torch.view_as_real(t.resolve_conj()) for t in (x, maps, gram))
    launch.check([x, maps, gram], precision)
    return torch.view_as_complex(_apply(x, maps, gram, False, precision))
