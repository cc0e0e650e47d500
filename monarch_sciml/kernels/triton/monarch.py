"""A Monarch product in one launch: both factors, and the permutation between them, in registers.

For every block k the inner factor makes ``z[b,j] = Σ_i R[k,j,i] x[b,(k,i)]`` by a matrix product, and the
outer one adds ``L[j,ℓ,k] z[b,j]`` to a tile y[b,ℓ,j] held in registers. Summed that way, k needs no
permutation, and x and y are read and written as they lie. Tiles over j repeat no arithmetic; tiles over ℓ
would repeat the first product, so where ℓ does not fit one tile z goes through memory, as (B, K, J), in a
launch of its own.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels.triton import launch
from monarch_sciml.kernels.triton.launch import MANY, Precision, cover, dot, jit, power

__all__ = ["monarch_multiply"]


def tiles(B: int, J: int, S: int, I: int) -> dict[str, int]:
    """Tiles: BB of B vectors, BS × BJ outputs, BI inputs at a time.

    A tile of 16384 float32 sums takes 64 registers of each of 256 threads. It holds more vectors, which share
    what is read of the factors, as long as two tiles remain for each of 132 multiprocessors.
    """
    BS = power(S, 1, 64)
    BJ = power(J, 16, max(16, 1024 // BS))
    BB = power(B * cover(J, BJ) * cover(S, BS) // MANY, 16, min(64, 16384 // (BS * BJ)))
    return {"BB": BB, "BS": BS, "BJ": BJ, "BI": power(I, 16, 32)}


@jit
def _inner(
    x, R, row, j, B, x_row, x_i, R_j, R_i, J: tl.constexpr, I: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BJ: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """z[b,j] = Σ_i R[j,i] x[b,i] for one block of x and of R."""
    z = tl.full((BB, BJ), 0.0, tl.float32)
    for i0 in range(0, I, BI):
        i = i0 + tl.arange(0, BI)
        rows = tl.load(
            x + row[:, None] * x_row + i[None, :] * x_i, (row < B)[:, None] & (i < I)[None, :], other=0.0
        )
        block = tl.load(
            R + i[:, None] * R_i + j[None, :] * R_j, (i < I)[:, None] & (j < J)[None, :], other=0.0
        )
        z = dot(rows, block, z, PRECISION)
    return z


@jit
def _first(
    x, R, z, B, x_row, x_k, x_i, R_k, R_j, R_i,
    J: tl.constexpr, K: tl.constexpr, I: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BJ: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """z (B, K, J) of the inner factor alone."""
    program, tiles_j = tl.program_id(0), (J + BJ - 1) // BJ
    j = program % tiles_j * BJ + tl.arange(0, BJ)
    k = program // tiles_j % K
    row = (program // (tiles_j * K) * BB + tl.arange(0, BB)).to(tl.int64)
    out = _inner(x + k * x_k, R + k * R_k, row, j, B, x_row, x_i, R_j, R_i, J, I, PRECISION, BB, BJ, BI)
    at = (row[:, None] * K + k) * J + j[None, :]
    tl.store(z + at, out, (row < B)[:, None] & (j < J)[None, :])


@jit
def _product(
    x, L, R, z, y, B, x_row, x_k, x_i, L_j, L_l, L_k, R_k, R_j, R_i, y_l, y_j,
    J: tl.constexpr, S: tl.constexpr, K: tl.constexpr, I: tl.constexpr, PRECISION: tl.constexpr,
    BB: tl.constexpr, BS: tl.constexpr, BJ: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """y[b,ℓ,j] = Σ_k L[j,ℓ,k] z[b,k,j], with z read from memory, or made from x and R if there is none."""
    program, tiles_j, tiles_l = tl.program_id(0), (J + BJ - 1) // BJ, (S + BS - 1) // BS
    j = program % tiles_j * BJ + tl.arange(0, BJ)
    l = program // tiles_j % tiles_l * BS + tl.arange(0, BS)
    row = (program // (tiles_j * tiles_l) * BB + tl.arange(0, BB)).to(tl.int64)
    in_L = (l < S)[:, None] & (j < J)[None, :]
    acc = tl.full((BB, BS, BJ), 0.0, tl.float32)
    for k in range(0, K):
        if z is None:
            zk = _inner(
                x + k * x_k, R + k * R_k, row, j, B, x_row, x_i, R_j, R_i, J, I, PRECISION, BB, BJ, BI
            )
        else:
            at = (row[:, None] * K + k) * J + j[None, :]
            zk = tl.load(z + at, (row < B)[:, None] & (j < J)[None, :], other=0.0).to(tl.float32)
        Lk = tl.load(L + l[:, None] * L_l + j[None, :] * L_j + k * L_k, in_L, other=0.0).to(tl.float32)
        acc += zk[:, None, :] * Lk[None, :, :]
    at = row[:, None, None] * (S * J) + l[None, :, None] * y_l + j[None, None, :] * y_j
    tl.store(y + at, acc, (row < B)[:, None, None] & in_L[None, :, :])


@torch.library.custom_op("monarch_sciml::monarch_product", mutates_args=())
def _multiply(x: Tensor, L: Tensor, R: Tensor, adjoint: bool, precision: str) -> Tensor:
    """x (B, K·I) → y (B, S·J) with x ordered (k, i) and y (ℓ, j); as an adjoint (i, k) and (j, ℓ)."""
    (J, S, K), I, B = L.shape, R.shape[2], x.shape[0]
    y = launch.empty(x, B, S * J)
    x_k, x_i = (1, K) if adjoint else (I, 1)
    at_x = (x.stride(0), x_k * x.stride(1), x_i * x.stride(1))
    at_y = (1, S) if adjoint else (J, 1)
    t = tiles(B, J, S, I)
    vectors, over_j, over_l = cover(B, t["BB"]), cover(J, t["BJ"]), cover(S, t["BS"])
    z = None
    if over_l > 1:
        z = launch.empty(x, B, K, J)
        launch.run(
            _first, vectors * K * over_j, x, R, z, B, *at_x, *R.stride(),
            J=J, K=K, I=I, PRECISION=precision, BB=t["BB"], BJ=t["BJ"], BI=t["BI"], num_warps=4,
        )  # fmt: skip
    launch.run(
        _product, vectors * over_l * over_j, x, L, R, z, y, B, *at_x, *L.stride(), *R.stride(), *at_y,
        J=J, S=S, K=K, I=I, PRECISION=precision, **t, num_warps=8,
    )  # fmt: skip
    return y


@_multiply.register_fake
def _(x: Tensor, L: Tensor, R: Tensor, adjoint: bool, precision: str) -> Tensor:
    return x.new_empty(x.shape[0], L.shape[0] * L.shape[1])


def _context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, L, R, *ctx.how = inputs
    ctx.save_for_backward(x if any(ctx.needs_input_grad[1:3]) else None, L, R)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, L, R = ctx.saved_tensors
    adjoint, precision = ctx.how
    (J, S, K), I = L.shape, R.shape[2]
    need_x, need_L, need_R = ctx.needs_input_grad[:3]
    grad_x = grad_L = grad_R = None
    if need_x:
        grad_x = _multiply(grad, R.mT, L.mT, not adjoint, precision)
    if need_L or need_R:
        x = x.unflatten(1, (I, K)).permute(2, 0, 1) if adjoint else x.unflatten(1, (K, I)).transpose(0, 1)
        g = (
            grad.unflatten(1, (J, S)).permute(1, 2, 0)
            if adjoint
            else grad.unflatten(1, (S, J)).permute(2, 1, 0)
        )
        # x is (K, B, I) and g (J, S, B) now; the intermediate is computed again
        grad_L = g @ (R @ x.mT).permute(1, 2, 0) if need_L else None
        grad_R = (L.mT @ g).transpose(0, 1) @ x if need_R else None
    return grad_x, grad_L, grad_R, None, None


_multiply.register_autograd(_backward, setup_context=_context)


def monarch_multiply(x: Tensor, L: Tensor, R: Tensor, *, precision: Precision = "ieee") -> Tensor:
    """``y = M x`` along the last dimension: ``y[(ℓ,j)] = Σ_k L[j,ℓ,k] Σ_i R[k,j,i] x[(k,i)]``.

    ``x`` (..., K·I), ``L`` (J, S, K), ``R`` (K, J, I), all float32, float16 or bfloat16; returns (..., S·J).
    Sums are float32; ``precision`` says how the tiles of the first product are multiplied, the second is
    always exact float32. Reads x and writes y once while S ≤ 64 (I ≤ 64 in the adjoint, which backward uses);
    beyond that an intermediate of B·K·J is written and read as well. Gradients of the factors are two batched
    GEMMs each. Raises ``InputError`` when the operands do not fit; complex ones belong to backend 'gemm'.
    """
    if L.ndim != 3 or R.ndim != 3 or (L.shape[2], L.shape[0]) != R.shape[:2]:
        found = f"L {tuple(L.shape)} and R {tuple(R.shape)}"
        expected = "slices of rank 1 for backend 'triton', factors L (J, S, K) and R (K, J, I)"
        raise InputError(expected, found, "let their blocks agree; for a higher rank use backend 'auto'")
    n = R.shape[0] * R.shape[2]
    if x.shape[-1] != n:
        raise InputError(f"a last dimension of {n}", f"x {tuple(x.shape)}", "move that axis to the end")
    launch.check([x, L, R], precision)
    y = _multiply(x.reshape(-1, n), L, R, False, precision)
    return y.reshape(*x.shape[:-1], y.shape[-1])
