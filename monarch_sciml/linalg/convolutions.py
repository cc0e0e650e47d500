"""Circulant, Toeplitz and Hankel matrices as products M D Mᴴ of Monarch matrices, and their relatives."""

from typing import Literal

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.composition import absorb, cast, crop
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.operator import LinearOperator, Product
from monarch_sciml.linalg.transforms import balanced_factors, roots_of_unity

__all__ = ["afdf", "chirp_dft", "circulant", "convolution", "hankel", "toeplitz"]

# All of these are two complex Monarch matrices. With F the orthonormal DFT of length N = p·q, F = M Π (see
# ``transforms.dft``), a matrix with entries s[(a − b) mod N] is F D Fᴴ, D = N · (inverse DFT of s) on the
# diagonal, and the stride permutations Π cancel: M D' Mᴴ. Rows and columns that are not asked for are left
# out of the factors L: at most p − 1 more than those are computed. Real s give real results up to rounding,
# but the operators are complex: take ``.real`` of the result.


def circulant(c: Tensor, *, dtype: torch.dtype = torch.complex128) -> LinearOperator:
    """The circulant matrix ``C[a, b] = c[(a − b) mod n]`` with first column c (n,): circular convolution.

    ``M D Mᴴ`` of length n, 4·n·√n complex numbers, or, if that is smaller as for primes, embedded in a
    longer one as a Toeplitz matrix. The operator is complex; real c give real results up to rounding.
    """
    c = _vector(c)
    return _circulant(c, dtype)


def toeplitz(c: Tensor, r: Tensor | None = None, *, dtype: torch.dtype = torch.complex128) -> LinearOperator:
    """The Toeplitz matrix of ``scipy.linalg.toeplitz``: first column c (m,), first row r (n,), r[0] ignored.

    ``T[a, b] = c[a − b]`` for a ≥ b and r[b − a] above; r defaults to the conjugate of c. Rectangular
    ``M₁ D M₂ᴴ`` in a circulant of length N ≥ m + n − 1, chosen so that the factors store the fewest numbers.
    The operator is complex; real data give real results up to rounding.
    """
    c = _vector(c)
    r = c.conj() if r is None else _vector(r)
    return _embedded(torch.cat((r[1:].flip(0), c)), len(c), len(r), dtype)


def hankel(c: Tensor, r: Tensor | None = None, *, dtype: torch.dtype = torch.complex128) -> LinearOperator:
    """The Hankel matrix of ``scipy.linalg.hankel``: first column c (m,), last row r (n,), r[0] ignored.

    ``H[a, b] = s[a + b]`` with s = (c, r[1:]); r defaults to zeros. ``M₁ D M₂ᵀ``: as ``toeplitz``, with a
    transpose in place of the adjoint.
    """
    c = _vector(c)
    r = torch.zeros_like(c) if r is None else _vector(r)
    return _embedded(torch.cat((c, r[1:])), len(c), len(r), dtype, transpose=True)


