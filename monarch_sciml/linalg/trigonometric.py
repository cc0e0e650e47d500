"""Cosine and sine transforms of types I to IV as one real Monarch matrix whose slices have rank two."""

from typing import Literal

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.composition import Selection, absorb, cast, crop
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.operator import LinearOperator, Product
from monarch_sciml.linalg.transforms import Norm, norm_factor, roots_of_unity

__all__ = ["acdc", "dct", "dst"]

Type = Literal[1, 2, 3, 4]


def dct(
    n: int,
    type: Type = 2,
    *,
    norm: Norm | None = None,
    inverse: bool = False,
    dtype: torch.dtype = torch.float64,
) -> LinearOperator:
    """The discrete cosine transform of length n; types, norms and inverses as in ``scipy.fft.dct``, ``idct``.

    Unnormalised, ``X[k] = 2 Σ_m x[m] cos θ_mk`` with θ = πmk/(n−1), π(2m+1)k/2n, πm(2k+1)/2n and
    π(2m+1)(2k+1)/4n for types I to IV, the first (and for type I the last) x halved in types I and III.
    ``norm="ortho"`` makes it orthogonal.

    One Monarch matrix of slice rank 2, about 4·n·√n real numbers (type I: 5.7·n·√n), after a fixed
    permutation of the input (type III: before one of the output; type I: zero-padded and cropped). Where
    n (type I: 2(n−1)) has no divisors that make this smaller than the dense matrix, as for primes, it is one
    dense block of rank 1: exact, O(n²). Raises ``InputError`` for n < 1 (type I: n < 2) or an unknown type.
    """
    return _transform("cos", n, type, norm, inverse, dtype)


def dst(
    n: int,
    type: Type = 2,
    *,
    norm: Norm | None = None,
    inverse: bool = False,
    dtype: torch.dtype = torch.float64,
) -> LinearOperator:
    """The discrete sine transform of length n; types, norms and inverses as in ``scipy.fft.dst``, ``idst``.

    Unnormalised, ``X[k] = 2 Σ_m x[m] sin θ_mk`` with θ = π(m+1)(k+1)/(n+1), π(2m+1)(k+1)/2n,
    π(m+1)(2k+1)/2n and π(2m+1)(2k+1)/4n for types I to IV, the last x halved in type III. Otherwise as
    ``dct``; type I splits 2(n+1).
    """
    return _transform("sin", n, type, norm, inverse, dtype)


def acdc(a: Tensor, d: Tensor, *, dtype: torch.dtype = torch.float64) -> LinearOperator:
    """``diag(a) · C · diag(d) · C⁻¹`` with C the orthonormal DCT-II; a and d (n,).

    Moczulski, Denil, Appleyard, de Freitas, "ACDC: A structured efficient linear layer", ICLR 2016. Two
    Monarch factors of rank 2, of the form M D Mᵀ: the permutations of C and Cᵀ cancel.
    """
    check_tensors(a, d)
    if a.ndim != 1 or a.shape != d.shape or not len(a) or a.is_complex() or d.is_complex():
        found = f"{a.dtype} {tuple(a.shape)} and {d.dtype} {tuple(d.shape)}"
        raise InputError("two real vectors of equal length", found, "give one entry per point")
    M, order = _monarch("cos", len(a), 2, _edges("cos", len(a), 2) ** 0.5 * (2 * len(a)) ** -0.5)
    left = absorb(M, rows=a.double(), columns=d.double()[order])
    return Product(cast(left, dtype), cast(M, dtype).H)


def _transform(
    function: str, n: int, type: int, norm: str | None, inverse: bool, dtype: torch.dtype
) -> LinearOperator:
    if type not in (1, 2, 3, 4):
        raise InputError("type 1, 2, 3 or 4", repr(type), "use scipy.fft's names")
    least = 2 if (function, type) == ("cos", 1) else 1
    if n < least:
        raise InputError(f"a size of at least {least}", str(n), "pass the length of the axis")
    length = 2 * n if type > 1 else 2 * (n - 1 if function == "cos" else n + 1)
    scale = norm_factor(length, norm or "backward", inverse)
    if inverse:  # types II and III are each other's inverse, I and IV their own
        type = {2: 3, 3: 2}.get(type, type)
    edges = _edges(function, n, type)
    if norm == "ortho":
        rows, columns = edges**0.5, edges**0.5 if type == 1 else torch.ones(n).double()
    else:  # the halves belong to the input; type III is the transpose of what is built here
        rows, columns = edges ** (type == 3), edges ** (type == 1)
    M, order = _monarch(function, n, 2 if type == 3 else type, scale * rows, columns)
    A = crop(cast(M, dtype), n, M.shape[1]) @ Selection(order, n)
    return A.H if type == 3 else A


