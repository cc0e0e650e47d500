"""What operators are made of: selections of entries, diagonals absorbed in factors, the list of factors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.operator import LinearOperator, Product, Scaled, Sum, check_last

__all__ = ["Cropped", "Selection", "absorb", "cast", "crop", "monarch_factors"]


class Selection(LinearOperator):
    """``(Sx)[a] = x[index[a]]``, and zero where index[a] = −1: a permutation, cropping or zero-padding.

    ``index`` (m,) holds different entries of 0 … n − 1, and −1 as often as needed: the adjoint is then a
    selection too. Costs one copy, no arithmetic. Raises ``InputError`` when an entry is out of range or comes
    twice.
    """

    def __init__(self, index: Tensor, n: int):
        check_tensors(index)
        kept = index[index >= 0]
        if index.ndim != 1 or index.dtype != torch.int64 or (index < -1).any() or (index >= n).any():
            raise InputError(
                f"a vector of integers from −1 to {n - 1}",
                f"{index.dtype} of shape {tuple(index.shape)}",
                "give the position in x of every entry, −1 for a zero",
            )
        if kept.unique().numel() < kept.numel():
            raise InputError("every entry of x at most once", "an index that comes twice", "remove one")
        super().__init__((len(index),), (n,))
        self.index, self.has_gaps = index, kept.numel() < index.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """Select from the last dimension."""
        check_last(x, self.shape[1])
        y = x[..., self.index.clamp(min=0)]
        return y * (self.index >= 0).to(y.dtype) if self.has_gaps else y

    @property
    def H(self) -> Selection:
        """The adjoint: every entry back to its place, zeros where none came from."""
        m, n = self.shape
        back = self.index.new_full((n,), -1)
        taken = self.index >= 0
        back[self.index[taken]] = torch.arange(m, device=self.index.device)[taken]
        return Selection(back, m)


class Cropped(LinearOperator):
    """The first m rows and n columns of a larger operator: ``x ↦ (A [x; 0])[:m]``.

    ``full`` is the operator A on vectors, ``shape`` (m, n) at most its own. Raises ``InputError`` otherwise.
    """

    def __init__(self, full: LinearOperator, shape: tuple[int, int]):
        (m, n), (M, N) = shape, full.shape
        if not (1 <= m <= M and 1 <= n <= N):
            raise InputError(f"a shape within {full.shape}", f"{shape}", "crop to fewer rows and columns")
        super().__init__((m,), (n,))
        self.full = full

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) → (..., m)."""
        m, n = self.shape
        check_last(x, n)
        return self.full(F.pad(x, (0, self.full.shape[1] - n)))[..., :m]

    @property
    def H(self) -> Cropped:
        """The adjoint of A, cropped."""
        m, n = self.shape
        return Cropped(self.full.H, (n, m))

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix (..., m, n), in the ``dtype`` that A takes by default."""
        dense = self.full.to_dense() if dtype is None else self.full.to_dense(dtype)
        return dense[..., : self.shape[0], : self.shape[1]]


def crop(A: LinearOperator, m: int, n: int) -> LinearOperator:
    """The first m rows and n columns of A; A itself where that is all of it."""
    return A if (m, n) == A.shape else Cropped(A, (m, n))


def absorb(M: MonarchMatrix, *, rows: Tensor | None = None, columns: Tensor | None = None) -> MonarchMatrix:
    """``diag(rows) · M · diag(columns)`` as a Monarch matrix: rows (S·J,) scale L, columns (K·I,) scale R."""
    L, R = M.L, M.R
    if rows is not None:
        check_tensors(rows)
        L = L * rows.unflatten(-1, (L.shape[-2], L.shape[-3])).mT[..., None]
    if columns is not None:
        check_tensors(columns)
        R = R * columns.unflatten(-1, (R.shape[-3], R.shape[-1]))[..., None, :]
    return MonarchMatrix(L, R)


def cast(M: MonarchMatrix, dtype: torch.dtype) -> MonarchMatrix:
    """M with factors in ``dtype``. Raises ``InputError`` for one that cannot hold them."""
    if M.L.is_complex() and not dtype.is_complex:
        raise InputError("a complex dtype", f"{dtype}", "the factors of this transform are complex")
    if not (dtype.is_complex or dtype.is_floating_point):
        raise InputError("a floating-point or complex dtype", f"{dtype}", "leave it out for double precision")
    return MonarchMatrix(M.L.to(dtype), M.R.to(dtype))


def monarch_factors(A: LinearOperator) -> list[MonarchMatrix]:
    """The Monarch matrices that an operator multiplies with, in the order of the formula.

    Looks into products, sums and scalar multiples; permutations, selections and other operators add none.
    """
    match A:
        case MonarchMatrix():
            return [A]
        case Product() | Sum():
            return monarch_factors(A.A) + monarch_factors(A.B)
        case Scaled():
            return monarch_factors(A.A)
        case Cropped():
            return monarch_factors(A.full)
        case _:
            return []
