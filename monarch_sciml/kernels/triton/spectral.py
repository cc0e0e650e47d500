"""A 2-D spectral convolution in three launches: analysis, one batched GEMM, synthesis with its epilogue.

Analysis and synthesis are adjoint to each other, so each is the backward pass of the other, with transposed
and conjugated matrices. The GEMM between them works on reals: rows of real and of imaginary parts times the
interleaved weight give four products per mode, and the synthesis joins them as it reads them. Nothing is
copied or transposed on the way. Kept for backward are the modes, the matrices, the weight and what the
GELU needs to compute its argument again (the skip branch): recomputing it costs one pass over the grid less
than storing it, and no memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels.triton import launch
from monarch_sciml.kernels.triton.launch import Precision
from monarch_sciml.kernels.triton.spectral_kernels import analyse, synthesise

__all__ = ["spectral_convolution"]


@torch.library.custom_op("monarch_sciml::spectral_analysis", mutates_args=())
def _analysis(x: Tensor, A1: Tensor, A2: Tensor, conj: bool, products: bool, precision: str) -> Tensor:
    """Planes x (B, C, H, W) to modes: see ``spectral_kernels.analyse``."""
    return analyse(x, A1, A2, conj, products, precision)


@_analysis.register_fake
def _(x: Tensor, A1: Tensor, A2: Tensor, conj: bool, products: bool, precision: str) -> Tensor:
    B, C = x.shape[:2]
    return x.new_empty(A1.shape[1], A2.shape[1], 2, B, C, *([2] if products else []))


def _analysis_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, A1, A2, *ctx.how = inputs
    ctx.save_for_backward(x if any(ctx.needs_input_grad[1:3]) else None, A1, A2)


def _analysis_backward(ctx: Any, grad: Tensor) -> tuple:
    x, A1, A2 = ctx.saved_tensors
    conj, _, precision = ctx.how
    need_x, need_A1, need_A2 = ctx.needs_input_grad[:3]
    grad_x = grad_A1 = grad_A2 = None
    if need_x:
        grad_x = _synthesis(grad, A1.mT, A2.mT, None, None, not conj, False, precision)
    if need_A1:
        grad_A1 = _conj(_matrix_gradient(x, _conj(A2, conj), _parts(grad)), conj)
    if need_A2:
        grad_A2 = _conj(_matrix_gradient(x.mT, _conj(A1, conj), _parts(grad).transpose(0, 1)), conj)
    return grad_x, grad_A1, grad_A2, None, None, None


_analysis.register_autograd(_analysis_backward, setup_context=_analysis_context)


@torch.library.custom_op("monarch_sciml::spectral_synthesis", mutates_args=())
def _synthesis(
    z: Tensor,
    V1: Tensor,
    V2: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    conj: bool,
    gelu: bool,
    precision: str,
) -> Tensor:
    """Modes or products of modes to planes: see ``spectral_kernels.synthesise``."""
    return synthesise(z, V1, V2, bias, skip, conj=conj, gelu=gelu, precision=precision)


@_synthesis.register_fake
def _(
    z: Tensor,
    V1: Tensor,
    V2: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    conj: bool,
    gelu: bool,
    precision: str,
) -> Tensor:
    return z.new_empty(*z.shape[3:5], V1.shape[1], V2.shape[1])


@torch.library.custom_op("monarch_sciml::spectral_gelu_gradient", mutates_args=())
def _gelu_gradient(
    upstream: Tensor,
    z: Tensor,
    V1: Tensor,
    V2: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    conj: bool,
    precision: str,
) -> Tensor:
    """upstream · gelu′(p), with p computed again from the modes. It has no derivative of its own."""
    return synthesise(z, V1, V2, bias, skip, upstream=upstream, conj=conj, gelu=True, precision=precision)


@_gelu_gradient.register_fake
def _(
    upstream: Tensor,
    z: Tensor,
    V1: Tensor,
    V2: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    conj: bool,
    precision: str,
) -> Tensor:
    return torch.empty_like(upstream, memory_format=torch.contiguous_format)


def _synthesis_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    z, V1, V2, bias, skip, *ctx.how = inputs
    gelu = inputs[6]
    keep = gelu or any(ctx.needs_input_grad[1:3])
    ctx.products = z.ndim == 6
    ctx.save_for_backward(z if keep else None, V1, V2, bias if gelu else None, skip if gelu else None)


def _synthesis_backward(ctx: Any, grad: Tensor) -> tuple:
    z, V1, V2, bias, skip = ctx.saved_tensors
    conj, gelu, precision = ctx.how
    need_z, need_V1, need_V2, need_bias, need_skip = ctx.needs_input_grad[:5]
    if gelu:
        grad = _gelu_gradient(grad, z, V1, V2, bias, skip, conj, precision)
    grad_z = grad_V1 = grad_V2 = None
    if need_z:
        grad_z = _analysis(grad, V1.mT, V2.mT, not conj, ctx.products, precision)
    # V is the adjoint of an analysis that takes the gradient for its grid and z for its gradient
    if need_V1:
        grad_V1 = _conj(_matrix_gradient(grad, _conj(V2.mT, not conj), _parts(z)), not conj).mT
    if need_V2:
        gradient = _matrix_gradient(grad.mT, _conj(V1.mT, not conj), _parts(z).transpose(0, 1))
        grad_V2 = _conj(gradient, not conj).mT
    grad_bias = grad.sum((0, 2, 3)) if need_bias else None
    return grad_z, grad_V1, grad_V2, grad_bias, grad if need_skip else None, None, None, None


_synthesis.register_autograd(_synthesis_backward, setup_context=_synthesis_context)


def _conj(A: Tensor, conj: bool = True) -> Tensor:
    """The conjugate of a matrix given as planes, if asked."""
    return torch.stack((A[0], -A[1])) if conj else A


def _parts(z: Tensor) -> Tensor:
    """Real and imaginary parts (m1, m2, 2, B, C) of modes, which may come as products with a weight."""
    if z.ndim == 5:
        return z
    return torch.stack((z[:, :, 0, ..., 0] - z[:, :, 1, ..., 1], z[:, :, 0, ..., 1] + z[:, :, 1, ..., 0]), 2)


def _matrix_gradient(x: Tensor, A2: Tensor, grad: Tensor) -> Tensor:
    """Gradient of A₁ in z = A₁ x A₂ᵀ, Σ g (x A₂ᵀ)ᴴ: x (B, C, H, W), A2 (2, m2, W), g (m1, m2, 2, B, C).

    Two GEMMs that read x once, and a temporary (B, C, H, 2, m2).
    """
    t = (x @ A2.flatten(0, 1).mT).unflatten(-1, (2, -1))
    p = torch.einsum("klqbc,bchrl->qrkh", grad, t)
    return torch.stack((p[0, 0] + p[1, 1], p[1, 0] - p[0, 1]))


def spectral_convolution(
    x: Tensor,
    analysis: Sequence[Tensor],
    weight: Tensor,
    synthesis: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    gelu: bool = False,
    precision: Precision = "ieee",
) -> Tensor:
    """``y = Re(V (w · (W x))) + bias + skip``, through the exact GELU when asked, on a 2-D grid.

    ``x`` (B, C_in, H, W); ``analysis`` W₁ (2, m1, H) and W₂ (2, m2, W); ``weight`` (m1, m2, C_in, C_out, 2);
    ``synthesis`` V₁ (2, H′, m1) and V₂ (2, W′, m2); ``bias`` (C_out,); ``skip`` and result
    (B, C_out, H′, W′). All float32, float16 or bfloat16, accumulated in float32. ``precision`` says how
    float32 tiles are multiplied; the mixing of channels is a ``torch.bmm`` and follows the settings of torch.
    Without a GELU it can be differentiated twice.

    Memory moved, forward: x and y once, the modes 2 times and their products 2 times, the weight once, the
    skip branch once. Backward the same again, with the gradient of the GELU one read and one write of y more.
    Gradients of the matrices cost two plain GEMMs each. Raises ``InputError`` when the operands do not fit.
    """
    if len(analysis) != 2 or len(synthesis) != 2 or x.ndim != 4 or weight.ndim != 5:
        raise InputError("a 2-D grid", f"x {tuple(x.shape)}", "use backend 'gemm' for other dimensions")
    (B, C_in, H, W), (m1, m2, _, C_out, _) = x.shape, weight.shape
    (A1, A2), (V1, V2) = analysis, synthesis
    sizes = (V1.shape[-2], V2.shape[-2])
    operands = [
        ("x", x, (B, weight.shape[2], H, W)),
        ("analysis[0]", A1, (2, m1, H)),
        ("analysis[1]", A2, (2, m2, W)),
        ("weight", weight, (m1, m2, C_in, C_out, 2)),
        ("synthesis[0]", V1, (2, sizes[0], m1)),
        ("synthesis[1]", V2, (2, sizes[1], m2)),
        ("bias", bias, (C_out,)),
        ("skip", skip, (B, C_out, *sizes)),
    ]
    for name, t, shape in operands:
        if t is not None and t.shape != shape:
            raise InputError(f"{name} {shape}", f"{tuple(t.shape)}", "let x, weight and matrices agree")
    launch.check([t for _, t, _ in operands if t is not None], precision)

    z = _analysis(x, A1, A2, False, False, precision)
    rows = z.view(m1 * m2, 2 * B, C_in)
    products = torch.bmm(rows, weight.reshape(m1 * m2, C_in, 2 * C_out)).view(m1, m2, 2, B, C_out, 2)
    return _synthesis(products, V1, V2, bias, skip, False, gelu, precision)
