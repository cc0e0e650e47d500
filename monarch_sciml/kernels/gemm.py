"""Batched-GEMM paths, on any device and in any dtype, with explicit backward passes.

Three ideas keep copies away. A Monarch product stores its intermediate with the batch index fastest, so
that both factors read and write it by strides. A spectral convolution keeps real and imaginary parts as
an index of size two beside the axis being contracted: a complex transform is then one real GEMM with the
matrix [[Wr, −Wi], [Wi, Wr]], which costs exactly the four real products of a complex one. And the last axis
is transformed while it is transposed with the one before, so that the second contraction is a flat GEMM too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["monarch_gradients", "monarch_multiply", "spectral_convolution"]


class _MonarchMultiply(torch.autograd.Function):
    """x (B, K·I) → y (J, S, B). The intermediate is recomputed in backward, never stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, L: Tensor, R: Tensor) -> Tensor:
        ctx.save_for_backward(x, L, R)
        return L @ _inner(x, L, R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, L, R = ctx.saved_tensors
        return monarch_gradients(grads[0], x, L, R, ctx.needs_input_grad)


def monarch_gradients(
    grad: Tensor, x: Tensor, L: Tensor, R: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of x, L and R, as far as ``needs`` asks for them, from ``grad`` (J, S, B) of the product.

    Written with differentiable operations: every path takes its second derivatives from here.
    """
    grad_x = grad_L = grad_R = None
    if needs[1]:
        grad_L = grad @ _inner(x, L, R).mH
    if needs[0] or needs[2]:
        K, _, I = R.shape
        g = _swap(L.mH @ grad, K)
        if needs[2]:
            grad_R = g @ x.unflatten(1, (K, I)).transpose(0, 1).conj()
        if needs[0]:
            grad_x = (R.mH @ g).permute(2, 0, 1).flatten(1)
    return grad_x, grad_L, grad_R


def _inner(x: Tensor, L: Tensor, R: Tensor) -> Tensor:
    """R x for x (B, K·I), as L takes it: (J, K·T, B)."""
    K, _, I = R.shape
    return _swap(R @ x.unflatten(1, (K, I)).permute(1, 2, 0), L.shape[0])


def _swap(z: Tensor, J: int) -> Tensor:
    """(K, J·T, B) → (J, K·T, B): a view if T is one."""
    return z.unflatten(1, (J, -1)).transpose(0, 1).flatten(1, 2)


def monarch_multiply(x: Tensor, L: Tensor, R: Tensor, *, blocks: bool = False) -> Tensor:
    """``y = M x`` along the last dimension of x (..., K·I), for one matrix L (J, S, K·T), R (K, J·T, I).

    Two batched GEMMs. See ``reference.monarch_multiply`` for the formula and for ``blocks``.
    """
    y: Any = _MonarchMultiply.apply(x.reshape(-1, x.shape[-1]), L, R)
    y = y.permute(2, 0, 1) if blocks else y.permute(2, 1, 0)
    return y.reshape(*x.shape[:-1], y.shape[1] * y.shape[2])


class _Rotate(torch.autograd.Function):
    """W (r, n), x (N, p, n) → W xᵀ (N, r, p): transform the last axis and swap it with the one before."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(W, x)
        return torch.matmul(W, x.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        W, x = ctx.saved_tensors
        need_W, need_x = ctx.needs_input_grad
        return _outer(grads[0], x) if need_W else None, _unrotate(W, grads[0]) if need_x else None


class _Unrotate(torch.autograd.Function):
    """W (r, n), z (N, r, p) → zᵀ W (N, p, n): the adjoint of ``_Rotate`` in x."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(W, z)
        return torch.matmul(z.mT, W)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        W, z = ctx.saved_tensors
        need_W, need_z = ctx.needs_input_grad
        return _outer(z, grads[0]) if need_W else None, _rotate(W, grads[0]) if need_z else None


class _LeftMultiply(torch.autograd.Function):
    """E (m, n), x (N, n, c) → E x (N, m, c). Written out because autograd would copy x to fold the batch."""

    @staticmethod
    def forward(ctx: Any, E: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(E, x)
        return torch.matmul(E, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        E, x = ctx.saved_tensors
        need_E, need_x = ctx.needs_input_grad
        return _outer(grads[0], x.mT) if need_E else None, _left(E.mT, grads[0]) if need_x else None


def _rotate(W: Tensor, x: Tensor) -> Tensor:
    return _Rotate.apply(W, x)  # pyright: ignore[reportReturnType]


def _unrotate(W: Tensor, z: Tensor) -> Tensor:
    return _Unrotate.apply(W, z)  # pyright: ignore[reportReturnType]


def _left(E: Tensor, x: Tensor) -> Tensor:
    return _LeftMultiply.apply(E, x)  # pyright: ignore[reportReturnType]


def _outer(z: Tensor, x: Tensor) -> Tensor:
    """Σ_N z_N x_N for z (N, r, p) and x (N, p, n): one flat GEMM (r, n)."""
    return z.transpose(0, 1).flatten(1) @ x.flatten(0, 1)


def _embed(W: Tensor) -> Tensor:
    """A complex matrix as a real one that acts on pairs (real, imaginary): (2, m, n) → (2, m, 2, n)."""
    Wr, Wi = W[0], W[1]
    return torch.stack((torch.stack((Wr, -Wi), dim=1), torch.stack((Wi, Wr), dim=1)))


def _mix(z: Tensor, weight: Tensor) -> Tensor:
    """Channel mixing per mode: z (B, C_in, 2, K), weight (K, C_in, C_out, 2) → (K, B, C_out, 2)."""
    B, _, _, K = z.shape
    C_out = weight.shape[2]
    rows = z.permute(3, 2, 0, 1).flatten(1, 2)  # real parts of the batch, then imaginary parts
    out = torch.bmm(rows, weight.flatten(2)).view(K, 2, B, C_out, 2)
    real = out[:, 0, :, :, 0] - out[:, 1, :, :, 1]
    imag = out[:, 0, :, :, 1] + out[:, 1, :, :, 0]
    return torch.stack((real, imag), dim=-1)


def spectral_convolution(
    x: Tensor, analysis: Sequence[Tensor], weight: Tensor, synthesis: Sequence[Tensor]
) -> Tensor:
    """``y = Re(V (w · (W x)))``; see ``reference.spectral_convolution`` for formula and shapes.

    One GEMM per axis and direction and one batched GEMM for the mixing. Modes that are not kept are never
    computed.
    """
    B, C_in, *grid = x.shape
    C_out = weight.shape[-2]
    modes = [W.shape[1] for W in analysis]
    sizes = [V.shape[1] for V in synthesis]
    d = len(grid)

    if d == 1:
        z = x @ analysis[0].flatten(0, 1).mT
    else:
        n, m = grid[-2], modes[-1]
        rows = analysis[-1].transpose(0, 1).flatten(0, 1)  # (m_d, 2) × n_d
        z = _rotate(rows, x.reshape(-1, n, grid[-1]))  # (N, (m_d, 2), n)
        z = z.reshape(-1, 2 * n) @ _embed(analysis[-2]).reshape(-1, 2 * n).mT
        z = z.view(B, C_in, *grid[:-2], m, 2, modes[-2]).movedim(-3, -1)
    for a in reversed(range(d - 2)):
        E = _embed(analysis[a]).permute(0, 1, 3, 2).reshape(2 * modes[a], 2 * grid[a])
        z = _left(E, z.reshape(B * C_in * math.prod(grid[:a]), 2 * grid[a], math.prod(modes[a + 1 :])))

    z = _mix(z.reshape(B, C_in, 2, math.prod(modes)), weight.flatten(0, d - 1))
    z = z.permute(1, 2, 3, 0)  # (B, C_out, 2, K)

    for a in range(d - 2):
        E = _embed(synthesis[a]).permute(1, 0, 2, 3).reshape(2 * sizes[a], 2 * modes[a])
        z = _left(E, z.reshape(B * C_out * math.prod(sizes[:a]), 2 * modes[a], math.prod(modes[a + 1 :])))
    V = torch.stack((synthesis[-1][0], -synthesis[-1][1]))  # (2, n_d, m_d): the real part of a product
    if d == 1:
        y = z.reshape(B, C_out, 2 * modes[0]) @ V.permute(0, 2, 1).flatten(0, 1)
    else:
        z = z.reshape(B, C_out, *sizes[:-2], 2, *modes[-2:]).movedim(-1, -3).reshape(-1, 2 * modes[-2])
        z = z @ _embed(synthesis[-2]).reshape(-1, 2 * modes[-2]).mT
        z = z.view(-1, modes[-1] * 2, sizes[-2])
        y = _unrotate(V.permute(2, 0, 1).flatten(0, 1), z)
    return y.reshape(B, C_out, *sizes)
