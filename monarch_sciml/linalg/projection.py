"""The nearest Monarch matrix (Dao et al. 2022, Algorithm 1), and how many blocks it should have."""

from __future__ import annotations

import math
from itertools import product
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.caching import traced
from monarch_sciml.linalg.composition import Cropped
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.transforms import balanced_factors

__all__ = ["BlockChoice", "choose_blocks", "compare_blocks", "is_finite", "project", "project_padded"]


def project(A: Tensor, nblocks: tuple[int, int] | None = None, *, rank: int = 1) -> MonarchMatrix:
    """The Monarch matrix closest to ``A`` in the Frobenius norm: argmin over M of ‖A − M‖_F.

    Written ``A[(ℓ,j),(k,i)]``, a Monarch matrix is exactly one whose slices ``A[:, j, k, :]`` all have rank
    one, or at most ``rank`` in general, and the slices do not share entries. The best approximation of each,
    Σ_t σ_t u_t v_tᴴ over its largest singular values, is therefore globally optimal; √σ_t goes to either
    factor. The squared error is the sum of the slices' remaining σ².

    ``A`` is (..., m, n), real or complex, square or not. ``nblocks = (J, K)`` are the block counts of L and
    R; J divides m and K divides n. By default each is the divisor nearest to the square root, the larger for
    K. O(m·n·√n) for square matrices. Half precision is decomposed in float32; the factors have the dtype of
    A. The matrix is differentiable where the singular values of each slice differ and the first ``rank`` are
    not zero; elsewhere, as in a slice of zeros, its gradient may be NaN. Raises ``InputError`` for entries
    that are not finite, when the counts do not divide the shape, or when the rank exceeds that of the slices,
    m/J × n/K; ``project_padded`` takes any counts.
    """
    _check_matrix(A)
    m, n = A.shape[-2:]
    J, K = (balanced_factors(m)[0], balanced_factors(n)[1]) if nblocks is None else _pair(nblocks)
    if J < 1 or K < 1 or m % J or n % K:
        raise InputError(
            f"block counts (J, K) with J dividing {m} and K dividing {n}", f"({J}, {K})", "choose divisors"
        )
    full = min(m // J, n // K)
    if not 1 <= rank <= full:
        raise InputError(f"a rank from 1 to {full}", str(rank), "choose fewer blocks or a lower rank")
    u, sigma, vh = torch.linalg.svd(_slices(A.to(_decomposed(A.dtype)), J, K), full_matrices=False)
    root = sigma[..., :rank].sqrt()
    L = u[..., :rank] * root[..., None, :]  # (..., j, k, ℓ, t)
    R = root[..., None] * vh[..., :rank, :]  # (..., j, k, t, i)
    L, R = L.transpose(-3, -2).flatten(-2), R.transpose(-4, -3).flatten(-3, -2)
    return MonarchMatrix(L.to(A.dtype), R.to(A.dtype))


def project_padded(A: Tensor, nblocks: tuple[int, int], *, rank: int = 1) -> Cropped:
    """The closest matrix to ``A`` among crops of Monarch matrices, for block counts that need not divide.

    ``A`` (..., m, n) is padded with zeros to J·⌈m/J⌉ rows and K·⌈n/K⌉ columns and projected. The best
    approximation of a padded slice is zero where the slice is, so the crop is optimal too, and the squared
    error is again the sum of the slices' remaining σ². The result has the shape of A; its ``.full`` is the
    ``MonarchMatrix``, whose factors hold the padding. Raises ``InputError`` as ``project`` does, and unless
    1 ≤ J ≤ m, 1 ≤ K ≤ n.
    """
    _check_matrix(A)
    (m, n), (J, K) = A.shape[-2:], _pair(nblocks)
    if not (1 <= J <= m and 1 <= K <= n):
        raise InputError(f"block counts (J, K) up to ({m}, {n})", f"({J}, {K})", "choose fewer blocks")
    return Cropped(project(F.pad(A, (0, -n % K, 0, -m % J)), nblocks, rank=rank), (m, n))


class BlockChoice(NamedTuple):
    """One row of ``compare_blocks``: ``project(A, nblocks, rank=rank)`` and what it would give."""

    nblocks: tuple[int, int]
    """(J, K), the blocks of L and of R."""
    rank: int
    """T, the rank of the slices."""
    parameters: int
    """T·(K·m + J·n) numbers in both factors."""
    error: float
    """‖A − M‖_F / ‖A‖_F, all matrices of a batch together."""


def compare_blocks(A: Tensor, budget: float) -> list[BlockChoice]:
    """What every block count within a budget would cost in accuracy, the most accurate first.

    For each pair of divisors J of m and K of n the rank is the largest with T·(K·m + J·n) ≤ budget·m·n
    numbers, or the lowest that is as accurate; pairs too large at rank 1 are left out. Errors come from the
    singular values of the slices; differences below 100 ε of the dtype (of float32 for half precision, and
    at least ε of A's own) count as none, and then fewer parameters come first.

    The search decomposes A once per feasible pair, O(m·n·min(m/J, n/K)) each, where J = K = 1 is a full
    singular value decomposition: 193 of them for 768 × 768 and a budget of 0.25. Sizes with few divisors
    leave few choices: pad A. Raises ``InputError`` for a budget that nothing meets, and for entries that are
    not finite.
    """
    _check_matrix(A)
    (m, n), dtype = A.shape[-2:], _decomposed(A.dtype)
    least = (m + n) / max(m * n, 1)
    if not least <= budget < math.inf:
        raise InputError(
            f"a budget of at least {least:.3g}", f"{budget}", f"it is a share of {m}·{n} numbers"
        )
    noise = max(100 * torch.finfo(dtype).eps, torch.finfo(A.dtype).eps)
    A = A.detach().to(dtype)
    if A.numel():  # the largest entry is one: squares of very small or large ones would be zero or infinite
        A = A / A.abs().max().clamp_min(torch.finfo(dtype).tiny)
    rows = []
    for J, K in product(_divisors(m), _divisors(n)):
        most = min(math.floor(budget * m * n / (K * m + J * n) + 1e-9), m // J, n // K)
        if most < 1:
            continue
        power = torch.linalg.svdvals(_slices(A, J, K)).double().square().flatten(0, -2).sum(0)
        tails = F.pad(power.flip(0).cumsum(0).flip(0), (0, 1))  # tails[t]: what rank t leaves
        errors = (tails / tails[0].clamp_min(torch.finfo(torch.float64).tiny)).sqrt()[1 : most + 1]
        rank = 1 + int((errors <= errors[-1] + noise).nonzero()[0])
        rows.append(BlockChoice((J, K), rank, rank * (K * m + J * n), errors[rank - 1].item()))
    return sorted(rows, key=lambda row: (round(row.error / noise), row.parameters))


def choose_blocks(A: Tensor, budget: float) -> BlockChoice:
    """The block counts and rank of the closest Monarch matrix of at most ``budget``·m·n numbers.

    The first row of ``compare_blocks``, which says what the search costs.

    >>> choice = choose_blocks(A, 0.3)
    >>> M = project(A, choice.nblocks, rank=choice.rank)
    """
    return compare_blocks(A, budget)[0]


def _pair(nblocks: tuple[int, int]) -> tuple[int, int]:
    try:
        J, K = map(index, nblocks)
    except (TypeError, ValueError):
        raise InputError("block counts (J, K), of L and of R", repr(nblocks), "pass two integers") from None
    return J, K


def _check_matrix(A: Tensor) -> None:
    check_tensors(A)
    if A.ndim < 2 or not (A.is_floating_point() or A.is_complex()):
        raise InputError(
            "a floating-point or complex matrix (..., m, n)",
            f"{A.dtype} of shape {tuple(A.shape)}",
            "convert it with .to(torch.float64)",
        )
    if not is_finite(A):
        raise InputError("a matrix of finite numbers", "NaN or infinity", "A.isfinite() shows where")


def is_finite(A: Tensor) -> bool:
    """Whether no entry is NaN or infinite, as far as there are numbers to look at."""
    return A.is_meta or traced() or bool(A.isfinite().all())


def _decomposed(dtype: torch.dtype) -> torch.dtype:
    """The precision of a singular value decomposition: there is none in half precision."""
    return torch.promote_types(dtype, torch.float32)


def _slices(A: Tensor, J: int, K: int) -> Tensor:
    """A[(ℓ,j),(k,i)] as its slices (..., j, k, ℓ, i)."""
    return A.unflatten(-2, (-1, J)).unflatten(-1, (K, -1)).movedim(-4, -2)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
