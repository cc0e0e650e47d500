"""The spectral convolution of two axes in C++: forward and backward as operators that torch knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.kernels import gemm, reference
from monarch_sciml.kernels.derivatives import again, in_torch, only_torch
from monarch_sciml.kernels.native import memory
from monarch_sciml.kernels.native.build import call, library

__all__ = ["spectral_convolution"]


MATRICES = (1, 2, 4, 5)  # among the operands: Wa, Ea, Es, Vs


def _sizes(x: Tensor, weight: Tensor, Es: Tensor, Vs: Tensor) -> tuple[int, ...]:
    B, Ci, H, W = x.shape
    mh, mw, _, Co, _ = weight.shape
    return B, Ci, Co, H, W, mh, mw, Es.shape[1], Vs.shape[1], torch.get_num_threads()


def _lanes(C: int) -> int:
    lib = library()
    n = lib.lanes() if lib else 16
    return -(-C // n) * n


def _output(x: Tensor, weight: Tensor, Es: Tensor, Vs: Tensor) -> Tensor:
    return memory.empty((x.shape[0], weight.shape[3], Es.shape[1], Vs.shape[1]), x)


def _workspace(x: Tensor, weight: Tensor, strips: bool) -> list[Tensor]:
    """The input with one axis transformed, if ``strips``, and the modes before and after mixing."""
    B, _, H, _ = x.shape
    mh, mw, Ci, Co, _ = weight.shape
    modes = [memory.empty((mh * mw * B * 2 * _lanes(C),), x) for C in (Ci, Co)]
    return [memory.empty((B * _lanes(Ci) * H * 2 * mw * strips,), x), *modes]


@torch.library.custom_op("monarch_sciml::spectral", mutates_args=(), device_types="cpu")
def _spectral(
    x: Tensor,
    Wa: Tensor,
    Ea: Tensor,
    weight: Tensor,
    Es: Tensor,
    Vs: Tensor,
    bias: Tensor | None,
    strips: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = _output(x, weight, Es, Vs)
    T, Z, Y = _workspace(x, weight, strips)
    call("spectral_forward", _sizes(x, weight, Es, Vs), x, Wa, Ea, weight, Es, Vs, bias, y, T, Z, Y)
    return y, T, Z, Y


@_spectral.register_fake
def _(x, Wa, Ea, weight, Es, Vs, bias, strips):
    return _output(x, weight, Es, Vs), *_workspace(x, weight, strips)


@torch.library.custom_op("monarch_sciml::spectral_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    x: Tensor,
    Wa: Tensor,
    Ea: Tensor,
    weight: Tensor,
    Es: Tensor,
    Vs: Tensor,
    T: Tensor,
    Z: Tensor,
    Y: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    grads = _gradients(x, Wa, Ea, weight, Es, Vs, needs)
    scratch = memory.empty_like(max(Z, Y, key=torch.numel))
    operands = (grad, x, Wa, Ea, weight, Es, Vs, T, Z, Y, scratch, *grads)
    call("spectral_backward", _sizes(x, weight, Es, Vs), *operands)
    return grads


@_backward.register_fake
def _(grad, x, Wa, Ea, weight, Es, Vs, T, Z, Y, needs):
    return _gradients(x, Wa, Ea, weight, Es, Vs, needs)


def _gradients(
    x: Tensor, Wa: Tensor, Ea: Tensor, weight: Tensor, Es: Tensor, Vs: Tensor, needs: list[bool]
) -> list[Tensor]:
    """Memory for the gradients, empty where none is needed; those of matrices and bias are summed up."""
    written, bias = (x, weight), x.new_empty(weight.shape[3])
    grads = []
    for t, need in zip((x, Wa, Ea, weight, Es, Vs, bias), needs, strict=True):
        make = memory.empty_like if any(t is w for w in written) else torch.zeros_like
        grads.append(make(t) if need else t.new_empty(0))
    return grads


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:-1], *output[1:])
    # T, Z and Y have no gradients: torch would fill arrays of zeros for them
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *unused: None):
    *tensors, bias, T, Z, Y = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:7])
    if grad is None:
        return (None,) * 8
    if again():
        return *in_torch(_plain, (*tensors, bias), needs, grad), None
    # the matrices of both directions are differentiated together
    matrices = any(needs[i] for i in MATRICES)
    wanted = [matrices if i in MATRICES else need for i, need in enumerate(needs)]
    grads = torch.ops.monarch_sciml.spectral_backward(grad.contiguous(), *tensors, T, Z, Y, wanted)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


_spectral.register_autograd(_differentiate, setup_context=_save)


def _plain(
    x: Tensor, Wa: Tensor, Ea: Tensor, weight: Tensor, Es: Tensor, Vs: Tensor, bias: Tensor | None
) -> Tensor:
    path = reference if only_torch() else gemm
    y = path.spectral_convolution(x, [Ea, Wa], weight, [Es, Vs])
    return y if bias is None else y + bias[:, None, None]


def spectral_convolution(
    x: Tensor,
    analysis: Sequence[Tensor],
    weight: Tensor,
    synthesis: Sequence[Tensor],
    bias: Tensor | None = None,
) -> Tensor:
    """``y = Re(V (w · (W x))) + bias`` on two axes, float32 on a CPU.

    See ``reference.spectral_convolution`` for formula and shapes; ``bias`` (C_out,). The input is read once,
    and of what lies between, kept for the backward pass are the modes and the input with one axis
    transformed, the latter only if a transform is differentiated.
    """
    (Ea, Wa), (Es, Vs) = analysis, synthesis
    inputs = [t.contiguous() for t in (x, Wa, Ea, weight, Es, Vs)]
    strips = torch.is_grad_enabled() and any(t.requires_grad for t in (Wa, Ea, Es, Vs))
    return torch.ops.monarch_sciml.spectral(*inputs, None if bias is None else bias.contiguous(), strips)[0]
