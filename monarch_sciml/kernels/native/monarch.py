"""The product with a Monarch matrix in C++: forward and backward as operators that torch knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monarch_sciml.kernels import gemm
from monarch_sciml.kernels.derivatives import again
from monarch_sciml.kernels.native import memory
from monarch_sciml.kernels.native.build import call

__all__ = ["monarch_multiply"]


def _sizes(x: Tensor, L: Tensor, R: Tensor, blocks: bool) -> tuple[int, ...]:
    (J, S, _), (K, rows, I) = L.shape, R.shape
    return x.shape[0], J, S, K, I, rows // J, torch.get_num_threads(), blocks


@torch.library.custom_op("monarch_sciml::monarch", mutates_args=(), device_types="cpu")
def _monarch(x: Tensor, L: Tensor, R: Tensor, blocks: bool) -> Tensor:
    """x (N, K·I) → y (N, S·J)."""
    y = memory.empty((x.shape[0], L.shape[0] * L.shape[1]), x)
    call("monarch_forward", _sizes(x, L, R, blocks), x, L, R, y)
    return y


@_monarch.register_fake
def _(x, L, R, blocks):
    return memory.empty((x.shape[0], L.shape[0] * L.shape[1]), x)


@torch.library.custom_op("monarch_sciml::monarch_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, x: Tensor, L: Tensor, R: Tensor, blocks: bool, needs: list[bool]) -> list[Tensor]:
    """Gradients of x and of both factors, which come together; empty where none is needed."""
    grads = _gradients_like(grad, x, L, R, blocks, needs)
    for sums in grads[1:]:
        sums.zero_()
    call("monarch_backward", _sizes(x, L, R, blocks), grad, x, L, R, *grads)
    return grads


@_backward.register_fake
def _gradients_like(grad, x, L, R, blocks, needs):
    tensors = zip((x, L, R), needs, strict=True)
    return [memory.empty_like(t) if need else t.new_empty(0) for t, need in tensors]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.blocks = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, L, R = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    if again():
        J, S, _ = L.shape
        g = (
            grad.unflatten(1, (J, S)).permute(1, 2, 0)
            if ctx.blocks
            else grad.unflatten(1, (S, J)).permute(2, 1, 0)
        )
        return *gemm.monarch_gradients(g, x, L, R, needs), None
    factors = needs[1] or needs[2]
    found = torch.ops.monarch_sciml.monarch_backward(
        grad.contiguous(), x, L, R, ctx.blocks, [needs[0], factors, factors]
    )
    return *(g if need else None for g, need in zip(found, needs, strict=True)), None


_monarch.register_autograd(_differentiate, setup_context=_save)


def monarch_multiply(x: Tensor, L: Tensor, R: Tensor, *, blocks: bool = False) -> Tensor:
    """``y = M x`` along the last dimension of x, float32 on a CPU; formula in ``reference.monarch_multiply``.

    x is read and y written once; what lies between stays in cache, and is computed again in the backward
    pass, which keeps x only.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.ops.monarch_sciml.monarch(rows, L.contiguous(), R.contiguous(), blocks)
    return y.view(*x.shape[:-1], y.shape[-1])
