"""Linear operators that compose like the formulas they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import overload

import torch
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["LinearOperator"]


class LinearOperator(ABC):
    """A linear map with ``@``, ``+``, scalar ``*``, ``.H`` and ``.to_dense()``.

    ``A(x)`` acts on the last dimension of ``x`` (..., n) and returns (..., m). ``A @ x`` follows
    ``torch.matmul``: a vector (n,) gives (m,), a matrix (..., n, c) gives (..., m, c). ``A @ B`` is the
    operator that applies B first.
    """

    shape: tuple[int, int]
    """(m, n): rows and columns."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension: (..., n) → (..., m)."""

    @property
    @abstractmethod
    def H(self) -> LinearOperator:
        """The adjoint: ⟨A x, y⟩ = ⟨x, A.H y⟩ for all x, y."""

    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    def __matmul__(self, other: LinearOperator | Tensor) -> LinearOperator | Tensor:
        n, found = self.shape[1], other.shape[-2] if len(other.shape) > 1 else other.shape[0]
        if n != found:
            raise InputError(
                f"{n} rows on the right of an operator of shape {self.shape}",
                f"shape {tuple(other.shape)}",
                "check the order of the product; to act on a last dimension call A(x)",
            )
        if isinstance(other, LinearOperator):
            return _Product(self, other)
        return self(other) if other.ndim == 1 else self(other.mT).mT

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, other)

    def __mul__(self, scalar: complex) -> LinearOperator:
        return _Scaled(scalar, self)

    __rmul__ = __mul__

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix (m, n), by applying the operator to the identity: O(n²) memory and n applications."""
        return self(torch.eye(self.shape[1], dtype=dtype)).mT

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape}"


class _Product(LinearOperator):
    def __init__(self, A: LinearOperator, B: LinearOperator):
        self.A, self.B = A, B
        self.shape = (A.shape[0], B.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(self.B(x))

    @property
    def H(self) -> LinearOperator:
        return self.B.H @ self.A.H

    def __repr__(self) -> str:
        return f"{self.A!r} @ {self.B!r}"


class _Sum(LinearOperator):
    def __init__(self, A: LinearOperator, B: LinearOperator):
        if A.shape != B.shape:
            raise InputError(f"operators of equal shape {A.shape}", f"{B.shape}", "only those can be added")
        self.A, self.B = A, B
        self.shape = A.shape

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(x) + self.B(x)

    @property
    def H(self) -> LinearOperator:
        return self.A.H + self.B.H


class _Scaled(LinearOperator):
    def __init__(self, scalar: complex, A: LinearOperator):
        self.scalar, self.A = scalar, A
        self.shape = A.shape

    def __call__(self, x: Tensor) -> Tensor:
        return self.scalar * self.A(x)

    @property
    def H(self) -> LinearOperator:
        return self.scalar.conjugate() * self.A.H
