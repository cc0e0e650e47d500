"""Butterfly and Kronecker products, the Hadamard transform, and what is made of it."""

from typing import Literal

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.composition import absorb
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.operator import LinearOperator, Product
from monarch_sciml.linalg.permutations import permutation
from monarch_sciml.linalg.transforms import Norm, norm_factor

__all__ = ["butterfly", "fastfood", "hadamard", "hd3", "kronecker"]


def kronecker(A: Tensor, B: Tensor) -> MonarchMatrix:
    """``A ⊗ B``, entries A[l, k]·B[j, i]: ``L[j] = A`` for every j, ``R[k] = B`` for every k.

    A (S, K) and B (J, I) of any shape make a matrix (S·J, K·I); the factors are views that repeat them.
    """
    check_tensors(A, B)
    if A.ndim != 2 or B.ndim != 2:
        raise InputError("two matrices", f"{tuple(A.shape)} and {tuple(B.shape)}", "pass two dimensions each")
    return MonarchMatrix(A.expand(B.shape[0], *A.shape), B.expand(A.shape[1], *B.shape))


def butterfly(
    factors: Tensor, *, strides: Literal["increasing", "decreasing"] = "increasing"
) -> LinearOperator:
    """The product of log₂ n butterfly factors as one Monarch matrix.

    ``factors`` (log₂ n, n/2, 2, 2): factor s mixes entries at distance 2ˢ, whose indices differ in bit s
    only. With index = (h, b, l), b the bit s and l the s bits below it, block h·2ˢ + l of factor s acts as
    ``y[h, b, l] = Σ_b' factors[s, h·2ˢ + l, b, b'] x[h, b', l]``.

    "increasing" applies factor 0 first (the FFT by decimation in time, after its bit reversal): the factors
    of small strides multiply to R, block-diagonal, those of large strides to L. "decreasing" applies factor 0
    last: the adjoint form, R and L in the other order between stride permutations. About 2·n·√n numbers.
    """
    check_tensors(factors)
    m = factors.shape[0] if factors.ndim == 4 else 0
    if not m or tuple(factors.shape[1:]) != (2 ** (m - 1), 2, 2):
        raise InputError(
            "factors (log₂ n, n/2, 2, 2)", f"shape {tuple(factors.shape)}", "n is a power of two, at least 2"
        )
    if strides == "decreasing":
        return butterfly(factors.mH).H
    if strides != "increasing":
        raise InputError("strides 'increasing' or 'decreasing'", repr(strides), "name the order")
    small = m // 2
    J, K = 2**small, 2 ** (m - small)
    R = _multiplied([f.reshape(K, -1, 2**s, 2, 2) for s, f in enumerate(factors[:small])], K, J, factors)
    large = [f.reshape(-1, 2**s, J, 2, 2).movedim(2, 0) for s, f in enumerate(factors[small:])]
    return MonarchMatrix(_multiplied(large, J, K, factors), R)


def _multiplied(stages: list[Tensor], blocks: int, size: int, like: Tensor) -> Tensor:
    """The product (blocks, size, size), first stage rightmost; stage s is (blocks, h, l, 2, 2)."""
    product = torch.eye(size, dtype=like.dtype, device=like.device).expand(blocks, size, size)
    for stage in stages:
        high, low = stage.shape[1:3]
        x = product.reshape(blocks, high, 2, low, size)
        product = torch.einsum("khlab,khblc->khalc", stage, x).reshape(blocks, size, size)
    return product


def hadamard(n: int, *, norm: Norm = "backward", dtype: torch.dtype = torch.float64) -> MonarchMatrix:
    """The Walsh–Hadamard transform in Sylvester's order, as ``scipy.linalg.hadamard``; n a power of two.

    ``H[a, b] = s (−1)^popcount(a & b)``, the Kronecker product of two smaller ones; s = 1 for
    norm="backward", n^(−1/2) for "ortho", 1/n, the inverse, for "forward".
    """
    if n < 1 or n & (n - 1):
        raise InputError("a power of two", str(n), "pad with zeros to the next one")
    scale, m = norm_factor(n, norm, inverse=False), int(n).bit_length() - 1
    A, B = _sylvester((m + 1) // 2), _sylvester(m // 2)
    return kronecker((scale * A).to(dtype), B.to(dtype))


def _sylvester(m: int) -> Tensor:
    H = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(m):
        H = torch.kron(H, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
    return H


def hd3(d1: Tensor, d2: Tensor, d3: Tensor) -> LinearOperator:
    """``H D₁ H D₂ H D₃`` with H the orthonormal Hadamard transform: three Monarch matrices.

    d1, d2, d3 (n,), usually random signs; the matrix is then orthogonal. (Yu, Suresh, Choromanski,
    Holtmann-Rice, Kumar, "Orthogonal random features", NeurIPS 2016, without their factor √n.)
    """
    H = _hadamard_for(d1, d2, d3, norm="ortho")
    A, B, C = (absorb(H, columns=d) for d in (d1, d2, d3))
    return Product(Product(A, B), C)


def fastfood(S: Tensor, G: Tensor, order: Tensor, B: Tensor) -> LinearOperator:
    """``diag(S) H diag(G) Π H diag(B)`` with H of entries ±1 and ``(Πx)[a] = x[order[a]]``.

    Two Monarch matrices around the one or two of the permutation. S, G, B and order (n,). (Le, Sarlós, Smola,
    "Fastfood: approximating kernel expansions in loglinear time", ICML 2013; their factor 1/(σ√n) goes to S.)
    """
    H = _hadamard_for(S, G, order, B, norm="backward")
    return absorb(H, rows=S, columns=G) @ permutation(order, dtype=B.dtype) @ absorb(H, columns=B)


def _hadamard_for(*vectors: Tensor, norm: Norm) -> MonarchMatrix:
    check_tensors(*vectors)
    lengths = {tuple(v.shape) for v in vectors}
    if len(lengths) != 1 or vectors[0].ndim != 1:
        raise InputError("vectors of equal length", f"shapes {sorted(lengths)}", "one entry per point")
    dtype = vectors[-1].dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        raise InputError("floating-point or complex vectors", f"{dtype}", "convert them with .double()")
    return hadamard(len(vectors[0]), norm=norm, dtype=dtype)
