"""Transforms that Monarch matrices represent exactly, with angles built from integers in float64."""

import math
from typing import Literal

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.linalg.caching import kept
from monarch_sciml.linalg.composition import cast
from monarch_sciml.linalg.monarch import MonarchMatrix, StridePermutation
from monarch_sciml.linalg.operator import LinearOperator, Product

__all__ = [
    "Norm",
    "balanced_factors",
    "dft",
    "fourier_factors",
    "interpolation",
    "norm_factor",
    "roots_of_unity",
    "truncated_dft",
]

Norm = Literal["backward", "ortho", "forward"]


def balanced_factors(n: int) -> tuple[int, int]:
    """The split n = p·q with p ≤ q as close to √n as divisors allow; (1, n) when n is prime."""
    if n < 1:
        raise InputError("a size of at least 1", str(n), "pass the length of the axis")
    p = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return p, n // p


def roots_of_unity(n: int, exponent: Tensor) -> Tensor:
    """exp(−2πi·exponent/n), the integer exponents reduced modulo n first: float64 accuracy at any size."""
    angle = (-2 * math.pi / n) * (exponent % n).double()
    return torch.polar(torch.ones_like(angle), angle)


def norm_factor(n: int, norm: str, inverse: bool) -> float:
    """What ``torch.fft`` multiplies an n-point transform with: 1, n^(−1/2) or 1/n. Raises ``InputError``."""
    if norm not in ("backward", "ortho", "forward"):
        raise InputError("norm 'backward', 'ortho' or 'forward'", repr(norm), "use torch.fft's names")
    if norm == "ortho":
        return n**-0.5
    return 1 / n if (norm == "forward") != inverse else 1.0


def fourier_factors(
    n: int, n_modes: int, first: int, *, origin: int = 0, p: int | None = None
) -> tuple[Tensor, Tensor]:
    """Factors L, R of the orthonormal DFT onto modes first … first + n_modes − 1, complex128.

    With n = p·q, j = j1·q + j2 and k = first + ℓ·p + c, the entry exp(−2πi (j − origin) k/n) splits into
    ω_p^{j1·(first+c)} · ω_n^{(j2−origin)·k}. So, once a stride permutation has sorted the input by (j2, j1),
    ``R[j2, c, j1] = ω_p^{j1(first+c)}`` and ``L[c, ℓ, j2] = ω_n^{(j2−origin)k}``, each scaled to be
    orthonormal itself. Rows come in increasing frequency. p is the divisor of n nearest to √n, or the one
    given; when it does not divide n_modes, the last rows are frequencies beyond those asked for.

    Returns L (p, ⌈n_modes/p⌉, q) and R (q, p, p). Raises ``InputError`` unless 1 ≤ n_modes ≤ n, and p | n.
    """
    p = balanced_factors(n)[0] if p is None else p
    if p < 1 or n % p:
        raise InputError(f"a divisor of {n}", f"p={p}", "leave it out for the one nearest to the root")
    q = n // p
    if not 1 <= n_modes <= n:
        raise InputError(f"between 1 and {n} modes on a grid of {n} points", f"{n_modes}", "lower n_modes")
    j1, c, ell, j2 = torch.arange(p), torch.arange(p), torch.arange(-(-n_modes // p)), torch.arange(q)
    k = first + ell * p + c[:, None]  # (c, ℓ)
    R = roots_of_unity(p, (first + c)[:, None] * j1).expand(q, p, p)
    L = roots_of_unity(n, k[:, :, None] * (j2 - origin))
    return L * q**-0.5, R * p**-0.5


def truncated_dft(
    n: int,
    n_modes: int,
    first: int | None = None,
    *,
    norm: Norm = "ortho",
    dtype: torch.dtype = torch.complex128,
) -> LinearOperator:
    """The DFT onto the modes first … first + n_modes − 1, ``X[k] = s Σ_j exp(−2πi jk/n) x[j]``.

    A pruned FFT in one rectangular Monarch matrix: modes that are not kept are never computed. ``first``
    defaults to −(n_modes // 2), centred modes; s as in ``torch.fft`` (norm). With n = p·q, p ≤ q, the
    operator has shape (⌈n_modes/p⌉·p, n): slice off what you did not ask for. A prime n makes one dense
    block, exact at O(n·n_modes). Raises ``InputError`` unless 1 ≤ n_modes ≤ n.
    """
    first = -(n_modes // 2) if first is None else first
    L, R = fourier_factors(n, n_modes, first)
    L = L * (norm_factor(n, norm, inverse=False) * n**0.5)
    return Product(cast(MonarchMatrix(L, R), dtype), StridePermutation(*balanced_factors(n)))


def dft(
    n: int,
    *,
    inverse: bool = False,
    norm: Norm = "ortho",
    centered: bool = False,
    dtype: torch.dtype = torch.complex128,
) -> LinearOperator:
    """The discrete Fourier transform of any length as Monarch matrix times stride permutation.

    ``X[k] = s Σ_j exp(∓2πi jk/n) x[j]``, s as in ``torch.fft`` (norm). ``centered=True`` puts the origin of
    both domains at n // 2, the convention of MRI: fftshift ∘ DFT ∘ ifftshift, absorbed in the factors.

    With n = p·q it holds 2·n·√n numbers at best (p ≈ q); a prime n is one dense block: exact, O(n²).
    """
    centre = n // 2 if centered else 0
    L, R = fourier_factors(n, n, -centre, origin=centre)
    L = L * (norm_factor(n, norm, inverse) * n**0.5)
    if inverse:
        L, R = L.conj().resolve_conj(), R.conj().resolve_conj()
    return Product(cast(MonarchMatrix(L, R), dtype), StridePermutation(*balanced_factors(n)))


@kept(256)
def interpolation(n_from: int, n_to: int) -> Tensor:
    """Trigonometric interpolation between periodic grids of spacing 1/n_from and 1/n_to, complex128.

    ``T[x, y] = (1/n_from) Σ_k exp(2πi k (x/n_to − y/n_from))`` over the r = min(n_from, n_to) frequencies
    −(r // 2) … (r − 1) // 2 that both grids hold: exact for band-limited input, truncation otherwise. For
    even r the frequency −r/2 has no positive partner: the real part of T shares it between both, which is
    what real data want. Shape (n_to, n_from). Cached: do not modify it.
    """
    r = min(n_from, n_to)
    if r < 1:
        raise InputError("grids of at least one point", f"{n_from} and {n_to}", "pass their lengths")
    k = torch.arange(-(r // 2), (r - 1) // 2 + 1, device="cpu")
    synthesis = roots_of_unity(n_to, -torch.arange(n_to, device="cpu")[:, None] * k)
    analysis = roots_of_unity(n_from, k[:, None] * torch.arange(n_from, device="cpu")) / n_from
    return synthesis @ analysis
