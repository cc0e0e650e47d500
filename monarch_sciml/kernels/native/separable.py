"""Two-dimensional Monarch transforms of complex images in C++, as operators that torch knows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.kernels import separable
from monarch_sciml.kernels.derivatives import again, in_torch
from monarch_sciml.kernels.native import memory
from monarch_sciml.kernels.native.build import call

__all__ = ["separable_multiply"]


@torch.library.custom_op("monarch_sciml::separable", mutates_args=(), device_types="cpu")
def _separable(
    x: Tensor, Ly: Tensor, Ry: Tensor, Lx: Tensor, Rx: Tensor, maps: Tensor | None, adjoint: bool
) -> Tensor:
    """x (..., C, H, W, 2) → the same, or (..., H, W, 2) if combined by maps like x."""
    *batch, C, H, W, _ = x.shape
    y = memory.empty_like(x) if maps is None else x.new_zeros(*batch, H, W, 2)
    factors = (Ly, Ry, Lx, Rx)
    groups = (
        [(x, None, y)]
        if maps is None
        else zip(x.view(-1, C, H, W, 2), maps, y.view(-1, H, W, 2), strict=True)
    )
    for planes, S, out in groups:
        count = planes.numel() // (2 * H * W)
        sizes = (count, H, W, torch.get_num_threads(), adjoint, *map(len, factors))
        call("separable_forward", sizes, planes, *factors, S, out)
    return y


@_separable.register_fake
def _(x, Ly, Ry, Lx, Rx, maps, adjoint):
    return torch.empty_like(x) if maps is None else x.new_empty(*x.shape[:-4], *x.shape[-3:])


@torch.library.custom_op("monarch_sciml::separable_backward", mutates_args=(), device_types="cpu")
def _backward(
    x: Tensor, g: Tensor, Ly: Tensor, Ry: Tensor, Lx: Tensor, Rx: Tensor, adjoint: bool, image: bool
) -> list[Tensor]:
    """Gradients of x (…, H, W, 2), empty unless ``image``, and of the factors, from that of X like x."""
    *_, H, W, _ = x.shape
    factors = (Ly, Ry, Lx, Rx)
    gx = memory.empty_like(x) if image else x.new_empty(0)
    grads = [torch.zeros_like(f) for f in factors]
    count = x.numel() // (2 * H * W)
    sizes = (count, H, W, torch.get_num_threads(), adjoint, *map(len, factors))
    call("separable_backward", sizes, x, g, *factors, gx, *grads)
    return [gx, *grads]


@_backward.register_fake
def _(x, g, Ly, Ry, Lx, Rx, adjoint, image):
    gx = memory.empty_like(x) if image else x.new_empty(0)
    return [gx, *(torch.empty_like(f) for f in (Ly, Ry, Lx, Rx))]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.adjoint = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor):
    x, *factors, maps = ctx.saved_tensors
    needs, grad = ctx.needs_input_grad, grad.contiguous()
    if again() or needs[5]:  # gradients of maps, too, are torch's
        return *in_torch(partial(_plain, adjoint=ctx.adjoint), (x, *factors, maps), needs[:6], grad), None
    g = grad if maps is None else _spread(grad, maps)
    if any(needs[1:5]):
        gx, *grads = torch.ops.monarch_sciml.separable_backward(x, g, *factors, ctx.adjoint, needs[0])
        found = [gx, *grads, None, None]
        return tuple(f if needed else None for f, needed in zip(found, needs, strict=True))
    gx = torch.ops.monarch_sciml.separable(g, *factors, None, not ctx.adjoint) if needs[0] else None
    return gx, *[None] * 6


def _plain(x: Tensor, *operands: Tensor | None, adjoint: bool) -> Tensor:
    *factors, maps = (None if t is None else torch.view_as_complex(t) for t in operands)
    y = separable.separable_multiply(torch.view_as_complex(x), tuple(factors), adjoint, maps)  # pyright: ignore
    return torch.view_as_real(y)


def _spread(grad: Tensor, maps: Tensor) -> Tensor:
    """(..., H, W, 2) → coil images S_c g."""
    return torch.view_as_real(torch.view_as_complex(maps) * torch.view_as_complex(grad).unsqueeze(-3))


_separable.register_autograd(_differentiate, setup_context=_save)


def separable_multiply(
    x: Tensor, factors: tuple[Tensor, ...], adjoint: bool = False, maps: Tensor | None = None
) -> Tensor:
    """``X = W_y x W_xᵀ``, complex64 on a CPU; see ``kernels.separable_multiply``.

    All planes at once, by threads; a plane is read and written once, forward and backward. Only second
    derivatives and gradients of the maps go through torch's operations.
    """
    real = [torch.view_as_real(t.to(torch.complex64).resolve_conj()).contiguous() for t in factors]
    planes = torch.view_as_real(x.resolve_conj()).contiguous()
    if maps is None:
        shape = planes.shape
        planes = planes.reshape(-1, *shape[-3:])
        return torch.view_as_complex(torch.ops.monarch_sciml.separable(planes, *real, None, adjoint)).view(
            shape[:-1]
        )
    C = x.shape[-3]
    S = torch.view_as_real(maps.to(x.dtype).expand_as(x).resolve_conj()).contiguous()
    planes, S = (t.reshape(-1, C, *t.shape[-3:]) for t in (planes, S))
    y = torch.ops.monarch_sciml.separable(planes, *real, S, adjoint)
    return torch.view_as_complex(y).view(*x.shape[:-3], *x.shape[-2:])