def _edges(function: str, n: int, type: int) -> Tensor:
    """½ at the frequencies that are their own mirror image, 1 elsewhere."""
    edges = torch.ones(n, dtype=torch.float64)
    if type in (2, 3):
        edges[0 if function == "cos" else n - 1] = 0.5
    elif type == 1 and function == "cos":
        edges[[0, n - 1]] = 0.5
    return edges


def _monarch(
    function: str, n: int, type: int, rows: Tensor, columns: Tensor | None = None
) -> tuple[MonarchMatrix, Tensor]:
    """M and the order of its input: ``(M x[order])[k] = 2 rows[k] Σ_m columns[m] x[m] cos θ_mk``, or sin.

    The angle is 2π a·b/N with integers a = a₀ + a₁m for the inputs and b = b₀ + b₁k for the outputs. With
    m = m1·q + m2, k = k1 + p·k2 and a₁·b₁·p·q = N the term of m1·k2 is a multiple of 2π, so the angle is
    α(m1, k1) + β(m2, k) and, for fixed k1 and m2, ``cos(α + β) = cos β cos α − sin β sin α`` has rank two:

    ``R[m2, (k1, t), m1] = (cos α, sin α)_t`` and ``L[k1, k2, (m2, t)] = (cos β, −sin β)_t``.

    Types II and IV have odd 2m + 1 where a₁ = 4 is needed: numbers 4m' + 1, taken modulo 4n up to sign,
    are all odd ones (Makhoul, IEEE Trans. ASSP 28, 1980): even x ascending, then odd x descending, with the
    sign of the reflection 4n − a.
    """
    sine = function == "sin"
    if type == 1:
        a, b = (int(sine), 1), (int(sine), 1)
        N = 2 * (n + 1 if sine else n - 1)
    else:
        a, b = (1, 4), (int(sine), 1) if type == 2 else (1, 2)
        N = 4 * n * b[1]
    p, q = _split(n, N // (a[1] * b[1]))
    m1, m2 = torch.arange(-(-n // q)), torch.arange(q)
    k1, k2 = torch.arange(p), torch.arange(-(-n // p))

    alpha = roots_of_unity(N, -a[1] * q * (b[0] + b[1] * k1[:, None]) * m1)  # (k1, m1)
    k = k1[:, None] + p * k2
    beta = roots_of_unity(N, -(b[0] + b[1] * k)[..., None] * (a[0] + a[1] * m2))  # (k1, k2, m2)
    if sine:  # cos(β − π/2)
        beta = beta * -1j
    if p == 1 and q >= n:  # one dense block: m1 = 0, hence α = 0
        L, R = beta.real, alpha.real
    else:
        L = torch.stack((beta.real, -beta.imag), -1).flatten(-2)
        R = torch.stack((alpha.real, alpha.imag), -2).flatten(-3, -2)
    M = MonarchMatrix(2 * L, R.expand(q, *R.shape))

    m = (m1 * q + m2[:, None]).flatten()
    order, sign = m, torch.ones(len(m), dtype=torch.float64)
    if type != 1:
        order = torch.where(2 * m < n, 2 * m, 2 * (n - m) - 1)
        if sine == (type == 2):
            sign = 1 - 2.0 * (order % 2).double()
    weights = sign if columns is None else sign * columns[order.clamp(max=n - 1)]
    rows = torch.nn.functional.pad(rows, (0, M.shape[0] - n))
    return absorb(M, rows=rows, columns=weights), torch.where(order < n, order, -1)


def _split(n: int, product: int) -> tuple[int, int]:
    """p and q with p·q = product that store the fewest numbers, or (1, n), one dense block of n² + n."""
    splits = [(p, product // p) for p in range(1, product + 1) if product % p == 0]
    size = {(p, q): 2 * product * (-(-n // p) - (-n // q)) for p, q in splits} | {(1, n): n * (n + 1)}
    return min(size, key=lambda split: size[split])