def convolution(
    kernel: Tensor,
    n: int,
    *,
    mode: Literal["full", "same", "valid"] = "full",
    dtype: torch.dtype = torch.complex128,
) -> LinearOperator:
    """``np.convolve(kernel, x, mode)`` for x of length n: ``y[a] = Σ_b kernel[a + start − b] x[b]``.

    With a kernel of k entries, "full" has n + k − 1 outputs, "same" max(n, k) from its middle, "valid"
    |n − k| + 1 without the borders. A rectangular Toeplitz matrix: see ``toeplitz``.
    """
    kernel = _vector(kernel)
    if n < 1:
        raise InputError("a size of at least 1", str(n), "pass the length of x")
    k, least = len(kernel), min(n, len(kernel))
    shapes = {
        "full": (n + k - 1, 0),
        "same": (max(n, k), (least - 1) // 2),
        "valid": (abs(n - k) + 1, least - 1),
    }
    if mode not in shapes:
        raise InputError("mode 'full', 'same' or 'valid'", repr(mode), "use numpy.convolve's names")
    m, start = shapes[mode]
    lags = torch.arange(1 - n, m) + start
    inside = (lags >= 0) & (lags < k)
    return _embedded(kernel[lags.clamp(0, k - 1)] * inside, m, n, dtype)


def afdf(a: Tensor, d: Tensor, *, dtype: torch.dtype = torch.complex128) -> LinearOperator:
    """``diag(a) · F · diag(d) · F⁻¹`` with F the DFT; a and d (n,), real or complex.

    Moczulski, Denil, Appleyard, de Freitas, "ACDC: A structured efficient linear layer", ICLR 2016: a
    circulant matrix whose rows are scaled, so M D Mᴴ.
    """
    a, d = _vector(a), _vector(d)
    if a.shape != d.shape:
        raise InputError("vectors of equal length", f"{len(a)} and {len(d)}", "give one entry per point")
    return _circulant(torch.fft.fft(d, norm="forward"), dtype, rows=a)


def chirp_dft(n: int, *, dtype: torch.dtype = torch.complex128) -> LinearOperator:
    """The orthonormal DFT of any length, primes too, as two Monarch matrices: Bluestein's algorithm.

    With 2jk = j² + k² − (k − j)², ``X[k] = n^(−1/2) w_k Σ_j w̄_{k−j} (w_j x[j])``, w_j = exp(−πi j²/n): a
    Toeplitz matrix between two diagonals. About 8·n·√n complex numbers: for primes above 61 fewer
    than the dense block of ``dft``. (Bluestein, IEEE Trans. Audio Electroacoustics 18, 1970.)
    """
    if n < 1:
        raise InputError("a size of at least 1", str(n), "pass the length of the axis")
    w = roots_of_unity(2 * n, torch.arange(n) ** 2)
    lags = torch.arange(1 - n, n)
    return _embedded(w[lags.abs()].conj(), n, n, dtype, rows=w * n**-0.5, columns=w)


def _vector(c: Tensor) -> Tensor:
    check_tensors(c)
    if c.ndim != 1 or not len(c):
        raise InputError("a vector of at least one entry", f"shape {tuple(c.shape)}", "pass one dimension")
    return c.to(torch.complex128)


def _circulant(c: Tensor, dtype: torch.dtype, *, rows: Tensor | None = None) -> LinearOperator:
    n = len(c)
    p, q = balanced_factors(n)
    if _size(p, q, n, n) <= _size(*_split(n, n), n, n):
        return _product(c, p, q, n, n, dtype, rows=rows)
    return _embedded(torch.cat((c[1:], c)), n, n, dtype, rows=rows)


def _embedded(
    s: Tensor,
    m: int,
    n: int,
    dtype: torch.dtype,
    *,
    transpose: bool = False,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> LinearOperator:
    """``T[a, b] = s[a − b + n − 1]``, or s[a + b] with ``transpose``; s (m + n − 1,)."""
    p, q = _split(m, n)
    s = torch.nn.functional.pad(s, (0, p * q - len(s)))
    if not transpose:
        s = s.roll(1 - n)
    return _product(s, p, q, m, n, dtype, transpose=transpose, rows=rows, columns=columns)


def _split(m: int, n: int) -> tuple[int, int]:
    """p and q with p·q ≥ m + n − 1 whose factors store the fewest numbers."""
    length = m + n - 1
    splits = [(p, -(-length // p)) for p in range(1, length + 1)]
    return min(splits, key=lambda split: _size(*split, m, n))


def _size(p: int, q: int, m: int, n: int) -> int:
    """Numbers in both factors of ``_product``."""
    return p * q * (-(-m // p) - (-n // p) + 2 * p)


def _product(
    s: Tensor,
    p: int,
    q: int,
    m: int,
    n: int,
    dtype: torch.dtype,
    *,
    transpose: bool = False,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> LinearOperator:
    """``diag(rows) F D Fᴴ diag(columns)``, the first m rows and n columns; Fᵀ for Fᴴ with ``transpose``."""
    D = torch.fft.ifft(s, norm="forward").unflatten(0, (p, q)).mT.flatten()  # in the order (j2, j1) of Π
    left = absorb(_fourier(p, q, m), rows=None if rows is None else _padded(rows, p), columns=D)
    right = _fourier(p, q, n)
    if transpose:
        right = MonarchMatrix(right.L.conj().resolve_conj(), right.R.conj().resolve_conj())
    if columns is not None:
        right = absorb(right, rows=_padded(columns.conj(), p))
    return crop(Product(cast(left, dtype), cast(right, dtype).H), m, n)


def _padded(v: Tensor, p: int) -> Tensor:
    """Zeros up to a multiple of p."""
    return torch.nn.functional.pad(v, (0, -len(v) % p))


def _fourier(p: int, q: int, n: int) -> MonarchMatrix:
    """The first ⌈n/p⌉·p rows of the orthonormal DFT of length p·q, for input in the order (j2, j1).

    ``R[j2, k1, j1] = p^(−1/2) ω_p^{j1 k1}``, ``L[k1, k2, j2] = q^(−1/2) ω_pq^{j2 (k1 + p k2)}``.
    """
    j1, j2, k1, k2 = torch.arange(p), torch.arange(q), torch.arange(p), torch.arange(-(-n // p))
    R = roots_of_unity(p, k1[:, None] * j1).expand(q, p, p)
    L = roots_of_unity(p * q, (k1[:, None] + p * k2)[..., None] * j2)
    return MonarchMatrix(L * q**-0.5, R * p**-0.5)
