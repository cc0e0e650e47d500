"""Device code of a 2-D spectral convolution: planes of a grid to modes, and modes back to planes.

A tile holds P neighbouring planes, a plane being one (batch, channel). Modes lie with the plane index
fastest, so that P of them are stored together and each mode is a matrix for one batched GEMM. Between its two
contractions a tile changes from rows (plane, h) to columns (k₂, plane) or back, in registers. Grid sizes and
numbers of modes are compile-time constants, which lets the compiler unroll and pipeline the loops: a new grid
compiles anew, a new batch or number of channels does not.
"""

import triton.language as tl
from torch import Tensor

from monarch_sciml.kernels.triton import launch
from monarch_sciml.kernels.triton.launch import MANY, cover, dot, jit, planes, power

__all__ = ["analyse", "synthesise"]


def analysis_tiles(N: int, m1: int, m2: int, W: int) -> dict[str, int]:
    """Tiles of the analysis of N planes: P planes, M1 × M2 modes, BH × BW points at a time.

    P · M2 is at most 128, so that the two float32 accumulators take at most 64 registers of each of 256
    threads, and blocks of points stay small: larger ones were seen to spill registers when compiled for
    sm_90. Few planes are shared out thinly, two programs for each of 132 multiprocessors.
    """
    M1, M2 = power(m1, 16, 64), power(m2, 16, 32)
    P = power(N * cover(m1, M1) * cover(m2, M2) // MANY, 1, 128 // M2)
    return {
        "P": P,
        "M1": M1,
        "M2": M2,
        "BH": 16,
        "BW": power(W, 16, 32),
        "num_warps": 8 if P * M2 > 64 else 4,
    }


def synthesis_tiles(m2: int, W: int) -> dict[str, int]:
    """Tiles of the synthesis: P planes, BH × BW points, M1 × M2 modes at a time."""
    M2 = power(m2, 16, 32)
    return {"P": 128 // M2, "M1": 16, "M2": M2, "BH": 16, "BW": power(W, 16, 128), "num_warps": 8}


@jit
def _matrix(A, row, col, rows, cols, s_plane, s_row, s_col, CONJ: tl.constexpr):
    """The tile [row, col] of a matrix (2, rows, cols)."""
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    return planes(A, row[:, None] * s_row + col[None, :] * s_col, s_plane, inside, CONJ)


@jit
def _plane_offset(plane, C, s_b, s_c):
    """Where a (batch, channel) starts; 64 bits, since a batch may exceed 2³¹ elements."""
    return (plane // C).to(tl.int64) * s_b + (plane % C).to(tl.int64) * s_c


@jit
def _mode_offset(k1, k2, plane, N, m1, m2, PARTS: tl.constexpr):
    """Offsets in (m1, m2, 2, N, PARTS) of the real part of a mode of a plane, and whether it exists."""
    return ((k1 * m2 + k2).to(tl.int64) * 2 * N + plane) * PARTS, (k1 < m1) & (k2 < m2) & (plane < N)


@jit
def _analysis(
    x, A1, A2, z, C, N,
    H: tl.constexpr, W: tl.constexpr, m1: tl.constexpr, m2: tl.constexpr,
    x_b, x_c, x_h, x_w, a1_plane, a1_row, a1_col, a2_plane, a2_row, a2_col,
    CONJ: tl.constexpr, PRODUCTS: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """z[k₁,k₂] = Σ_h A₁[k₁,h] Σ_w A₂[k₂,w] x[h,w] for P planes and M1 × M2 modes."""
    program, tiles1, tiles2 = tl.program_id(0), (m1 + M1 - 1) // M1, (m2 + M2 - 1) // M2
    first = program // (tiles1 * tiles2) * P
    k1 = program // tiles2 % tiles1 * M1 + tl.arange(0, M1)
    k2 = program % tiles2 * M2
    rows = tl.arange(0, P * BH)  # (plane, h)
    plane = first + rows // BH
    x += _plane_offset(plane, C, x_b, x_c)[:, None]

    zr, zi = tl.full((M2 * P, M1), 0.0, tl.float32), tl.full((M2 * P, M1), 0.0, tl.float32)
    for h0 in range(0, H, BH):
        h = h0 + rows % BH
        tr, ti = tl.full((P * BH, M2), 0.0, tl.float32), tl.full((P * BH, M2), 0.0, tl.float32)
        for w0 in range(0, W, BW):
            w = w0 + tl.arange(0, BW)
            inside = ((plane < N) & (h < H))[:, None] & (w < W)[None, :]
            block = tl.load(x + h[:, None] * x_h + w[None, :] * x_w, inside, other=0.0)
            ar, ai = _matrix(A2, w, k2 + tl.arange(0, M2), W, m2, a2_plane, a2_col, a2_row, CONJ)
            tr, ti = dot(block, ar, tr, PRECISION), dot(block, ai, ti, PRECISION)
        # (plane, h) × k₂ → (k₂, plane) × h
        tr = tl.reshape(tl.permute(tl.reshape(tr, (P, BH, M2)), (2, 0, 1)), (M2 * P, BH))
        ti = tl.reshape(tl.permute(tl.reshape(ti, (P, BH, M2)), (2, 0, 1)), (M2 * P, BH))
        ar, ai = _matrix(A1, h0 + tl.arange(0, BH), k1, H, m1, a1_plane, a1_col, a1_row, CONJ)
        tr, ti = tr.to(ar.dtype), ti.to(ar.dtype)
        zr = dot(-ti, ai, dot(tr, ar, zr, PRECISION), PRECISION)
        zi = dot(tr, ai, dot(ti, ar, zi, PRECISION), PRECISION)

    rows = tl.arange(0, M2 * P)[:, None]  # (k₂, plane)
    if PRODUCTS:  # the adjoint of re = p₀₀ − p₁₁, im = p₀₁ + p₁₀
        at, inside = _mode_offset(k1[None, :], k2 + rows // P, first + rows % P, N, m1, m2, 2)
        tl.store(z + at, zr, inside)
        tl.store(z + at + 1, zi, inside)
        tl.store(z + at + 2 * N, zi, inside)
        tl.store(z + at + 2 * N + 1, -zr, inside)
    else:
        at, inside = _mode_offset(k1[None, :], k2 + rows // P, first + rows % P, N, m1, m2, 1)
        tl.store(z + at, zr, inside)
        tl.store(z + at + N, zi, inside)


@jit
def _synthesis(
    z, V1, V2, y, bias, skip, upstream, C, N,
    H: tl.constexpr, W: tl.constexpr, m1: tl.constexpr, m2: tl.constexpr,
    v1_plane, v1_row, v1_col, v2_plane, v2_row, v2_col,
    skip_b, skip_c, skip_h, skip_w, up_b, up_c, up_h, up_w,
    CONJ: tl.constexpr, PRODUCTS: tl.constexpr, GELU: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """p[h,w] = Re Σ_k₂ V₂[w,k₂] Σ_k₁ V₁[h,k₁] z[k₁,k₂] + bias + skip for P planes and BH × BW points.

    Writes p, gelu(p), or the gradient upstream · gelu′(p).
    """
    program, tiles_h, tiles_w = tl.program_id(0), (H + BH - 1) // BH, (W + BW - 1) // BW
    first = program // (tiles_h * tiles_w) * P
    h0 = program // tiles_w % tiles_h * BH
    w = program % tiles_w * BW + tl.arange(0, BW)
    modes = tl.arange(0, M2 * P)[:, None]  # (k₂, plane)

    acc = tl.full((P * BH, BW), 0.0, tl.float32)
    for k2 in range(0, m2, M2):
        ur, ui = tl.full((M2 * P, BH), 0.0, tl.float32), tl.full((M2 * P, BH), 0.0, tl.float32)
        for k0 in range(0, m1, M1):
            k1 = k0 + tl.arange(0, M1)
            if PRODUCTS:
                at, inside = _mode_offset(k1[None, :], k2 + modes // P, first + modes % P, N, m1, m2, 2)
                zr = tl.load(z + at, inside, other=0.0) - tl.load(z + at + 2 * N + 1, inside, other=0.0)
                zi = tl.load(z + at + 1, inside, other=0.0) + tl.load(z + at + 2 * N, inside, other=0.0)
            else:
                at, inside = _mode_offset(k1[None, :], k2 + modes // P, first + modes % P, N, m1, m2, 1)
                zr, zi = planes(z, at, N, inside, False)
            vr, vi = _matrix(V1, k1, h0 + tl.arange(0, BH), m1, H, v1_plane, v1_col, v1_row, CONJ)
            ur = dot(-zi, vi, dot(zr, vr, ur, PRECISION), PRECISION)
            ui = dot(zr, vi, dot(zi, vr, ui, PRECISION), PRECISION)
        # (k₂, plane) × h → (plane, h) × k₂
        ur = tl.reshape(tl.permute(tl.reshape(ur, (M2, P, BH)), (1, 2, 0)), (P * BH, M2))
        ui = tl.reshape(tl.permute(tl.reshape(ui, (M2, P, BH)), (1, 2, 0)), (P * BH, M2))
        vr, vi = _matrix(V2, k2 + tl.arange(0, M2), w, m2, W, v2_plane, v2_col, v2_row, CONJ)
        acc = dot(-ui.to(vi.dtype), vi, dot(ur.to(vr.dtype), vr, acc, PRECISION), PRECISION)

    rows = tl.arange(0, P * BH)  # (plane, h)
    plane, h = first + rows // BH, h0 + rows % BH
    inside = ((plane < N) & (h < H))[:, None] & (w < W)[None, :]
    if bias is not None:
        acc += tl.load(bias + plane % C, plane < N, other=0.0).to(tl.float32)[:, None]
    if skip is not None:
        at = _plane_offset(plane, C, skip_b, skip_c)[:, None] + h[:, None] * skip_h + w[None, :] * skip_w
        acc += tl.load(skip + at, inside, other=0.0).to(tl.float32)
    if GELU:
        erf = tl.erf(acc * 0.7071067811865476)
        if upstream is None:
            acc = 0.5 * acc * (1 + erf)
        else:
            at = _plane_offset(plane, C, up_b, up_c)[:, None] + h[:, None] * up_h + w[None, :] * up_w
            slope = 0.5 * (1 + erf) + 0.3989422804014327 * acc * tl.exp(-0.5 * acc * acc)
            acc = slope * tl.load(upstream + at, inside, other=0.0).to(tl.float32)
    at = (plane.to(tl.int64) * H + h)[:, None] * W + w[None, :]
    tl.store(y + at, acc, inside)


def analyse(x: Tensor, A1: Tensor, A2: Tensor, conj: bool, products: bool, precision: str) -> Tensor:
    """Modes of x (B, C, H, W) under A1 (2, m1, H) and A2 (2, m2, W), or their conjugates.

    Real and imaginary parts (m1, m2, 2, B, C), or the adjoint of their products with a weight,
    (m1, m2, 2, B, C, 2). Reads x from memory once; more than 64 × 32 modes read it again from cache.
    """
    B, C, H, W = x.shape
    m1, m2 = A1.shape[1], A2.shape[1]
    z = launch.empty(x, m1, m2, 2, B, C, *([2] if products else []))
    tiles = analysis_tiles(B * C, m1, m2, W)
    programs = cover(B * C, tiles["P"]) * cover(m1, tiles["M1"]) * cover(m2, tiles["M2"])
    launch.run(
        _analysis, programs, x, A1, A2, z, C, B * C, H, W, m1, m2, *x.stride(), *A1.stride(), *A2.stride(),
        CONJ=conj, PRODUCTS=products, PRECISION=precision, **tiles,
    )  # fmt: skip
    return z


def synthesise(
    z: Tensor,
    V1: Tensor,
    V2: Tensor,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    upstream: Tensor | None = None,
    conj: bool,
    gelu: bool,
    precision: str,
) -> Tensor:
    """Planes (B, C, H, W) of modes (m1, m2, 2, B, C), or of products (m1, m2, 2, B, C, 2).

    The matrices are V1 (2, H, m1) and V2 (2, W, m2), or their conjugates.
    Adds ``bias`` (C,) and ``skip`` (B, C, H, W) and applies the exact GELU when asked; with ``upstream``
    (B, C, H, W) returns the gradient with respect to the argument of the GELU instead.
    """
    m1, m2, _, B, C = z.shape[:5]
    H, W = V1.shape[1], V2.shape[1]
    y = launch.empty(z, B, C, H, W)
    tiles = synthesis_tiles(m2, W)
    programs = cover(B * C, tiles["P"]) * cover(H, tiles["BH"]) * cover(W, tiles["BW"])
    bias = None if bias is None else bias.contiguous()
    launch.run(
        _synthesis, programs, z.contiguous(), V1, V2, y, bias, skip, upstream, C, B * C, H, W, m1, m2,
        *V1.stride(), *V2.stride(), *_strides(skip), *_strides(upstream),
        CONJ=conj, PRODUCTS=z.ndim == 6, GELU=gelu, PRECISION=precision, **tiles,
    )  # fmt: skip
    return y


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if x is None else x.stride()
