"""AᴴA of parallel imaging under a mask of columns in C++, as an operator that torch knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monarch_sciml.kernels.native import memory
from monarch_sciml.kernels.native.build import call

__all__ = ["sense_normal"]


@torch.library.custom_op("monarch_sciml::sense_rows", mutates_args=(), device_types="cpu")
def _normal(x: Tensor, maps: Tensor, L: Tensor, R: Tensor) -> Tensor:
    """x (B, H, W, 2), maps (B or 1, C, H, W, 2), L (B or 1, p, r, q, 2), R (q, p, p, 2) → like x."""
    y = memory.empty_like(x)
    (B, H, W, _), C, (p, r, q) = x.shape, maps.shape[1], L.shape[1:4]
    sizes = (B, C, H, W, p, q, r, len(maps), len(L), torch.get_num_threads())
    call("sense_normal", sizes, x, maps, L, R, y)
    return y


@_normal.register_fake
def _(x, maps, L, R):
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _differentiate(ctx: Any, grad: Tensor):
    y = None
    if ctx.needs_input_grad[0]:  # it is Hermitian
        y = torch.ops.monarch_sciml.sense_rows(grad.contiguous(), *ctx.saved_tensors)
    return y, None, None, None


_normal.register_autograd(_differentiate, setup_context=_save)


def sense_normal(x: Tensor, maps: Tensor, L: Tensor, R: Tensor) -> Tensor:
    """``reference.sense_normal`` of complex64 on a CPU, differentiable in x alone, as often as you like."""
    operands = (torch.view_as_real(t.resolve_conj()).contiguous() for t in (x, maps, L, R))
    return torch.view_as_complex(torch.ops.monarch_sciml.sense_rows(*operands))
