"""Which path runs: chosen by shape and device, or forced by the caller.

``reference`` defines the truth; ``gemm`` runs everywhere in any dtype; ``native`` is C++ for float32 on a CPU
and chosen wherever it fits; ``triton`` is for CUDA and runs when asked for: it has not been measured on a GPU
yet.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import gemm, native, reference, separable
from monarch_sciml.kernels.derivatives import only_torch

__all__ = [
    "Backend",
    "check_factors",
    "check_tensors",
    "has_fast_pointwise_layer",
    "has_fast_sense_normal",
    "monarch_multiply",
    "pointwise_layer",
    "sense_normal",
    "separable_multiply",
    "spectral_convolution",
    "transform_planes",
]

Backend = Literal["auto", "native", "triton", "gemm", "reference"]
MOST_CHANNELS = 128  # of a pointwise layer in C++: twice as many are 1.2 times slower there than as products
_PATHS = {"native": native, "gemm": gemm, "reference": reference}


def _path(backend: str):
    if backend not in _PATHS:
        names = ", ".join(repr(name) for name in get_args(Backend))
        raise InputError(f"a backend among {names}", repr(backend), "pass one of them")
    return _PATHS[backend]


def _triton() -> tuple[Any, dict[str, Any]]:
    """The Triton kernels, and how they multiply float32: as torch is told to."""
    try:
        from monarch_sciml.kernels import triton
    except ImportError:
        raise InputError("Triton for backend 'triton'", "none installed", "pip install triton") from None
    exact = torch.get_float32_matmul_precision() == "highest"
    return triton, {"precision": "ieee" if exact else "tf32"}


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


def _compiled() -> bool:
    """Whether the C++ kernels are there, and nobody wants derivatives that they do not have."""
    return native.available() and not only_torch()


def _native(
    backend: str, need: str, fits: bool, found: str, dtype: torch.dtype, operands: Sequence[Tensor]
) -> bool:
    """Whether the C++ path can be taken. Raises ``InputError`` if it cannot but was asked for."""
    fits = fits and dtype == torch.float32 and all(t.device.type == "cpu" for t in operands)
    if fits and _compiled():
        return True
    if backend == "native":
        raise InputError(
            f"float32 on a CPU, {need} and a C++ compiler for backend 'native'",
            f"{dtype} on {operands[0].device}, {found}",
            "use backend 'auto'",
        )
    return False


def check_tensors(*operands: object) -> None:
    """Raises ``InputError`` for arrays of NumPy, lists and whatever else is not a tensor."""
    for operand in operands:
        if not isinstance(operand, Tensor):
            raise InputError("a tensor", type(operand).__name__, "convert it with torch.as_tensor")


def check_factors(L: Tensor, R: Tensor) -> None:
    """Raises ``InputError`` unless L (..., J, S, K·T) and R (..., K, J·T, I) make a Monarch matrix."""
    check_tensors(L, R)
    if L.ndim >= 3 and R.ndim >= 3 and (J := L.shape[-3]) and (K := R.shape[-3]):
        T = L.shape[-1] // K  # torch.jit.trace makes tensors of sizes, which know no divmod
        if T and L.shape[-1] == K * T and R.shape[-2] == J * T:
            return
    raise InputError(
        "factors L (..., J, S, K·T) and R (..., K, J·T, I)",
        f"L {tuple(L.shape)} and R {tuple(R.shape)}",
        "give L's blocks T columns for each block of R, and R's blocks T rows for each block of L",
    )


def monarch_multiply(
    x: Tensor, L: Tensor, R: Tensor, *, blocks: bool = False, backend: Backend = "auto"
) -> Tensor:
    """Product of a Monarch matrix with the last dimension of ``x``.

    ``y[(ℓ,j)] = Σ_kt L[j,ℓ,(k,t)] Σ_i R[k,(j,t),i] x[(k,i)]`` (Dao et al., ICML 2022, arXiv 2204.00595, where
    T = 1; larger T are the block tensor-train matrices used there for layers of few blocks).

    ``x`` (..., K·I); ``L`` (J, S, K·T), ``R`` (K, J·T, I), with leading batch dimensions if every matrix is
    different; result (..., S·J). Real and complex operands may be mixed: the result has the promoted dtype.
    With ``blocks`` the result is ordered (j,ℓ), as L's blocks produce it: a neighbouring layer can absorb the
    permutation, which is a pass over memory. Cost per vector: T·J·K·(I + S) multiply-adds. Raises
    ``InputError`` when the factors or x do not fit.
    """
    check_factors(L, R)
    check_tensors(x)
    n = R.shape[-3] * R.shape[-1]
    if x.shape[-1:] != (n,):
        raise InputError(f"a last dimension of {n}", f"x {tuple(x.shape)}", "move that axis to the end")
    one = L.ndim == R.ndim == 3
    if backend == "gemm" and not one:
        raise InputError("one matrix for backend 'gemm'", "batched factors", "use backend 'auto'")
    dtype, context = _precision(x, L, R)
    if backend in ("auto", "native"):
        fast = _native(backend, "one matrix", one, f"L {tuple(L.shape)}", dtype, (x, L, R))
        backend = "native" if fast else "gemm" if one and not only_torch() else "reference"
    with context:
        x, L, R = x.to(dtype), L.to(dtype), R.to(dtype)
        if backend == "triton":
            triton, precision = _triton()
            y = triton.monarch_multiply(x, L, R, **precision)
            return y.unflatten(-1, (L.shape[-2], L.shape[-3])).mT.flatten(-2) if blocks else y
        return _path(backend).monarch_multiply(x, L, R, blocks=blocks)


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
        and (bias is None or bias.shape == weight.shape[-2:-1])
    ):
        raise InputError(
            "x (B, C_in, n…), analysis (2, m, n), weight (m…, C_in, C_out, 2), synthesis (2, n′, m), "
            "bias (C_out,)",
            f"x {tuple(x.shape)}, analysis {[tuple(W.shape) for W in analysis]}, "
            f"weight {tuple(weight.shape)}, synthesis {[tuple(V.shape) for V in synthesis]}, "
            f"bias {None if bias is None else tuple(bias.shape)}",
            "give one pair of matrices per axis, with the modes of the weight",
        )
    operands = [x, *analysis, weight, *synthesis] + ([] if bias is None else [bias])
    dtype, context = _precision(*operands)
    if backend in ("auto", "native"):
        fast = _native(backend, "two axes", len(modes) == 2, f"{len(modes)} axes", dtype, operands)
        backend = "native" if fast else "reference" if only_torch() else "gemm"
    with context:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        analysis, synthesis = ([M.to(dtype) for M in matrices] for matrices in (analysis, synthesis))
        if backend == "native":
            return native.spectral_convolution(x, analysis, weight, synthesis, bias)
        if backend == "triton":
            triton, precision = _triton()
            return triton.spectral_convolution(x, analysis, weight, synthesis, bias=bias, **precision)
        y = _path(backend).spectral_convolution(x, analysis, weight, synthesis)
        return y if bias is None else y + bias.view(-1, *[1] * len(modes))


def transform_planes(
    L: Tensor, R: Tensor, modes: int, *, scale: float = 1.0, twice: int = 0, adjoint: bool = False
) -> Tensor:
    """A truncated transform from its factors: real and imaginary planes (2, modes, n) of W, or those of Wᴴ.

    ``W[ℓ·p + c, j₁·q + j₂] = s L[c, ℓ, j₂] R[j₂, c, j₁]``, the first ``modes`` rows, n = p·q: a Monarch
    matrix after a stride permutation. ``L`` (p, S, q, 2), ``R`` (q, p, p, 2); s is ``scale``, and twice that
    in the rows 1 … ``twice`` − 1; (2, n, modes) if ``adjoint``. One complex multiplication an entry. Raises
    ``InputError`` when the factors do not fit.
    """
    p, q = L.shape[0], R.shape[0]
    if L.shape != (p, L.shape[1], q, 2) or R.shape != (q, p, p, 2) or modes > p * L.shape[1]:
        raise InputError(
            f"factors L (p, S, q, 2) with p·S at least {modes}, and R (q, p, p, 2)",
            f"L {tuple(L.shape)} and R {tuple(R.shape)}",
            "pass those of linalg.fourier_factors, as real numbers",
        )
    dtype = torch.promote_types(L.dtype, R.dtype)
    fast = _native("auto", "", True, "", dtype, (L, R)) and L.dtype == R.dtype
    return (native if fast else reference).transform_planes(L, R, modes, scale, twice, adjoint)


def separable_multiply(
    x: Tensor,
    vertical: tuple[Tensor, Tensor],
    horizontal: tuple[Tensor, Tensor],
    *,
    adjoint: bool = False,
    maps: Tensor | None = None,
) -> Tensor:
    """``X = W_y x W_xᵀ`` for complex images x (..., H, W), or with the adjoints of both W.

    Each W is a Monarch matrix after a stride permutation, given by its factors L (p, q, q) and R (q, p, p),
    n = p·q: ``W[ℓ·p + c, j₁·q + j₂] = L[c, ℓ, j₂] · R[j₂, c, j₁]``. With ``maps`` S like x the last leading
    dimension, the coils, is combined: ``Σ_c S̄_c X_c`` (..., H, W). The result has the promoted dtype. Costs
    8·H·W·(p + q) real operations an axis and plane. Raises ``InputError`` when the factors do not fit.
    """
    check_tensors(x)
    sizes = [L.shape[0] * R.shape[0] for L, R in (vertical, horizontal)]
    for L, R in (vertical, horizontal):
        p, q = L.shape[0], R.shape[0]
        if L.shape != (p, q, q) or R.shape != (q, p, p):
            raise InputError(
                "factors L (p, q, q) and R (q, p, p)",
                f"L {tuple(L.shape)} and R {tuple(R.shape)}",
                "pass those of linalg.fourier_factors",
            )
    if list(x.shape[-2:]) != sizes:
        raise InputError(
            f"images (..., {sizes[0]}, {sizes[1]})", f"{tuple(x.shape)}", "check the factors' grid"
        )
    operands = (x, *vertical, *horizontal) + (() if maps is None else (maps,))
    dtype = reduce(torch.promote_types, (t.dtype for t in operands))
    x, factors = x.to(dtype), tuple(f.to(dtype) for f in (*vertical, *horizontal))
    if x.dtype == torch.complex64 and x.device.type == "cpu" and _compiled():
        return native.separable_multiply(x, factors, adjoint, maps)
    return separable.separable_multiply(x, factors, adjoint, maps)


def has_fast_sense_normal(*operands: Tensor) -> bool:
    """Whether ``sense_normal`` of them runs in C++: complex64 on a CPU, gradients of x alone."""
    given = operands[1:] if torch.is_grad_enabled() else ()
    return (
        all(t.dtype == torch.complex64 and t.device.type == "cpu" for t in operands)
        and not any(t.requires_grad for t in given)
        and _compiled()
    )


def sense_normal(x: Tensor, maps: Tensor, L: Tensor, R: Tensor) -> Tensor:
    """``y = Σ_c S̄_c Wᴴ W (S_c x)`` along the rows of images: AᴴA of parallel imaging, sampled by columns.

    W is the transform of the rows onto the sampled columns, a Monarch matrix with the factors R (q, p, p) and
    L (p, q, q) of ``separable_multiply``, of L's blocks the sampled rows alone: ``L`` (B or 1, p, r, q), with
    zeros up to r rows, times the root of a weight where there is one. ``x`` (B, H, p·q), ``maps`` S (B or 1,
    C, H, p·q), complex; returns (B, H, p·q). Costs 16·C·H·(p·p·q + m·q) real operations a slice for m sampled
    columns. Raises ``InputError`` when the operands do not fit.
    """
    q, p = R.shape[:2]
    B, H, W = x.shape if x.ndim == 3 else (0, 0, 0)
    if (
        R.shape != (q, p, p)
        or L.ndim != 4
        or L.shape[1::2] != (p, q)
        or p * q != W
        or maps.ndim != 4
        or maps.shape[2:] != (H, W)
        or not {len(maps), len(L)} <= {1, B}
    ):
        raise InputError(
            "x (B, H, p·q), maps (B or 1, C, H, p·q), L (B or 1, p, r, q), R (q, p, p)",
            ", ".join(str(tuple(t.shape)) for t in (x, maps, L, R)),
            "fold every slice into B",
        )
    path = native if has_fast_sense_normal(x, maps, L, R) else reference
    return path.sense_normal(x, maps, L, R)


def has_fast_pointwise_layer(x: Tensor, width: int) -> bool:
    """Whether ``pointwise_layer`` of this input runs in C++: float32 on a CPU, outside of autocast.

    Layers of more than 128 channels are left to batched products: gradients of their weights leave the cache.
    """
    return (
        x.ndim > 2
        and max(width, x.shape[1]) <= MOST_CHANNELS
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and _compiled()
    )


def pointwise_layer(
    x: Tensor,
    s: Tensor | None,
    W: Tensor | None,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    g: Tensor | None,
    *,
    activated: bool,
) -> Tensor:
    """``h = σ(s + W x)``, ``y = σ(W2 gelu(W1 h + b1) + b2 + g ⊙ x)``, at every point of a grid.

    What stands around the convolution ``s = K x`` in a layer of a Fourier neural operator (Kossaifi et al.,
    arXiv 2412.10354); with ``s``, ``W`` and ``g`` None a perceptron of the channels. σ is GELU if
    ``activated``, else the identity. ``x`` (B, C_in, …), ``s`` (B, C, …), ``W`` (C, C_in), ``W1`` (H, C),
    ``W2`` (C_out, H), ``b1``, ``b2``, ``g`` (C_in,) with C_in = C_out; result (B, C_out, …). In C++ where
    ``has_fast_pointwise_layer``, elsewhere the definition. Raises ``InputError`` when shapes do not fit.
    """
    C, (H, K), Co = x.shape[1] if x.ndim > 2 else -1, W1.shape, W2.shape[0]
    operands = (x, s, W, W1, b1, W2, b2, g)
    # len(x) would export this one batch size only
    shapes = (None, (x.shape[0], K, *x.shape[2:]), (K, C), (H, K), (H,), (Co, H), (Co,), (C,))
    fits = all(t is None or e is None or t.shape == e for t, e in zip(operands, shapes, strict=True))
    if (
        not fits
        or C < 0
        or (s is None) != (W is None)
        or (s is None and K != C)
        or (g is not None and Co != C)
    ):
        raise InputError(
            "x (B, C_in, …), s (B, C, …) with W (C, C_in) or neither, W1 (H, C), b1 (H,), W2 (C_out, H), "
            "b2 (C_out,), g (C_in,) with C_in = C_out or none",
            ", ".join("none" if t is None else str(tuple(t.shape)) for t in operands),
            "pass the weights of one layer",
        )
    same = all(t is None or (t.dtype, t.device) == (x.dtype, x.device) for t in operands)
    path = native if same and has_fast_pointwise_layer(x, max(H, K, Co)) else reference
    return path.pointwise_layer(*operands, activated=activated)
