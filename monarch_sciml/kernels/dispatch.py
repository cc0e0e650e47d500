"""Which path runs: chosen by shape, or forced by the caller."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import gemm, native, reference

__all__ = ["Backend", "check_factors", "monarch_multiply", "spectral_convolution"]

Backend = Literal["auto", "native", "gemm", "reference"]
_PATHS = {"gemm": gemm, "reference": reference, "native": native}


def _path(backend: str):
    if backend not in _PATHS:
        names = ", ".join(repr(name) for name in ("auto", *_PATHS))
        raise InputError(f"a backend among {names}", repr(backend), "pass one of them")
    return _PATHS[backend]


def _precision(*operands: Tensor) -> tuple[torch.dtype, AbstractContextManager]:
    """The dtype to compute in, and a context to do so.

    It is the promoted dtype, or inside ``torch.autocast`` the one asked for there. Autocast is then switched
    off: the explicit backward passes run outside of it and have to meet the dtype of the forward pass.
    """
    dtype = reduce(torch.promote_types, (t.dtype for t in operands))
    device = operands[0].device.type
    low = dtype.is_floating_point and dtype != torch.float64
    if low and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device), torch.autocast(device, enabled=False)
    return dtype, nullcontext()


def check_factors(L: Tensor, R: Tensor) -> None:
    """Raises ``InputError`` unless L (..., J, S, K) and R (..., K, J, I) make a Monarch matrix."""
    if L.ndim < 3 or R.ndim < 3 or L.shape[-1] != R.shape[-3] or L.shape[-3] != R.shape[-2]:
        raise InputError(
            "factors L (..., J, S, K) and R (..., K, J, I)",
            f"L {tuple(L.shape)} and R {tuple(R.shape)}",
            "L needs one block per output of R's blocks, each as wide as R has blocks",
        )


def monarch_multiply(x: Tensor, L: Tensor, R: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Product of a Monarch matrix with the last dimension of ``x``.

    ``y[(ℓ,j)] = Σ_k L[j,ℓ,k] Σ_i R[k,j,i] x[(k,i)]`` (Dao et al., ICML 2022, arXiv 2204.00595).

    ``x`` (..., K·I); ``L`` (J, S, K), ``R`` (K, J, I), with leading batch dimensions if every matrix is
    different; result (..., S·J). Real and complex operands may be mixed: the result has the promoted dtype.
    Cost per vector: K·I·J + J·S·K multiply-adds. Raises ``InputError`` when the factors or x do not fit.
    """
    check_factors(L, R)
    n = R.shape[-3] * R.shape[-1]
    if x.shape[-1] != n:
        raise InputError(f"a last dimension of {n}", f"x {tuple(x.shape)}", "move that axis to the end")
    if backend == "auto":
        backend = "gemm" if L.ndim == R.ndim == 3 else "reference"
    if backend == "native":
        raise InputError("a backend for this product", "'native'", "use backend 'auto'")
    if backend == "gemm" and not L.ndim == R.ndim == 3:
        raise InputError("one matrix for backend 'gemm'", "batched factors", "use backend 'auto'")
    dtype, context = _precision(x, L, R)
    with context:
        return _path(backend).monarch_multiply(x.to(dtype), L.to(dtype), R.to(dtype))


def spectral_convolution(
    x: Tensor,
    analysis: Sequence[Tensor],
    weight: Tensor,
    synthesis: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Transform every axis, mix the channels of each mode, transform back: ``Re(V (w · (W x))) + bias``.

    ``x`` real (B, C_in, n_1 … n_d); ``analysis[a]`` (2, m_a, n_a) and ``synthesis[a]`` (2, n′_a, m_a) are the
    real and imaginary planes of W_a and V_a; ``weight`` (m_1 … m_d, C_in, C_out, 2); ``bias`` (C_out,);
    result real (B, C_out, n′_1 … n′_d), in the promoted dtype. With W a truncated DFT and V its inverse this
    is the convolution of a Fourier neural operator (Li et al., arXiv 2010.08895). Raises ``InputError`` when
    the shapes do not fit.
    """
    modes = [W.shape[-2] for W in analysis]
    if not (
        len(analysis) == len(synthesis) == x.ndim - 2 > 0
        and all(W.shape == (2, m, n) for W, m, n in zip(analysis, modes, x.shape[2:], strict=True))
        and all(V.shape == (2, V.shape[-2], m) for V, m in zip(synthesis, modes, strict=True))
        and weight.shape == (*modes, x.shape[1], weight.shape[-2], 2)
    ):
        raise InputError(
            "x (B, C_in, n…), analysis (2, m, n), weight (m…, C_in, C_out, 2), synthesis (2, n′, m)",
            f"x {tuple(x.shape)}, analysis {[tuple(W.shape) for W in analysis]}, "
            f"weight {tuple(weight.shape)}, synthesis {[tuple(V.shape) for V in synthesis]}",
            "give one pair of matrices per axis, with the modes of the weight",
        )
    operands = [x, *analysis, weight, *synthesis] + ([] if bias is None else [bias])
    dtype, context = _precision(*operands)
    if backend in ("auto", "native"):
        fits = len(modes) == 2 and dtype == torch.float32 and all(t.device.type == "cpu" for t in operands)
        if fits and native.available():
            backend = "native"
        elif backend == "native":
            raise InputError(
                "float32 on a CPU, two axes and a C++ compiler for backend 'native'",
                f"{dtype} on {x.device}, {len(modes)} axes",
                "use backend 'auto'",
            )
        else:
            backend = "gemm"
    with context:
        x, weight = x.to(dtype), weight.to(dtype)
        analysis, synthesis = ([M.to(dtype) for M in matrices] for matrices in (analysis, synthesis))
        if backend == "native":
            return native.spectral_convolution(
                x, analysis, weight, synthesis, None if bias is None else bias.to(dtype).contiguous()
            )
        y = _path(backend).spectral_convolution(x, analysis, weight, synthesis)
        return y if bias is None else y + bias.to(dtype).view(-1, *[1] * len(modes))
