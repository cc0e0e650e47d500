"""Matrices of truncated transforms from their factors in C++, as operators that torch knows."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.kernels import reference
from monarch_sciml.kernels.derivatives import again, in_torch
from monarch_sciml.kernels.native.build import call

__all__ = ["transform_planes"]


@cache
def _rows(modes: int, scale: float, twice: int) -> Tensor:
    """The factor of each row."""
    rows = torch.full((modes,), scale, dtype=torch.float32, device="cpu")
    rows[1:twice] *= 2
    return rows


def _sizes(L: Tensor, R: Tensor, modes: int, adjoint: bool) -> tuple[int, ...]:
    return modes, len(L), len(R), L.shape[1], adjoint


def _planes(L: Tensor, R: Tensor, modes: int, adjoint: bool) -> Tensor:
    n = len(L) * len(R)
    return L.new_empty(2, n, modes) if adjoint else L.new_empty(2, modes, n)


@torch.library.custom_op("monarch_sciml::transform", mutates_args=(), device_types="cpu")
def _transform(L: Tensor, R: Tensor, modes: int, scale: float, twice: int, adjoint: bool) -> Tensor:
    planes = _planes(L, R, modes, adjoint)
    call("transform_forward", _sizes(L, R, modes, adjoint), L, R, _rows(modes, scale, twice), planes)
    return planes


@_transform.register_fake
def _(L, R, modes, scale, twice, adjoint):
    return _planes(L, R, modes, adjoint)


@torch.library.custom_op("monarch_sciml::transform_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, L: Tensor, R: Tensor, modes: int, scale: float, twice: int, adjoint: bool
) -> list[Tensor]:
    grads = [torch.zeros_like(L), torch.zeros_like(R)]
    rows = _rows(modes, scale, twice)
    call("transform_backward", _sizes(L, R, modes, adjoint), grad, L, R, rows, *grads)
    return grads


@_backward.register_fake
def _(grad, L, R, modes, scale, twice, adjoint):
    return [torch.empty_like(L), torch.empty_like(R)]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    L, R, *settings = inputs
    ctx.settings = dict(zip(("modes", "scale", "twice", "adjoint"), settings, strict=True))
    ctx.save_for_backward(L, R)


def _differentiate(ctx: Any, grad: Tensor):
    L, R = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    if again():
        planes = partial(reference.transform_planes, **ctx.settings)
        return *in_torch(planes, (L, R), needs, grad), None, None, None, None
    found = torch.ops.monarch_sciml.transform_backward(grad.contiguous(), L, R, **ctx.settings)
    return *found, None, None, None, None


_transform.register_autograd(_differentiate, setup_context=_save)


def transform_planes(L: Tensor, R: Tensor, modes: int, scale: float, twice: int, adjoint: bool) -> Tensor:
    """See ``dispatch.transform_planes``; float32 on a CPU."""
    return torch.ops.monarch_sciml.transform(L.contiguous(), R.contiguous(), modes, scale, twice, adjoint)
