"""Identity, block-diagonal matrices and permutations as Monarch matrices."""

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.operator import LinearOperator
from monarch_sciml.linalg.transforms import balanced_factors

__all__ = ["block_diagonal", "identity", "permutation"]


def identity(n: int, *, dtype: torch.dtype = torch.float64) -> MonarchMatrix:
    """The identity with about √n blocks (one dense block when n is prime): ``L[j] = I``, ``R[k] = I``."""
    p, q = balanced_factors(n)
    return block_diagonal(torch.eye(p, dtype=dtype).expand(q, p, p))


def block_diagonal(blocks: Tensor) -> MonarchMatrix:
    """The matrix with ``blocks`` (K, J, I) on its diagonal: R holds them, every L[j] is the identity."""
    check_tensors(blocks)
    if blocks.ndim != 3:
        raise InputError("blocks of equal shape (K, J, I)", f"shape {tuple(blocks.shape)}", "stack them")
    K, J, _ = blocks.shape
    return MonarchMatrix(torch.eye(K, dtype=blocks.dtype, device=blocks.device).expand(J, K, K), blocks)


def permutation(order: Tensor, *, dtype: torch.dtype = torch.float64) -> LinearOperator:
    """``y[a] = x[order[a]]`` as one Monarch matrix where possible, as two otherwise.

    A permutation is Monarch with (J, K) blocks exactly when no two outputs congruent modulo J come from the
    same block of n/K inputs: then every slice has at most one entry. The cheapest such (J, K) is taken, as
    long as two factors would not be cheaper.

    Any permutation is a product of two on a p × q grid, n = p·q. It moves entries of row k to rows l; in a
    bipartite multigraph of rows and rows where every vertex has q edges, Hall's theorem gives q perfect
    matchings, one after the other. The first factor moves within rows, matching c to column c, and then
    within columns to the final rows; the second moves within rows. 4·n·√n numbers at best; a prime n is one
    dense block.

    Raises ``InputError`` unless ``order`` holds 0 … n − 1 once each.
    """
    check_tensors(order)
    n = len(order) if order.ndim == 1 else 0
    indices = not (order.is_floating_point() or order.is_complex())
    if not n or not indices or not torch.equal(order.sort().values, torch.arange(n)):
        raise InputError(
            "a permutation of 0 … n − 1", f"{order.dtype} {tuple(order.shape)}", "give every index once"
        )
    order = order.long()
    p, q = balanced_factors(n)
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    for size, J, K in sorted((n * (J + K), J, K) for J in divisors for K in divisors):
        if size > 2 * n * (p + q):
            break
        if _is_monarch(order, J, K):
            return _one_factor(order, J, K, dtype)
    column = _route(order, p, q)
    middle = torch.arange(n) // q * q + column  # where the entry for output a waits between the factors
    first = torch.empty_like(order)
    first[middle] = order
    return _one_factor(middle, q, p, dtype) @ _one_factor(first, q, p, dtype)


def _is_monarch(order: Tensor, J: int, K: int) -> bool:
    n = len(order)
    return (torch.arange(n) % J * K + order // (n // K)).unique().numel() == n


def _one_factor(order: Tensor, J: int, K: int, dtype: torch.dtype) -> MonarchMatrix:
    n = len(order)
    I, a = n // K, torch.arange(n)
    L, R = torch.zeros(J, n // J, K, dtype=dtype), torch.zeros(K, J, I, dtype=dtype)
    L[a % J, a // J, order // I] = 1
    R[order // I, a % J, order % I] = 1
    return MonarchMatrix(L, R)


def _route(order: Tensor, p: int, q: int) -> Tensor:
    """A column c for every output a, different among those of one row and among those from one row."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    rows = torch.arange(p)
    waiting: dict[tuple[int, int], list[int]] = {}
    for a, source in enumerate((order // q).tolist()):
        waiting.setdefault((a // q, source), []).append(a)
    column = torch.empty_like(order)
    for c in range(q):
        edges = torch.zeros(p, p, dtype=torch.int32)
        for edge, outputs in waiting.items():
            edges[edge] = len(outputs) > 0
        sources = maximum_bipartite_matching(csr_array(edges.numpy()), perm_type="column")
        for edge in zip(rows.tolist(), sources.tolist(), strict=True):
            column[waiting[edge].pop()] = c
    return column
