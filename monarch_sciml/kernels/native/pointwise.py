"""What stands around the spectral convolution in an FNO's layer, in C++: one pass forward, one backward."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.kernels import reference
from monarch_sciml.kernels.derivatives import again, in_torch
from monarch_sciml.kernels.native import memory
from monarch_sciml.kernels.native.build import call

__all__ = ["pointwise_layer"]


def _sizes(x: Tensor, W1: Tensor, W2: Tensor, activated: bool) -> tuple[int, ...]:
    B, Ci, *grid = x.shape
    N = math.prod(grid)
    return B, Ci, W1.shape[1], W1.shape[0], W2.shape[0], N, int(activated), torch.get_num_threads()


@torch.library.custom_op("monarch_sciml::pointwise", mutates_args=(), device_types="cpu")
def _pointwise(
    x: Tensor,
    s: Tensor | None,
    W: Tensor | None,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    g: Tensor | None,
    activated: bool,
) -> Tensor:
    y = memory.empty((x.shape[0], W2.shape[0], *x.shape[2:]), x)
    call("pointwise_forward", _sizes(x, W1, W2, activated), x, s, W, W1, b1, W2, b2, g, y)
    return y


@_pointwise.register_fake
def _(x, s, W, W1, b1, W2, b2, g, activated):
    return memory.empty((x.shape[0], W2.shape[0], *x.shape[2:]), x)


@torch.library.custom_op("monarch_sciml::pointwise_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    x: Tensor,
    s: Tensor | None,
    W: Tensor | None,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    g: Tensor | None,
    activated: bool,
    needs: list[bool],
) -> list[Tensor]:
    operands = (x, s, W, W1, b1, W2, b2, g)
    grads = _gradients(x, operands, needs)
    call("pointwise_backward", _sizes(x, W1, W2, activated), grad, *operands, *grads)
    return grads


@_backward.register_fake
def _(grad, x, s, W, W1, b1, W2, b2, g, activated, needs):
    return _gradients(x, (x, s, W, W1, b1, W2, b2, g), needs)


def _gradients(x: Tensor, operands: tuple[Tensor | None, ...], needs: list[bool]) -> list[Tensor]:
    """Memory for the gradients, empty where none is needed; those of weights are summed up."""
    grads = []
    for i, (t, need) in enumerate(zip(operands, needs, strict=True)):
        make = memory.empty_like if i < 2 else torch.zeros_like  # x and s are written
        grads.append(make(t) if need and t is not None else x.new_empty(0))
    return grads


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.activated = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor):
    tensors, needs = ctx.saved_tensors, list(ctx.needs_input_grad[:8])
    if again():
        layer = partial(reference.pointwise_layer, activated=ctx.activated)
        return *in_torch(layer, tensors, needs, grad), None
    grads = torch.ops.monarch_sciml.pointwise_backward(grad.contiguous(), *tensors, ctx.activated, needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


_pointwise.register_autograd(_differentiate, setup_context=_save)


def pointwise_layer(*operands: Tensor | None, activated: bool) -> Tensor:
    """``reference.pointwise_layer`` in float32 on a CPU. Only the operands are kept for the backward pass."""
    flat = [None if t is None else t.contiguous() for t in operands]
    return torch.ops.monarch_sciml.pointwise(*flat, activated)
