"""The nearest Monarch matrix (Dao et al. 2022, Algorithm 1)."""

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.transforms import balanced_factors

__all__ = ["project"]


def project(A: Tensor, nblocks: tuple[int, int] | None = None, *, rank: int = 1) -> MonarchMatrix:
    """The Monarch matrix closest to ``A`` in the Frobenius norm: argmin over M of ‖A − M‖_F.

    Written ``A[(ℓ,j),(k,i)]``, a Monarch matrix is exactly one whose slices ``A[:, j, k, :]`` all have rank
    one, or at most ``rank`` in general, and the slices do not share entries. The best approximation of each,
    Σ_t σ_t u_t v_tᴴ over its largest singular values, is therefore globally optimal; √σ_t goes to either
    factor. The squared error is the sum of the slices' remaining σ².

    ``A`` is (..., m, n), real or complex, square or not. ``nblocks = (J, K)`` are the block counts of L and
    R; J divides m and K divides n. By default each is the divisor nearest to the square root, the larger for
    K. O(m·n·√n) for square matrices. Raises ``InputError`` when the counts do not divide the shape, or the
    rank exceeds that of the slices, m/J × n/K.
    """
    if A.ndim < 2 or not (A.is_floating_point() or A.is_complex()):
        raise InputError(
            "a floating-point or complex matrix (..., m, n)",
            f"{A.dtype} of shape {tuple(A.shape)}",
            "convert it with .to(torch.float64)",
        )
    m, n = A.shape[-2:]
    J, K = nblocks or (balanced_factors(m)[0], balanced_factors(n)[1])
    if J < 1 or K < 1 or m % J or n % K:
        raise InputError(
            f"block counts (J, K) with J dividing {m} and K dividing {n}", f"({J}, {K})", "choose divisors"
        )
    full = min(m // J, n // K)
    if not 1 <= rank <= full:
        raise InputError(f"a rank from 1 to {full}", str(rank), "choose fewer blocks or a lower rank")
    slices = A.unflatten(-2, (m // J, J)).unflatten(-1, (K, n // K))  # (..., ℓ, j, k, i)
    slices = slices.movedim(-4, -2)  # (..., j, k, ℓ, i)
    u, sigma, vh = torch.linalg.svd(slices, full_matrices=False)
    root = sigma[..., :rank].sqrt()
    L = u[..., :rank] * root[..., None, :]  # (..., j, k, ℓ, t)
    R = root[..., None] * vh[..., :rank, :]  # (..., j, k, t, i)
    return MonarchMatrix(L.transpose(-3, -2).flatten(-2), R.transpose(-4, -3).flatten(-3, -2))
